"""Plans that broke a law once, as they were found."""

from __future__ import annotations

from tests.cases import check_each
from tests.simulation.exact import check_exactly
from tests.simulation.laws import check
from tests.simulation.plans import RARE, RARE_HEALTHY
from tests.world import Answer, reply
from tests.world.faults import Fault
from tests.world.functions import Deployment, Reply
from tests.world.simulation import Plan, Planned, Shift, simulate
from worker.model import NoResponse, TimedOut


def test_lives_that_chance_seldom_finds_break_no_law() -> None:
    """The plans with which each run of test_simulation.py begins keep all laws: a first, quick look at the worker."""

    def check_life(plan: Plan) -> None:
        life = simulate(plan)
        stories, _ = check(life)
        if not plan.faults:
            check_exactly(life, stories)

    check_each((*RARE_HEALTHY, *RARE), check_life)


def test_what_is_early_and_lay_here_too_long_is_not_given_back() -> None:
    """What came before its back-off was over, and lay in a worker that was stopping until its lease was, is let be."""
    check(simulate(FOUND))


FOUND = Plan(
    messages=(
        Planned(script=(Reply(outcome=TimedOut(after=60.0), after=2.0),), at=3.8),
        Planned(
            script=(reply(503, after=0.9),),
            callback=(
                Answer(result=500, after=15.0),
                Answer(result=302, after=1.0),
                Answer(result=KeyError("a bug"), after=1.0),
            ),
            function=1,
            annotations=(("com.openfaas.retry.attempts", "5"), ("com.openfaas.retry.codes", "404, 503")),
        ),
        Planned(
            script=(
                Reply(outcome=NoResponse(reason="refused"), after=0.2),
                reply(503, after=15.0, headers=((b"Retry-After", b"90000"),)),
                reply(429, after=4.0, headers=((b"Retry-After", b"later"),)),
                reply(200, after=0.5, headers=((b"x-openfaas-internal", b"gateway"),)),
            ),
            callback=(Answer(result=302, after=1.0),),
            function=2,
            annotations=(("com.openfaas.retry.attempts", "1"), ("com.openfaas.retry.max_wait", "3s")),
        ),
        Planned(script=(reply(302, after=0.9),), at=14.6, function=1),
        Planned(
            script=(
                reply(503, after=1.0, headers=((b"Retry-After", b"later"),)),
                reply(503, headers=((b"Retry-After", b"4"),)),
                reply(500, after=2.5),
                reply(500, after=0.9),
            ),
            callback=(Answer(),),
            at=38.4,
            function=1,
        ),
        Planned(
            script=(reply(503, after=40.0, headers=((b"Retry-After", b"later"),)), reply(200, after=0.5)), function=2
        ),
    ),
    functions=(
        Deployment(capacity=3, gone_from=44.4, gone_until=9.4, patience="later"),
        Deployment(capacity=3, gone_from=3.5, gone_until=24.8, warms_up=16.9),
    ),
    workers=(Shift(stops=5.0), Shift(stops=7.3, hurry_after=23.7)),
    faults=(
        Fault(kind="clock ahead", at=4.9, seconds=6.5, worker=3),
        Fault(kind="restart", at=14.0, seconds=0.5),
        Fault(kind="deaf", seconds=12.7, worker=3),
        Fault(kind="restart", at=26.1, seconds=12.9),
    ),
    slots=3,
    initial=5.8999999999999995,
    longest=15.899999999999999,
    backoff="equal",
    dead_letters=False,
    ack_wait=1.5,
    shutdown_timeout=12.0,
    schedule=21064,
)
