"""What the simulation has found: its smallest failing cases. On the virtual clock, in milliseconds."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.world import World, ms, reply
from worker.events import Redelivered
from worker.model import Nak
from worker.policy.retry import Retry


async def test_what_comes_twice_at_once_is_given_back_once(autojump_clock: MockClock) -> None:
    """Of deliveries of one message that come together, too early, only the newest goes back for the rest of the wait.

    Each would give the message out again, and nobody knows who has it by the time that the second is heard.
    """
    async with World(autojump_clock, ack_wait=3) as world:
        message = world.publish(reply(503, after=1), reply(200))
        worker = world.start(world.worker(slots=3))
        await trio.sleep(0.5)
        worker.link.stand_still(7.5)
        await message.over.wait()
        # The NAK of 1_002 is stuck until 8_000; so the message comes again after 3_001 and 6_001 (1 each way), both
        # are there at 8_000, and 3_002 of its 10_000 are left.
        said = [(ms(at), settlement) for at, _, settlement in worker.queue.said]
        assert [(at, ms(nak.delay)) for at, nak in said if isinstance(nak, Nak)] == [(1_002, 10_000), (8_000, 3_002)]
        assert worker.times(Redelivered) == [8_000]
        assert worker.wanted == 3, "each of both has its credit back"


async def test_what_asks_to_come_in_an_hour_is_given_up_in_time(autojump_clock: MockClock) -> None:
    """Where the worker learns how many a function takes, too, all attempts are over in as many hours.

    Refusals to learn from are no attempts; while each asked for an hour, they went on for a day.
    """
    async with World(autojump_clock, by_function=True) as world:
        message = world.publish(reply(429, headers=((b"Retry-After", b"3600"),)))
        world.start(world.worker(retry=Retry(3), learns=True))
        await message.over.wait()
        assert len(world.starts(message)) == 3
        assert trio.current_time() < 3 * 3600


async def test_what_is_refused_slowly_is_given_up_in_time(autojump_clock: MockClock) -> None:
    """A function that says 429 after three seconds is not thought to have taken what it then refuses.

    As long as silence was proof of that, its refusals were no attempts, for ever.
    """
    async with World(autojump_clock, by_function=True) as world:
        message = world.publish(reply(429, after=3))
        world.start(world.worker(retry=Retry(3), learns=True))
        await message.over.wait()
        assert trio.current_time() < 300
        assert len(world.starts(message)) < 25
