"""The worker's timers, and the backlog that it reads every two seconds. On the virtual clock."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.world import World, ms, reply
from worker.events import BacklogRead, Event
from worker.model import Backlog
from worker.run import watch_backlog
from worker.timers import Timers


async def _note(timers: Timers, seconds: float, what: str, ended: list[tuple[str, int]]) -> None:
    await timers.wait(seconds, what)
    ended.append((what, ms(trio.current_time())))


async def test_timers_many_waits_end_at_their_due_times(autojump_clock: MockClock) -> None:
    """Each wait ends at its due time, in any order of their starts; waits that are due together end together."""
    assert autojump_clock.current_time() == 0
    timers, ended = Timers(), list[tuple[str, int]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        for seconds in (5, 3, 9, 3, 0):
            nursery.start_soon(_note, timers, seconds, "callback", ended)
        await trio.sleep(4)
        nursery.start_soon(_note, timers, 0.5, "dead letter", ended)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert ended == [
        *(("callback", at) for at in (0, 3_000, 3_000)),
        ("dead letter", 4_500),
        *(("callback", at) for at in (5_000, 9_000)),
    ]


async def test_timers_wait_before_the_scheduler_runs_ends(autojump_clock: MockClock) -> None:
    """A wait that began before the scheduler runs ends at its due time, because Trio may start tasks in any order."""
    assert autojump_clock.current_time() == 0
    timers, ended = Timers(), list[tuple[str, int]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note, timers, 2, "callback", ended)
        await wait_all_tasks_blocked()
        nursery.start_soon(timers.run)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert ended == [("callback", 2_000)]


async def test_timers_waiting_is_counted_by_kind(autojump_clock: MockClock) -> None:
    """Waits are counted by kind until they end or are cancelled, and a cancelled wait delays no other."""
    assert autojump_clock.current_time() == 0
    timers, ended = Timers(), list[tuple[str, int]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(timers.run)
        for seconds in (1, 2):
            nursery.start_soon(_note, timers, seconds, "callback", ended)
        with trio.move_on_after(0.5):
            await timers.wait(0.75, "callback")
        assert timers.waiting == {"callback": 2}
        await trio.sleep_until(1.5)
        assert timers.waiting == {"callback": 1}
        await trio.sleep_until(2.5)
        assert timers.waiting == {"callback": 0}
        nursery.cancel_scope.cancel()
    assert ended == [("callback", 1_000), ("callback", 2_000)]


async def test_backlog_is_emitted_every_two_seconds(autojump_clock: MockClock) -> None:
    """The backlog is read and emitted every two seconds; without a connection nothing is emitted until the next try."""
    async with World(autojump_clock) as world:
        emitted = list[tuple[int, Event]]()
        for _ in range(2):
            world.publish(reply(200))
        worker = world.worker()
        world.nursery.start_soon(worker.link.run)
        await wait_all_tasks_blocked()
        world.nursery.start_soon(
            watch_backlog, worker.queue, lambda event: emitted.append((ms(trio.current_time()), event))
        )
        await trio.sleep(3)
        world.publish(reply(200))
        await trio.sleep_until(4.5)
        worker.link.cut(3)
        await trio.sleep_until(10)
        two, three = (BacklogRead(Backlog(stored, {"faas-request": stored})) for stored in (2, 3))
        # Reading takes 2, and the pause is 2_000; at 6_006 there is no connection.
        assert emitted == [(2, two), (2_004, two), (4_006, three), (8_008, three)]
