"""What is read every few seconds, on the virtual clock."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.world import World, ms, reply
from worker.backlog import watch_backlog
from worker.events import BacklogRead, Event
from worker.model import Backlog


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
