"""Redeliveries of messages that run, have ended, or still wait for their backoff. On the virtual clock.

The ack wait is 30 s, and a message takes 1 ms either way. When the consumer is recreated at t, the worker detects
it at t+1, the broker receives its pull request at t+2, and the unsettled messages arrive at t+3.
"""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.world import World, ms, reply
from worker.events import InvocationStarted, Redelivered
from worker.model import Ack, Nak, Term
from worker.policy.retry import Backoff, Retry


async def test_redelivery_while_running_is_not_run(autojump_clock: MockClock) -> None:
    """A message that is redelivered while it runs does not run twice, and the worker settles its newest delivery."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=12))
        worker = world.start(world.worker())
        await trio.sleep(5)
        world.server.recreate_consumers()
        await message.removed.wait()
        # Detected at 5_001, requested at 5_002, redelivered at 5_003. The next extension, at 15_003, is after the end.
        assert worker.times(Redelivered) == [5_003]
        ((_, newest, _),) = worker.queue.settlements
        assert worker.events_of(Redelivered) == [Redelivered(newest, "running")]
        assert world.starts(message) == [2]
        assert world.verbs_of(message) == [(12_003, Ack())]
        assert world.server.applied[-1].token == message.token
        assert worker.credit == 10


async def test_redelivery_when_finished_is_acked_again(autojump_clock: MockClock) -> None:
    """A finished message that is redelivered, because its ack was lost, is acked again and does not run again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, after=1))
        worker = world.start(world.worker(slots=1))
        worker.link.to_broker.dropped_kinds = {"settlement"}
        await trio.sleep(30.5)
        worker.link.to_broker.dropped_kinds = ()
        await message.removed.wait()
        # Delivered at 1 and again at 30_001. The first ack, which is sent again every 2_000, arrives first:
        # 1_002 + 15 * 2_000 = 31_002.
        assert worker.times(Redelivered) == [30_002]
        (_, first, _), (_, second, _) = worker.queue.settlements
        assert worker.events_of(Redelivered) == [Redelivered(second, "finished")]
        assert world.verbs_of(message)[0] == (31_003, Ack())
        assert [(ms(at), settlement) for at, _, settlement in worker.queue.settlements] == [
            (1_002, Ack()),
            (30_002, Ack()),
        ]
        assert first.token != second.token
        assert world.starts(message) == [2]
        assert worker.credit == 1
        assert world.server.backlog().by_subject == {}


async def test_redelivery_when_given_up_is_termed_again(autojump_clock: MockClock) -> None:
    """A redelivered message that was given up gets the same term again, without another run or dead letter."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(500, after=1))
        worker = world.start(world.worker(retry=Retry(attempts=1)))
        worker.link.to_broker.dropped_kinds = {"settlement"}
        await trio.sleep(30.5)
        worker.link.to_broker.dropped_kinds = ()
        await message.removed.wait()
        assert message.verdict == Term("gave up after 1 of 1 attempts: status 500")
        assert world.starts(message) == [2]
        assert len(world.server.dead_letters) == 1


async def test_redelivery_early_by_less_than_a_second_is_held(autojump_clock: MockClock) -> None:
    """A message that is redelivered less than a second early waits in its slot for the rest of its backoff."""
    async with World(autojump_clock) as world:
        await trio.sleep(0.8)
        message = world.publish(reply(503), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(2)
        world.server.restart(down=1)
        await trio.sleep_until(10.5)
        # Due at 10_803, which the restart rounds to a whole second: it arrives at 10_001, and waits until 10 s after
        # the verdict at 802.
        assert worker.services.timers.waiting["early redelivery"] == 1
        await message.removed.wait()
        assert world.starts(message) == [802, 10_802]
        assert worker.services.timers.waiting["early redelivery"] == 0


async def test_redelivery_early_by_more_is_nakked(autojump_clock: MockClock) -> None:
    """A message that is redelivered over a second early is nakked for the rest of its backoff; this is no attempt."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503), reply(200))
        worker = world.start(world.worker())
        await trio.sleep(5)
        world.server.recreate_consumers()
        await message.removed.wait()
        # Redelivered at 5_003, when 4_999 remain; the broker receives the NAK at 5_004, and its delay ends at 10_003.
        assert worker.times(Redelivered) == [5_003]
        (_, _, _), (_, early, _), (_, _, _) = worker.queue.settlements
        assert worker.events_of(Redelivered) == [Redelivered(early, "early")]
        assert [at for at, _ in world.verbs_of(message)] == [3, 5_004, 10_005]
        assert world.starts(message) == [2, 10_004]
        assert [event.attempt for event in worker.events_of(InvocationStarted)] == [1, 2]
        assert worker.credit == 10


async def test_redelivery_held_is_extended(autojump_clock: MockClock) -> None:
    """The lease of a message that waits for the rest of its backoff is extended; no other worker receives it."""
    async with World(autojump_clock, ack_wait=0.9) as world:
        await trio.sleep(0.84)
        message = world.publish(reply(503), reply(200))
        world.start(world.worker(retry=Retry(backoff=Backoff(10, 10))))
        await trio.sleep(2)
        world.server.restart(down=0)
        await message.removed.wait()
        # Due at 10_843, an ack wait after 9_943, which the restart rounds to 9_000. So it is redelivered at 9_900,
        # arrives at 9_901, starts 10 s after 842, and is extended at 10_201, 10_501 and 10_801.
        extended = [(10_202, None), (10_502, None), (10_802, None)]
        assert world.verbs_of(message) == [(843, Nak(10)), *extended, (10_843, Ack())]
