"""An in-memory JetStream: one work-queue stream, its one pull consumer, and the stream of dead letters.

What a consumer makes of what it hears, and what it forgets, is told in :mod:`tests.world.consumer`. Here is who asked
for messages, what is stored, and what may befall a server. Time is Trio's clock, so all of this runs under a virtual
one; it begins at a whole second of the wall clock.

Drawn scripts are played on this and on a nats-server, and show the same
(:mod:`tests.conformance.test_same_as_nats`, where ``compare.DIFFERENCES`` has the exceptions). What the worker does not
use is missing: requests with ``no_wait``, and limits of waiting requests and of unacknowledged messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import inf

import trio

from tests.wire import Stored
from worker.model import Ack, Backlog, DeadLetter, MessageId, Nak, Settlement, Term
from worker.policy.report import dead_letter_headers

from .consumer import PullConsumer
from .requests import Client, HandedOut, Request, Requests

EPOCH = 1_700_000_000.0
"""Wall-clock time (s since the epoch) at which the virtual clock shows zero."""
STREAM = "faas-request"


@dataclass(slots=True, eq=False)
class Message:
    """One that is stored."""

    id: MessageId
    subject: str
    payload: bytes
    published: float
    token: str = ""
    """Of the newest hand-out."""
    over: trio.Event = field(default_factory=trio.Event)
    """It has left the stream."""
    verdict: Settlement | None = None
    """What made it leave."""


@dataclass(frozen=True, slots=True)
class Heard:
    """One verb that was heeded. *settlement* is None for an extension."""

    at: float
    sequence: int
    token: str
    settlement: Settlement | None


def _key(message: MessageId) -> str:
    return f"{message[0]}.{message[1]}"


class Server:
    """The broker.

    Args:
        ack_wait: of the consumer (s).
    """

    def __init__(self, ack_wait: float) -> None:
        self.consumer = PullConsumer(ack_wait)
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
        self._clients: list[Client] = []
        self._requests = Requests()
        self._silent_until = 0.0
        self._wait = trio.CancelScope()
        """Around waiting for the next thing to fall due; each change tells when that is."""

    @property
    def ack_wait(self) -> float:
        """The consumer's (s)."""
        return self.consumer.ack_wait

    @property
    def answers(self) -> bool:
        """Whether there is somebody to hear what is said."""
        return trio.current_time() >= self._silent_until

    # Publishing.

    def publish(self, payload: bytes, subject: str = STREAM) -> Message:
        """Store one message."""
        self.taken += 1
        now = trio.current_time()
        message = self.messages[self.taken] = Message((self.taken, round((EPOCH + now) * 1e9)), subject, payload, now)
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

    def numbers(self) -> dict[str, int]:
        """What the server would tell of the stream and its consumer."""
        self._requests.look_around()
        state = self.consumer.state
        return {
            "messages": len(self.messages),
            "num_pending": sum(sequence > state.reached for sequence in self.messages),
            "num_ack_pending": len(state.pending),
            "num_redelivered": len(state.again),
        }

    # Consuming.

    def join(self, client: Client) -> None:
        """A connection is there."""
        self._clients.append(client)

    def pull(self, client: Client, session: int, batch: int, seconds: float = inf, inbox: str = "") -> None:
        """A connection may be sent *batch* more, within so many seconds."""
        if not self.answers:
            # Turned down, it is asked for again several times a second. Here we wait with the answer.
            self._dismiss(client)
        elif session == client.session:
            self._requests.add(Request(client, batch, trio.current_time() + seconds, inbox))
            self._serve()

    def withdraw(self, client: Client) -> None:
        """It may be sent nothing: it asked for that, or is gone."""
        for request in self._requests.of(client):
            request.gone = True

    def say(self, token: str, settlement: Settlement | None) -> bool:
        """Heed what is said about a delivery; whether it is answered."""
        if not self.answers:
            return False
        sequence, number = (int(part) for part in token.split(".")[:2])
        now = trio.current_time()
        match settlement:
            case Ack() | Term():
                if not self.consumer.end(sequence, now):
                    return False
                self._remove(sequence, settlement)
            case Nak(delay):
                message = self.messages.get(sequence)
                if message and token != message.token and self.consumer.held(sequence):
                    self.disturbed.add(sequence)
                self.consumer.give_back(sequence, number, delay, now)
            case None:
                self.consumer.extend(sequence, now)
        self.heard.append(Heard(now, sequence, token, settlement))
        self._serve()
        return True

    # What may befall it.

    def make_anew(self, ack_wait: float | None = None) -> None:
        """Delete the consumer and make it again, perhaps with another ack wait."""
        self._disturb()
        self.consumer.begin(ack_wait or self.ack_wait, next(iter(self.messages), self.taken + 1))
        for client in self._clients:
            for request in self._requests.of(client):
                request.end("409 Consumer Deleted")
            self._dismiss(client)

    def configure(self, ack_wait: float) -> None:
        """Give the consumer another ack wait (s), in the middle of its work."""
        self._disturb()
        self.consumer.configure(ack_wait, trio.current_time())
        self._wait.deadline = self._next_event()

    def restart(self, down: float) -> None:
        """End in order and be back after *down* seconds."""
        for client in self._clients:
            for request in self._requests.of(client):
                client.status(request.inbox, "409 Server Shutdown")  # while the connection lasts
        self.consumer.stop()
        self._come_back(down)

    def crash(self, down: float, *, forgets: bool = True) -> None:
        """End at once (SIGKILL), with what is on its way there, and be back after *down* seconds.

        Messages, dead letters and the ends of messages were stored before they were confirmed. Of the consumer, what
        was said within the last 100 ms may be forgotten: delays of NAKs, extensions, and counts of deliveries.

        Args:
            down: seconds.
            forgets: whether it is.
        """
        if forgets:
            self.consumer.crash(trio.current_time())
        else:
            self.consumer.stop()
        self._come_back(down)

    def elect(self, seconds: float, *, told: bool = True) -> None:
        """Lose the leader of the replicated consumer for so long; connections stay, and nothing is heard meanwhile.

        Args:
            seconds: until there is a new one.
            told: whether the new leader ends open requests with a status; an old one that died says nothing.
        """
        self._silent_until = trio.current_time() + seconds
        self._disturb()
        self.consumer.take_over()
        for client in self._clients:
            (self._dismiss if told else self._abandon)(client)
        self._wait.deadline = self._next_event()

    async def run(self) -> None:
        """Give out again what is due, for ever."""
        while True:
            with trio.CancelScope(deadline=self._next_event()) as self._wait:
                await trio.sleep_forever()
            self._serve()

    def _next_event(self) -> float:
        return max(min(self.consumer.next_due(), self._requests.next_end()), self._silent_until)

    def _come_back(self, down: float) -> None:
        self._disturb()
        for client in self._clients:
            client.link.cut(down)
            self._requests.drop(client)
        self._silent_until = trio.current_time() + down
        self.consumer.start()
        self._wait.deadline = self._next_event()

    def _disturb(self) -> None:
        """What somebody holds can be given out again."""
        self.disturbed.update(filter(self.consumer.held, self.messages))

    def _dismiss(self, client: Client) -> None:
        """Drop its requests, and tell it as soon as there is somebody to tell."""
        self._requests.drop(client)
        client.session += 1
        after = max(self._silent_until - trio.current_time(), 0.0)
        client.link.down.send("status", partial(client.dismiss, client.session), after)

    def _abandon(self, client: Client) -> None:
        """Drop its requests, and tell nobody."""
        missing = sum(request.batch for request in self._requests.of(client))
        self._requests.drop(client)
        client.abandon(missing)

    def _remove(self, sequence: int, settlement: Ack | Term) -> None:
        if message := self.messages.pop(sequence, None):
            if isinstance(settlement, Term) and _key(message.id) not in self.letters:
                self.unburied.add(sequence)
            message.verdict = settlement
            message.over.set()

    def _serve(self) -> None:
        if self.answers:
            self._give_out(trio.current_time())
        self._wait.deadline = self._next_event()

    def _give_out(self, now: float) -> None:
        self.consumer.expire(now)
        self._requests.expire(now)
        while self._requests and (message := self._next()):
            if not (request := self._requests.take()):
                self.consumer.put_back(message.id[0])
                break
            self._hand_out(message, request)
        self._requests.look_around()

    def _next(self) -> Message | None:
        """The message whose turn it is, taken out of the queue if it stood there."""
        while self.consumer.due:
            sequence = self.consumer.due.popleft()
            if message := self.messages.get(sequence):
                return message
            self.consumer.forget(sequence)
        reached = self.consumer.state.reached
        return next((message for sequence, message in self.messages.items() if sequence > reached), None)

    def _hand_out(self, message: Message, request: Request) -> None:
        now, sequence = trio.current_time(), message.id[0]
        count, number = self.consumer.hand_out(sequence, message.published, now)
        self.deliveries += 1
        message.token = f"{sequence}.{number}.{count}"  # as JetStream's: after a crash, another can have the same
        handed = HandedOut(message.id, message.token, count, now, message.subject, message.payload, request.inbox)
        request.client.link.down.send("delivery", partial(request.client.deliver, handed))
