"""An in-memory JetStream: one work-queue stream, its one pull consumer, and the stream of dead letters.

Its law is what nats-server 2.15 was measured to do, also where one would wish otherwise:

* What is said about a delivery is keyed by the message's stream sequence. An old acknowledgement ends a newer delivery,
  an old NAK gives out again what somebody is running, and an extension after a NAK cancels the NAK's delay.
* Each is answered, once it makes no difference too, except one for a message that the consumer, made anew, has not come
  to yet: that one is neither heeded nor answered.
* A message comes again when its time is over: the ack wait, counted from its hand-out or its last extension, or the
  NAK's delay. What comes again goes before what is new. An extension or a NAK that comes later changes nothing.
* A consumer made anew knows nothing: counts begin at one, delays are forgotten, and what was not settled comes at once.
* A restart keeps counts and waits, the waits only to the second: they can end up to one second early.

Time is Trio's clock, so all of this runs under a virtual one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf

import trio

from tests.wire import Stored
from worker.model import Ack, Backlog, DeadLetter, MessageId, Nak, Settlement, Term
from worker.policy.report import dead_letter_headers

from .link import Link

EPOCH = 1_700_000_000.0
"""Wall-clock time (s since the epoch) at which the virtual clock shows zero."""
STREAM = "faas-request"


@dataclass(slots=True, eq=False)
class Message:
    """One that is stored."""

    id: MessageId
    subject: str
    payload: bytes
    count: int = 0
    """Hand-outs by the consumer as it is now."""
    token: str = ""
    """Of the newest hand-out."""
    deadline: float = inf
    """When it comes again; never while it waits its turn."""
    over: trio.Event = field(default_factory=trio.Event)
    """It has left the stream."""
    verdict: Settlement | None = None
    """What made it leave."""
    naked: bool = False
    """What it waits for is a NAK's delay."""

    @property
    def held(self) -> bool:
        """Whether somebody has it, and in time."""
        return self.deadline < inf and not self.naked


@dataclass(frozen=True, slots=True)
class Heard:
    """One verb that was heeded. *settlement* is None for an extension."""

    at: float
    sequence: int
    token: str
    settlement: Settlement | None


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A delivery as it goes over the wire."""

    id: MessageId
    token: str
    count: int
    sent: float
    subject: str
    payload: bytes


class Client:
    """What a server knows of one connection.

    Args:
        link: the way there.
        deliver: what a delivery does at the other end.
        dismiss: what is told there when requests were dropped; later ones count only if they name the session told.
    """

    def __init__(self, link: Link, deliver: Callable[[HandedOut], None], dismiss: Callable[[int], None]) -> None:
        self.link, self.deliver, self.dismiss = link, deliver, dismiss
        self.credit = 0
        """How many messages may still be sent there."""
        self.session = 0


def _key(message: MessageId) -> str:
    return f"{message[0]}.{message[1]}"


class Server:
    """The broker.

    Args:
        ack_wait: of the consumer (s).
    """

    def __init__(self, ack_wait: float) -> None:
        self.ack_wait = ack_wait
        self.messages: dict[int, Message] = {}
        """What the stream holds, by sequence, oldest first."""
        self.letters: dict[str, Stored] = {}
        """Dead letters by message id, which keeps a second copy out."""
        self.heard: list[Heard] = []
        """All that was said and heeded, in order."""
        self.disturbed: set[int] = set()
        """Messages that were given out although somebody held them: two workers may rightly run one at once."""
        self.unburied: set[int] = set()
        """Messages that were given up with no dead letter stored."""
        self.unusable = ""
        """Why the consumer cannot be used, if so."""
        self.refuses_letters = False
        self.taken = 0
        self.deliveries = 0
        self._reached = 0
        self._again: deque[int] = deque()
        self._clients: deque[Client] = deque()
        self._sooner = trio.Event()

    # Publishing.

    def publish(self, payload: bytes, subject: str = STREAM) -> Message:
        """Store one message."""
        self.taken += 1
        stored = round((EPOCH + trio.current_time()) * 1e9)
        message = self.messages[self.taken] = Message((self.taken, stored), subject, payload)
        self._serve()
        return message

    def bury(self, letter: DeadLetter) -> bool:
        """Store a dead letter; whether it was."""
        if self.refuses_letters:
            return False
        headers = dead_letter_headers(letter, stream=STREAM)
        key = _key(letter.delivery.id)
        subject = f"DEAD-LETTERS.{STREAM}.{letter.function or 'undecodable'}"
        self.letters.setdefault(key, Stored(len(self.letters) + 1, subject, headers, letter.delivery.payload))
        return True

    def backlog(self) -> Backlog:
        """See :class:`worker.model.Backlog`."""
        by_subject: dict[str, int] = {}
        for message in self.messages.values():
            by_subject[message.subject] = by_subject.get(message.subject, 0) + 1
        return Backlog(self.taken, by_subject)

    # Consuming.

    def join(self, client: Client) -> None:
        """A connection is there."""
        self._clients.append(client)

    def pull(self, client: Client, session: int, batch: int) -> None:
        """A connection may be sent *batch* more."""
        if session == client.session:
            client.credit += batch
            self._serve()

    def withdraw(self, client: Client) -> None:
        """It may be sent nothing: it asked for that, or is gone."""
        client.credit = 0

    def say(self, token: str, settlement: Settlement | None) -> bool:
        """Heed what is said about a delivery; whether it is answered."""
        sequence = int(token.partition(".")[0])
        if sequence > self._reached:
            return False
        message = self.messages.get(sequence)
        self.heard.append(Heard(trio.current_time(), sequence, token, settlement))
        if message is not None:
            match settlement:
                case Ack() | Term():
                    if isinstance(settlement, Term) and _key(message.id) not in self.letters:
                        self.unburied.add(sequence)
                    message.verdict = settlement
                    message.over.set()
                    del self.messages[sequence]
                case Nak(delay) if sequence not in self._again:
                    if token != message.token:
                        self.disturbed.add(sequence)
                    message.naked, message.deadline = True, trio.current_time() + delay
                case None if sequence not in self._again:
                    message.naked, message.deadline = False, trio.current_time() + self.ack_wait
            self._expire()
        return True

    # What may befall it.

    def make_anew(self, ack_wait: float | None = None) -> None:
        """Delete the consumer and make it again, perhaps with another ack wait."""
        self.ack_wait = ack_wait or self.ack_wait
        self._reached = 0
        self._again.clear()
        for message in self.messages.values():
            if message.held:
                self.disturbed.add(message.id[0])
            message.count, message.deadline, message.naked = 0, inf, False
        for client in self._clients:
            client.credit = 0
            client.session += 1
            client.link.down.send("status", partial(client.dismiss, client.session))

    def restart(self, down: float, early: float) -> None:
        """Go away for *down* seconds; all waits then end *early* seconds (below one) too soon."""
        for client in self._clients:
            client.link.cut(down)
        for message in self.messages.values():
            message.deadline -= early
            if message.held:
                self.disturbed.add(message.id[0])
        self._sooner.set()

    async def run(self) -> None:
        """Give out again what is due, for ever."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(min((message.deadline for message in self.messages.values()), default=inf)):
                await self._sooner.wait()
            self._expire()

    def _expire(self) -> None:
        now = trio.current_time()
        for sequence, message in self.messages.items():
            if message.deadline <= now:
                message.deadline = inf
                self._again.append(sequence)
        self._serve()

    def _serve(self) -> None:
        while any(client.credit for client in self._clients) and (message := self._next()):
            while not self._clients[0].credit:
                self._clients.rotate(-1)
            self._hand_out(message, self._clients[0])
            self._clients.rotate(-1)
        self._sooner.set()

    def _next(self) -> Message | None:
        while self._again:
            if message := self.messages.get(self._again.popleft()):
                return message
        fresh = next((message for sequence, message in self.messages.items() if sequence > self._reached), None)
        if fresh:
            self._reached = fresh.id[0]
        return fresh

    def _hand_out(self, message: Message, client: Client) -> None:
        now = trio.current_time()
        self.deliveries += 1
        message.count += 1
        message.token = f"{message.id[0]}.{message.count}.{self.deliveries}"
        message.naked, message.deadline = False, now + self.ack_wait
        client.credit -= 1
        handed = HandedOut(message.id, message.token, message.count, now, message.subject, message.payload)
        client.link.down.send("delivery", partial(client.deliver, handed))
