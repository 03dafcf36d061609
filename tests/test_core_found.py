"""Bugs that the simulation found, as its smallest failing cases. On the virtual clock, in milliseconds."""

from __future__ import annotations

from itertools import pairwise

import trio
from trio.testing import MockClock

from tests.world import World, ms, reply
from worker.events import InvocationEnded, InvocationStarted, LimitLearned, Redelivered
from worker.model import Nak
from worker.policy.retry import Retry


async def test_early_deliveries_at_once_are_nakked_once(autojump_clock: MockClock) -> None:
    """Of two early deliveries of one message that arrive together, only the newest is nakked, for the rest of the wait.

    Each NAK makes the broker redeliver the message. When it receives the second, another worker may run the message.
    """
    async with World(autojump_clock, ack_wait=3) as world:
        message = world.publish(reply(503, after=1), reply(200))
        worker = world.start(world.worker(slots=3))
        await trio.sleep(0.5)
        worker.link.stall(7.5)
        await message.removed.wait()
        # The NAK of 1_002 is delayed until 8_000. So the broker redelivers at 3_001 and 6_001 (1 each way), both
        # deliveries arrive at 8_000, and 3_002 of the wait's 10_000 remain.
        settlements = [(ms(at), settlement) for at, _, settlement in worker.queue.settlements]
        assert [(at, ms(nak.delay)) for at, nak in settlements if isinstance(nak, Nak)] == [
            (1_002, 10_000),
            (8_000, 3_002),
        ]
        assert worker.times(Redelivered) == [8_000]
        assert worker.credit == 3, "the credit of both deliveries has returned"


async def test_retry_after_of_an_hour_with_limiter_is_given_up_in_time(autojump_clock: MockClock) -> None:
    """With a limiter, a message whose function always answers 429 with Retry-After 3600 is given up in three attempts.

    A refusal that only teaches the limiter is no attempt. When each one asked for an hour, the retries took a day.
    """
    async with World(autojump_clock, by_function=True) as world:
        message = world.publish(reply(429, headers=((b"Retry-After", b"3600"),)))
        world.start(world.worker(retry=Retry(3), adaptive=True))
        await message.removed.wait()
        assert len(world.starts(message)) == 3
        assert trio.current_time() < 3 * 3600


async def test_slow_refusals_with_limiter_are_given_up_in_time(autojump_clock: MockClock) -> None:
    """With a limiter, a message whose function always answers 429 after three seconds is given up within 300 s.

    The limiter once took a call without a response for an accepted one. Then no refusal counted as an attempt.
    """
    async with World(autojump_clock, by_function=True) as world:
        message = world.publish(reply(429, after=3))
        world.start(world.worker(retry=Retry(3), adaptive=True))
        await message.removed.wait()
        assert trio.current_time() < 300
        assert len(world.starts(message)) < 25


async def test_limit_that_the_limiter_changes_is_emitted(autojump_clock: MockClock) -> None:
    """Each change of a function's limit emits LimitLearned, and no more invocations run than its limit.

    The event had an observer and a metric, and nothing emitted it.
    """
    async with World(autojump_clock, by_function=True) as world:
        messages = [world.publish(reply(200, after=1), function="resize") for _ in range(60)]
        worker = world.start(world.worker(slots=10, adaptive=True))
        running = 0
        for message in messages:
            await message.removed.wait()
        limits = [event.limit for event in worker.events_of(LimitLearned)]
        assert (limits[0], limits[-1]) == (1, 10)
        assert all(one != other for one, other in pairwise(limits))
        limit = 0
        for _, event in worker.events:
            match event:
                case LimitLearned("resize.openfaas-fn", limit):
                    pass
                case InvocationStarted():
                    running += 1
                    assert running <= limit
                case InvocationEnded():
                    running -= 1
