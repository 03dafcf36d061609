"""Write the figures of the runs into docs/fairness.md, as tables and plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import msgspec

from worker.policy.retry import Backoff, Jitter

from ..report import between_markers
from .functions import Function
from .picture import draw, each_second
from .runs import ROBUST, RUNS, Run
from .simulation import Limit, Result, Simulation, greedy, limiter, oracle

SAMPLES = "fairness.json"
ORACLE, LIMITER, GREEDY, JITTERED = "oracle", "limiter", "greedy", "greedy, full jitter"
CONTENDERS: Mapping[str, tuple[Callable[[int], Callable[[Function], Limit]], Jitter]] = {
    ORACLE: (oracle, Jitter.EXPONENTIAL),
    LIMITER: (limiter, Jitter.EXPONENTIAL),
    GREEDY: (greedy, Jitter.EXPONENTIAL),
    JITTERED: (greedy, Jitter.FULL),
}
"""The limits that are compared, each with the jitter of its worker's backoff."""


class Sample(msgspec.Struct):
    """The figures of one run of a contender."""

    time: float
    rejections: int
    lost: int
    attempts: int
    """Most attempts that a message needed."""
    worst: float
    """The end of the function that ended latest, divided by its end with the oracle (1 for the oracle itself)."""
    held: float
    """The mean over the second half of the limits of all workers, of the first function."""
    shares: list[float]
    """Part of the messages that each worker ran."""


Samples = dict[str, dict[str, list[Sample]]]


def simulate(run: Run, contender: str, seed: int) -> tuple[Simulation, Result]:
    """Run a contender, and return its simulation and the figures."""
    functions, messages = run.make(seed)
    make_limits, jitter = CONTENDERS[contender]
    simulation = Simulation(
        functions,
        messages,
        make_limits(run.slots),
        workers=run.workers,
        slots=run.slots,
        seed=seed,
        backoff=Backoff(jitter=jitter),
    )
    return simulation, simulation.run()


def measure(run: Run, echo: Callable[[str], None]) -> dict[str, list[Sample]]:
    """Run all contenders with all seeds, and return their samples."""
    samples: dict[str, list[Sample]] = {}
    for seed in range(run.seeds):
        oracle_ended: dict[str, float] = {}
        for contender in CONTENDERS if run.greedy else (ORACLE, LIMITER):
            simulation, result = simulate(run, contender, seed)
            oracle_ended = oracle_ended or result.ended
            samples.setdefault(contender, []).append(_sample(run, simulation, result, oracle_ended))
    echo(f"{run.name}: " + "; ".join(f"{each} {_median(samples[each], 'time')} s" for each in samples))
    return samples


def _sample(run: Run, simulation: Simulation, result: Result, oracle_ended: Mapping[str, float]) -> Sample:
    late = [sum(limits) for at, limits in result.limits if at > result.time / 2] or [0]
    return Sample(
        time=round(result.time, 1),
        rejections=result.rejections,
        lost=result.lost,
        attempts=min(simulation.attempts, 1 + max(simulation.tries.values(), default=0)),
        worst=round(max(result.ended[name] / oracle_ended[name] for name in oracle_ended), 3),
        held=round(sum(late) / len(late), 1),
        shares=[
            round(sum(worker == each for _, worker in result.served) / len(result.served), 3)
            for each in range(run.workers)
        ],
    )


def _median(samples: Sequence[Sample], field: str) -> str:
    numbers = [getattr(sample, field) for sample in samples]
    middle, highest = median(numbers), max(numbers)
    return f"{middle:,.0f}" + (f" ({highest:,.0f})" if middle != highest else "")


def ratios(samples: Sequence[Sample], oracle: Sequence[Sample]) -> list[float]:
    """Return the time of each seed, divided by the oracle's time."""
    return [each.time / other.time for each, other in zip(samples, oracle, strict=True)]


def _ratio(ratios: Sequence[float]) -> str:
    return f"{median(ratios):.3f}" + (f" ({max(ratios):.3f})" if len(ratios) > 1 else "")


def targets(samples: Samples) -> str:
    """Return the table of the runs with a target."""
    rows = ["| figure | target | worst of the seeds | |", "| --- | --- | --- | --- |"]

    def add(figure: str, target: str, measured: str, reached: bool) -> None:
        rows.append(f"| {figure} | {target} | {measured} | {'✓' if reached else '✗'} |")

    def add_time(name: str, figure: str, most: float) -> None:
        worst = max(ratios(samples[name][LIMITER], samples[name][ORACLE]))
        add(f"{figure}, time", f"at most {most:.2f} of the oracle", f"{worst:.3f}", worst <= most)

    def rejections(name: str) -> int:
        return max(each.rejections for each in samples[name][LIMITER])

    add_time("published", "OpenFaaS's run", 1.10)
    most = rejections("published")
    add("OpenFaaS's run, rejections", "at most 15", str(most), most <= 15)
    for name, figure in (("steady", "steady, 2.0 s"), ("noisy", "steady, lognormal")):
        add_time(name, figure, 1.03)
        part = rejections(name) / 10_000
        add(f"{figure}, rejections", "under 0.5 %", f"{part:.2%}", part < 0.005)
    add_time("changes", "halved, doubled, to zero and back", 1.10)
    add_time("changes-noisy", "the same, lognormal", 1.10)
    add_time("mix", "mix of 50", 1.10)
    worst = max(each.worst for each in samples["mix"][LIMITER])
    figure = "mix of 50, the function that ended latest against its end by the oracle"
    add(figure, "not starved", f"{worst:.3f}", worst < 2)
    return "\n".join(rows) + "\n"


def compared(samples: Samples) -> str:
    """Return the table of the runs that greedy workers run too."""
    rows = ["| run | by | seconds | of the oracle | rejections | most attempts | lost |", "| --- " * 7 + "|"]
    for run in [*RUNS, *ROBUST]:
        if not run.greedy:
            continue
        for contender, each in samples[run.name].items():
            part = "" if contender == ORACLE else _ratio(ratios(each, samples[run.name][ORACLE]))
            numbers = " | ".join(_median(each, field) for field in ("rejections", "attempts", "lost"))
            rows.append(f"| {run.title} | {contender} | {_median(each, 'time')} | {part} | {numbers} |")
    return "\n".join(rows) + "\n"


def robust(samples: Samples) -> str:
    """Return the table of the runs without a target."""
    rows = [
        "| run | of the oracle | rejections | of invocations | limits held | shares of workers |",
        "| --- " * 6 + "|",
    ]
    for run in ROBUST:
        mine = samples[run.name][LIMITER]
        count = sum(run.make(0)[1].values())
        part = max(each.rejections for each in mine) / count
        shares = "; ".join(" : ".join(f"{share:.0%}" for share in each.shares) for each in mine[:2])
        held = f"{median(each.held for each in mine):.1f}"
        shown = shares if run.workers > 1 else ""
        time = _ratio(ratios(mine, samples[run.name][ORACLE])) if not run.greedy else f"({_median(mine, 'time')} s)"
        rows.append(f"| {run.title} | {time} | {_median(mine, 'rejections')} | {part:.2%} | {held} | {shown} |")
    return "\n".join(rows) + "\n"


def plots() -> Mapping[str, str]:
    """Return pictures of the running invocations over time, by file name."""
    run = RUNS[0]
    until = 300.0
    published: dict[str, Sequence[tuple[float, float]]] = {}
    for contender in (LIMITER, JITTERED):
        _, result = simulate(run, contender, 0)
        if contender == LIMITER:
            published["capacity (limiter)"] = each_second(result.trace, 1, result.time)
        published[contender] = each_second(result.trace, 0, min(until, result.time))
    changes = next(run for run in RUNS if run.name == "changes")
    _, result = simulate(changes, LIMITER, 0)
    _, other = simulate(changes, JITTERED, 0)
    return {
        "fairness-published.svg": draw("Invocations that run: OpenFaaS's published run", published, until),
        "fairness-changes.svg": draw(
            "Invocations that run: capacity that changes",
            {
                "capacity": each_second(result.trace, 1, 420.0),
                LIMITER: each_second(result.trace, 0, 420.0),
                JITTERED: each_second(other.trace, 0, 420.0),
            },
            420.0,
        ),
    }


def save(docs: Path, samples: Samples) -> None:
    """Store the samples beside the document, which can be written from them."""
    (docs / SAMPLES).write_bytes(msgspec.json.format(msgspec.json.encode(samples), indent=1) + b"\n")


def load(docs: Path) -> Samples:
    """Return the stored samples."""
    return msgspec.json.decode((docs / SAMPLES).read_bytes(), type=Samples)


def write(docs: Path) -> None:
    """Write the tables into the document."""
    document, samples = docs / "fairness.md", load(docs)
    text = document.read_text()
    for name, table in (("targets", targets), ("compared", compared), ("robust", robust)):
        text = between_markers(text, name, table(samples))
    document.write_text(text)
