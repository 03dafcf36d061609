"""Function mode in the core: many flows share one worker's slots. On the in-memory broker, on a virtual clock."""

from __future__ import annotations

from collections import Counter

import trio
from trio.testing import MockClock

from tests.world import Message, SimulatedWorker, World, ms, reply
from tests.world.functions import Call


def running(world: World, at: float) -> Counter[str]:
    """Count the invocations of each function that ran at that moment."""

    def ran(call: Call) -> bool:
        return call.began <= at and (call.ended is None or call.ended > at)

    return Counter(call.invocation.function for call in world.outside.calls if ran(call))


def backlog(world: World, function: str, count: int, seconds: float) -> list[Message]:
    """Publish *count* messages for a function, each of which runs for *seconds*."""
    return [world.publish(reply(200, after=seconds), function=function) for _ in range(count)]


def started(world: World, slots: int = 10) -> SimulatedWorker:
    """Start a worker."""
    return world.start(world.worker(slots=slots))


async def wait_removed(messages: list[Message]) -> None:
    """Wait until all messages are settled."""
    for message in messages:
        await message.removed.wait()


async def test_flow_alone_gets_all_slots(autojump_clock: MockClock) -> None:
    """A function without competitors gets all slots at once."""
    async with World(autojump_clock, by_function=True) as world:
        backlog(world, "a", 30, 10)
        started(world)
        await trio.sleep(1)
        assert running(world, 1) == {"a": 10}


async def test_flows_with_backlogs_share_slots_evenly(autojump_clock: MockClock) -> None:
    """Two functions with a backlog get half the slots each; when one is empty, the other gets all slots."""
    async with World(autojump_clock, by_function=True) as world:
        one, other = backlog(world, "a", 60, 1), backlog(world, "b", 30, 1)
        started(world)
        for second in range(1, 6):
            await trio.sleep_until(second + 0.5)
            assert running(world, second + 0.5) == {"a": 5, "b": 5}
        await wait_removed(other)
        await trio.sleep(0.5)
        assert running(world, trio.current_time()) == {"a": 10}
        await wait_removed(one)
        assert ms(trio.current_time()) < 9_200  # nine rounds of ten


async def test_flow_new_beside_a_backlog_starts_in_the_next_free_slot(autojump_clock: MockClock) -> None:
    """Behind any backlog, a new function's first invocation starts as soon as a running invocation ends."""
    async with World(autojump_clock, by_function=True) as world:
        backlog(world, "a", 1_000, 1)
        started(world)
        await trio.sleep(3.5)
        message = world.publish(reply(200), function="b")
        await message.removed.wait()
        assert trio.current_time() < 4.1


async def test_flow_new_with_free_slots_starts_at_once(autojump_clock: MockClock) -> None:
    """With free slots, a new function's first invocation starts at once, also when other flows hold all credit."""
    async with World(autojump_clock, by_function=True) as world:
        started(world)
        first = world.publish(reply(200), function="a")
        await first.removed.wait()
        await trio.sleep(0.5)
        second = world.publish(reply(200), function="b")
        published_at = trio.current_time()
        await second.removed.wait()
        assert ms(world.outside.calls[-1].began - published_at) < 10


async def test_flows_more_than_slots_take_turns(autojump_clock: MockClock) -> None:
    """With more functions than slots, no function is served a third time before every other was served twice."""
    async with World(autojump_clock, by_function=True) as world:
        for number in range(25):
            backlog(world, f"f{number}", 6, 1)
        started(world, slots=4)
        await trio.sleep(20)
        served = Counter(call.invocation.function for call in world.outside.calls)
        assert len(served) == 25
        assert max(served.values()) - min(served.values()) <= 1


async def test_flow_with_due_retry_is_served(autojump_clock: MockClock) -> None:
    """A retry starts within 3 s of its due time, also where there are more functions than slots."""
    async with World(autojump_clock, by_function=True) as world:
        messages = [world.publish(reply(503), reply(200), function=f"f{number}") for number in range(20)]
        started(world, slots=2)
        await wait_removed(messages)
        seconds = [world.starts(message)[1] - world.starts(message)[0] for message in messages]
        assert all(10_000 <= each < 13_000 for each in seconds)


async def test_flows_idle_have_no_consumer(autojump_clock: MockClock) -> None:
    """After 40 s without messages, a function has no consumer and no credit, and its next message starts at once."""
    async with World(autojump_clock, by_function=True) as world:
        messages = [world.publish(reply(200), function=f"f{number}") for number in range(1_000)]
        worker = started(world)
        await wait_removed(messages)
        assert len(world.server.groups) == 1_000
        await trio.sleep(40)
        assert not world.server.groups
        assert worker.credit == 0
        again = world.publish(reply(200), function="f7")
        published_at = trio.current_time()
        await again.removed.wait()
        assert ms(world.outside.calls[-1].began - published_at) < 10


async def test_flows_of_two_workers_run_each_message_once(autojump_clock: MockClock) -> None:
    """Two workers that run the same functions run each message once."""
    async with World(autojump_clock, by_function=True) as world:
        messages = backlog(world, "a", 100, 1) + backlog(world, "b", 100, 1)
        started(world, slots=5)
        started(world, slots=5)
        await wait_removed(messages)
        assert trio.current_time() < 21
        assert len(world.outside.calls) == 200
