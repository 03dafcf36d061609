"""Plans that broke a law once, as they were found."""

from __future__ import annotations

from tests.cases import check_each
from tests.simulation.exact import check_exactly
from tests.simulation.laws import check
from tests.simulation.plans import RARE, RARE_HEALTHY
from tests.world import Answer, reply
from tests.world.faults import Fault
from tests.world.functions import Deployment, Reply
from tests.world.simulation import Plan, PlannedMessage, PlannedWorker, simulate
from worker.model import NoResponse, TimedOut


def test_life_of_each_rare_plan_keeps_all_laws() -> None:
    """The plans with which each run of test_simulation.py begins keep all laws: a quick check of the worker."""

    def check_life(plan: Plan) -> None:
        life = simulate(plan)
        stories, _ = check(life)
        if not plan.faults:
            check_exactly(life, stories)

    check_each((*RARE_HEALTHY, *RARE), check_life)


def test_early_delivery_after_its_lease_is_not_nakked() -> None:
    """A stopping worker does not nak an early delivery whose lease ended while it waited in the worker."""
    check(simulate(FOUND))


FOUND = Plan(
    messages=(
        PlannedMessage(script=(Reply(outcome=TimedOut(after=60.0), after=2.0),), at=3.8),
        PlannedMessage(
            script=(reply(503, after=0.9),),
            callback=(
                Answer(result=500, after=15.0),
                Answer(result=302, after=1.0),
                Answer(result=KeyError("a bug"), after=1.0),
            ),
            function=1,
            annotations=(("com.openfaas.retry.attempts", "5"), ("com.openfaas.retry.codes", "404, 503")),
        ),
        PlannedMessage(
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
        PlannedMessage(script=(reply(302, after=0.9),), at=14.6, function=1),
        PlannedMessage(
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
        PlannedMessage(
            script=(reply(503, after=40.0, headers=((b"Retry-After", b"later"),)), reply(200, after=0.5)), function=2
        ),
    ),
    functions=(
        Deployment(capacity=3, scaled_down_from=44.4, scaled_down_until=9.4, retry_after="later"),
        Deployment(capacity=3, scaled_down_from=3.5, scaled_down_until=24.8, cold_start=16.9),
    ),
    workers=(PlannedWorker(stops=5.0), PlannedWorker(stops=7.3, second_signal_after=23.7)),
    faults=(
        Fault(kind="clock ahead", at=4.9, seconds=6.5, worker=3),
        Fault(kind="restart", at=14.0, seconds=0.5),
        Fault(kind="drop from worker", seconds=12.7, worker=3),
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
