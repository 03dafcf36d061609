"""A NATS server's bytes, cut anywhere, give the same deliveries and the same state, and conserve credit.

nats-py's own parser and client read the bytes, without a socket and without tasks, so the worker's callbacks run
at once. The input's first line has the sizes of the pieces. Each other line is one event, named by its first letter:

======  ================================================================================
``d``   a delivery into an inbox, ``d2 3.17.21.1700.5 body``, with the end of its subject
``o``   a delivery into an inbox that was replaced
``s``   a status into an inbox, ``s2 404 No Messages``; ``S`` into an old inbox
``h``   a message with any header, ``h2 Name: value|Name: value``, with | for CR LF
``c``   a confirmation, ``c1``; ``c1 503`` is a status there
``w``   credit is added, ``w50``
``t``   time passes, ``t11``, and silent requests are detected
``x``   the connection is lost, and the client reconnects
======  ================================================================================

Any other line is sent unchanged. nats-py reads malformed lines differently for different cuts: after the first one,
only the credit is compared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import trio
from trio.testing import MockClock

from fuzz._choices import cut, numbers
from fuzz._nats import FakeConnection
from fuzz.wire import expected
from worker.model import Ack, Delivery
from worker.nats.attempt_counts import AttemptCounts
from worker.nats.credit import HEARTBEAT, MAX_REQUESTS, SILENCE
from worker.nats.outbox import Outbox
from worker.nats.pull import Pull
from worker.nats.pull_consumer import PullConsumer
from worker.nats.retired_consumers import RetiredConsumers

WORDS = (
    "d0 1.1.1.1.0 ", "o0 1.1.1.1.0 ", "s0 404 No Messages", "s1 408 Request Timeout", "s2 409 Consumer Deleted",
    "s3 503", "s0 100 Idle Heartbeat", "h0 Status: 409|Description: Leadership Change", "c0", "w50", "t6", "x",
    "PING", "PONG", "+OK", "-ERR 'Stale Connection'", "INFO {}", "MSG a 1 0", "HMSG a 1 12 12", "NATS/1.0",
)  # fmt: skip
_MOST_LINES = 60
_NEXT = "$JS.API.CONSUMER.MSG.NEXT.s.c"
_ACK = "$JS.ACK.s.c."
_SETTLED = 3
"""Settlements and extensions that are sent before the first frame arrives, and can be confirmed."""
_PLAIN_STATUS = re.compile(rb"([1-9][0-9][0-9])((?: [ -~]*)?)")
_NO_SUBSCRIPTION = 10_000
"""A subscription that does not exist."""


def check(data: bytes) -> None:
    """Play *data* with its frames whole, cut, and byte by byte, and check the law above."""
    options, *lines = data.split(b"\n")[: _MOST_LINES + 1]
    whole, pieces, bytewise = (
        trio.run(_play, lines, sizes, clock=MockClock()) for sizes in ([], numbers(options)[:10] or [7], [1])
    )
    assert whole == pieces
    assert whole == bytewise


async def _play(lines: list[bytes], sizes: list[int]) -> list[Any]:
    """Return the state before each step that is not the server's."""
    harness = Harness()
    steps: dict[bytes, Callable[[int], Any]] = {b"w": harness.add_credit, b"t": harness.wait, b"x": harness.reconnect}
    await harness.begin()
    seen = []
    for line in [*lines, b"t0"]:
        if step := steps.get(line[:1]):
            await harness.read(sizes)
            seen.append(harness.seen())
            await step((numbers(line) or [0])[0])
            harness.check_credit()
        else:
            harness.write(line)
    await harness.check_credit_is_requested()
    return seen


@dataclass
class Model:
    """The open requests of the server, without the worker's code. *predictable* ends at the first malformed line."""

    predictable: bool = True
    open: list[int] = field(default_factory=lambda: [0] * MAX_REQUESTS)
    last_signs: list[float] = field(default_factory=lambda: [0.0] * MAX_REQUESTS)
    num_lost_consumers: int = 0
    bound: bool = True
    unconfirmed: set[int] = field(default_factory=lambda: set(range(_SETTLED)))
    is_first_connection: bool = True
    """True on the connection that sent the settlements; the next connection must send them again."""
    checked_at: float = 0.0

    def requested(self, index: int, batch: int, now: float) -> None:
        self.open[index], self.last_signs[index] = batch, now

    def delivered(self, index: int, now: float) -> None:
        self.open[index], self.last_signs[index] = max(0, self.open[index] - 1), now

    def status(self, index: int, text: bytes, now: float) -> None:
        """Apply a status; *predictable* ends at a status that JetStream does not send (ADR-13, nats-server 2.15)."""
        if not (found := _PLAIN_STATUS.fullmatch(text)):
            self.predictable = False
        elif found[1] == b"100":
            self.last_signs[index] = now
        else:
            self.open[index] = 0
            if self.bound and (found[1] == b"503" or (found[1] == b"409" and b"deleted" in found[2].lower())):
                self.num_lost_consumers, self.bound, self.open = self.num_lost_consumers + 1, False, [0] * MAX_REQUESTS

    def silent(self, now: float) -> set[int]:
        """Return the indexes of the inboxes whose request the worker must give up now."""
        away, self.checked_at = now - self.checked_at > 2 * HEARTBEAT, now
        if away:
            self.last_signs = [now] * MAX_REQUESTS
        waiting = [index for index in range(MAX_REQUESTS) if self.bound and self.open[index]]
        silent = {index for index in waiting if now - self.last_signs[index] > SILENCE}
        self.open = [0 if index in silent else batch for index, batch in enumerate(self.open)]
        return silent

    def lost(self) -> None:
        self.open, self.bound, self.is_first_connection = [0] * MAX_REQUESTS, True, False


class Harness:
    """A consumer and its credit behind nats-py's parser, and the server that writes to it."""

    def __init__(self) -> None:
        self.line = FakeConnection()
        self.client = self.line.client
        connection: Any = self.line
        self.outbox = Outbox(connection, lambda _: None, RetiredConsumers(), AttemptCounts(connection, lambda _: None))
        self.consumer = PullConsumer(
            connection,
            self.outbox,
            create=lambda _: None,
            lost=self._on_consumer_lost,
            stripped=self._on_stripped,
        )
        self.pull = self.consumer.open("")
        self.credit = self.pull.credit
        self.credit_added = self.num_lost_consumers = 0
        self.model = Model()
        self.wire = bytearray()
        self.well_formed = True
        self.received: list[tuple[Any, ...]] = []
        self.expected_deliveries: list[tuple[Any, ...]] = []

    def _on_stripped(self, pull: Pull, reply: str, delivery: Delivery) -> None:
        self.consumer.deliver(pull, reply, delivery)

    def _on_consumer_lost(self, _: str) -> None:
        self.num_lost_consumers += 1

    async def begin(self) -> None:
        """Send some settlements that can be confirmed, and begin to pull."""
        await self.outbox.open()
        for number in range(_SETTLED):
            delivery = Delivery((number, number), f"{self.outbox.epoch}{_ACK}1.1.1.1.0", 1, 0.0, "q", b"")
            self.outbox.settle(delivery, Ack(), before=0.0)
            await self.outbox._send_one(self.outbox._queue.popleft())  # noqa: SLF001 -- as its task does
        await self._bind()

    async def _bind(self) -> None:
        await self.consumer.request_again()
        self.pull.bind(_NEXT)

    # The server.

    def write(self, line: bytes) -> None:
        """Append a frame to the bytes of the server."""
        index, rest = (numbers(line[1:2]) or [0])[0], line.partition(b" ")[2]
        if line[:1] in (b"d", b"s", b"h") and index % MAX_REQUESTS not in self._inboxes():
            return  # no request is open there
        match line[:1]:
            case b"d":
                self._deliver(self._inbox(index), rest)
                self.model.delivered(index % MAX_REQUESTS, trio.current_time())
            case b"o":
                self._deliver(self._old_inbox(index), rest)
            case b"S":
                self._message(self._old_inbox(index), header=b"NATS/1.0 " + rest + b"\r\n\r\n")
                self.model.predictable &= _PLAIN_STATUS.fullmatch(rest) is not None
            case b"s":
                self._message(self._inbox(index), header=b"NATS/1.0 " + rest + b"\r\n\r\n")
                self.model.status(index % MAX_REQUESTS, rest, trio.current_time())
            case b"h":
                self._message(self._inbox(index), header=b"NATS/1.0\r\n" + rest.replace(b"|", b"\r\n") + b"\r\n\r\n")
                self.model.predictable = False
            case b"c":
                number = re.sub(rb"\s.*", b"", line[1:], flags=re.DOTALL) or b"0"
                header = b"NATS/1.0 " + rest + b"\r\n\r\n" if rest else b""
                self._message(1, subject=b"_INBOX.0." + number, header=header)
                if re.fullmatch(rb"0|[1-9][0-9]{0,8}", number) and not rest and self.model.is_first_connection:
                    self.model.unconfirmed.discard(int(number))
                self.model.predictable &= not rest or _PLAIN_STATUS.fullmatch(rest) is not None
            case _:
                self.wire += line + b"\r\n"
                self.well_formed = self.model.predictable = False

    def _inbox(self, index: int) -> int:
        subscription = self.pull._inboxes[self.credit.inboxes[index % MAX_REQUESTS]]  # noqa: SLF001 -- the server's name for it
        return int(subscription._id)  # noqa: SLF001 -- the same

    def _old_inbox(self, index: int) -> int:
        left = [int(subscription._id) for _, subscription in self.consumer.old_inboxes]  # noqa: SLF001 -- their ids
        return left[index % len(left)] if left else _NO_SUBSCRIPTION

    def _deliver(self, sid: int, text: bytes) -> None:
        end, _, body = text.partition(b" ")
        reply = _ACK.encode() + re.sub(rb"\s", b"_", end)
        self._message(sid, reply=reply, body=body)
        found = expected(reply.decode("utf-8", "replace"))
        if found and self.client.is_subscribed(sid):
            self.expected_deliveries.append((*found, body))

    def _message(
        self, sid: int, *, subject: bytes = b"q", reply: bytes = b"", header: bytes = b"", body: bytes = b""
    ) -> None:
        sizes = b"%d %d" % (len(header), len(header + body)) if header else b"%d" % len(body)
        words = [b"HMSG" if header else b"MSG", subject, b"%d" % sid, reply, sizes]
        self.wire += b" ".join(filter(None, words)) + b"\r\n" + header + body + b"\r\n"

    async def read(self, sizes: list[int]) -> None:
        """Read the bytes of the server in pieces of these sizes; after an error of nats-py the rest is lost."""
        wire, self.wire = bytes(self.wire), bytearray()
        for piece in cut(wire, sizes):
            if not await self.client.read(piece):
                self._take()
                self.expected_deliveries, self.model.predictable = list(self.received), False
                await self.reconnect()
                break
        self._take()

    def _take(self) -> None:
        self.received += [
            (each.id, each.num_delivered, each.num_pending, each.payload)
            for each in self.consumer.take_all()
            if isinstance(each, Delivery)
        ]

    # The rest of the worker.

    async def add_credit(self, more: int) -> None:
        self.credit_added += more
        self.consumer.add_credit(more, "")
        await self._pump()

    async def wait(self, seconds: int) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        clock.jump(seconds)
        before, silent = self._inboxes(), self.model.silent(trio.current_time())
        await self.consumer.check(trio.current_time())
        if self.model.predictable:
            assert silent == before.keys() - self._inboxes().keys()
        await self._pump()

    async def reconnect(self, _: int = 0) -> None:
        self.client.reset()
        self.model.lost()
        self.consumer.connection_changed(up=False)
        self.outbox.repeat_late(inf)
        self.consumer.connection_changed(up=True)
        await self._bind()
        await self._pump()

    async def _pump(self) -> None:
        """Send requests as the consumer's task does; each is open in a free inbox."""
        before = len(self.client.published)
        await self.consumer._send_requests()  # noqa: SLF001 -- as its task does
        indexes = {inbox: index for index, inbox in self._inboxes().items()}
        for subject, payload, reply in self.client.published[before:]:
            assert subject == _NEXT
            index, batch = indexes[reply], json.loads(payload)["batch"]
            assert batch == self.credit.inboxes[index].outstanding > 0
            assert not (self.model.predictable and self.model.open[index])
            self.model.requested(index, batch, trio.current_time())

    def _inboxes(self) -> dict[int, str]:
        subscriptions = self.pull._inboxes  # noqa: SLF001 -- the inboxes
        return {
            index: subscriptions[inbox].subject
            for index, inbox in enumerate(self.credit.inboxes)
            if inbox in subscriptions
        }

    # The law.

    def seen(self) -> Any:
        """Return the state that must be the same for each cut of the bytes, without the order of inboxes."""
        if not self.well_formed:
            return None
        assert sorted(self.received) == sorted(self.expected_deliveries)
        indexes = [(index.outstanding, index.last_sign) for index in self.credit.inboxes]
        state = self.pull.bound, self.num_lost_consumers, self.outbox._unsettled  # noqa: SLF001 -- the unconfirmed settlements
        if self.model.predictable:
            assert [outstanding for outstanding, _ in indexes] == self.model.open
            assert state == (self.model.bound, self.model.num_lost_consumers, len(self.model.unconfirmed))
        notes = sorted(self.line.failures), sorted(self.client.errors)
        return sorted(self.received), self.credit.unrequested, indexes, state, notes, list(self.client.published)

    def check_credit(self) -> None:
        """Check that all credit is unrequested, outstanding or delivered."""
        assert self.credit.unrequested + self.credit.outstanding + len(self.received) == self.credit_added
        assert all(index.outstanding >= 0 for index in self.credit.inboxes)
        assert 0 <= self.outbox._unsettled <= _SETTLED  # noqa: SLF001 -- the unconfirmed settlements

    async def check_credit_is_requested(self) -> None:
        """Check that one second after a reconnect, one request is open for all the credit.

        Credit for more than one batch is in full batches. The rest of it waits while it is less than a quarter.
        """
        await self.reconnect()
        await self.wait(1)
        room, batch = self.credit_added - len(self.received), self.credit.max_batch
        requested = max(0, room)
        if room > batch:
            full = min(room // batch, MAX_REQUESTS) * batch
            is_worth_a_request = room - full >= min(self.credit._total / MAX_REQUESTS, batch)  # noqa: SLF001 -- most ever
            requested = room if is_worth_a_request and full < MAX_REQUESTS * batch else full
        assert (self.credit.unrequested, self.credit.outstanding) == (room - requested, requested)
