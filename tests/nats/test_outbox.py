"""What is said about deliveries: in which order, how often, until when. The connection is a stand-in that records."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio_asyncio
from trio.testing import MockClock
from trio_asyncio import aio_as_trio

from worker.events import Event, SettlementUnconfirmed
from worker.model import Ack, Delivery, Nak, Settlement, Term
from worker.nats import outbox as outbox_module
from worker.nats.finished_deleter import RetiredConsumers
from worker.nats.outbox import Outbox
from worker.nats.pull_consumer import PullConsumer

NEVER = float("inf")


@dataclass
class Line:
    """A connection: what was published, and the way to answer it."""

    up: bool = True
    said: list[tuple[str, bytes, str]] = field(default_factory=list)
    hear: Callable[[Any], None] | None = None

    @property
    def client(self) -> Any:
        return self

    def new_inbox(self) -> str:
        return "_INBOX.x"

    async def subscribe(self, subject: str, *, future: Any) -> None:
        if subject == "_INBOX.x.*":
            self.hear = future.set_result

    async def publish(self, subject: str, payload: bytes, reply: str = "") -> None:
        self.said.append((subject, payload, reply))

    def report_failure(self, doing: str, error: object) -> None:
        raise AssertionError(f"{doing}: {error}")

    def verbs(self) -> list[tuple[str, bytes]]:
        """What was said since the last look."""
        said, self.said = self.said, []
        return [(subject, payload) for subject, payload, _ in said]


@dataclass
class Desk:
    """An outbox at work."""

    line: Line
    outbox: Outbox
    flows: PullConsumer
    events: list[Event]

    async def pumped(self) -> list[tuple[str, bytes]]:
        """What it says now."""
        await trio.testing.wait_all_tasks_blocked()
        return self.line.verbs()

    async def confirm(self, *, status: str | None = None) -> None:
        """Answer all that was said since the last look."""
        await trio.testing.wait_all_tasks_blocked()
        said, self.line.said = self.line.said, []
        for _, _, reply in said:
            assert self.line.hear
            headers = {"Status": status} if status else None
            self.line.hear(SimpleNamespace(subject=reply, headers=headers))

    def delivery(self, number: int = 1) -> Delivery:
        token = self.outbox.token(f"$JS.ACK.{number}")
        return Delivery((number, number), token, 1, trio.current_time(), "q", b"")

    def settle(self, delivery: Delivery, settlement: Settlement, before: float = NEVER) -> None:
        self.outbox.settle(delivery, settlement, before=before)

    async def later(self, seconds: float) -> list[tuple[str, bytes]]:
        """What it says that much later, unconfirmed things being said again."""
        await trio.sleep(seconds)
        self.outbox.repeat_late(trio.current_time())
        return await self.pumped()

    async def change(self, *, up: bool) -> None:
        self.line.up = up
        self.outbox.connection_changed(up)


@asynccontextmanager
async def desk() -> AsyncIterator[Desk]:
    """An outbox with its pump, on an asyncio island."""
    line, events = Line(), list[Event]()
    async with trio_asyncio.open_loop():
        connection: Any = line
        outbox = Outbox(connection, events.append, RetiredConsumers())
        flows = PullConsumer(connection, outbox, create=lambda _: None, lost=lambda _: None)
        await aio_as_trio(outbox.open)()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(aio_as_trio(flows.pump))
            yield Desk(line, outbox, flows, events)
            nursery.cancel_scope.cancel()


def virtual(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test under a clock that jumps."""

    def run() -> None:
        trio.run(test, clock=MockClock(autojump_threshold=0.01))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@virtual
async def test_verbs() -> None:
    """Each settlement as JetStream reads it, in the order in which they were noted."""
    async with desk() as at:
        at.settle(at.delivery(1), Ack())
        at.settle(at.delivery(2), Nak())
        at.settle(at.delivery(3), Nak(1.5))
        at.settle(at.delivery(4), Term("odd\r\nreason"))
        assert await at.pumped() == [
            ("$JS.ACK.1", b"+ACK"),
            ("$JS.ACK.2", b"-NAK"),
            ("$JS.ACK.3", b'-NAK {"delay": 1500000000}'),
            ("$JS.ACK.4", b"+TERM odd  reason"),
        ]


@virtual
async def test_what_is_not_confirmed_is_said_again() -> None:
    """An ack after two seconds, and again, until it is confirmed; then no more."""
    async with desk() as at:
        at.settle(at.delivery(), Ack())
        assert await at.pumped() == [("$JS.ACK.1", b"+ACK")]
        assert await at.later(1.9) == []
        assert await at.later(0.2) == [("$JS.ACK.1", b"+ACK")]
        await trio.sleep(2.1)
        at.outbox.repeat_late(trio.current_time())
        await at.confirm()
        assert await at.later(60) == []
        assert at.events == []


@virtual
async def test_no_responders_is_no_confirmation() -> None:
    """A status in the inbox says that nobody heard."""
    async with desk() as at:
        at.settle(at.delivery(), Ack())
        await at.confirm(status="503")
        assert await at.later(2.1) == [("$JS.ACK.1", b"+ACK")]


@virtual
async def test_a_final_settlement_is_given_up_after_a_minute_of_silence() -> None:
    """Thirty times, two seconds apart; then it is told, and settled() does not wait for it for ever."""
    async with desk() as at:
        at.settle(at.delivery(), Ack())
        said = len(await at.pumped())
        for _ in range(40):
            said += len(await at.later(2.1))
        assert said == 30
        assert at.events == [SettlementUnconfirmed(1)]
        await at.outbox.wait_settled()


@virtual
async def test_a_give_back_is_not_repeated_when_someone_may_have_it() -> None:
    """A NAK without a wait may have been heard, and the message may run elsewhere: it is said once."""
    async with desk() as at:
        at.settle(at.delivery(), Nak())
        assert await at.pumped() == [("$JS.ACK.1", b"-NAK")]
        assert await at.later(2.1) == []
        assert at.events == [SettlementUnconfirmed(1)]


@virtual
async def test_a_delayed_nak_is_repeated_with_what_is_left_of_its_wait() -> None:
    """While its own wait lasts nobody can have the message; said later, it says less."""
    async with desk() as at:
        at.settle(at.delivery(), Nak(5.0))
        await at.pumped()
        await trio.sleep(2.5)
        at.outbox.repeat_late(trio.current_time())
        ((_, verb),) = await at.pumped()
        assert verb == b'-NAK {"delay": 2500000000}'
        assert await at.later(2.6) == [], "the wait is over"


@virtual
async def test_a_nak_is_never_said_after_its_lease() -> None:
    """Not the first time either: what was noted while disconnected may be late."""
    async with desk() as at:
        await at.change(up=False)
        at.settle(at.delivery(1), Nak(60.0), before=trio.current_time() + 1)
        at.settle(at.delivery(2), Ack(), before=trio.current_time() + 1)
        assert await at.pumped() == []
        await trio.sleep(1.5)
        await at.change(up=True)
        assert await at.pumped() == [("$JS.ACK.2", b"+ACK")]


@virtual
async def test_all_that_is_unconfirmed_is_said_again_after_a_reconnect() -> None:
    """At once, not after two seconds."""
    async with desk() as at:
        at.settle(at.delivery(1), Ack())
        at.settle(at.delivery(2), Term("x"))
        await at.pumped()
        await at.change(up=False)
        await at.change(up=True)
        assert await at.pumped() == [("$JS.ACK.1", b"+ACK"), ("$JS.ACK.2", b"+TERM x")]


@virtual
async def test_an_extension_is_confirmed_to_its_lease() -> None:
    """Once, and it is not repeated after that."""
    async with desk() as at:
        heard: list[float] = []
        at.outbox.extend(at.delivery(), lambda: heard.append(trio.current_time()), before=NEVER)
        await at.confirm()
        assert len(heard) == 1
        assert await at.later(2.1) == []


@virtual
async def test_no_extension_follows_a_settlement() -> None:
    """It would cancel a NAK's delay: an unconfirmed one is forgotten with the settlement."""
    async with desk() as at:
        delivery = at.delivery()
        at.outbox.extend(delivery, lambda: None, before=NEVER)
        assert await at.pumped() == [("$JS.ACK.1", b"+WPI")]
        at.settle(delivery, Nak(60.0))
        assert await at.pumped() == [("$JS.ACK.1", b'-NAK {"delay": 60000000000}')]
        assert [verb[:4] for _, verb in await at.later(2.1)] == [b"-NAK"]


@virtual
async def test_an_extension_is_not_repeated_past_its_lease() -> None:
    """Then another worker may have the message, and it would extend theirs."""
    async with desk() as at:
        at.outbox.extend(at.delivery(), lambda: None, before=trio.current_time() + 3)
        await at.pumped()
        assert await at.later(2.1) == [("$JS.ACK.1", b"+WPI")]
        assert await at.later(2.1) == []


@virtual
async def test_a_stream_made_anew_is_told_nothing_of_the_old_one() -> None:
    """Its sequence numbers begin again: an old acknowledgement would take away a new message."""
    async with desk() as at:
        old, running = at.delivery(1), at.delivery(2)
        at.settle(old, Ack())
        await at.pumped()
        at.outbox.forget()
        await at.outbox.wait_settled()
        assert await at.later(2.1) == [], "not again"
        at.settle(running, Ack())
        at.outbox.extend(running, lambda: None, before=NEVER)
        assert await at.pumped() == [], "nor for what still ran then"
        await at.outbox.wait_settled()
        at.settle(at.delivery(1), Ack())
        assert await at.pumped() == [("$JS.ACK.1", b"+ACK")], "but for the new stream's"


@virtual
async def test_settled_waits_for_every_confirmation() -> None:
    """The end of a drain hangs on it."""
    async with desk() as at:
        at.settle(at.delivery(1), Ack())
        at.settle(at.delivery(2), Ack())
        with trio.move_on_after(1) as waiting:
            await at.outbox.wait_settled()
        assert waiting.cancelled_caught
        await at.confirm()
        await at.outbox.wait_settled()


@virtual
async def test_pull_requests_go_out_after_settlements() -> None:
    """A slot is free to the server before we ask for what fills it."""
    async with desk() as at:
        await aio_as_trio(at.flows.request_again)()
        at.flows.open("").bind("pull")
        await at.pumped()
        at.flows.add_credit(1, "")
        at.settle(at.delivery(1), Ack())
        assert [subject for subject, _ in await at.pumped()] == ["$JS.ACK.1", "pull"]


def test_pull_consumer_outbox_crowded_requests_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server confirms too slowly, no more messages are requested; once it has confirmed, they are."""
    monkeypatch.setattr(outbox_module, "_CROWDED", 1)

    async def main() -> None:
        async with desk() as at:
            await aio_as_trio(at.flows.request_again)()
            at.flows.open("").bind("pull")
            for number in (1, 2):
                at.settle(at.delivery(number), Ack())
            at.flows.add_credit(1, "")
            await trio.testing.wait_all_tasks_blocked()
            assert [subject for subject, *_ in at.line.said] == ["$JS.ACK.1", "$JS.ACK.2"]
            await at.confirm()
            at.outbox.wake()
            assert [subject for subject, _ in await at.pumped()] == ["pull"]

    trio.run(main, clock=MockClock(autojump_threshold=0.01))


@pytest.mark.parametrize("reason", ["é" * 300, "x" * 1000])
def test_a_long_reason_is_cut(reason: str) -> None:
    """JetStream repeats it in an advisory: 256 bytes are enough, and still one line."""

    async def main() -> None:
        async with desk() as at:
            at.settle(at.delivery(), Term(reason))
            ((_, verb),) = await at.pumped()
            assert len(verb) == len(b"+TERM ") + 256

    trio.run(main, clock=MockClock(autojump_threshold=0.01))
