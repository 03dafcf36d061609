"""Conditions for taking a message off the queue: its dead letter is stored, and its callback has been posted.

On the virtual clock, in milliseconds: a message takes 1 to the broker and 1 back, so a dead letter is confirmed 2 after
it was sent. Functions and receivers of callbacks answer after the times in their scripts.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.world import Answer, World, ms, reply
from worker import callbacks
from worker.events import (
    CallbackIgnored,
    CallbackPosted,
    DeadLettered,
    DeadLetterNotStored,
    InvocationStarted,
    WorkCrashed,
)
from worker.model import Ack, DeadLetter, Nak, Term
from worker.policy import receivers
from worker.policy.retry import Backoff, Jitter, Retry

ONCE = Retry(attempts=1)
GIVEN_UP = Term("gave up after 1 of 1 attempts: status 500")


async def test_dead_letter_is_stored_before_the_term(autojump_clock: MockClock) -> None:
    """The dead letter, with payload, reason and origin, is stored before the message is taken off the queue."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(503), reply(500), function="resize.images")
        world.start(world.worker(retry=Retry(attempts=2)))
        await message.removed.wait()
        # The second attempt is at 10_004; the broker receives the letter at 10_005, and confirms it at 10_006.
        assert world.verbs_of(message) == [
            (3, Nak(10)),
            (10_007, Term("gave up after 2 of 2 attempts: status 500")),
        ]
        (letter,) = world.server.dead_letters.values()
        assert letter.data == message.payload
        assert letter.headers == {
            "X-Dead-Letter-Reason": "gave up after 2 of 2 attempts: status 500",
            "X-Dead-Letter-Attempts": "2",
            "X-Dead-Letter-Deliveries": "2",
            "X-Dead-Letter-Stream": "faas-request",
            "X-Dead-Letter-Subject": "faas-request",
            "X-Dead-Letter-Sequence": "1",
            "X-Call-Id": "call-1",
            "X-Function-Name": "resize.images",
            "X-Function-Status": "500",
        }


async def test_dead_letter_not_stored_is_sent_again(autojump_clock: MockClock) -> None:
    """A dead letter that was not stored is sent again while the lease is extended; the function does not run again."""
    async with World(autojump_clock) as world:
        world.server.refuses_dead_letters = True
        message = world.publish(reply(500))
        worker = world.start(world.worker(retry=ONCE))
        await trio.sleep(2)
        world.server.refuses_dead_letters = False
        await message.removed.wait()
        # Each try takes 2; the waits between them are 500, 1_000 and 2_000.
        assert worker.times(DeadLetterNotStored) == [4, 506, 1_508]
        assert world.verbs_of(message) == [(3_511, GIVEN_UP)]
        assert world.starts(message) == [2]
        assert len(world.server.dead_letters) == 1


async def test_dead_letter_after_five_tries_message_is_nakked(autojump_clock: MockClock) -> None:
    """After five tries to store its dead letter, a message is nakked with the maximum wait, and its slot is free."""
    async with World(autojump_clock) as world:
        world.server.refuses_dead_letters = True
        message, other = world.publish(reply(500)), world.publish(reply(200))
        worker = world.start(world.worker(slots=1, retry=ONCE))
        await other.removed.wait()
        assert worker.times(DeadLetterNotStored) == [4, 506, 1_508, 3_510, 7_512]
        assert world.verbs_of(message) == [(7_513, Nak(120))]
        assert world.starts(other) == [7_514]
        world.server.refuses_dead_letters = False
        await message.removed.wait()
        # Due 120_000 later, it arrives 1 after that. The attempt keeps its number; its letter is stored within 2.
        assert world.starts(message) == [2, 127_514]
        assert message.verdict == GIVEN_UP


async def test_dead_letter_off_stores_nothing(autojump_clock: MockClock) -> None:
    """With dead_letter off, a message that is given up is logged and taken off the queue, and no letter is stored."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(500))
        worker = world.start(world.worker(retry=ONCE, dead_letters=False))
        await message.removed.wait()
        assert world.verbs_of(message) == [(3, GIVEN_UP)]
        assert world.server.dead_letters == {}
        assert [event.stored for event in worker.events_of(DeadLettered)] == [False]


@pytest.mark.parametrize("payload", [b"", b"no JSON", b"{}", b'{"Function": "../etc"}', b"\xff\xfe"])
async def test_dead_letter_of_malformed_payload_has_the_reason(payload: bytes, autojump_clock: MockClock) -> None:
    """A payload that cannot be decoded is stored as a dead letter with the reason, and no function is invoked."""
    async with World(autojump_clock) as world:
        message = world.publish(payload=payload)
        worker = world.start(world.worker())
        await message.removed.wait()
        (letter,) = world.server.dead_letters.values()
        assert letter.data == payload
        assert isinstance(message.verdict, Term)
        assert letter.headers["X-Dead-Letter-Reason"] == message.verdict.reason
        assert letter.headers["X-Dead-Letter-Attempts"] == "0"
        assert "X-Call-Id" not in letter.headers
        assert world.outside.calls == []
        assert worker.events_of(InvocationStarted) == []


async def test_callback_is_posted_before_the_ack(autojump_clock: MockClock) -> None:
    """The callback is posted once, after the last attempt, and the message is acked after that."""
    async with World(autojump_clock) as world:
        script = reply(503, after=1), reply(200, after=2, body=b"done", headers=((b"Content-Type", b"text/plain"),))
        message = world.publish(*script, callback=[Answer(202, after=3)])
        world.start(world.worker())
        await message.removed.wait()
        (post,) = world.outside.posts
        # The second attempt runs from 11_004 to 13_004; the callback takes 3_000 more.
        assert ms(post.began) == 13_004
        assert world.verbs_of(message)[-1] == (16_005, Ack())
        assert (post.callback.url, post.callback.body) == ("http://results/1", b"done")
        assert post.headers == {
            "Content-Type": "text/plain",
            "X-Call-Id": "call-1",
            "X-Function-Name": "echo",
            "X-Function-Status": "200",
            "X-Duration-Seconds": "2.000000",
            "X-Start-Time": "1700000000000000000",
            "User-Agent": "queue-worker/test",
            "X-Retry": "1",
            "X-Retry-Max": "99",
            "webhook-id": "msg_ec279c0eafc98a4a5bb3c58fbca4ac18",
        }


async def test_callback_of_given_up_message_follows_its_dead_letter(autojump_clock: MockClock) -> None:
    """The callback of a message that is given up follows its dead letter, with the number of retries."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(500), callback=[Answer()])
        world.start(world.worker(retry=Retry(attempts=3)))
        await message.removed.wait()
        (post,) = world.outside.posts
        # The third attempt is at 2 + 10_002 + 20_002 = 30_006; its dead letter is stored 2 later.
        assert ms(post.began) == 30_008
        assert (post.headers["X-Retry"], post.headers["X-Retry-Max"]) == ("2", "2")
        assert post.headers["X-Function-Status"] == "500"


async def test_callback_that_fails_is_posted_again(autojump_clock: MockClock) -> None:
    """A callback that fails is posted again after its own backoff, and its function does not run again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(500), Answer("refused", after=1), Answer(200)])
        worker = world.start(world.worker(callback_backoff=Backoff(1, 5)))
        await message.removed.wait()
        # 1_000 after the first failure, 2_000 after the second.
        assert [ms(post.began) for post in world.outside.posts] == [2, 1_002, 4_002]
        assert [(event.result, event.delivered, event.retry_in) for event in worker.events_of(CallbackPosted)] == [
            (500, False, 1.0),
            ("refused", False, 2.0),
            (200, True, None),
        ]
        assert world.starts(message) == [2]
        assert message.verdict == Ack()


@pytest.mark.parametrize(("jitter", "second"), [(Jitter.EXPONENTIAL, 1_002), (Jitter.FULL, 252), (Jitter.EQUAL, 627)])
async def test_callback_jitter_shortens_the_wait(jitter: Jitter, second: int, autojump_clock: MockClock) -> None:
    """The waits between a callback's tries have their own jitter: with 0.25 drawn, 1 s becomes 1, 0.25 and 0.625 s."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(500), Answer(200)])
        world.start(world.worker(callback_backoff=Backoff(1, 5, jitter), rng=0.25))
        await message.removed.wait()
        assert [ms(post.began) for post in world.outside.posts] == [2, second]


@pytest.mark.parametrize(
    ("answers", "posts"),
    [([Answer(500)], 3), ([Answer("refused")], 3), ([Answer(404)], 1), ([Answer(429), Answer(410)], 2)],
    ids=["always failing", "refused", "not found", "gone"],
)
async def test_callback_that_keeps_failing_is_given_up(
    answers: list[Answer], posts: int, autojump_clock: MockClock
) -> None:
    """A callback that keeps failing, or whose receiver rejects it, is given up, and the message is acked."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=answers)
        world.start(world.worker(callback_attempts=3))
        await message.removed.wait()
        assert len(world.outside.posts) == posts
        assert message.verdict == Ack()
        assert world.starts(message) == [2]


async def test_callback_bug_is_a_failed_try(autojump_clock: MockClock) -> None:
    """An exception while a callback is posted is a failed try: it is posted again, and its function does not run."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(KeyError("a bug")), Answer(200)])
        worker = world.start(world.worker(callback_backoff=Backoff(1, 5)))
        await message.removed.wait()
        assert world.verbs_of(message) == [(1_003, Ack())]
        assert world.starts(message) == [2]
        assert len(worker.events_of(WorkCrashed)) == 1
        posted = [(each.delivered, each.retry_in, each.result) for each in worker.events_of(CallbackPosted)]
        assert posted == [(False, 1, "a bug in the worker: KeyError('a bug')"), (True, None, 200)]


async def test_dead_letter_bug_naks_the_message(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    """When a bug prevents storing a dead letter, the message is nakked with the maximum wait and retried."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(500))
        worker = world.worker(retry=ONCE)
        bury, letters = worker.queue.store_dead_letter, list[DeadLetter]()

        async def broken(letter: DeadLetter) -> None:
            letters.append(letter)
            if len(letters) == 1:
                raise KeyError("a bug")
            await bury(letter)

        monkeypatch.setattr(worker.queue, "store_dead_letter", broken)
        world.start(worker)
        await message.removed.wait()
        assert world.verbs_of(message) == [(3, Nak(120)), (120_007, GIVEN_UP)]


async def test_callback_with_invalid_url_is_ignored(autojump_clock: MockClock) -> None:
    """A message with an invalid callback URL is invoked and acked, and an event reports the ignored callback."""
    async with World(autojump_clock) as world:
        message = world.publish(
            payload=b'{"Function": "echo", "CallbackUrl": "ftp://x", "Header": {"X-Call-Id": ["a"]}}'
        )
        world.outside.scripts["a"] = [reply(200)]
        worker = world.start(world.worker())
        await message.removed.wait()
        why = "its scheme is 'ftp'; only http and https can be posted to"
        assert worker.events_of(CallbackIgnored) == [CallbackIgnored("a", "echo.openfaas-fn", why)]
        assert message.verdict == Ack()


async def test_callback_leaves_its_slot(autojump_clock: MockClock) -> None:
    """A message leaves its slot while its callback is posted, so that a slow receiver delays no other function."""
    async with World(autojump_clock) as world:
        slow = world.publish(reply(200), callback=[Answer(200, after=5)])
        other = world.publish(reply(200))
        worker = world.start(world.worker(slots=1))
        await other.removed.wait()
        assert world.starts(other) == [4]
        await slow.removed.wait()
        assert worker.credit == 1


async def test_callback_without_room_keeps_its_slot(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many callbacks outside of the slots as there may be, a callback keeps its slot."""
    monkeypatch.setattr(receivers, "MAX_CALLBACKS", 0)
    async with World(autojump_clock) as world:
        world.publish(reply(200), callback=[Answer(200, after=5)])
        other = world.publish(reply(200))
        world.start(world.worker(slots=1))
        await other.removed.wait()
        assert world.starts(other) == [5_004]


async def test_callback_to_a_silent_receiver_without_room_fails_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room, the callbacks of a receiver that has answered nothing for callback_timeout are given up."""
    monkeypatch.setattr(receivers, "MAX_CALLBACKS", 1)
    monkeypatch.setattr(callbacks, "origin_of", lambda _: "http://tarpit")
    async with World(autojump_clock) as world:
        tarpit = world.publish(reply(200), callback=[Answer("no answer", after=30)])
        worker = world.start(world.worker(slots=1, callback_attempts=1))
        await trio.sleep(11)
        late = world.publish(reply(200), callback=[Answer(200)])
        await late.removed.wait()
        assert [each.result for each in worker.events_of(CallbackPosted)] == [callbacks.SILENT]
        assert not tarpit.removed.is_set()
