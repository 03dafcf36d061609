"""Times of invocations: slots, attempts, and the waits between them, with whole workers on the virtual clock.

The arithmetic of the times: a message takes 1 ms either way. A worker that starts at 0 sends its pull request; the
broker receives it at 1, and the delivery arrives at 2. The broker receives a verdict of t at t+1; with a delay of d,
the next delivery arrives at t+1+d+1. A slot that becomes free at t is filled at t+2.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.world import World, ms, reply
from tests.world.functions import Reply
from worker.events import AnnotationIgnored, InvocationEnded, InvocationStarted, WorkCrashed
from worker.model import Ack, Nak, NoResponse, Term, TimedOut
from worker.policy.retry import Backoff, Jitter, Retry


async def test_intake_more_messages_than_slots_runs_one_per_slot(autojump_clock: MockClock) -> None:
    """A worker never runs more than max_inflight invocations, and fills a free slot at once."""
    async with World(autojump_clock) as world:
        messages = [world.publish(reply(200, after=1)) for _ in range(7)]
        world.start(world.worker(slots=3))
        for message in messages:
            await message.removed.wait()
        # Three start at 2. Each slot is free 1000 ms later and filled 2 ms after that.
        assert [world.starts(message)[0] for message in messages] == [2, 2, 2, 1_004, 1_004, 1_004, 2_006]
        assert world.outside.peak["worker-1"] == 3


async def test_intake_with_one_slot_starts_messages_in_order(autojump_clock: MockClock) -> None:
    """A worker starts messages in the order in which they were published."""
    async with World(autojump_clock) as world:
        messages = [world.publish(reply(200, after=0.1)) for _ in range(20)]
        world.start(world.worker(slots=1))
        await messages[-1].removed.wait()
        assert [call.invocation.call_id for call in world.outside.calls] == [f"call-{n}" for n in range(1, 21)]


async def test_credit_after_any_outcome_equals_slots(autojump_clock: MockClock) -> None:
    """When all messages are settled, with any outcome, the worker has requested one message for each of its slots."""
    async with World(autojump_clock) as world:
        scripts = [reply(200)], [reply(503), reply(200)], [Reply(KeyError("a bug")), reply(200)], [reply(500)]
        messages = [world.publish(*script) for script in scripts]
        messages.append(world.publish(payload=b"no JSON"))
        worker = world.start(world.worker(slots=2, retry=Retry(attempts=3)))
        for message in messages:
            await message.removed.wait()
        await trio.sleep(1)
        assert worker.credit == 2


async def test_intake_delivery_beyond_slots_is_nakked(autojump_clock: MockClock) -> None:
    """A worker naks a delivery beyond its slots without starting it; this is no attempt, and its credit is unchanged.

    Each slot counts once, also after a message has left it.
    """
    async with World(autojump_clock) as world:
        world.publish(reply(200))
        worker = world.start(world.worker(slots=1))
        await trio.sleep(1)
        assert worker.queue.consumer
        world.server.pull(worker.queue.consumer.client, 0, 2)  # as if a request had outlived its connection
        messages = [world.publish(reply(200, after=1)) for _ in range(3)]
        for message in messages:
            await message.removed.wait()
        await trio.sleep(1)
        # They arrive at 1_001; the broker receives the naks at 1_002.
        assert [world.verbs_of(message)[0] for message in messages] == [
            (2_002, Ack()),
            (1_002, Nak()),
            (1_002, Nak()),
        ]
        assert world.violations == [f"worker-1: message {number} exceeds the credit" for number in (3, 4)]
        world.violations.clear()
        assert worker.credit == 1
        assert {event.attempt for event in worker.events_of(InvocationStarted)} == {1}
        assert world.outside.peak["worker-1"] == 1


async def test_retry_while_waiting_takes_no_slot(autojump_clock: MockClock) -> None:
    """While a message waits for its next attempt, other messages run in its slot."""
    async with World(autojump_clock) as world:
        failing, other = world.publish(reply(503), reply(200)), world.publish(reply(200, after=60))
        world.start(world.worker(slots=1))
        await failing.removed.wait()
        # The NAK at 2 frees the slot for the other message from 4 to 60_004. The retry, due at 10_003, follows it.
        assert world.starts(other) == [4]
        assert world.starts(failing) == [2, 60_006]


async def test_retry_waits_double_up_to_the_maximum(autojump_clock: MockClock) -> None:
    """The wait after attempt n is initial * 2^(n-1), at most the maximum; the last attempt is followed by a term."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503, after=1))
        world.start(world.worker(retry=Retry(attempts=5, backoff=Backoff(10, 60))))
        await message.removed.wait()
        # Each attempt takes 1000, its NAK and redelivery 2; the waits are 10_000, 20_000, 40_000 and 60_000.
        assert world.starts(message) == [2, 11_004, 32_006, 73_008, 134_010]
        # The fifth ends at 135_010; its dead letter is confirmed 2 later; the broker receives the term 1 after that.
        assert world.verbs_of(message)[-1] == (135_013, Term("gave up after 5 of 5 attempts: status 503"))


@pytest.mark.parametrize(
    ("jitter", "second"),
    [(Jitter.EXPONENTIAL, 10_004), (Jitter.FULL, 2_504), (Jitter.EQUAL, 6_254)],
)
async def test_retry_jitter_shortens_the_wait(jitter: Jitter, second: int, autojump_clock: MockClock) -> None:
    """Jitter randomizes none, all or half of the wait: with 0.25 drawn, 10 s become 10, 2.5 and 6.25 s."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503), reply(200))
        world.start(world.worker(retry=Retry(backoff=Backoff(10, 60, jitter)), rng=0.25))
        await message.removed.wait()
        assert world.starts(message) == [2, second]


@pytest.mark.parametrize(
    ("value", "second"),
    [
        (b"30", 30_004),
        (b"Tue, 14 Nov 2023 22:14:05 GMT", 45_002),
        (b"3", 10_004),
        (b"7200", 3_600_004),
        (b"soon", 10_004),
    ],
    ids=["seconds", "date", "below the least", "above an hour", "invalid"],
)
async def test_retry_after_header_replaces_wait(value: bytes, second: int, autojump_clock: MockClock) -> None:
    """Retry-After replaces the wait: at least the initial wait, at most an hour; an invalid value is ignored.

    The world begins at 22:13:20, and the date is 45 s later: at 2 ms, 44_998 ms remain.
    """
    async with World(autojump_clock) as world:
        message = world.publish(reply(429, headers=((b"Retry-After", value),)), reply(200))
        world.start(world.worker())
        await message.removed.wait()
        assert world.starts(message) == [2, second]


@pytest.mark.parametrize(
    "outcome",
    [
        reply(408),
        reply(404, headers=((b"X-OpenFaaS-Internal", b"gateway"),)),
        Reply(NoResponse("refused")),
        Reply(TimedOut(60)),
        Reply(RuntimeError("a bug")),
    ],
    ids=["in the list", "from OpenFaaS itself", "no response", "timed out", "a bug"],
)
async def test_attempt_with_retryable_outcome_is_retried(outcome: Reply, autojump_clock: MockClock) -> None:
    """A worker retries listed codes, all error codes of OpenFaaS itself, a missing response, a timeout and its bugs."""
    async with World(autojump_clock) as world:
        message = world.publish(outcome, reply(200))
        world.start(world.worker())
        await message.removed.wait()
        assert world.verbs_of(message) == [(3, Nak(10)), (10_005, Ack())]


@pytest.mark.parametrize("status", [200, 202, 301, 400, 404, 501])
async def test_attempt_with_unlisted_code_is_final(status: int, autojump_clock: MockClock) -> None:
    """A worker acks a message whose function answers with a code that is not listed, also with an error code."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(status))
        world.start(world.worker())
        await message.removed.wait()
        assert world.verbs_of(message) == [(3, Ack())]


async def test_invocation_bug_stops_no_other_message(autojump_clock: MockClock) -> None:
    """An exception in the work on one message is logged and retried as a failed attempt, and stops no other message."""
    async with World(autojump_clock) as world:
        broken, other = world.publish(Reply(KeyError("a bug"), after=1)), world.publish(reply(200, after=2))
        worker = world.start(world.worker(retry=Retry(attempts=2)))
        await broken.removed.wait()
        assert world.verbs_of(other) == [(2_003, Ack())]
        assert world.starts(broken) == [2, 11_004]
        assert len(worker.events_of(WorkCrashed)) == 2
        assert broken.verdict == Term("gave up after 2 of 2 attempts: a bug in the worker: KeyError('a bug')")


async def test_decision_bug_fails_only_its_own_attempt(autojump_clock: MockClock) -> None:
    """An exception while a response is judged is logged and retried as a failed attempt, and stops no other message."""
    async with World(autojump_clock) as world:
        unreadable: Any = ((None, b"no name"),)
        broken, other = world.publish(reply(503, headers=unreadable)), world.publish(reply(200, after=2))
        worker = world.start(world.worker(retry=Retry(attempts=2)))
        await broken.removed.wait()
        assert world.verbs_of(other) == [(2_003, Ack())]
        # Only the first response needs a wait, so only it raises: after the last attempt there is no wait.
        assert len(worker.events_of(WorkCrashed)) == 1
        assert world.starts(broken) == [2, 10_004]
        assert broken.verdict == Term("gave up after 2 of 2 attempts: status 503")


async def test_annotation_overrides_its_setting(autojump_clock: MockClock) -> None:
    """Each annotation of the function overrides one setting; an invalid one is logged at each attempt."""
    async with World(autojump_clock) as world:
        annotations = {
            "com.openfaas.retry.attempts": "3",
            "com.openfaas.retry.codes": "418",
            "com.openfaas.retry.min_wait": "2s",
            "com.openfaas.retry.max_wait": "soon",
        }
        message = world.publish(reply(418), annotations=annotations)
        worker = world.start(world.worker(retry=Retry(backoff=Backoff(10, 3))))
        await message.removed.wait()
        # The waits are 2 s, and then 4 s, which the setting limits to 3.
        assert world.starts(message) == [2, 2_004, 5_006]
        assert [event.annotation for event in worker.events_of(AnnotationIgnored)] == [
            "com.openfaas.retry.max_wait"
        ] * 3
        assert {event.max_attempts for event in worker.events_of(InvocationEnded)} == {3}


async def test_attempt_number_continues_in_another_worker(autojump_clock: MockClock) -> None:
    """Another worker continues with the attempt number that the delivery count gives, up to the same limit."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503, after=1))
        first = world.start(world.worker(retry=Retry(attempts=3)))
        await trio.sleep(5)
        first.kill()
        second = world.start(world.worker(retry=Retry(attempts=3)))
        await message.removed.wait()
        assert [event.attempt for event in first.events_of(InvocationStarted)] == [1]
        assert [event.attempt for event in second.events_of(InvocationStarted)] == [2, 3]
        assert ms(trio.current_time()) == 11_004 + 1_000 + 2 + 20_000 + 1_000 + 3


async def test_intake_when_idle_starts_a_new_message_at_once(autojump_clock: MockClock) -> None:
    """A message that is published to an idle worker starts at once."""
    async with World(autojump_clock) as world:
        world.start(world.worker(slots=1))
        await trio.sleep(1000)
        message = world.publish(reply(200))
        await message.removed.wait()
        assert world.starts(message) == [1_000_001]
