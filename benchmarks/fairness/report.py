"""What the runs came to, as tables and plots in docs/fairness.md."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec

from worker.policy.backoff import Backoff, Jitter

from ..report import between_markers
from .functions import Function
from .picture import each_second, lines
from .runs import ROBUST, RUNS, Run
from .simulation import Limits, Result, Simulation, greedy, oracle, ours

KEPT = "fairness.json"
GREEDY, JITTERED = "greedy", "greedy, full jitter"
WHO: Mapping[str, tuple[Callable[[int], Callable[[Function], Limits]], Jitter]] = {
    "oracle": (oracle, Jitter.EXPONENTIAL),
    "ours": (ours, Jitter.EXPONENTIAL),
    GREEDY: (greedy, Jitter.EXPONENTIAL),
    JITTERED: (greedy, Jitter.FULL),
}


class Sample(msgspec.Struct):
    """One run by one of them."""

    time: float
    rejections: int
    lost: int
    attempts: int
    """Most that one message needed."""
    worst: float
    """The function that was latest, against the oracle (1 for the oracle itself)."""
    held: float
    """The mean of all workers' limits, in the second half (of the first function)."""
    shares: list[float]
    """Of the workers."""


Samples = dict[str, dict[str, list[Sample]]]


def simulate(run: Run, who: str, seed: int) -> tuple[Simulation, Result]:
    """One run by one of them."""
    functions, messages = run.make(seed)
    make, jitter = WHO[who]
    simulation = Simulation(
        functions,
        messages,
        make(run.slots),
        workers=run.workers,
        slots=run.slots,
        seed=seed,
        backoff=Backoff(jitter=jitter),
    )
    return simulation, simulation.run()


def measure(run: Run, say: Callable[[str], None]) -> dict[str, list[Sample]]:
    """All seeds, by all that it is run by."""
    by: dict[str, list[Sample]] = {}
    for seed in range(run.seeds):
        ends: dict[str, float] = {}
        for who in WHO if run.greedy else ("oracle", "ours"):
            simulation, result = simulate(run, who, seed)
            ends = ends or result.ended
            by.setdefault(who, []).append(_sample(run, simulation, result, ends))
    say(f"{run.name}: " + "; ".join(f"{who} {_middle(by[who], 'time')} s" for who in by))
    return by


def _sample(run: Run, simulation: Simulation, result: Result, ends: Mapping[str, float]) -> Sample:
    late = [sum(limits) for at, limits in result.limits if at > result.time / 2] or [0]
    return Sample(
        time=round(result.time, 1),
        rejections=result.rejections,
        lost=result.lost,
        attempts=min(simulation.attempts, 1 + max(simulation.tries.values(), default=0)),
        worst=round(max(result.ended[name] / ends[name] for name in ends), 3),
        held=round(sum(late) / len(late), 1),
        shares=[
            round(sum(by == each for _, by in result.served) / len(result.served), 3) for each in range(run.workers)
        ],
    )


def _middle(samples: Sequence[Sample], what: str) -> str:
    numbers = [getattr(sample, what) for sample in samples]
    middle, most = median(numbers), max(numbers)
    digits = 0 if what != "worst" else 3
    return f"{middle:,.{digits}f}" + (f" ({most:,.{digits}f})" if middle != most else "")


def against(mine: Sequence[Sample], told: Sequence[Sample]) -> list[float]:
    """Times the oracle's time, seed by seed."""
    return [each.time / other.time for each, other in zip(mine, told, strict=True)]


def _ratio(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f}" + (f" ({max(ratios):.3f})" if len(ratios) > 1 else "")


def promised(samples: Samples) -> str:
    """The table of what was to be reached."""

    def row(figure: str, reach: str, measured: str, reached: bool) -> str:
        return f"| {figure} | {reach} | {measured} | {'✓' if reached else '✗'} |"

    def both(name: str) -> tuple[list[float], list[int]]:
        by = samples[name]
        return against(by["ours"], by["oracle"]), [each.rejections for each in by["ours"]]

    rows = ["| figure | reach | worst of the seeds | |", "| --- | --- | --- | --- |"]
    ratios, refused = both("published")
    rows += [
        row("OpenFaaS's run, time", "at most 1.10 of the oracle", f"{max(ratios):.3f}", max(ratios) <= 1.10),
        row("OpenFaaS's run, rejections", "at most 15", str(max(refused)), max(refused) <= 15),
    ]
    for name, what in (("steady", "steady, 2.0 s"), ("noisy", "steady, lognormal")):
        ratios, refused = both(name)
        part = max(refused) / 10_000
        rows += [
            row(f"{what}, time", "at most 1.03 of the oracle", f"{max(ratios):.3f}", max(ratios) <= 1.03),
            row(f"{what}, rejections", "under 0.5 %", f"{part:.2%}", part < 0.005),
        ]
    for name, what in (("changes", "halved, doubled, to zero and back"), ("changes-noisy", "the same, lognormal")):
        ratios, _ = both(name)
        rows.append(row(f"{what}, time", "at most 1.10 of the oracle", f"{max(ratios):.3f}", max(ratios) <= 1.10))
    ratios, _ = both("mix")
    worst = max(each.worst for each in samples["mix"]["ours"])
    rows += [
        row("mix of 50, time", "at most 1.10 of the oracle", f"{max(ratios):.3f}", max(ratios) <= 1.10),
        row(
            "mix of 50, the function that ended latest against its end by the oracle",
            "not starved",
            f"{worst:.3f}",
            worst < 2,
        ),
    ]
    return "\n".join(rows) + "\n"


def beside(samples: Samples) -> str:
    """The same runs by each."""
    rows = ["| run | by | seconds | of the oracle | rejections | most attempts | lost |", "| --- " * 7 + "|"]
    for run in [*RUNS, *ROBUST]:
        if not run.greedy:
            continue
        told = samples[run.name]["oracle"]
        for who, each in samples[run.name].items():
            part = "" if who == "oracle" else _ratio(against(each, told))
            numbers = " | ".join(_middle(each, what) for what in ("rejections", "attempts", "lost"))
            rows.append(f"| {run.what} | {who} | {_middle(each, 'time')} | {part} | {numbers} |")
    return "\n".join(rows) + "\n"


def robust(samples: Samples) -> str:
    """Ours where else it may be."""
    rows = [
        "| run | of the oracle | rejections | of invocations | limits held | shares of workers |",
        "| --- " * 6 + "|",
    ]
    for run in ROBUST:
        by = samples[run.name]
        mine = by["ours"]
        count = sum(run.make(0)[1].values())
        part = max(each.rejections for each in mine) / count
        shares = "; ".join(" : ".join(f"{share:.0%}" for share in each.shares) for each in mine[:2])
        held = f"{median(each.held for each in mine):.1f}"
        shown = shares if run.workers > 1 else ""
        ratio = _ratio(against(mine, by["oracle"])) if not run.greedy else f"({_middle(mine, 'time')} s)"
        rows.append(f"| {run.what} | {ratio} | {_middle(mine, 'rejections')} | {part:.2%} | {held} | {shown} |")
    return "\n".join(rows) + "\n"


def plots() -> Mapping[str, str]:
    """In flight over time: by file name."""
    run = RUNS[0]
    until = 300.0
    by: dict[str, Sequence[tuple[float, float]]] = {}
    for who in ("ours", JITTERED):
        _, result = simulate(run, who, 0)
        if who == "ours":
            by["capacity (ours)"] = each_second(result.trace, 1, result.time)
        by[who] = each_second(result.trace, 0, min(until, result.time))
    changes = next(run for run in RUNS if run.name == "changes")
    _, result = simulate(changes, "ours", 0)
    _, other = simulate(changes, JITTERED, 0)
    return {
        "fairness-published.svg": lines("Invocations that run: OpenFaaS's published run", by, until),
        "fairness-changes.svg": lines(
            "Invocations that run: capacity that changes",
            {
                "capacity": each_second(result.trace, 1, 420.0),
                "ours": each_second(result.trace, 0, 420.0),
                JITTERED: each_second(other.trace, 0, 420.0),
            },
            420.0,
        ),
    }


def keep(docs: Path, samples: Samples) -> None:
    """Put the samples beside the document, from which it can be written again."""
    (docs / KEPT).write_bytes(msgspec.json.format(msgspec.json.encode(samples), indent=1) + b"\n")


def kept(docs: Path) -> Samples:
    """The samples."""
    return msgspec.json.decode((docs / KEPT).read_bytes(), type=Samples)


def write(docs: Path) -> None:
    """Write the tables into the document."""
    document, samples = docs / "fairness.md", kept(docs)
    text = document.read_text()
    for name, table in (("promised", promised), ("beside", beside), ("robust", robust)):
        text = between_markers(text, name, table(samples))
    document.write_text(text)
