"""The limiter in simulated runs beside an oracle, and docs/fairness.md, which has their figures."""

from __future__ import annotations

from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fairness import report
from benchmarks.fairness.functions import Function, fixed, noisy, shared
from benchmarks.fairness.runs import RUNS, published
from benchmarks.fairness.simulation import Result, Simulation, limiter, oracle

DOCS = Path(__file__).parent.parent.parent / "docs"


def run_both(function: Function, same: Function, count: int, **how: int) -> tuple[Result, Result]:
    """Run the same function with the oracle and with the limiter."""
    slots = how.get("slots", 50)
    reference = Simulation([function], {"f": count}, oracle(slots), **how).run()  # type: ignore[arg-type]  # only the numbers among its options
    return reference, Simulation([same], {"f": count}, limiter(slots), **how).run()  # type: ignore[arg-type]  # the same


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 45), st.sampled_from([0.1, 0.5, 2.0]), st.integers(0, 1000))
def test_run_with_steady_capacity_holds_it(capacity: int, seconds: float, seed: int) -> None:
    """In the second half of a run, the limit is at the capacity, with few refusals."""
    count = 100 * capacity
    function, same = (Function("f", noisy(seconds), capacity) for _ in range(2))
    reference, run = run_both(function, same, count, seed=seed)
    levels = [limits[0] for at, limits in run.limits if at > run.time / 2]
    assert abs(median(levels) - capacity) <= max(1, capacity / 10)
    assert run.rejections <= 20 + run.time / 2 + count / 100
    assert run.time <= 1.10 * reference.time + 12.0


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 40), st.integers(0, 40), st.floats(1, 60))
def test_run_with_changed_capacity_finds_the_former_one(before: int, during: int, seconds: float) -> None:
    """After a temporary change of the capacity, the limit returns to the former one within a minute."""
    changes = ((30.0, during), (30.0 + seconds, before))
    count = int(before * (30 + seconds + 120))
    run = Simulation([Function("f", fixed(1.0), before, changes=changes)], {"f": count}, limiter(50)).run()
    assert run.lost == 0
    found = [at for at, limits in run.limits if at > 30 + seconds and limits[0] >= before]
    assert found
    assert found[0] <= 30 + seconds + 60


@pytest.mark.parametrize("phase", range(15))
def test_run_published_by_openfaas_reaches_its_targets(phase: int) -> None:
    """OpenFaaS's run takes at most 1.10 of the oracle's time, with at most 15 refusals, at any autoscaler phase."""
    reference, run = run_both(published(phase), published(phase), 1_500)
    assert run.time <= 1.10 * reference.time
    assert run.rejections <= 15
    assert run.lost == 0


def test_run_with_capacity_20_reaches_its_targets() -> None:
    """10,000 invocations of 2.0 s take at most 1.03 of the oracle's time, and under 0.5 % are refused."""
    reference, run = run_both(Function("f", fixed(2.0), 20), Function("f", fixed(2.0), 20), 10_000)
    assert run.time <= 1.03 * reference.time
    assert run.rejections < 50


def test_run_with_failures_of_the_function_keeps_the_limit() -> None:
    """Where one invocation in a hundred ends in a 503 of the function's own, the limit stays at the capacity."""
    function = Function("f", noisy(0.2), 20, errors=0.01)
    run = Simulation([function], {"f": 10_000}, limiter(50)).run()
    levels = [limits[0] for at, limits in run.limits if at > 10]
    assert sum(levels) / len(levels) > 19


@pytest.mark.parametrize("workers", [2, 4])
def test_run_with_several_workers_shares_the_capacity(workers: int) -> None:
    """Several workers with a limiter each hold the capacity together, and each has a part."""
    reference, run = run_both(Function("f", noisy(1.0), 20), Function("f", noisy(1.0), 20), 4_000, workers=workers)
    assert run.time <= 1.10 * reference.time
    assert run.rejections <= 0.05 * 4_000
    levels = [sum(limits) for at, limits in run.limits if at > run.time / 2]
    assert 19 <= sum(levels) / len(levels) <= 21
    served = [sum(worker == each for _, worker in run.served) for each in range(workers)]
    assert min(served) > 4_000 / workers / 4


def test_run_with_growing_latency_keeps_the_limit_low() -> None:
    """A function that refuses nothing but becomes slow in proportion does not have all slots in flight."""
    function = Function("f", shared(0.1, 4), 10**6)
    run = Simulation([function], {"f": 1_000}, limiter(200), slots=200).run()
    levels = [limits[0] for at, limits in run.limits if at > 10]
    assert sum(levels) / len(levels) < 50


def test_fairness_document_has_the_tables_of_the_samples(tmp_path: Path) -> None:
    """The tables in docs/fairness.md are computed from the samples stored beside it."""
    for name in ("fairness.md", report.SAMPLES):
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    report.write(tmp_path)
    assert (tmp_path / "fairness.md").read_text() == (DOCS / "fairness.md").read_text(), (
        "write it again: make bench-fairness FAIRNESS=--again"
    )


def test_fairness_document_has_the_figures_of_this_limiter() -> None:
    """The published run has the same time and the same refusals as in the stored samples."""
    _, result = report.simulate(RUNS[0], report.LIMITER, 0)
    stored = report.load(DOCS)["published"][report.LIMITER][0]
    assert (round(result.time, 1), result.rejections) == (stored.time, stored.rejections)
