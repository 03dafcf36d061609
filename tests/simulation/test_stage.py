"""The simulated world: suspended processes, and functions at their capacity. On the virtual clock."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.world import World, ms, reply
from tests.world.faults import Fault
from tests.world.functions import Deployment
from tests.world.simulation import Plan, PlannedMessage, PlannedWorker, simulate
from tests.world.suspension import Gates, Process
from worker.events import InvocationEnded, LeaseExpired
from worker.policy.retry import Backoff, Retry


def test_process_suspended_takes_no_step() -> None:
    """A suspended process and its child tasks take no step while other tasks run, and get their timers afterwards."""
    steps: list[tuple[str, float]] = []

    async def tick(name: str, child: str | None = None) -> None:
        async with trio.open_nursery() as nursery:
            if child:
                nursery.start_soon(tick, child)
            for _ in range(3):
                await trio.sleep(1)
                steps.append((name, trio.current_time()))

    async def stage() -> None:
        process = Process()
        async with trio.open_nursery() as nursery:
            with process.starting():
                nursery.start_soon(tick, "inside", "child")
            nursery.start_soon(tick, "outside")
            await trio.sleep(1.5)
            process.stop()
            await trio.sleep(8.5)
            process.resume()

    trio.run(stage, clock=MockClock(autojump_threshold=0), instruments=[Gates()])
    assert [at for name, at in steps if name == "outside"] == [1.0, 2.0, 3.0]
    for name in ("inside", "child"):
        assert [at for each, at in steps if each == name] == [1.0, 10.0, 11.0]


def test_process_cancelled_while_suspended_ends_on_continue() -> None:
    """A cancellation takes effect when the suspended process continues."""

    async def stage() -> float:
        process, scope = Process(), trio.CancelScope()

        async def wait() -> None:
            with scope:
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            with process.starting():
                nursery.start_soon(wait)
            await trio.sleep(1)
            process.stop()
            scope.cancel()
            await trio.sleep(4)
            process.resume()
        return trio.current_time()

    assert trio.run(stage, clock=MockClock(autojump_threshold=0), instruments=[Gates()]) == 5.0


def test_worker_suspended_loses_its_message() -> None:
    """Another worker runs a suspended one's message, and the latter sends no settlement after its lost lease."""
    life = simulate(
        Plan(
            (PlannedMessage((reply(200, after=60.0),)),),
            workers=(PlannedWorker(), PlannedWorker(starts=1.0)),
            faults=(Fault("suspend worker", at=5.0, seconds=50.0),),
            slots=1,
        )
    )
    # Delivered at 1 ms and not extended before 5 s, it is redelivered 30 s later; the other worker starts it at 30.002.
    first, second = life.workers
    assert [round(call.began, 3) for call in life.world.outside.calls] == [0.002, 30.002]
    assert first.times(LeaseExpired) == [55_000]
    assert [worker.name for worker in (first, second) if worker.queue.settlements] == ["worker-2"]
    assert second.times(InvocationEnded) == [90_002]


async def test_function_at_capacity_answers_429(autojump_clock: MockClock) -> None:
    """A function at its capacity answers 429 with its Retry-After, and takes no reply of the message's script."""
    async with World(autojump_clock) as world:
        world.outside.deployments["echo"] = Deployment(capacity=1, retry_after="2")
        messages = [world.publish(reply(200, after=1)) for _ in range(2)]
        world.start(world.worker(retry=Retry(backoff=Backoff(0.5, 0.5))))
        for message in messages:
            await message.removed.wait()
        calls = sorted((ms(call.began), call.refused) for call in world.outside.calls)
        # Rejected at 2 with a wait of 2 s, it arrives again 2 ms after that wait, and ends 1 s later.
        assert calls == [(2, False), (2, True), (2_004, False)]
        assert ms(trio.current_time()) == 3_005


def test_function_scaled_to_zero_answers_503() -> None:
    """A function answers 503 while it is scaled to zero; after that, a call waits for its cold start."""
    deployment = Deployment(capacity=2, scaled_down_from=3.0, scaled_down_until=5.0, cold_start=2.0)
    assert [deployment.refusal(0, now) for now in (2.9, 3.0, 4.9, 5.0)] == [None, 503, 503, None]
    assert [deployment.refusal(running, 6.0) for running in (1, 2)] == [None, 429]
    assert [deployment.delay(now) for now in (2.9, 5.0, 6.5, 7.0)] == [0.0, 2.0, 0.5, 0.0]
