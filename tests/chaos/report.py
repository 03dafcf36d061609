"""What is told of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.ledger import History, Verdict


@dataclass(frozen=True, slots=True)
class Told:
    """One run and what was found."""

    seed: int
    nodes: int
    history: History
    verdict: Verdict
    complaints: Sequence[str]
    """Of the workers' logs."""
    seconds: float

    @property
    def sound(self) -> bool:
        return self.verdict.sound and not self.complaints


def markdown(told: Told) -> str:
    """The tables of docs/reliability.md for one run."""
    history, verdict = told.history, told.verdict
    name = "One node, one replica" if told.nodes == 1 else f"A cluster of {told.nodes}, three replicas"
    again = sum(verdict.causes.values())
    worst, took = max(verdict.drains, key=lambda drain: drain[1], default=("", 0.0))
    rows = [
        ("messages published", f"{len(history.published) + len(history.undecodable):,}"),
        ("lost", f"{len(verdict.lost)}"),
        ("invocations", f"{len(history.runs):,}"),
        ("invoked more than once: because it failed", f"{verdict.causes['retry']:,}"),
        ("invoked more than once: by a fault in force", f"{again - verdict.causes['retry']:,}"),
        ("invoked more than once: without cause", f"{len(verdict.unexplained)}"),
        ("attempts out of policy", f"{len(verdict.out_of_policy)}"),
        ("callbacks received", f"{len(history.posts):,}"),
        ("callbacks missing, too early or untrue", f"{len(verdict.untold)}"),
        ("dead letters", f"{len(history.letters):,}"),
        ("workers; killed, stopped", f"{_workers(history)}"),
        ("longest drain; its bound", f"{took:.2f} s; {history.rules.drain:g} s ({worst})"),
        ("faults", f"{len(history.faults)} in {told.seconds:.0f} s"),
    ]
    lines = [f"### {name}", "", "| | |", "| --- | --- |", *(f"| {what} | {figure} |" for what, figure in rows), ""]
    lines += ["| fault | times | invoked again by it | longest recovery |", "| --- | --- | --- | --- |"]
    for kind in sorted(verdict.recoveries):
        times = sum(fault.kind == kind for fault in history.faults)
        longest = max(verdict.recoveries[kind], default=None)
        recovery = "" if longest is None else f"{longest:.1f} s"
        lines.append(f"| {kind} | {times} | {verdict.causes[kind] or ''} | {recovery} |")
    return "\n".join(lines) + "\n"


def _workers(history: History) -> str:
    killed = sum(shift.killed for shift in history.shifts)
    return f"{len(history.shifts)}; {killed}, {len(history.shifts) - killed}"
