"""Scripts played on the in-memory broker, on a virtual clock."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from itertools import pairwise

import trio
from trio.testing import MockClock

from tests.world.consumer import PullConsumer
from tests.world.link import Link
from tests.world.requests import Client, SentDelivery
from tests.world.server import Server
from worker.model import Ack, Nak, Settlement, Term

from .script import (
    LAST,
    LATE,
    SLOT,
    TICK,
    Action,
    ChangeAckWait,
    Leave,
    MakeAnew,
    Publish,
    Pull,
    Restart,
    Say,
    Script,
    lasting,
)
from .trace import Trace

LATENCY = 0.001
"""Seconds that each message takes to arrive."""


def play(script: Script, *, forgetful: bool = True) -> Trace | None:
    """Play a script, and return its trace. *forgetful*: a killed server keeps only what was surely written.

    None where two events fall due at the same time for different reasons, so that chance decides their order.
    """
    played = _Play(script, forgetful=forgetful)
    trio.run(played.run, clock=MockClock(autojump_threshold=0))
    return None if played.tied() else played.trace


class _Watched(PullConsumer):
    """A consumer that notices ties. What was handed out together is none, if it was in the order of sequence."""

    def __init__(self, ack_wait: float) -> None:
        super().__init__(ack_wait)
        self.tied = False
        self.fell_due: list[float] = []

    def reset(self, ack_wait: float, first: int = 1) -> None:
        super().reset(ack_wait, first)
        self.causes: dict[int, tuple[float, int]] = {}
        """The time when a message's due time was set, and the number of the hand-out that set it."""

    def deliver(self, sequence: int, published: float, now: float) -> tuple[int, int]:
        handed = super().deliver(sequence, published, now)
        self.causes[sequence] = now, handed[1]
        return handed

    def extend(self, sequence: int, now: float) -> None:
        super().extend(sequence, now)
        self.causes[sequence] = now, 0

    def nak(self, sequence: int, number: int, delay: float, now: float) -> bool:
        heeded = super().nak(sequence, number, delay, now)
        if heeded and delay:
            self.causes[sequence] = now, 0
        return heeded

    def start(self) -> None:
        super().start()
        self.causes = {sequence: (pending.since, sequence) for sequence, pending in self.state.pending.items()}

    def expire(self, now: float) -> None:
        waiting = sorted(
            (pending.since, sequence)
            for sequence, pending in self.state.pending.items()
            if sequence not in self.due and sequence in self.causes
        )
        for (since, one), (later, other) in pairwise(waiting):
            together = self.causes[one][0] == self.causes[other][0] and self.causes[one] < self.causes[other]
            if since + self.ack_wait <= now and later - since < SLOT / 2 and not together:
                self.tied = True
        before = len(self.due)
        super().expire(now)
        self.fell_due += [now] * (len(self.due) > before)


@dataclass(slots=True)
class _Play:
    script: Script
    forgetful: bool
    trace: Trace = field(default_factory=Trace)
    server: Server = field(init=False)
    consumer: _Watched = field(init=False)
    clients: list[Client] = field(default_factory=list)
    tokens: list[tuple[float, int, str]] = field(default_factory=list)
    """Of each delivery, in the order in which the server sent them."""
    pulls: list[float] = field(default_factory=list)
    """The end of each pull."""
    done: list[float] = field(default_factory=list)
    """The time of each action."""
    said: int = 0

    async def run(self) -> None:
        self.server = Server(lasting(self.script.ack_wait))
        self.server.consumer = self.consumer = _Watched(self.server.ack_wait)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.server.run)
            for _ in range(2):
                link = Link(0.0)
                client = Client(link, self._delivered, lambda _: None, status=self._status)
                nursery.start_soon(link.run)
                self.server.join(client)
                self.clients.append(client)
            if self.script.restart:
                nursery.start_soon(self._restart, self.script.restart)
            for at, action in self.script.timetable():
                await trio.sleep_until(at + LATENCY)
                self.done.append(trio.current_time())
                self._do(action)
            await trio.sleep_until(LAST * TICK)
            nursery.cancel_scope.cancel()

    def tied(self) -> bool:
        moments = [*((end, SLOT / 2) for end in self.pulls), *((at, LATE) for at in self.done)]
        return self.consumer.tied or any(
            abs(at - due) < apart - 1e-6 for at, apart in moments for due in self.consumer.fell_due
        )

    async def _restart(self, restart: Restart) -> None:
        await trio.sleep_until(restart.time)
        down = restart.back - trio.current_time()
        if restart.how == "stop":
            self.server.restart(down)
        else:
            self.server.crash(down, loses_state=self.forgetful)

    def _do(self, action: Action | None) -> None:
        server = self.server
        match action:
            case None:
                self.trace.look(trio.current_time(), server.numbers())
            case Publish(count):
                for _ in range(count):
                    server.publish(b"")
            case Pull(batch, lasts, client):
                self.pulls.append(trio.current_time() + lasting(lasts))
                reader = self.clients[client]
                server.pull(reader, reader.session, batch, lasting(lasts), inbox=f"pull-{len(self.pulls)}")
            case Say(verb, about, delay):
                self._say(about, _settlement(verb, delay))
            case Leave(client):
                server.cancel_requests(self.clients[client])
            case MakeAnew():
                server.recreate_consumers()
            case ChangeAckWait(ack_wait):
                server.configure(lasting(ack_wait))

    def _say(self, about: int, settlement: Settlement | None) -> None:
        if about < len(self.tokens):
            self.said += 1
            if self.server.apply(self.tokens[-1 - about][2], settlement):
                self.trace.note(f"said-{self.said}", trio.current_time(), "answered")

    def _delivered(self, handed: SentDelivery) -> None:
        insort(self.tokens, (handed.sent, int(handed.token.split(".")[1]), handed.token))
        self.trace.note(handed.inbox, trio.current_time(), f"message {handed.id[0]}, delivery {handed.count}")

    def _status(self, inbox: str, status: str) -> None:
        self.trace.note(inbox, trio.current_time(), status)


def _settlement(verb: str, delay: int | None) -> Settlement | None:
    match verb:
        case "+ACK":
            return Ack()
        case "+TERM":
            return Term("")
        case "-NAK":
            return Nak(0.0 if delay is None else lasting(delay))
    return None
