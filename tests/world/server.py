"""An in-memory JetStream: one work-queue stream, its pull consumers, and the stream of dead letters.

In static mode there is one consumer, of all messages. In function mode there is one for each subject that anyone ever
pulled from, until it is idle.

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
from worker.policy.quota import token_flow
from worker.policy.report import dead_letter_headers

from .consumer import PullConsumer
from .requests import Client, HandedOut, Request, Requests

EPOCH = 1_700_000_000.0
"""Wall-clock time (s since the epoch) at which the virtual clock shows zero."""
STREAM = "faas-request"
_TOKENS = "QUOTAS.q."
"""What the subjects of tokens begin with."""


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


class Group:
    """A consumer, who asked for its messages, and how many it has never handed out."""

    def __init__(self, flow: str, consumer: PullConsumer) -> None:
        self.flow = flow
        self.consumer = consumer
        self.requests = Requests()
        self.fresh = 0


class Server:
    """The broker.

    Args:
        ack_wait: of the consumers (s).
        by_function: whether each subject has a consumer of its own.
    """

    def __init__(self, ack_wait: float, *, by_function: bool = False) -> None:
        self.by_function = by_function
        self.groups: dict[str, Group] = {} if by_function else {"": Group("", PullConsumer(ack_wait))}
        """By flow."""
        self._ack_wait = ack_wait
        self.ack_waits: dict[str, float] = {}
        """Of flows that have one of their own (s)."""
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
        self._by_flow: dict[str, dict[int, Message]] = {}
        self._silent_until = 0.0
        self._wait = trio.CancelScope()
        """Around waiting for the next thing to fall due; each change tells when that is."""

    @property
    def ack_wait(self) -> float:
        """The consumers' (s)."""
        return self.consumer.ack_wait if not self.by_function else self._ack_wait

    @property
    def consumer(self) -> PullConsumer:
        """The only one, of static mode."""
        return self.groups[""].consumer

    @consumer.setter
    def consumer(self, consumer: PullConsumer) -> None:
        self.groups[""].consumer = consumer

    @property
    def pending(self) -> bool:
        """Whether anything is handed out."""
        return any(group.consumer.state.pending for group in self.groups.values())

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
        flow = self._flow(message)
        self._by_flow.setdefault(flow, {})[self.taken] = message
        for group in self._groups(flow):
            group.fresh += 1
        for client in self._clients:
            if client.published and client.link.up:
                client.link.down.send("published", partial(client.published, flow))
        self._serve(flow)
        return message

    def store_token(self, kind: str, function: str, number: int) -> None:
        """Make a token, if it is not there. It is no message of the queue: nobody is told, and no look shows it."""
        flow, subject = token_flow(kind, function), f"{_TOKENS}{kind}.{function}.{number}"
        stored = self._by_flow.setdefault(flow, {})
        if any(message.subject == subject for message in stored.values()):
            return
        self.taken += 1
        now = trio.current_time()
        token = Message((self.taken, round((EPOCH + now) * 1e9)), subject, b"", now)
        self.messages[self.taken] = stored[self.taken] = token
        for group in self._groups(flow):
            group.fresh += 1
        self._serve(flow)

    def ack_wait_of(self, flow: str) -> float:
        """A flow's consumer's (s)."""
        return self.ack_waits.get(flow, self._ack_wait) if self.by_function else self.ack_wait

    def _flow(self, message: Message) -> str:
        if message.subject.startswith(_TOKENS):
            kind, _, rest = message.subject.removeprefix(_TOKENS).partition(".")
            return token_flow(kind, rest.rpartition(".")[0])
        return message.subject if self.by_function else ""

    def _groups(self, flow: str) -> list[Group]:
        return [self.groups[flow]] if flow in self.groups else []

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
            if message.subject.startswith(_TOKENS):
                continue
            by_subject[message.subject] = by_subject.get(message.subject, 0) + 1
        return Backlog(self.taken, by_subject)

    def numbers(self) -> dict[str, int]:
        """What the server would tell of the stream and its consumer."""
        self.groups[""].requests.look_around()
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

    def open(self, flow: str) -> int:
        """Make a flow's consumer, if there is none; how many messages it has not handed out."""
        if flow not in self.groups:
            group = self.groups[flow] = Group(flow, PullConsumer(self.ack_wait_of(flow)))
            stored = self._by_flow.get(flow, {})
            group.consumer.begin(self.ack_waits.get(group.flow, self._ack_wait), next(iter(stored), self.taken + 1))
            group.fresh = len(stored)
        return self.groups[flow].fresh

    def close(self, flow: str) -> bool:
        """Delete a flow's consumer, if nothing of it is stored; whether it is gone."""
        if not self.answers or self._by_flow.get(flow):
            return False
        if group := self.groups.pop(flow, None):
            for client in self._clients:
                for request in group.requests.of(client):
                    request.end("409 Consumer Deleted")
        return True

    def pull(
        self, client: Client, session: int, batch: int, seconds: float = inf, *, inbox: str = "", flow: str = ""
    ) -> None:
        """A connection may be sent *batch* more of a flow, within so many seconds."""
        if not self.answers:
            # Turned down, it is asked for again several times a second. Here we wait with the answer.
            self._dismiss(client)
        elif session == client.session:
            self.open(flow)
            self.groups[flow].requests.add(Request(client, batch, trio.current_time() + seconds, inbox))
            self._serve(flow)

    def withdraw(self, client: Client, flow: str | None = None) -> None:
        """It may be sent nothing (of a flow): it asked for that, or is gone."""
        for group in self.groups.values():
            if flow in (None, group.flow):
                for request in group.requests.of(client):
                    request.gone = True

    def say(self, token: str, settlement: Settlement | None) -> bool:
        """Heed what is said about a delivery; whether it is answered."""
        if not self.answers:
            return False
        said, _, flow = token.partition("|")
        if flow not in self.groups:
            return False
        sequence, number = (int(part) for part in said.split(".")[:2])
        consumer, now = self.groups[flow].consumer, trio.current_time()
        match settlement:
            case Ack() | Term():
                if not consumer.end(sequence, now):
                    return False
                self._remove(sequence, settlement)
            case Nak(delay):
                message = self.messages.get(sequence)
                if message and token != message.token and consumer.held(sequence):
                    self.disturbed.add(sequence)
                consumer.give_back(sequence, number, delay, now)
            case None:
                consumer.extend(sequence, now)
        self.heard.append(Heard(now, sequence, token, settlement))
        self._serve(flow)
        return True

    # What may befall it.

    def make_anew(self, ack_wait: float | None = None) -> None:
        """Delete the consumers and make them again, perhaps with another ack wait."""
        self._disturb()
        self._ack_wait = ack_wait or self.ack_wait
        for group in self.groups.values():
            stored = self._by_flow.get(group.flow, {})
            group.consumer.begin(self.ack_waits.get(group.flow, self._ack_wait), next(iter(stored), self.taken + 1))
            group.fresh = len(stored)
            for client in self._clients:
                for request in group.requests.of(client):
                    request.end("409 Consumer Deleted")
        for client in self._clients:
            self._dismiss(client)

    def configure(self, ack_wait: float) -> None:
        """Give the consumers another ack wait (s), in the middle of their work."""
        self._disturb()
        self._ack_wait = ack_wait
        for group in self.groups.values():
            group.consumer.configure(self.ack_waits.get(group.flow, ack_wait), trio.current_time())
        self._wait.deadline = self._next_event()

    def restart(self, down: float) -> None:
        """End in order and be back after *down* seconds."""
        for client in self._clients:
            for group in self.groups.values():
                for request in group.requests.of(client):
                    client.status(request.inbox, "409 Server Shutdown")  # while the connection lasts
        for group in self.groups.values():
            group.consumer.stop()
        self._come_back(down)

    def crash(self, down: float, *, forgets: bool = True) -> None:
        """End at once (SIGKILL), with what is on its way there, and be back after *down* seconds.

        Messages, dead letters and the ends of messages were stored before they were confirmed. Of the consumer, what
        was said within the last 100 ms may be forgotten: delays of NAKs, extensions, and counts of deliveries.

        Args:
            down: seconds.
            forgets: whether it is.
        """
        for group in self.groups.values():
            if forgets:
                group.consumer.crash(trio.current_time())
            else:
                group.consumer.stop()
        self._come_back(down)

    def elect(self, seconds: float, *, told: bool = True) -> None:
        """Lose the leader of the replicated consumer for so long; connections stay, and nothing is heard meanwhile.

        Args:
            seconds: until there is a new one.
            told: whether the new leader ends open requests with a status; an old one that died says nothing.
        """
        self._silent_until = trio.current_time() + seconds
        self._disturb()
        for group in self.groups.values():
            group.consumer.take_over()
        for client in self._clients:
            (self._dismiss if told else self._abandon)(client)
        self._wait.deadline = self._next_event()

    async def run(self) -> None:
        """Give out again what is due, for ever."""
        while True:
            with trio.CancelScope(deadline=self._next_event()) as self._wait:
                await trio.sleep_forever()
            self._serve()

    def _next_event(self, *groups: Group) -> float:
        due = (min(group.consumer.next_due(), group.requests.next_end()) for group in groups or self.groups.values())
        return max(min(due, default=inf), self._silent_until)

    def _come_back(self, down: float) -> None:
        self._disturb()
        for client in self._clients:
            client.link.cut(down)
            self._drop(client)
        self._silent_until = trio.current_time() + down
        for group in self.groups.values():
            group.consumer.start()
            reached = group.consumer.state.reached
            group.fresh = sum(sequence > reached for sequence in self._by_flow.get(group.flow, {}))
        self._wait.deadline = self._next_event()

    def _disturb(self) -> None:
        """What somebody holds can be given out again."""
        for group in self.groups.values():
            self.disturbed.update(filter(group.consumer.held, self._by_flow.get(group.flow, {})))

    def _drop(self, client: Client) -> dict[str, int]:
        """Forget its requests; how many messages they were for, by flow."""
        missing = {}
        for flow, group in self.groups.items():
            missing[flow] = sum(request.batch for request in group.requests.of(client))
            group.requests.drop(client)
        return missing

    def _dismiss(self, client: Client) -> None:
        """Drop its requests, and tell it as soon as there is somebody to tell."""
        self._drop(client)
        client.session += 1
        after = max(self._silent_until - trio.current_time(), 0.0)
        client.link.down.send("status", partial(client.dismiss, client.session), after)

    def _abandon(self, client: Client) -> None:
        """Drop its requests, and tell nobody."""
        client.abandon(self._drop(client))

    def _remove(self, sequence: int, settlement: Ack | Term) -> None:
        if message := self.messages.pop(sequence, None):
            del self._by_flow[self._flow(message)][sequence]
            if isinstance(settlement, Term) and _key(message.id) not in self.letters:
                self.unburied.add(sequence)
            message.verdict = settlement
            message.over.set()

    def _serve(self, flow: str | None = None) -> None:
        """Give out what can be given out now, of a flow or of all."""
        groups = [*self.groups.values()] if flow is None else self._groups(flow)
        if self.answers:
            for group in groups:
                self._give_out(group, trio.current_time())
        if flow is None:
            self._wait.deadline = self._next_event()
        elif groups:
            self._wait.deadline = min(self._wait.deadline, self._next_event(*groups))

    def _give_out(self, group: Group, now: float) -> None:
        group.consumer.expire(now)
        group.requests.expire(now)
        while group.requests and (message := self._next(group)):
            if not (request := group.requests.take()):
                group.consumer.put_back(message.id[0])
                break
            self._hand_out(message, request, group)
        group.requests.look_around()

    def _next(self, group: Group) -> Message | None:
        """The message whose turn it is, taken out of the queue if it stood there."""
        consumer, stored = group.consumer, self._by_flow.get(group.flow, {})
        while consumer.due:
            sequence = consumer.due.popleft()
            if message := stored.get(sequence):
                return message
            consumer.forget(sequence)
        if not group.fresh:
            return None
        reached = consumer.state.reached
        return next((message for sequence, message in stored.items() if sequence > reached), None)

    def _hand_out(self, message: Message, request: Request, group: Group) -> None:
        now, sequence = trio.current_time(), message.id[0]
        group.fresh -= sequence > group.consumer.state.reached
        count, number = group.consumer.hand_out(sequence, message.published, now)
        self.deliveries += 1
        message.token = f"{sequence}.{number}.{count}"  # as JetStream's: after a crash, another can have the same
        if group.flow:
            message.token += f"|{group.flow}"
        handed = HandedOut(
            message.id,
            message.token,
            count,
            now,
            message.subject,
            message.payload,
            request.inbox,
            group.flow,
            group.fresh,
        )
        request.client.link.down.send("delivery", partial(request.client.deliver, handed))
