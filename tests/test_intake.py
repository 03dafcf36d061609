"""Intake alone, on the in-memory broker and a virtual clock. A message takes 1/8 s either way."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace
from trio import current_time, sleep_until
from trio.testing import MockClock

from tests.world import SimulatedWorker, World, reply
from worker.events import Redelivered, Settled
from worker.intake import Intake
from worker.model import (
    Abandon,
    CreditReturned,
    Delivery,
    FlowEnded,
    Nak,
    PausedFunctions,
    PendingCount,
    Published,
    Quota,
    QuotaChanged,
    Receipt,
    StoredCount,
    Verdict,
)
from worker.policy.flow import Flow
from worker.policy.ledger import NO_TOKEN
from worker.policy.quota import CAP, token_flow


class CountingNursery:
    """The nursery of a world, which counts the tasks that intake starts."""

    def __init__(self, world: World) -> None:
        self._nursery = world.nursery
        self.started = 0

    def start_soon(self, task: Any) -> None:
        self.started += 1
        self._nursery.start_soon(task)


async def started(world: World, nursery: Any = None) -> tuple[SimulatedWorker, Intake]:
    """Start intake alone, with the services of a worker, and return both."""
    worker = world.worker(slots=4)
    intake = Intake(worker.services, nursery or world.nursery)
    for task in (worker.link.run, worker.queue.run, worker.services.leases.run, worker.services.timers.run):
        world.nursery.start_soon(task)
    world.nursery.start_soon(intake.run, await worker.queue.consume())
    return worker, intake


def only_flow(intake: Intake) -> Flow:
    (flow,) = intake._shares.flows
    return flow


async def test_intake_end_of_a_job_charges_its_slot_and_counts_the_message(autojump_clock: MockClock) -> None:
    """A flow is charged the seconds from a message's arrival to its end, and the message is not stored any more.

    Both messages arrive at the same time. One runs for 1 s, and the broker has not reported that it has left.
    """
    async with World(autojump_clock, by_function=True, latency=1 / 8) as world:
        world.publish(reply(200, after=1), function="a")
        world.publish(reply(200, after=9), function="a")
        _, intake = await started(world)
        await sleep_until(1)
        flow = only_flow(intake)
        assert (flow.running, flow.stored, flow.usage) == (2, 2, 0.0)
        arrived = world.outside.calls[0].began
        await sleep_until(arrived + 1 + 1 / 16)
        assert (flow.running, flow.stored, flow.usage) == (1, 1, 1.0)


async def test_intake_end_of_a_retried_job_decides_again_when_it_is_due(autojump_clock: MockClock) -> None:
    """A message that is given back stays stored, and is pending again when its back-off of 10 s is over."""
    async with World(autojump_clock, by_function=True, latency=1 / 8) as world:
        world.publish(reply(503, after=1), reply(200), function="a")
        _, intake = await started(world)
        await sleep_until(1)
        ended = world.outside.calls[0].began + 1
        flow = only_flow(intake)
        await sleep_until(ended + 1 / 16)
        assert (flow.running, flow.stored, flow.usage) == (0, 1, 1.0)
        flow.cap = 0  # so that nothing else is to be decided
        intake._shares.mark_changed(flow)
        intake._decide()
        assert intake._wait.deadline == ended + 10
        flow.pending = 0
        await sleep_until(ended + 10 + 1 / 16)
        assert flow.pending == 1


async def test_intake_runs_jobs_that_follow_each_other_in_one_task(autojump_clock: MockClock) -> None:
    """A task that has run a job waits for the next one, because a task for each would cost a tenth of its CPU."""
    async with World(autojump_clock, by_function=True, latency=1 / 8) as world:
        nursery = CountingNursery(world)
        await started(world, nursery)
        for number in range(5):
            await world.publish(reply(200, after=1), function=f"f{number % 2}").removed.wait()
        assert nursery.started == 1
        messages = [world.publish(reply(200, after=1), function="f0") for _ in range(3)]
        for message in messages:
            await message.removed.wait()
        assert nursery.started == 3


@pytest.mark.parametrize(
    ("case", "verdict"),
    [("no slot", Nak(0.0)), ("no token", Nak(NO_TOKEN)), ("no lease", Abandon())],
)
async def test_intake_delivery_that_does_not_start_is_settled_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, case: str, verdict: Verdict
) -> None:
    """A delivery without slot, token or lease emits its verdict, and its count of pending messages is noted.

    It is no attempt, so its next delivery is the same one.
    """
    async with World(autojump_clock, by_function=True, latency=1 / 8) as world:
        worker, intake = await started(world)
        await sleep_until(25)
        first = Delivery((9, 9), "9", 3, 0.0 if case == "no lease" else current_time(), "a", b"", "a", 7)
        services = worker.services
        flow = intake._shares.flow("a")
        if case == "no slot":
            intake._shares.free = 0
        elif case == "no token":
            monkeypatch.setattr(intake._admission, "may_start", lambda _: False)
        worker.queue.record_delivery(first)
        intake._take_all([first])
        assert worker.events_of(Settled) == [Settled(verdict)]
        settled = [(delivery, settlement) for _, delivery, settlement in worker.queue.settlements]
        assert settled == ([] if verdict == Abandon() else [(first, verdict)])
        assert (flow.pending, flow.credited_at, flow.running) == (7, 25.0, 0)
        known = services.ledger.classify(replace(first, num_delivered=4), now=26.0)
        assert known.attempt == (4 if verdict == Abandon() else 3)  # type: ignore[union-attr]  # it starts


async def test_intake_redelivery_of_a_running_message_extends_its_lease(autojump_clock: MockClock) -> None:
    """A redelivery of a message that runs replaces its delivery, takes no slot, and counts the pending messages."""
    async with World(autojump_clock, by_function=True, latency=1 / 8) as world:
        world.publish(reply(200, after=9), function="a")
        worker, intake = await started(world)
        await sleep_until(2)
        flow = only_flow(intake)
        ((_, delivery),) = worker.deliveries
        again = replace(delivery, token="again", num_delivered=2, received_at=2.0, num_pending=5)
        intake._take_all([again])
        assert worker.events_of(Redelivered) == [Redelivered(again, "running")]
        assert [lease.delivery for lease in worker.services.leases._held.values()] == [again]
        assert (flow.running, flow.pending, flow.credited_at) == (1, 5, 2.0)


async def test_intake_applies_each_notice_to_its_flow(autojump_clock: MockClock) -> None:
    """Each notice changes the counts of its flow, or the tokens of its function."""
    async with World(autojump_clock, by_function=True, latency=1 / 8) as world:
        _, intake = await started(world)
        flow = intake._shares.flow("a")
        intake._shares.free = 0  # so that no credit is given
        intake._take_all([StoredCount("a", 7)])
        assert (flow.exists, flow.stored, flow.pending) == (True, 7, 0)
        intake._take_all([PendingCount("a", 3), Published("a")])
        assert (flow.stored, flow.pending) == (8, 4)
        flow.credit = 3
        intake._take_all([CreditReturned("a", 2)])
        assert (flow.credit, flow.pending, flow.silent_until > current_time()) == (1, 0, True)
        intake._take_all([FlowEnded("a")])
        assert (flow.exists, [*intake._shares.flows]) == (False, [])
        tokens = token_flow(CAP, "b.fn")
        intake._take_all([QuotaChanged("b.fn", Quota(max_inflight=5))])
        requested = intake._admission.tokens._functions["b.fn"].requested
        requested[CAP] = 5
        intake._take_all([StoredCount(tokens, 5), CreditReturned(tokens, 2)])
        assert (requested[CAP], [*intake._shares.flows]) == (3, [])
        intake._take_all([PausedFunctions(frozenset({""}))])
        assert intake._shares.flow("c").paused


async def test_intake_message_of_a_paused_function_is_given_back(autojump_clock: MockClock) -> None:
    """A message that arrives after the pause, for credit from before, does not start; a receipt comes after that."""
    async with World(autojump_clock, by_function=True, latency=1 / 8) as world:
        world.publish(reply(200, after=9), function="a")
        worker, intake = await started(world)
        await sleep_until(1)
        (running,) = worker.services.leases._held.values()
        late = replace(running.delivery, id=(2, 2), token="late", received_at=current_time())
        worker.queue.record_delivery(late)
        label, received = only_flow(intake).function, list[int]()
        intake._take_all([PausedFunctions(frozenset({label})), Receipt(lambda: received.append(1)), late])
        assert received == [1]
        assert [(delivery, nak) for _, delivery, nak in worker.queue.settlements] == [(late, Nak(NO_TOKEN))]
        assert only_flow(intake).running == 1
