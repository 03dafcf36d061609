"""Waits that are ours, and what is read every few seconds. On the virtual clock."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.world import World, ms, reply
from worker.backlog import watch_backlog
from worker.events import BacklogRead, Event
from worker.model import Backlog
from worker.timers import Timers


async def _note(retries: Timers, seconds: float, what: str, ended: list[tuple[str, int]]) -> None:
    await retries.wait(seconds, what)
    ended.append((what, ms(trio.current_time())))


async def test_each_wait_ends_when_it_falls_due(autojump_clock: MockClock) -> None:
    """Whatever the order in which they began, and also while others wait; those due together end together."""
    assert autojump_clock.current_time() == 0
    retries, ended = Timers(), list[tuple[str, int]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retries.run)
        for seconds in (5, 3, 9, 3, 0):
            nursery.start_soon(_note, retries, seconds, "callback", ended)
        await trio.sleep(4)
        nursery.start_soon(_note, retries, 0.5, "dead letter", ended)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert ended == [
        *(("callback", at) for at in (0, 3_000, 3_000)),
        ("dead letter", 4_500),
        *(("callback", at) for at in (5_000, 9_000)),
    ]


async def test_what_waits_before_the_scheduler_runs_is_woken_too(autojump_clock: MockClock) -> None:
    """The order in which tasks begin is Trio's to choose."""
    assert autojump_clock.current_time() == 0
    retries, ended = Timers(), list[tuple[str, int]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_note, retries, 2, "callback", ended)
        await wait_all_tasks_blocked()
        nursery.start_soon(retries.run)
        await trio.sleep(3)
        nursery.cancel_scope.cancel()
    assert ended == [("callback", 2_000)]


async def test_what_waits_is_counted(autojump_clock: MockClock) -> None:
    """By what it waits for, until it is woken or cancelled; what was cancelled delays nothing else."""
    assert autojump_clock.current_time() == 0
    retries, ended = Timers(), list[tuple[str, int]]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retries.run)
        for seconds in (1, 2):
            nursery.start_soon(_note, retries, seconds, "callback", ended)
        with trio.move_on_after(0.5):
            await retries.wait(0.75, "callback")
        assert retries.waiting == {"callback": 2}
        await trio.sleep_until(1.5)
        assert retries.waiting == {"callback": 1}
        await trio.sleep_until(2.5)
        assert retries.waiting == {"callback": 0}
        nursery.cancel_scope.cancel()
    assert ended == [("callback", 1_000), ("callback", 2_000)]


async def test_the_backlog_is_told_every_two_seconds(autojump_clock: MockClock) -> None:
    """From the start, as long as it can be read; while it cannot, nothing is told, and it is tried again."""
    async with World(autojump_clock) as world:
        told = list[tuple[int, Event]]()
        for _ in range(2):
            world.publish(reply(200))
        worker = world.worker()
        world.nursery.start_soon(worker.link.run)
        await wait_all_tasks_blocked()
        world.nursery.start_soon(
            watch_backlog, worker.queue, lambda event: told.append((ms(trio.current_time()), event))
        )
        await trio.sleep(3)
        world.publish(reply(200))
        await trio.sleep_until(4.5)
        worker.link.cut(3)
        await trio.sleep_until(10)
        two, three = (BacklogRead(Backlog(stored, {"faas-request": stored})) for stored in (2, 3))
        # Reading takes 2, and 2_000 lie between; at 6_006 there is no connection.
        assert told == [(2, two), (2_004, two), (4_006, three), (8_008, three)]
