"""The report of one or several runs: tables in Markdown for docs/reliability.md."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.history import History
from tests.chaos.ledger import RETRY, Findings

BEGIN, END = "<!-- the latest report -->", "<!-- its end -->"
"""The marks around the report in docs/reliability.md."""


@dataclass(frozen=True, slots=True)
class RunReport:
    """One run and the findings about it."""

    seed: int
    nodes: int
    mode: str
    history: History
    findings: Findings
    bad_log_lines: Sequence[str]
    """Lines of the workers' logs that must not be there."""
    seconds: float

    @property
    def name(self) -> str:
        """Return the heading of the run's column."""
        return f"{self.mode}, one node" if self.nodes == 1 else f"{self.mode}, {self.nodes} nodes"

    @property
    def sound(self) -> bool:
        return self.findings.sound and not self.bad_log_lines


def markdown(runs: Sequence[RunReport]) -> str:
    """Return the tables of docs/reliability.md for some runs: their results, and the effects of each fault."""
    columns = [_figures(each) for each in runs]
    lines = [
        "| | " + " | ".join(each.name for each in runs) + " |",
        "| --- |" + " --- |" * len(runs),
        *("| " + " | ".join([what, *(column[what] for column in columns)]) + " |" for what in columns[0]),
        "",
        "| fault | times | invoked again by it | longest recovery |",
        "| --- | --- | --- | --- |",
    ]
    for kind in sorted({kind for each in runs for kind in each.findings.recoveries}):
        times = sum(fault.kind == kind for each in runs for fault in each.history.faults)
        again = sum(each.findings.causes[kind] for each in runs)
        longest = max((took for each in runs for took in each.findings.recoveries.get(kind, ())), default=None)
        recovery = "" if longest is None else f"{longest:.1f} s"
        lines.append(f"| {kind} | {times} | {again or ''} | {recovery} |")
    return "\n".join(lines) + "\n"


def _figures(run: RunReport) -> dict[str, str]:
    history, findings = run.history, run.findings
    again = sum(findings.causes.values())
    worst, took = max(findings.drains, key=lambda drain: drain[1], default=("", 0.0))
    return {
        "messages published": f"{len(history.published) + len(history.undecodable):,}",
        "lost": f"{len(findings.lost)}",
        "invocations": f"{len(history.runs):,}",
        "invoked more than once: because it failed": f"{findings.causes[RETRY]:,}",
        "invoked more than once: by a fault in force": f"{again - findings.causes[RETRY]:,}",
        "invoked more than once: without cause": f"{len(findings.unexplained)}",
        "attempts out of policy": f"{len(findings.out_of_policy)}",
        "callbacks received": f"{len(history.callbacks):,}",
        "callbacks missing, too early or untrue": f"{len(findings.wrong_callbacks)}",
        "acknowledged, and left in the stream by a full disk": f"{history.num_stored - history.num_unfinished:,}",
        "dead letters": f"{len(history.dead_letters):,}",
        "workers; killed, stopped": f"{_workers(history)}",
        "longest drain; its bound": f"{took:.2f} s; {history.rules.drain:g} s ({worst})",
        "faults": f"{len(history.faults)} in {run.seconds:.0f} s",
    }


def write(document: Path, runs: Sequence[RunReport]) -> None:
    """Replace the tables in *document* by those of these runs."""
    before, _, rest = document.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{document} has no place for the tables: {BEGIN} ... {END}"
    today = datetime.now(UTC).date().isoformat()
    machine = f"{platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}"
    how = f"{today}, seed {runs[0].seed}, {machine}"
    document.write_text(f"{before}{BEGIN}\n\n{how}.\n\n{markdown(runs)}\n{END}{after}")


def _workers(history: History) -> str:
    killed = sum(life.killed for life in history.lives)
    return f"{len(history.lives)}; {killed}, {len(history.lives) - killed}"
