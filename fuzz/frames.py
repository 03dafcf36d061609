"""A NATS server's bytes, cut anywhere, give the same deliveries and the same state, and conserve credit.

nats-py's own parser and client read the bytes. Its socket and its tasks are left out, so the worker's callbacks run
at once. The input's first line gives the sizes of the pieces. Each other line is one event, named by its first letter:

======  ================================================================================
``d``   a delivery into an inbox, ``d2 3.17.21.1700.5 body``, with the end of its subject
``o``   the same, into an inbox that was replaced
``s``   a status into an inbox, ``s2 404 No Messages``; ``S`` into an old inbox
``h``   a message with any header, ``h2 Name: value|Name: value``, with | for CR LF
``c``   a confirmation, ``c1``; ``c1 503`` is a status there
``w``   credit is added, ``w50``
``t``   time passes, ``t11``, and silent requests are looked for
``x``   the connection is lost, and the client connects again
======  ================================================================================

Any other line is sent as it is. How malformed ones are read depends, in nats-py, on how they are cut: after the first,
only credit counts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio
from trio.testing import MockClock

from fuzz._choices import cut, numbers
from fuzz._nats import Line
from fuzz.wire import expected
from worker.model import Ack, Delivery
from worker.nats.credit import HEARTBEAT, MAX_REQUESTS, SILENCE
from worker.nats.outbox import Outbox
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
_NOBODY = 10_000
"""A subscription that does not exist."""


def check(data: bytes) -> None:
    """Play *data* with its frames whole, cut, and byte by byte, and see that the law above holds."""
    options, *lines = data.split(b"\n")[: _MOST_LINES + 1]
    whole, pieces, bytewise = (
        trio.run(_play, lines, sizes, clock=MockClock()) for sizes in ([], numbers(options)[:10] or [7], [1])
    )
    assert whole == pieces
    assert whole == bytewise


async def _play(lines: list[bytes], sizes: list[int]) -> list[Any]:
    """Observe the state before each step that is not the server's."""
    world = World()
    steps: dict[bytes, Callable[[int], Any]] = {b"w": world.want, b"t": world.wait, b"x": world.lose}
    await world.begin()
    seen = []
    for line in [*lines, b"t0"]:
        if step := steps.get(line[:1]):
            await world.read(sizes)
            seen.append(world.seen())
            await step((numbers(line) or [0])[0])
            world.keeps_its_books()
        else:
            world.write(line)
    await world.asks_for_all_that_is_wanted()
    return seen


@dataclass
class Model:
    """The requests open at the server, recorded apart from the worker. *plain* ends at the first malformed line."""

    plain: bool = True
    open: list[int] = field(default_factory=lambda: [0] * MAX_REQUESTS)
    heard: list[float] = field(default_factory=lambda: [0.0] * MAX_REQUESTS)
    gone: int = 0
    bound: bool = True
    unconfirmed: set[int] = field(default_factory=lambda: set(range(_SETTLED)))
    first: bool = True
    """True on the connection that sent the settlements; the next connection must send them again."""
    looked: float = 0.0

    def asked(self, lane: int, batch: int, now: float) -> None:
        self.open[lane], self.heard[lane] = batch, now

    def delivered(self, lane: int, now: float) -> None:
        self.open[lane], self.heard[lane] = max(0, self.open[lane] - 1), now

    def status(self, lane: int, text: bytes, now: float) -> None:
        """Apply a status; *plain* ends at one that JetStream does not send (ADR-13, nats-server 2.15)."""
        if not (found := _PLAIN_STATUS.fullmatch(text)):
            self.plain = False
        elif found[1] == b"100":
            self.heard[lane] = now
        else:
            self.open[lane] = 0
            if self.bound and (found[1] == b"503" or (found[1] == b"409" and b"deleted" in found[2].lower())):
                self.gone, self.bound, self.open = self.gone + 1, False, [0] * MAX_REQUESTS

    def silent(self, now: float) -> set[int]:
        """Return the inboxes with a request that the worker must give up now."""
        away, self.looked = now - self.looked > 2 * HEARTBEAT, now
        if away:
            self.heard = [now] * MAX_REQUESTS
        waiting = [lane for lane in range(MAX_REQUESTS) if self.bound and self.open[lane]]
        silent = {lane for lane in waiting if now - self.heard[lane] > SILENCE}
        self.open = [0 if lane in silent else batch for lane, batch in enumerate(self.open)]
        return silent

    def lost(self) -> None:
        self.open, self.bound, self.first = [0] * MAX_REQUESTS, True, False


class World:
    """A consumer and its books behind nats-py's parser, and the server that writes to it."""

    def __init__(self) -> None:
        self.line = Line()
        self.client = self.line.client
        connection: Any = self.line
        self.outbox = Outbox(connection, lambda _: None, RetiredConsumers())
        self.consumer = PullConsumer(connection, self.outbox, create=lambda _: None, lost=self._on_gone)
        self.puller = self.consumer.open("")
        self.credit = self.puller._credit  # noqa: SLF001 -- the books
        self.wanted = self.gone = 0
        self.model = Model()
        self.wire = bytearray()
        self.well_formed = True
        self.came: list[tuple[Any, ...]] = []
        self.must_come: list[tuple[Any, ...]] = []

    def _on_gone(self, _: str) -> None:
        self.gone += 1

    async def begin(self) -> None:
        """Send some settlements that can be confirmed, and begin to pull."""
        await self.outbox.open()
        for number in range(_SETTLED):
            delivery = Delivery((number, number), self.outbox.token(f"{_ACK}1.1.1.1.0"), 1, 0.0, "q", b"")
            self.outbox.settle(delivery, Ack(), before=0.0)
            await self.outbox._send_one(self.outbox._queue.popleft())  # noqa: SLF001 -- as its task does
        await self._bind()

    async def _bind(self) -> None:
        await self.consumer.request_again()
        self.puller.bind(_NEXT)

    # The server.

    def write(self, line: bytes) -> None:
        """Put a frame on the wire."""
        lane, rest = (numbers(line[1:2]) or [0])[0], line.partition(b" ")[2]
        if line[:1] in (b"d", b"s", b"h") and lane % MAX_REQUESTS not in self._inboxes():
            return  # no request is open there
        match line[:1]:
            case b"d":
                self._deliver(self._inbox(lane), rest)
                self.model.delivered(lane % MAX_REQUESTS, trio.current_time())
            case b"o":
                self._deliver(self._old_inbox(lane), rest)
            case b"S":
                self._message(self._old_inbox(lane), header=b"NATS/1.0 " + rest + b"\r\n\r\n")
                self.model.plain &= _PLAIN_STATUS.fullmatch(rest) is not None
            case b"s":
                self._message(self._inbox(lane), header=b"NATS/1.0 " + rest + b"\r\n\r\n")
                self.model.status(lane % MAX_REQUESTS, rest, trio.current_time())
            case b"h":
                self._message(self._inbox(lane), header=b"NATS/1.0\r\n" + rest.replace(b"|", b"\r\n") + b"\r\n\r\n")
                self.model.plain = False
            case b"c":
                number = re.sub(rb"\s.*", b"", line[1:], flags=re.DOTALL) or b"0"
                header = b"NATS/1.0 " + rest + b"\r\n\r\n" if rest else b""
                self._message(1, subject=b"_INBOX.0." + number, header=header)
                if re.fullmatch(rb"[0-9]{1,9}", number) and not rest and self.model.first:
                    self.model.unconfirmed.discard(int(number))
                self.model.plain &= not rest or _PLAIN_STATUS.fullmatch(rest) is not None
            case _:
                self.wire += line + b"\r\n"
                self.well_formed = self.model.plain = False

    def _inbox(self, lane: int) -> int:
        _, subscription = self.puller._inboxes[lane % MAX_REQUESTS]  # noqa: SLF001 -- the server's name for it
        return int(subscription._id)  # noqa: SLF001 -- the same

    def _old_inbox(self, lane: int) -> int:
        left = [int(subscription._id) for _, subscription in self.consumer._buffer._old_inboxes]  # noqa: SLF001 -- the old inboxes
        return left[lane % len(left)] if left else _NOBODY

    def _deliver(self, sid: int, text: bytes) -> None:
        end, _, body = text.partition(b" ")
        reply = _ACK.encode() + re.sub(rb"\s", b"_", end)
        self._message(sid, reply=reply, body=body)
        found = expected(reply.decode("utf-8", "replace"))
        if found and self.client.listens(sid):
            self.must_come.append((*found, body))

    def _message(
        self, sid: int, *, subject: bytes = b"q", reply: bytes = b"", header: bytes = b"", body: bytes = b""
    ) -> None:
        sizes = b"%d %d" % (len(header), len(header + body)) if header else b"%d" % len(body)
        words = [b"HMSG" if header else b"MSG", subject, b"%d" % sid, reply, sizes]
        self.wire += b" ".join(filter(None, words)) + b"\r\n" + header + body + b"\r\n"

    async def read(self, sizes: list[int]) -> None:
        """Read what is on the wire in pieces of these sizes; where nats-py cannot, the rest is lost."""
        wire, self.wire = bytes(self.wire), bytearray()
        for piece in cut(wire, sizes):
            if not await self.client.read(piece):
                self._take()
                self.must_come, self.model.plain = list(self.came), False
                await self.lose()
                break
        self._take()

    def _take(self) -> None:
        self.came += [
            (each.id, each.num_delivered, each.num_pending, each.payload)
            for each in self.consumer._buffer.take_all()  # noqa: SLF001 -- the deliveries
            if isinstance(each, Delivery)
        ]

    # What the rest of the worker does.

    async def want(self, more: int) -> None:
        self.wanted += more
        self.consumer.add_credit(more, "")
        await self._pump()

    async def wait(self, seconds: int) -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, MockClock)
        clock.jump(seconds)
        before, silent = self._inboxes(), self.model.silent(trio.current_time())
        await self.consumer.check(trio.current_time())
        if self.model.plain:
            assert silent == before.keys() - self._inboxes().keys()
        await self._pump()

    async def lose(self, _: int = 0) -> None:
        self.client.begin_anew()
        self.model.lost()
        for up in (False, True):
            self.outbox.connection_changed(up)
            self.consumer.connection_changed(up)
        await self._bind()
        await self._pump()

    async def _pump(self) -> None:
        """Send requests as the consumer's task does; each is open in a free inbox."""
        before = len(self.client.said)
        await self.consumer._send()  # noqa: SLF001 -- as its task does
        lanes = {inbox: lane for lane, inbox in self._inboxes().items()}
        for subject, payload, reply in self.client.said[before:]:
            assert subject == _NEXT
            lane, batch = lanes[reply], json.loads(payload)["batch"]
            assert batch == self.credit.inboxes[lane].outstanding > 0
            assert not (self.model.plain and self.model.open[lane])
            self.model.asked(lane, batch, trio.current_time())

    def _inboxes(self) -> dict[int, str]:
        return {lane: inbox for lane, (inbox, _) in self.puller._inboxes.items()}  # noqa: SLF001 -- the inboxes

    # What must hold.

    def seen(self) -> Any:
        """Return the state that must not depend on how the bytes were cut, without the order of inboxes."""
        if not self.well_formed:
            return None
        assert sorted(self.came) == sorted(self.must_come)
        lanes = [(lane.outstanding, lane.last_sign) for lane in self.credit.inboxes]
        state = self.puller.bound, self.gone, self.outbox._unsettled  # noqa: SLF001 -- what is left to confirm
        if self.model.plain:
            assert [outstanding for outstanding, _ in lanes] == self.model.open
            assert state == (self.model.bound, self.model.gone, len(self.model.unconfirmed))
        notes = sorted(self.line.complaints), sorted(self.client.noted)
        return sorted(self.came), self.credit.unrequested, lanes, state, notes, list(self.client.said)

    def keeps_its_books(self) -> None:
        """See that the credit is unrequested, outstanding or delivered."""
        assert self.credit.unrequested + self.credit.outstanding + len(self.came) == self.wanted
        assert all(lane.outstanding >= 0 for lane in self.credit.inboxes)
        assert 0 <= self.outbox._unsettled <= _SETTLED  # noqa: SLF001 -- what is left to confirm

    async def asks_for_all_that_is_wanted(self) -> None:
        """See that on a new connection, a moment later, one request is open for all the credit."""
        await self.lose()
        await self.wait(1)
        room = self.wanted - len(self.came)
        assert (self.credit.unrequested, self.credit.outstanding) == ((0, room) if room > 0 else (room, 0))
