"""Whole lives of a queue, drawn by Hypothesis, with the laws that hold with faults, and those without.

Each life has messages with scripts and callbacks, functions with capacities, up to four workers that start and stop,
signals, and faults. A failing example prints as a :class:`tests.world.simulation.Plan`. Given that plan,
:mod:`tests.simulation.__main__` repeats the same life and prints its events. ``make test`` runs the same lives each
time, and ``make nightly`` many others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce

from hypothesis import event, example, given, settings, target

from tests.simulation.__main__ import NAMES
from tests.simulation.census import FAULTY, ORDINARY, Census
from tests.simulation.exact import check_exactly
from tests.simulation.laws import check
from tests.simulation.plans import RARE, RARE_HEALTHY, faulty, healthy
from tests.world import Answer, reply
from tests.world.faults import ALL, ONE, Fault
from tests.world.functions import Deployment, Reply
from tests.world.simulation import Plan, PlannedMessage, PlannedWorker, simulate
from worker.model import NoResponse, TimedOut

NIGHTLY = not settings().derandomize
HEALTHY, FAULTY_LIVES = (settings().max_examples // 2, settings().max_examples * 2) if NIGHTLY else (150, 300)
"""Numbers of lives; those of ``make nightly`` give more than a hundred thousand invocations."""


def examples(plans: Iterable[Plan]) -> Callable[[Callable[[Plan], None]], Callable[[Plan], None]]:
    """Run these plans first."""

    def apply(live: Callable[[Plan], None]) -> Callable[[Plan], None]:
        return reduce(lambda live, plan: example(plan=plan)(live), plans, live)

    return apply


def test_life_without_faults_keeps_exact_laws(census: Census) -> None:
    """Without faults, attempts, waits, callbacks and drains are exact, and each delivery is settled once."""

    @settings(max_examples=HEALTHY)
    @given(plan=healthy)
    @examples(RARE_HEALTHY)
    def live(plan: Plan) -> None:
        life = simulate(plan)
        stories, causes = check(life)
        census.add(life, stories, causes, check_exactly(life, stories))

    live()
    assert not census.missing(ORDINARY), "an event that the test must cover never happened"


def test_life_with_faults_keeps_all_laws(census: Census) -> None:
    """With any faults, no message is lost or ended too early, each repeat has a known cause, and all work ends."""

    @settings(max_examples=FAULTY_LIVES)
    @given(plan=faulty)
    @examples((*RARE, *RARE_HEALTHY, PLAN))
    def live(plan: Plan) -> None:
        life = simulate(plan)
        stories, causes = check(life)
        census.add(life, stories, causes)
        for cause in causes:
            event(f"again: {cause}")
        if NIGHTLY:  # with few lives, varied ones find more than similar ones
            target(len(causes), label="causes of repeats in one life")

    live()
    assert not census.missing(FAULTY | (ORDINARY - {"a measured wait"})), (
        "an event that the test must cover never happened"
    )


PLAN = Plan(
    messages=(
        PlannedMessage((reply(503, headers=((b"Retry-After", b"4"),)), reply(200, after=9.0)), (Answer(500), Answer())),
        PlannedMessage(
            (Reply(NoResponse("refused")), Reply(TimedOut(60.0), after=3.0), Reply(KeyError("a bug"))), at=1.5
        ),
        PlannedMessage((reply(200, after=8.0),), function=1, annotations=(("com.openfaas.retry.attempts", "many"),)),
        PlannedMessage((reply(200, after=8.0),), function=1),
        PlannedMessage(payload=b"no JSON"),
    ),
    functions=(
        Deployment(),
        Deployment(capacity=1, scaled_down_from=3.0, scaled_down_until=20.0, cold_start=2.0, retry_after="4"),
    ),
    workers=(PlannedWorker(stops=20.0, second_signal_after=3.0), PlannedWorker(starts=5.0)),
    faults=tuple(
        Fault(kind, at=float(number), seconds=4.0, worker=number % 2) for number, kind in enumerate([*ONE, *ALL], 3)
    ),
    slots=3,
    backoff="full",
    ack_wait=3.0,
    schedule=42,
)  # fmt: skip
"""A plan that uses every feature of plans."""


def test_plan_prints_as_code() -> None:
    """The printed form of a plan evaluates to the same plan."""
    for plan in (PLAN, *RARE, *RARE_HEALTHY):
        assert repr(eval(repr(plan), dict(NAMES))) == repr(plan)
    assert (
        repr(Plan(messages=(PlannedMessage((reply(200),)),)))
        == "Plan(messages=(PlannedMessage(script=(reply(200),)),))"
    )


def test_plan_run_twice_has_the_same_events() -> None:
    """A plan that runs twice has the same events at the same times; another schedule has others."""
    first, again = simulate(PLAN), simulate(eval(repr(PLAN)))
    assert first.trace() == again.trace()
    check(first)
    others = {tuple(simulate(eval(repr(PLAN).replace("schedule=42", f"schedule={n}"))).trace()) for n in range(5)}
    assert len(others) == 5


@settings(max_examples=settings().max_examples // 10)
@given(plan=faulty)
def test_plan_drawn_and_run_twice_has_the_same_events(plan: Plan) -> None:
    """Any drawn plan that runs twice has the same events at the same times."""
    assert simulate(plan).trace() == simulate(plan).trace()
