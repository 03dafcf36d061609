"""The events of a message, with every field: logs and metrics are made of these alone. On the virtual clock.

A message takes 1/8 s either way, so that floats add times up exactly: a delivery arrives at 0.25, and a settlement
sent at t is confirmed at t + 0.25.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.world import Answer, World, reply
from tests.world.functions import Reply
from worker.events import (
    AnnotationIgnored,
    CallbackPosted,
    DeadLettered,
    DeadLetterNotStored,
    InvocationEnded,
    InvocationStarted,
    Settled,
    WorkCrashed,
)
from worker.model import Crashed, DeadLetter, Nak, Responded, Term
from worker.policy.retry import Retry


async def test_events_of_a_given_up_message_have_every_field(autojump_clock: MockClock) -> None:
    """Two attempts, a dead letter that is refused once and a callback that fails once each emit an event at its time.

    The first attempt runs from 0.25 to 1.25 and waits 10 s; the broker receives its NAK at 1.375, and redelivers
    the message, which arrives at 11.5. The second attempt ends at 13.5. The letter is refused
    at 13.75, sent again at 14.25, and stored.
    """
    async with World(autojump_clock, latency=1 / 8) as world:
        world.server.refuses_dead_letters = True
        message = world.publish(
            reply(503, after=1),
            reply(500, after=2),
            function="resize",
            callback=[Answer(500), Answer(200, after=2)],
            annotations={"com.openfaas.retry.max_wait": "120"},
        )
        worker = world.start(world.worker(retry=Retry(attempts=2)))
        await trio.sleep_until(14)
        world.server.refuses_dead_letters = False
        assert worker.services.timers.waiting == {"dead letter": 1}
        await trio.sleep_until(15)
        assert worker.services.timers.waiting == {"callback": 1, "dead letter": 0}
        await message.removed.wait()
        first, second = (delivery for _, delivery, _ in worker.queue.settlements)
        assert (first.id, first.num_delivered, second.id, second.num_delivered) == (message.id, 1, message.id, 2)
        invocation = world.outside.calls[0].invocation
        assert (invocation.call_id, invocation.label) == ("call-1", "resize.openfaas-fn")
        accepted = "not a duration: write a number and a unit, as 300ms, 1.5s, 2m or 1h30m"
        ignored = AnnotationIgnored("resize.openfaas-fn", "com.openfaas.retry.max_wait", "120", accepted)
        given_up = Term("gave up after 2 of 2 attempts: status 500")
        letter = DeadLetter(second, given_up.reason, 2, "call-1", "resize.openfaas-fn", 500)
        assert worker.events == [
            (0.25, ignored),
            (0.25, InvocationStarted(invocation, 1, 0.25)),
            (1.25, InvocationEnded(invocation, 1, 2, Responded(503), Nak(10.0), 1.0)),
            (1.25, Settled(Nak(10.0))),
            (11.5, ignored),
            (11.5, InvocationStarted(invocation, 2, 11.5)),
            (13.5, InvocationEnded(invocation, 2, 2, Responded(500), given_up, 2.0)),
            (13.75, DeadLetterNotStored(letter, "it was not confirmed")),
            (14.5, DeadLettered(letter, stored=True)),
            (
                14.5,
                CallbackPosted(
                    "call-1", "resize.openfaas-fn", "http://results", 500, delivered=False, retry_in=1.0, duration=0.0
                ),
            ),
            (
                17.5,
                CallbackPosted(
                    "call-1", "resize.openfaas-fn", "http://results", 200, delivered=True, retry_in=None, duration=2.0
                ),
            ),
            (17.5, Settled(given_up)),
        ]


async def test_events_of_a_malformed_message_are_dead_letter_and_settlement(autojump_clock: MockClock) -> None:
    """A message that cannot be decoded emits no start and no end, but a dead letter without function and attempts."""
    async with World(autojump_clock, latency=1 / 8) as world:
        message = world.publish(payload=b'{"Function": "../etc"}')
        worker = world.start(world.worker())
        await message.removed.wait()
        ((_, delivery, verdict),) = worker.queue.settlements
        assert verdict == Term("not a function's name: '../etc'")
        assert worker.events == [
            (0.5, DeadLettered(DeadLetter(delivery, verdict.reason, 0, None, None, None), stored=True)),
            (0.5, Settled(verdict)),
        ]


async def test_events_of_a_crashed_attempt_have_the_error(autojump_clock: MockClock) -> None:
    """A bug emits an event with the delivery that met it, and is the outcome of the attempt."""
    async with World(autojump_clock, latency=1 / 8) as world:
        world.publish(Reply(KeyError("a bug"), after=1))
        worker = world.start(world.worker())
        await trio.sleep(5)
        ((_, delivery, _),) = worker.queue.settlements
        invocation = world.outside.calls[0].invocation
        bug = worker.events_of(WorkCrashed)[0].error
        assert repr(bug) == "KeyError('a bug')"
        assert worker.events == [
            (0.25, InvocationStarted(invocation, 1, 0.25)),
            (1.25, WorkCrashed(delivery, bug)),
            (1.25, InvocationEnded(invocation, 1, 100, Crashed(bug), Nak(10.0), 1.0)),
            (1.25, Settled(Nak(10.0))),
        ]


@pytest.mark.parametrize(("ahead", "waited"), [(0.0, 0.25), (0.125, 0.125), (5.0, 0.0)])
async def test_invocation_started_event_has_the_wait(ahead: float, waited: float, autojump_clock: MockClock) -> None:
    """A start's wait is the time since the message was stored; it is 0 where the broker's clock is ahead."""
    async with World(autojump_clock, latency=1 / 8) as world:
        message = world.publish(reply(200))
        message.id = message.id[0], message.id[1] + round(ahead * 1e9)
        worker = world.start(world.worker())
        await message.removed.wait()
        assert [event.waited for event in worker.events_of(InvocationStarted)] == [waited]
