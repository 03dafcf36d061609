"""Messages that come again: while they run, when they have ended, before their back-off is over. On the virtual clock.

The ack wait is 30 s, and a message takes 1 ms either way. When the consumer is made anew at t, the worker hears of it
at t+1, what it asks for then is heard at t+2, and what had not been settled is there at t+3.
"""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.world import World, ms, reply
from worker.events import InvocationStarted, Redelivered
from worker.model import Ack, Nak, Term
from worker.policy.backoff import Backoff
from worker.policy.retry import Retry


async def test_redelivered_while_running(autojump_clock: MockClock) -> None:
    """A message that comes again while it runs here is not run twice, and its newest delivery is what is settled."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=12))
        worker = world.start(world.worker())
        await trio.sleep(5)
        world.server.make_anew()
        await message.over.wait()
        # Told at 5_001, asked for at 5_002, there at 5_003: the next extension is due at 15_003, after the end.
        assert worker.times(Redelivered) == [5_003]
        ((_, newest, _),) = worker.queue.said
        assert worker.told(Redelivered) == [Redelivered(newest, "running")]
        assert world.starts(message) == [2]
        assert world.heard(message) == [(12_003, Ack())]
        assert world.server.heard[-1].token == message.token
        assert worker.wanted == 10


async def test_redelivered_when_finished(autojump_clock: MockClock) -> None:
    """A message that ended here and comes again, because the broker never heard, is settled again and not run again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=1))
        worker = world.start(world.worker(slots=1))
        worker.link.there.swallows = {"settlement"}
        await trio.sleep(30.5)
        worker.link.there.swallows = ()
        await message.over.wait()
        # Handed out at 1 and again at 30_001. The first that gets through is the first acknowledgement, said again
        # every 2_000: 1_002 + 15 * 2_000 = 31_002.
        assert worker.times(Redelivered) == [30_002]
        (_, first, _), (_, second, _) = worker.queue.said
        assert worker.told(Redelivered) == [Redelivered(second, "finished")]
        assert world.heard(message)[0] == (31_003, Ack())
        assert [(ms(at), said) for at, _, said in worker.queue.said] == [(1_002, Ack()), (30_002, Ack())]
        assert first.token != second.token
        assert world.starts(message) == [2]
        assert worker.wanted == 1
        assert world.server.backlog().by_subject == {}


async def test_given_up_and_redelivered(autojump_clock: MockClock) -> None:
    """What was given up here and comes again is given up again, for the same reason, and not run or buried again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(500, after=1))
        worker = world.start(world.worker(retry=Retry(attempts=1)))
        worker.link.there.swallows = {"settlement"}
        await trio.sleep(30.5)
        worker.link.there.swallows = ()
        await message.over.wait()
        assert message.verdict == Term("gave up after 1 of 1 attempts: status 500")
        assert world.starts(message) == [2]
        assert len(world.server.letters) == 1


async def test_early_by_less_than_a_second_is_held(autojump_clock: MockClock) -> None:
    """A message that comes up to a second before its back-off is over waits for the rest of it in its slot."""
    async with World(autojump_clock) as world:
        await trio.sleep(0.8)
        message = world.publish(reply(503), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(2)
        world.server.restart(down=1)
        await trio.sleep_until(10.5)
        # Due at 10_803, which the restart made a whole second: it is there at 10_001, and waits until 10 s after the
        # verdict at 802.
        assert worker.services.timers.waiting["early redelivery"] == 1
        await message.over.wait()
        assert world.starts(message) == [802, 10_802]
        assert worker.services.timers.waiting["early redelivery"] == 0


async def test_early_by_more_goes_back(autojump_clock: MockClock) -> None:
    """A message that comes earlier than that is given back for the rest, and that is no attempt."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(5)
        world.server.make_anew()
        await message.over.wait()
        # There again at 5_003, when 4_999 are left; heard at 5_004, over at 10_003.
        assert worker.times(Redelivered) == [5_003]
        (_, _, _), (_, early, _), (_, _, _) = worker.queue.said
        assert worker.told(Redelivered) == [Redelivered(early, "early")]
        assert [at for at, _ in world.heard(message)] == [3, 5_004, 10_005]
        assert world.starts(message) == [2, 10_004]
        assert [told.attempt for told in worker.told(InvocationStarted)] == [1, 2]
        assert worker.wanted == 10


async def test_the_lease_of_a_held_message_is_kept(autojump_clock: MockClock) -> None:
    """Waiting for the rest of a back-off, a message is leased like any other: nobody else is given it."""
    async with World(autojump_clock, ack_wait=0.9) as world:
        await trio.sleep(0.84)
        message = world.publish(reply(503), reply(200))
        world.start(world.worker(retry=Retry(backoff=Backoff(10, 10))))
        await trio.sleep(2)
        world.server.restart(down=0)
        await message.over.wait()
        # Due at 10_843, an ack wait after 9_943, which the restart made 9_000. So it is out at 9_900, there at 9_901,
        # started 10 s after 842, and extended at 10_201, 10_501 and 10_801.
        extended = [(10_202, None), (10_502, None), (10_802, None)]
        assert world.heard(message) == [(843, Nak(10)), *extended, (10_843, Ack())]
