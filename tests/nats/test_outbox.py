"""Settlements and extensions: their order, repetition and end. The connection is a fake that records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import nats.errors
import pytest
import trio
import trio_asyncio
from trio.testing import MockClock
from trio_asyncio import aio_as_trio

from worker.events import Event, SettlementUnconfirmed
from worker.model import Ack, AttemptCount, Delivery, MessageId, Nak, Settlement, Term
from worker.nats import outbox as outbox_module
from worker.nats.attempt_counts import AttemptCounts
from worker.nats.outbox import Outbox
from worker.nats.pull_consumer import PullConsumer
from worker.nats.retired_consumers import RetiredConsumers

NEVER = float("inf")


@dataclass
class FakeConnection:
    """A connection that records what is published, and can answer it."""

    up: bool = True
    broken: Exception | None = None
    """The error that publishing raises."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    published: list[tuple[str, bytes, str]] = field(default_factory=list)
    answer: Callable[[Any], None] | None = None

    @property
    def client(self) -> Any:
        return self

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def subscribe(self, subject: str, *, future: Any) -> Any:
        if subject == "_INBOX.x.*":
            self.answer = future.set_result
        return SimpleNamespace(subject=subject, _id=1, unsubscribe=self.round_trip)

    async def round_trip(self) -> None:
        if self.broken:
            raise OSError("broken")

    async def _send_unsubscribe(self, _: int) -> None:
        await self.round_trip()

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        if self.broken:
            raise self.broken
        self.published.append((subject, payload, reply))

    def report_failure(self, doing: str, error: object) -> None:
        assert self.broken, f"{doing}: {error}"
        self.failures.append((doing, str(error)))

    def verbs(self) -> list[tuple[str, bytes]]:
        """Return the subjects and payloads that were published after the last call."""
        published, self.published = self.published, []
        return [(subject, payload) for subject, payload, _ in published]


ERRORS = (OSError("broken"), nats.errors.Error("broken"))
"""The errors of a connection that breaks while it sends."""


@dataclass
class OpenOutbox:
    """An outbox that sends, its connection and its events."""

    connection: FakeConnection
    outbox: Outbox
    flows: PullConsumer
    retired: RetiredConsumers
    counts: AttemptCounts
    events: list[Event]

    async def sent(self) -> list[tuple[str, bytes]]:
        """Let the outbox send, and return what it sent."""
        await trio.testing.wait_all_tasks_blocked()
        return self.connection.verbs()

    async def confirm(self, *, status: str | None = None) -> None:
        """Confirm all that was published after the last call."""
        await trio.testing.wait_all_tasks_blocked()
        published, self.connection.published = self.connection.published, []
        for _, _, reply in published:
            assert self.connection.answer
            headers = {"Status": status} if status else None
            self.connection.answer(SimpleNamespace(subject=reply, headers=headers))

    def delivery(self, number: int = 1) -> Delivery:
        token = f"{self.outbox.epoch}$JS.ACK.{number}"
        return Delivery((number, number), token, 1, trio.current_time(), "q", b"")

    def settle(self, delivery: Delivery, settlement: Settlement, before: float = NEVER) -> None:
        self.outbox.settle(delivery, settlement, before=before)

    async def sent_after(self, seconds: float) -> list[tuple[str, bytes]]:
        """Wait for some seconds, repeat unconfirmed settlements, and return what the outbox sent."""
        await trio.sleep(seconds)
        self.outbox.repeat_late(trio.current_time())
        return await self.sent()

    async def set_connection(self, *, up: bool) -> None:
        self.connection.up = up
        if up:
            self.outbox.repeat_late(NEVER)


@asynccontextmanager
async def open_outbox() -> AsyncIterator[OpenOutbox]:
    """Open an outbox and start its pump, on an asyncio island."""
    connected, events = FakeConnection(), list[Event]()
    async with trio_asyncio.open_loop():
        connection: Any = connected
        retired = RetiredConsumers()
        counts = AttemptCounts(connection, lambda _: None)
        outbox = Outbox(connection, events.append, retired, counts)
        flows = PullConsumer(connection, outbox, create=lambda _: None, lost=lambda _: None, stripped=lambda *_: None)
        await aio_as_trio(outbox.open)()
        await aio_as_trio(counts.open)("s")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(aio_as_trio(flows.pump))
            yield OpenOutbox(connected, outbox, flows, retired, counts, events)
            nursery.cancel_scope.cancel()


def virtual(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test under a clock that jumps."""

    def run() -> None:
        trio.run(test, clock=MockClock(autojump_threshold=0.01))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@virtual
async def test_settle_sends_jetstream_verbs() -> None:
    """Each settlement is sent as JetStream reads it, in the order in which they were noted."""
    async with open_outbox() as opened:
        opened.settle(opened.delivery(1), Ack())
        opened.settle(opened.delivery(2), Nak())
        opened.settle(opened.delivery(3), Nak(1.5))
        opened.settle(opened.delivery(4), Term("odd\r\nreason"))
        assert await opened.sent() == [
            ("$JS.ACK.1", b"+ACK"),
            ("$JS.ACK.2", b"-NAK"),
            ("$JS.ACK.3", b'-NAK {"delay": 1500000000}'),
            ("$JS.ACK.4", b"+TERM odd  reason"),
        ]


@virtual
async def test_settle_that_cannot_be_sent_is_reported_and_repeated() -> None:
    """An error while a settlement is sent is reported, and the settlement is sent again two seconds later."""
    for error in ERRORS:
        async with open_outbox() as opened:
            opened.connection.broken = error
            opened.settle(opened.delivery(), Ack())
            assert await opened.sent() == []
            assert opened.connection.failures == [("settling", str(error))]
            opened.connection.broken = None
            assert await opened.sent_after(1.9) == []
            assert await opened.sent_after(0.2) == [("$JS.ACK.1", b"+ACK")]


@virtual
async def test_postpone_sends_one_nak_with_the_delay() -> None:
    """A postponed delivery gets one nak with its delay in nanoseconds; if that cannot be sent, it is not repeated.

    Later settlements are sent all the same.
    """
    for error in ERRORS:
        async with open_outbox() as opened:
            opened.outbox.postpone("$JS.ACK.9", 1.5)
            assert await opened.sent() == [("$JS.ACK.9", b'-NAK {"delay": 1500000000}')]
            opened.connection.broken = error
            opened.outbox.postpone("$JS.ACK.9", 1.5)
            assert await opened.sent() == []
            opened.connection.broken = None
            assert await opened.sent_after(60) == []
            opened.settle(opened.delivery(), Ack())
            assert await opened.sent() == [("$JS.ACK.1", b"+ACK")]


@virtual
async def test_settle_through_a_retired_consumer_notes_final_settlements() -> None:
    """While consumers are retired, a confirmed ack or term is noted for deletion, and a nak is not."""
    async with open_outbox() as opened:
        noted: list[MessageId] = []
        opened.retired.names = frozenset({"w"})
        opened.retired.settled = lambda delivery: noted.append(delivery.id)  # type: ignore[method-assign]  # a recorder
        opened.settle(opened.delivery(0), Ack())
        opened.settle(opened.delivery(1), Nak())
        opened.settle(opened.delivery(2), Term("no"))
        await opened.confirm()
        assert noted == [(0, 0), (2, 2)]


@virtual
async def test_settle_unconfirmed_ack_is_repeated() -> None:
    """An ack is sent again every two seconds until it is confirmed, and then no more."""
    async with open_outbox() as opened:
        opened.settle(opened.delivery(), Ack())
        assert await opened.sent() == [("$JS.ACK.1", b"+ACK")]
        assert await opened.sent_after(1.9) == []
        assert await opened.sent_after(0.2) == [("$JS.ACK.1", b"+ACK")]
        await trio.sleep(2.1)
        opened.outbox.repeat_late(trio.current_time())
        await opened.confirm()
        assert await opened.sent_after(60) == []
        assert opened.events == []


@virtual
async def test_settle_status_answer_is_no_confirmation() -> None:
    """A status in the inbox means that no consumer received the ack, which is sent again."""
    async with open_outbox() as opened:
        opened.settle(opened.delivery(), Ack())
        await opened.confirm(status="503")
        assert await opened.sent_after(2.1) == [("$JS.ACK.1", b"+ACK")]


@virtual
async def test_settle_unconfirmed_for_a_minute_is_dropped() -> None:
    """An ack is sent thirty times, two seconds apart; then its loss is reported, and wait_settled() returns."""
    async with open_outbox() as opened:
        opened.settle(opened.delivery(), Ack())
        published = len(await opened.sent())
        for _ in range(40):
            published += len(await opened.sent_after(2.1))
        assert published == 30
        assert opened.events == [SettlementUnconfirmed(1)]
        await opened.outbox.wait_settled()


@virtual
async def test_settle_nak_without_delay_is_sent_once() -> None:
    """A nak without a delay may have arrived, and the message may run in another worker, so it is sent once."""
    async with open_outbox() as opened:
        opened.settle(opened.delivery(), Nak())
        assert await opened.sent() == [("$JS.ACK.1", b"-NAK")]
        assert await opened.sent_after(2.1) == []
        assert opened.events == [SettlementUnconfirmed(1)]


@virtual
async def test_settle_delayed_nak_is_repeated_with_rest_of_delay() -> None:
    """While its delay lasts no worker can have the message, so a nak is sent again, with the rest of the delay."""
    async with open_outbox() as opened:
        opened.settle(opened.delivery(), Nak(5.0))
        await opened.sent()
        await trio.sleep(2.5)
        opened.outbox.repeat_late(trio.current_time())
        ((_, verb),) = await opened.sent()
        assert verb == b'-NAK {"delay": 2500000000}'
        assert await opened.sent_after(2.6) == [], "a nak is sent after its delay"


@virtual
async def test_settle_nak_after_lease_is_never_sent() -> None:
    """A nak is not sent after its lease, also not for the first time, after a lost connection."""
    async with open_outbox() as opened:
        await opened.set_connection(up=False)
        opened.settle(opened.delivery(1), Nak(60.0), before=trio.current_time() + 1)
        opened.settle(opened.delivery(2), Ack(), before=trio.current_time() + 1)
        assert await opened.sent() == []
        await trio.sleep(1.5)
        await opened.set_connection(up=True)
        assert await opened.sent() == [("$JS.ACK.2", b"+ACK")]


@virtual
async def test_repeat_late_after_a_reconnect_repeats_all() -> None:
    """Unconfirmed settlements are sent again at once after a reconnect."""
    async with open_outbox() as opened:
        opened.settle(opened.delivery(1), Ack())
        opened.settle(opened.delivery(2), Term("x"))
        await opened.sent()
        await opened.set_connection(up=False)
        await opened.set_connection(up=True)
        assert await opened.sent() == [("$JS.ACK.1", b"+ACK"), ("$JS.ACK.2", b"+TERM x")]


@virtual
async def test_extend_confirmed_calls_back_once() -> None:
    """A confirmed extension calls back once, and is not sent again."""
    async with open_outbox() as opened:
        confirmed_at: list[float] = []
        opened.outbox.extend(opened.delivery(), lambda: confirmed_at.append(trio.current_time()), before=NEVER)
        await opened.confirm()
        assert len(confirmed_at) == 1
        assert await opened.sent_after(2.1) == []


@virtual
async def test_settle_drops_unconfirmed_extension() -> None:
    """An unconfirmed extension is dropped with the settlement, because it would cancel a nak's delay."""
    async with open_outbox() as opened:
        delivery = opened.delivery()
        opened.outbox.extend(delivery, lambda: None, before=NEVER)
        assert await opened.sent() == [("$JS.ACK.1", b"+WPI")]
        opened.settle(delivery, Nak(60.0))
        assert await opened.sent() == [("$JS.ACK.1", b'-NAK {"delay": 60000000000}')]
        assert [verb[:4] for _, verb in await opened.sent_after(2.1)] == [b"-NAK"]


@virtual
async def test_extend_after_lease_is_not_repeated() -> None:
    """An extension is not sent after its lease, because it would extend another worker's."""
    async with open_outbox() as opened:
        opened.outbox.extend(opened.delivery(), lambda: None, before=trio.current_time() + 3)
        await opened.sent()
        assert await opened.sent_after(2.1) == [("$JS.ACK.1", b"+WPI")]
        assert await opened.sent_after(2.1) == []


@virtual
async def test_forget_drops_settlements_of_the_old_stream() -> None:
    """A recreated stream receives no ack of the old one, whose sequences identify other messages there."""
    async with open_outbox() as opened:
        old, running = opened.delivery(1), opened.delivery(2)
        opened.settle(old, Ack())
        await opened.sent()
        opened.outbox.forget()
        await opened.outbox.wait_settled()
        assert await opened.sent_after(2.1) == [], "the ack of the old stream is sent again"
        opened.settle(running, Ack())
        opened.outbox.extend(running, lambda: None, before=NEVER)
        assert await opened.sent() == [], "a settlement of a running message of the old stream is sent"
        await opened.outbox.wait_settled()
        opened.settle(opened.delivery(1), Ack())
        assert await opened.sent() == [("$JS.ACK.1", b"+ACK")], "the ack of the new stream is not sent"


@virtual
async def test_wait_settled_waits_for_every_confirmation() -> None:
    """wait_settled() returns once every settlement is confirmed; a drain's end depends on it."""
    async with open_outbox() as opened:
        opened.settle(opened.delivery(1), Ack())
        opened.settle(opened.delivery(2), Ack())
        with trio.move_on_after(1) as waiting:
            await opened.outbox.wait_settled()
        assert waiting.cancelled_caught
        await opened.confirm()
        await opened.outbox.wait_settled()


@virtual
async def test_pump_sends_requests_after_settlements() -> None:
    """Settlements are sent before the pull requests of the same wake-up, so that the server counts them first."""
    async with open_outbox() as opened:
        await aio_as_trio(opened.flows.request_again)()
        opened.flows.open("").bind("pull")
        await opened.sent()
        opened.flows.add_credit(1, "")
        opened.settle(opened.delivery(1), Ack())
        assert [subject for subject, _ in await opened.sent()] == ["$JS.ACK.1", "pull"]


def test_pull_consumer_outbox_crowded_requests_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server confirms too slowly, no more messages are requested; once it has confirmed, they are."""
    monkeypatch.setattr(outbox_module, "_CROWDED", 1)

    async def main() -> None:
        async with open_outbox() as opened:
            await aio_as_trio(opened.flows.request_again)()
            opened.flows.open("").bind("pull")
            for number in (1, 2):
                opened.settle(opened.delivery(number), Ack())
            opened.flows.add_credit(1, "")
            await trio.testing.wait_all_tasks_blocked()
            assert [subject for subject, *_ in opened.connection.published] == ["$JS.ACK.1", "$JS.ACK.2"]
            await opened.confirm()
            opened.outbox.wake()
            assert [subject for subject, _ in await opened.sent()] == ["pull"]

    trio.run(main, clock=MockClock(autojump_threshold=0.01))


@pytest.mark.parametrize("reason", ["é" * 300, "x" * 1000])
def test_settle_term_long_reason_is_cut(reason: str) -> None:
    """A reason is cut to 256 bytes in one line, because JetStream repeats it in an advisory."""

    async def main() -> None:
        async with open_outbox() as opened:
            opened.settle(opened.delivery(), Term(reason))
            ((_, verb),) = await opened.sent()
            assert len(verb) == len(b"+TERM ") + 256

    trio.run(main, clock=MockClock(autojump_threshold=0.01))


ANNOUNCED = ("queue-worker.s.attempts", b"[[1,1,2,0],[2,2,1,0]]")


@virtual
async def test_announced_counts_are_sent_before_the_naks() -> None:
    """Counts are published in one message before the settlements that were noted after them, also after a reconnect."""
    async with open_outbox() as opened:
        await opened.set_connection(up=False)
        opened.counts.announce(AttemptCount((1, 1), 2, 0))
        opened.settle(opened.delivery(1), Nak())
        opened.counts.announce(AttemptCount((2, 2), 1, 0))
        opened.settle(opened.delivery(2), Nak())
        assert await opened.sent() == []
        await opened.set_connection(up=True)
        assert await opened.sent() == [ANNOUNCED, ("$JS.ACK.1", b"-NAK"), ("$JS.ACK.2", b"-NAK")]
        opened.settle(opened.delivery(3), Nak())
        assert await opened.sent() == [("$JS.ACK.3", b"-NAK")]


@virtual
async def test_announcement_that_fails_delays_no_nak() -> None:
    """If an announcement cannot be published, that is reported, and the nak is sent without it."""
    async with open_outbox() as opened:
        opened.connection.broken = ERRORS[0]
        opened.counts.announce(AttemptCount((1, 1), 2, 0))
        opened.settle(opened.delivery(1), Nak(60.0))
        assert await opened.sent() == []
        assert opened.connection.failures == [
            ("announcing deliveries that were no attempts", "broken"),
            ("settling", "broken"),
        ]
        opened.connection.broken = None
        assert await opened.sent_after(2.5) == [("$JS.ACK.1", b'-NAK {"delay": 57500000000}')]
