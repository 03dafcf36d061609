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
    END,
    MAX_DELAY,
    STEP,
    TICK,
    Acknowledge,
    Action,
    ChangeAckWait,
    Publish,
    Pull,
    RecreateConsumer,
    Restart,
    Script,
    Unsubscribe,
    duration,
)
from .trace import Trace

LATENCY = 0.001
"""Seconds that each message takes to arrive."""


def play(script: Script, *, loses_state: bool = True) -> Trace | None:
    """Play a script, and return its trace. *loses_state*: a killed server keeps only the state that was surely written.

    None if two events are due at the same time for different reasons, so that chance decides their order.
    """
    played = _Play(script, loses_state=loses_state)
    trio.run(played.run, clock=MockClock(autojump_threshold=0))
    return None if played.has_ties() else played.trace


class _Watched(PullConsumer):
    """A consumer that detects ties. Deliveries at the same time are no tie if they are in the order of sequence."""

    def __init__(self, ack_wait: float) -> None:
        super().__init__(ack_wait)
        self.has_ties = False
        self.due_times: list[float] = []

    def reset(self, ack_wait: float, first: int = 1) -> None:
        super().reset(ack_wait, first)
        self.causes: dict[int, tuple[float, int]] = {}
        """The time at which a message's due time was set, and the number of the delivery that set it."""

    def deliver(self, sequence: int, published: float, now: float) -> tuple[int, int]:
        delivery = super().deliver(sequence, published, now)
        self.causes[sequence] = now, delivery[1]
        return delivery

    def extend(self, sequence: int, now: float) -> None:
        super().extend(sequence, now)
        self.causes[sequence] = now, 0

    def nak(self, sequence: int, number: int, delay: float, now: float) -> bool:
        accepted = super().nak(sequence, number, delay, now)
        if accepted and delay:
            self.causes[sequence] = now, 0
        return accepted

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
            if since + self.ack_wait <= now and later - since < STEP / 2 and not together:
                self.has_ties = True
        before = len(self.due)
        super().expire(now)
        self.due_times += [now] * (len(self.due) > before)


@dataclass(slots=True)
class _Play:
    script: Script
    loses_state: bool
    trace: Trace = field(default_factory=Trace)
    server: Server = field(init=False)
    consumer: _Watched = field(init=False)
    clients: list[Client] = field(default_factory=list)
    tokens: list[tuple[float, int, str]] = field(default_factory=list)
    """Time, number and token of each delivery, in the order in which the server sent them."""
    pulls: list[float] = field(default_factory=list)
    """The end of each pull."""
    action_times: list[float] = field(default_factory=list)
    """The time of each action."""
    num_acks: int = 0

    async def run(self) -> None:
        self.server = Server(duration(self.script.ack_wait))
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
                self.action_times.append(trio.current_time())
                self._do(action)
            await trio.sleep_until(END * TICK)
            nursery.cancel_scope.cancel()

    def has_ties(self) -> bool:
        moments = [*((end, STEP / 2) for end in self.pulls), *((at, MAX_DELAY) for at in self.action_times)]
        return self.consumer.has_ties or any(
            abs(at - due) < apart - 1e-6 for at, apart in moments for due in self.consumer.due_times
        )

    async def _restart(self, restart: Restart) -> None:
        await trio.sleep_until(restart.time)
        down = restart.back - trio.current_time()
        if restart.how == "stop":
            self.server.restart(down)
        else:
            self.server.crash(down, loses_state=self.loses_state)

    def _do(self, action: Action | None) -> None:
        server = self.server
        match action:
            case None:
                self.trace.note_numbers(trio.current_time(), server.numbers())
            case Publish(count):
                for _ in range(count):
                    server.publish(b"")
            case Pull(batch, expires, client):
                self.pulls.append(trio.current_time() + duration(expires))
                reader = self.clients[client]
                server.pull(reader, reader.session, batch, duration(expires), inbox=f"pull-{len(self.pulls)}")
            case Acknowledge(verb, delivery_index, delay):
                self._acknowledge(delivery_index, _settlement(verb, delay))
            case Unsubscribe(client):
                server.cancel_requests(self.clients[client])
            case RecreateConsumer():
                server.recreate_consumers()
            case ChangeAckWait(ack_wait):
                server.configure(duration(ack_wait))

    def _acknowledge(self, delivery_index: int, settlement: Settlement | None) -> None:
        if delivery_index < len(self.tokens):
            self.num_acks += 1
            if self.server.apply(self.tokens[-1 - delivery_index][2], settlement):
                self.trace.note(f"ack-{self.num_acks}", trio.current_time(), "confirmed")

    def _delivered(self, delivery: SentDelivery) -> None:
        insort(self.tokens, (delivery.sent, int(delivery.token.split(".")[1]), delivery.token))
        self.trace.note(delivery.inbox, trio.current_time(), f"message {delivery.id[0]}, delivery {delivery.count}")

    def _status(self, inbox: str, status: str) -> None:
        self.trace.note(inbox, trio.current_time(), status)


def _settlement(verb: str, delay: int | None) -> Settlement | None:
    match verb:
        case "+ACK":
            return Ack()
        case "+TERM":
            return Term("")
        case "-NAK":
            return Nak(0.0 if delay is None else duration(delay))
    return None
