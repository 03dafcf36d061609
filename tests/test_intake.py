"""What intake notes when a job ends. On the in-memory broker, on a virtual clock. A message takes 1/8 s either way."""

from __future__ import annotations

from trio import sleep_until
from trio.testing import MockClock

from tests.world import SimulatedWorker, World, reply
from worker.intake import Intake
from worker.policy.flow import Flow


async def started(world: World) -> tuple[SimulatedWorker, Intake]:
    """Start intake alone, with the services of a worker, and return both."""
    worker = world.worker(slots=4)
    intake = Intake(worker.services, world.nursery)
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
