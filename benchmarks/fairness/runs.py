"""The simulated runs: those with a target, and others that show how far the limiter can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from .functions import Function, Scaler, fixed, noisy, shared

Setup = tuple[Sequence[Function], Mapping[str, int]]
"""Functions, and the number of messages that wait for each."""


@dataclass(frozen=True, slots=True)
class Run:
    """One kind of run, with a setup for each seed."""

    name: str
    title: str
    make: Callable[[int], Setup]
    seeds: int = 5
    slots: int = 50
    workers: int = 1
    greedy: bool = False
    """True if greedy workers run it too."""


def _one(count: int, make: Callable[[int], Function]) -> Callable[[int], Setup]:
    return lambda seed: ([make(seed)], {"f": count})


def published(seed: int) -> Function:
    """Return the function of OpenFaaS's published run, with the autoscaler at another phase for each seed."""
    return Function("f", fixed(2.0), 5, scaler=Scaler(phase=0.5 + seed % 15, scrape_lead=0.1 + seed % 5))


def _at_random(seed: int) -> Function:
    function = published(seed)
    function.replicas = [0]
    return function


CHANGES = ((60.0, 10), (120.0, 20), (180.0, 0), (210.0, 20), (270.0, 40), (330.0, 20))
"""Pairs of a time (s) and the capacity from then on; it is 20 at first."""


def mix(seed: int) -> Setup:
    """Return 50 functions, each with work for about 100 s on an even share of the slots."""
    rng = Random(f"mix {seed}")  # noqa: S311 -- a simulation
    functions, messages = [], {}
    for number in range(50):
        seconds, capacity = rng.choice((0.05, 0.2, 1.0, 2.0, 5.0)), rng.choice((1, 2, 3, 5, 8, 13, 20, 40))
        functions.append(Function(f"f{number}", noisy(seconds), capacity))
        messages[f"f{number}"] = int(min(capacity, 4) * 100 / seconds)
    return functions, messages


RUNS = [
    Run("published", "OpenFaaS's published run", _one(1_500, published), seeds=15, greedy=True),
    Run(
        "steady", "capacity 20, 10,000 of 2.0 s", _one(10_000, lambda _: Function("f", fixed(2.0), 20)), 1, greedy=True
    ),
    Run(
        "noisy", "the same, latency lognormal (median 2.0 s)", _one(10_000, lambda _: Function("f", noisy(2.0), 20)), 15
    ),
    Run(
        "changes",
        "capacity 20, 10, 20, 0, 20, 40, 20; 4,000 of 2.0 s",
        _one(4_000, lambda _: Function("f", fixed(2.0), 20, changes=CHANGES)),
        1,
        greedy=True,
    ),
    Run(
        "changes-noisy",
        "the same, lognormal",
        _one(4_000, lambda _: Function("f", noisy(2.0), 20, changes=CHANGES)),
        15,
        greedy=True,
    ),
    Run("mix", "50 functions of 0.05 to 5 s and capacity 1 to 40, 200 slots", mix, slots=200, greedy=True),
]
"""Runs with a target."""


def _steady(capacity: int) -> Run:
    make = _one(max(300, 60 * capacity), lambda _: Function("f", fixed(2.0), capacity))
    return Run(f"capacity-{capacity}", f"capacity {capacity:,}, 2.0 s, 2,000 slots", make, 1, slots=2_000)


def _lasting(seconds: float, count: int) -> Run:
    return Run(
        f"lasting-{seconds:g}",
        f"capacity 20, {count:,} of {seconds:g} s",
        _one(count, lambda _: Function("f", noisy(seconds), 20)),
        3,
    )


def _workers(number: int, seconds: float, count: int) -> Run:
    return Run(
        f"workers-{number}-{seconds:g}",
        f"{number} workers share a capacity of 20, {count:,} of {seconds:g} s",
        _one(count, lambda _: Function("f", noisy(seconds), 20)),
        5,
        workers=number,
    )


def _zero(seconds: float) -> Run:
    changes = ((30.0, 0), (30.0 + seconds, 20))
    return Run(
        f"zero-{seconds:g}",
        f"capacity 20, from second 30 on none for {seconds:g} s; 3,000 of 1 s",
        _one(3_000, lambda _: Function("f", noisy(1.0), 20, changes=changes)),
        15,
    )


def _ready_after(seconds: float) -> Run:
    def make(seed: int) -> Function:
        scaler = Scaler(phase=0.5 + seed % 15, scrape_lead=0.1 + seed % 5, start_time=seconds)
        return Function("f", fixed(2.0), 5, scaler=scaler)

    return Run(f"start-{seconds:g}", f"the published run, a replica ready after {seconds:g} s", _one(1_500, make), 15)


def _errors(seconds: float, part: float) -> Run:
    return Run(
        f"errors-{seconds:g}-{part:g}",
        f"capacity 20, {seconds:g} s, {part:.0%} end in a 503 of the function's own",
        _one(int(4_000 / seconds), lambda _: Function("f", noisy(seconds), 20, errors=part)),
        3,
    )


def _cores(seconds: float, cores: int) -> Run:
    return Run(
        f"cores-{seconds:g}-{cores}",
        f"never refuses, {cores} cores, {seconds:g} s when alone, 200 slots",
        _one(int(3_000 / seconds), lambda _: Function("f", shared(seconds, cores), 10**6)),
        3,
        slots=200,
    )


ROBUST = [
    *(_steady(each) for each in (1, 2, 100, 1_000)),
    _lasting(0.01, 100_000),
    _lasting(60.0, 2_000),
    *(_zero(each) for each in (5.0, 30.0, 120.0, 600.0)),
    *(_workers(number, *each) for number in (2, 4) for each in ((0.02, 50_000), (0.2, 40_000), (2.0, 4_000))),
    *(_errors(seconds, part) for part in (0.01, 0.05) for seconds in (0.2, 2.0)),
    Run(
        "hangs",
        "capacity 20, 2.0 s, 1 % hang for 60 s",
        _one(3_000, lambda _: Function("f", noisy(2.0), 20, hangs=0.01)),
    ),
    *(_cores(*each) for each in ((0.1, 4), (0.1, 20), (1.0, 4), (1.0, 20))),
    *(_ready_after(each) for each in (0.5, 5.0, 10.0)),
    Run(
        "late",
        "capacity 20, 2.0 s, a place is free up to 3 ms after its answer was sent (the next request comes after 2)",
        _one(3_000, lambda _: Function("f", noisy(2.0), 20, release_delay=0.003)),
    ),
    Run(
        "scattered", "the published run, each request to a replica at random", _one(1_500, _at_random), 15, greedy=True
    ),
]
"""Runs without a target."""
