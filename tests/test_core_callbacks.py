"""Durable callbacks: a callback that fails is stored before its message is settled, and is retried from there.

On the virtual clock, in milliseconds: a message takes 1 to the broker and 1 back, so a stored callback is confirmed 2
after it was sent. The random number is 0.5. The waits of stored callbacks are 1, 2, 4, … s.
"""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.world import Answer, World, ms, reply
from tests.world.world import SimulatedWorker
from worker.events import (
    CallbackDiscarded,
    CallbackNotStored,
    CallbackPosted,
    CallbackStored,
    DeadLettered,
)
from worker.model import Ack, Busy
from worker.policy import callback_schedule, receivers
from worker.policy.retry import Backoff
from worker.policy.stored_callback import decode_callback


def posts(world: World, url: str = "http://results/1") -> list[int]:
    """Return the times (ms) of the posts of a callback."""
    return [ms(post.began) for post in world.outside.posts_to(url)]


def durable(world: World, **settings: object) -> SimulatedWorker:
    """Start a worker that stores callbacks."""
    return world.start(world.worker(callback_durable=True, **settings))  # type: ignore[arg-type]  # of the caller


async def callbacks_gone(world: World) -> None:
    """Wait until every stored callback has left its stream."""
    for stored in [*world.server.callback_keys.values()]:
        await stored.removed.wait()


async def test_callback_delivered_at_once_is_not_stored(autojump_clock: MockClock) -> None:
    """A callback that its receiver takes at the first try never reaches the stream."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(200)])
        durable(world)
        await message.removed.wait()
        assert posts(world) == [2]
        assert not world.server.callback_keys


async def test_callback_that_fails_is_stored_before_the_ack(autojump_clock: MockClock) -> None:
    """A failed callback is stored, then its message is acked, and it is posted again with the same headers and body."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200, body=b"done"), callback=[Answer(503), Answer("refused"), Answer(200)])
        worker = durable(world)
        await message.removed.wait()
        # Posted at 2, stored from 2 to 4, acked at 5.
        assert world.verbs_of(message) == [(5, Ack())]
        await callbacks_gone(world)
        first, second, third = posts(world)
        assert first == 2
        assert 1_002 <= second <= 1_100
        assert third > second + 1_000
        assert len({(post.callback.headers, post.callback.body) for post in world.outside.posts}) == 1
        assert [event.stored for event in worker.events_of(CallbackPosted)] == [False, True, True]
        assert len(worker.events_of(CallbackStored)) == 1
        assert len(world.starts(message)) == 1


async def test_callback_is_retried_after_its_worker_died(autojump_clock: MockClock) -> None:
    """A stored callback survives its worker: the next one delivers it, and the function does not run again."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer("refused"), Answer(200)])
        worker = durable(world)
        await message.removed.wait()
        worker.kill()
        durable(world)
        await callbacks_gone(world)
        assert len(posts(world)) == 2
        assert len(world.starts(message)) == 1


@pytest.mark.parametrize("after", [0.0, 60.0])
async def test_drain_stores_the_callbacks_of_its_end(after: float, autojump_clock: MockClock) -> None:
    """A callback whose first try the drain cancels is stored, its message is acked, and the next worker delivers it."""
    async with World(autojump_clock) as world:
        messages = [world.publish(reply(200), callback=[Answer("away", after=after), Answer(200)]) for _ in range(10)]
        worker = durable(world, shutdown_timeout=5.0)
        await trio.sleep(1)
        worker.signal()
        await worker.ended.wait()
        assert worker.drain_seconds <= 5 + 3
        assert all(isinstance(message.verdict, Ack) for message in messages)
        durable(world)
        await callbacks_gone(world)
        for message in messages:
            results = [post.result for post in world.outside.posts_to(f"http://results/{message.id[0]}")]
            assert results[-1] == 200
            assert len(world.starts(message)) == 1


async def test_drain_that_cannot_store_a_callback_returns_its_message(autojump_clock: MockClock) -> None:
    """If the broker does not store the callback at the drain's end, the message goes back, so that nothing is lost."""
    async with World(autojump_clock) as world:
        world.server.refuses_callbacks = True
        message = world.publish(reply(200), callback=[Answer(200, after=60), Answer(200)])
        worker = durable(world, shutdown_timeout=5.0)
        await trio.sleep(1)
        worker.signal()
        await worker.ended.wait()
        assert message.verdict is None
        durable(world)
        await message.removed.wait()
        assert len(world.starts(message)) == 2


@pytest.mark.parametrize("result", [404, 302, 410])
async def test_callback_that_is_refused_becomes_a_dead_letter(result: int, autojump_clock: MockClock) -> None:
    """A final refusal, at the first try or later, makes a dead letter of kind callback that can be sent again."""
    async with World(autojump_clock) as world:
        first = world.publish(reply(200, body=b"x"), callback=[Answer(result)])
        later = world.publish(reply(200, body=b"x"), callback=[Answer(500), Answer(result)])
        worker = durable(world)
        await first.removed.wait()
        await later.removed.wait()
        await callbacks_gone(world)
        letters = [*world.server.dead_letters.values()]
        assert len(letters) == len(worker.events_of(DeadLettered)) == 2
        for letter, url in zip(letters, ("http://results/1", "http://results/2"), strict=True):
            assert letter.headers["X-Dead-Letter-Kind"] == "callback"
            assert letter.headers["X-Dead-Letter-Reason"] == f"the receiver refused the callback: status {result}"
            stored = decode_callback(letter.data)
            assert not isinstance(stored, str)
            assert (stored.callback.url, stored.callback.body) == (url, b"x")
        world.outside.answers["http://results/1"] = [Answer(200)]
        again = world.server.publish_callback(letters[0].data)
        await again.removed.wait()
        assert again.verdict == Ack()


async def test_callback_past_its_age_becomes_a_dead_letter(autojump_clock: MockClock) -> None:
    """A callback whose receiver stays away is given up after callback_max_age, with a dead letter."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer("refused")])
        durable(world, callback_max_age=60.0)
        await message.removed.wait()
        await callbacks_gone(world)
        assert 60 <= trio.current_time() <= 62
        (letter,) = world.server.dead_letters.values()
        assert letter.headers["X-Dead-Letter-Reason"] == "the receiver took it in none of its tries within 1m"
        assert 4 <= len(posts(world)) <= 8


async def test_callback_to_a_busy_receiver_waits_as_asked(autojump_clock: MockClock) -> None:
    """After 429 or 503 with Retry-After, the callback is posted again when that time is over."""
    async with World(autojump_clock) as world:
        message = world.publish(reply(200), callback=[Answer(Busy(429, "30")), Answer(Busy(503, "60")), Answer(200)])
        worker = durable(world)
        await message.removed.wait()
        await callbacks_gone(world)
        first, second, third = posts(world)
        assert 30_000 <= second - first <= 31_000
        assert 60_000 <= third - second <= 61_000
        assert [event.result for event in worker.events_of(CallbackPosted)] == [429, 503, 200]


async def test_callback_that_cannot_be_stored_is_tried_from_memory(autojump_clock: MockClock) -> None:
    """While the broker refuses it, the callback is posted and stored in turn; the message waits, and runs once."""
    async with World(autojump_clock) as world:
        world.server.refuses_callbacks = world.server.refuses_dead_letters = True
        message = world.publish(reply(200), callback=[Answer(500)] * 4 + [Answer(200)])
        worker = durable(world, callback_backoff=Backoff(1, 1))
        await message.removed.wait()
        assert len(world.starts(message)) == 1
        assert len(posts(world)) == 5
        assert len(worker.events_of(CallbackNotStored)) == 4


async def test_callback_without_any_store_is_given_up_in_time(autojump_clock: MockClock) -> None:
    """If neither it nor its dead letter is stored for an ack wait, the callback is lost, and an event reports that."""
    async with World(autojump_clock, ack_wait=30.0) as world:
        world.server.refuses_callbacks = world.server.refuses_dead_letters = True
        message = world.publish(reply(200), callback=[Answer(500)])
        worker = durable(world)
        await message.removed.wait()
        assert len(worker.events_of(CallbackDiscarded)) == 1
        assert len(world.starts(message)) == 1
        assert trio.current_time() <= 60


async def test_callback_that_cannot_be_stored_becomes_a_dead_letter(autojump_clock: MockClock) -> None:
    """If only the stream of callbacks refuses it, the callback becomes a dead letter after its tries."""
    async with World(autojump_clock) as world:
        world.server.refuses_callbacks = True
        message = world.publish(reply(200), callback=[Answer(500)])
        durable(world, callback_attempts=2)
        await message.removed.wait()
        assert len(posts(world)) == 2
        (letter,) = world.server.dead_letters.values()
        assert letter.headers["X-Dead-Letter-Kind"] == "callback"


async def test_callback_without_room_is_stored_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without room outside of the slots a callback is stored unsent, so that no slot waits for a receiver."""
    monkeypatch.setattr(receivers, "MAX_CALLBACKS", 0)
    async with World(autojump_clock) as world:
        slow = world.publish(reply(200), callback=[Answer(200, after=9)])
        other = world.publish(reply(200))
        durable(world, slots=1)
        await other.removed.wait()
        assert ms(trio.current_time()) < 1_000
        await slow.removed.wait()
        await callbacks_gone(world)
        assert len(posts(world)) == 1


async def test_receivers_that_are_away_do_not_delay_others(autojump_clock: MockClock) -> None:
    """Hundreds of callbacks to receivers that never answer cost few requests, and no time of another's callback."""
    async with World(autojump_clock) as world:
        dead = [world.publish(reply(200), callback=[Answer("no answer", after=10)]) for _ in range(300)]
        worker = durable(world, callback_max_age=400.0, slots=50)
        for message in dead:
            await message.removed.wait()
        await trio.sleep(20)
        flaky = world.publish(reply(200), callback=[Answer(503), Answer(200)])
        await flaky.removed.wait()
        began = trio.current_time()
        key = next(key for key in world.server.callback_keys if key.startswith(f"{flaky.id[0]}."))
        await world.server.callback_keys[key].removed.wait()
        assert trio.current_time() - began < 5
        assert worker.services.schedule.in_flight <= 2 * callback_schedule.PLACES
        await callbacks_gone(world)
        assert worker.services.schedule.in_flight == 0


async def test_foreign_message_among_the_callbacks_becomes_a_dead_letter(autojump_clock: MockClock) -> None:
    """A message that is no stored callback is never posted: it becomes a dead letter."""
    async with World(autojump_clock) as world:
        durable(world)
        deep, bracket = (
            b'{"x":' + b"[" * 100_000 + b"\n",
            b'{"url":"http://[","headers":[],"call_id":"","function":""}\n',
        )
        foreign = (b"", b"{}", b"\xff\n", b'{"url":"ftp://x"}\n', deep, bracket)
        stored = [world.server.publish_callback(each) for each in foreign]
        for each in stored:
            await each.removed.wait()
        assert len(world.server.dead_letters) == 6
        assert not world.outside.posts
