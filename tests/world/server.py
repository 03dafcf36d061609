"""An in-memory JetStream: one work-queue stream, its pull consumers, and the stream of dead letters.

In static mode one consumer serves all messages. In function mode each subject with a pull request gets a consumer of
its own, which is deleted when it is idle.

The rules and the state of a consumer are in :mod:`tests.world.consumer`. This module has the pull requests, the stored
messages and the faults of a server. Its time is Trio's clock, so it runs under a virtual clock, which begins at a whole
second of the wall clock.

Drawn scripts have the same results on this server and on nats-server (:mod:`tests.conformance.test_same_as_nats`;
``compare.DIFFERENCES`` lists the exceptions). Features that the worker does not use are missing: requests with
``no_wait``, and limits of waiting requests and of unacknowledged messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from math import inf

import trio

from tests.wire import StoredMessage
from worker.model import CALLBACKS, Ack, AttemptCount, Backlog, DeadLetter, MessageId, Nak, Settlement, Term
from worker.policy.quota import token_flow
from worker.policy.report import dead_letter_headers

from .consumer import PullConsumer
from .requests import Client, Request, Requests, SentDelivery

EPOCH = 1_700_000_000.0
"""Wall-clock time (s since the epoch) at which the virtual clock shows zero."""
STREAM = "faas-request"
_TOKENS = "QUOTAS.q."
"""Prefix of the subjects of tokens."""
_CALLBACKS = "CALLBACKS.q"
"""Subject of stored callbacks."""


@dataclass(slots=True, eq=False)
class Message:
    """A stored message."""

    id: MessageId
    subject: str
    payload: bytes
    published: float
    token: str = ""
    """Token of its newest delivery."""
    removed: trio.Event = field(default_factory=trio.Event)
    """Event that is set when the message has left the stream."""
    verdict: Settlement | None = None
    """Settlement that took it off the stream."""


@dataclass(frozen=True, slots=True)
class AppliedVerb:
    """One verb that the server applied. *settlement* is None for an extension."""

    at: float
    sequence: int
    token: str
    settlement: Settlement | None


def _key(message: MessageId) -> str:
    return f"{message[0]}.{message[1]}"


class Group:
    """A consumer, its pull requests, and the number of messages that it has never delivered."""

    def __init__(self, flow: str, consumer: PullConsumer) -> None:
        self.flow = flow
        self.consumer = consumer
        self.requests = Requests()
        self.num_pending = 0


class Server:
    """The broker.

    Args:
        ack_wait: of the consumers (s).
        by_function: whether each subject has a consumer of its own.
    """

    def __init__(self, ack_wait: float, *, by_function: bool = False) -> None:
        self.by_function = by_function
        self.groups: dict[str, Group] = {} if by_function else {"": Group("", PullConsumer(ack_wait))}
        """Flow -> consumer."""
        self._ack_wait = ack_wait
        self.ack_waits: dict[str, float] = {}
        """Flow -> its own ack wait (s), where it has one."""
        self.messages: dict[int, Message] = {}
        """Sequence -> stored message, oldest first."""
        self.dead_letters: dict[str, StoredMessage] = {}
        """Message id -> dead letter; the id prevents duplicates."""
        self.applied: list[AppliedVerb] = []
        """All verbs that the server applied, in order."""
        self.disturbed: set[int] = set()
        """Messages that were redelivered while a worker held them: two workers may run these at once."""
        self.missing_dead_letters: set[int] = set()
        """Messages that were given up without a stored dead letter."""
        self.misconfiguration = ""
        """Reason why the consumer cannot be used; empty if it can."""
        self.refuses_dead_letters = self.refuses_callbacks = False
        self.callback_keys: dict[str, Message] = {}
        """Key -> the callback that was stored with it."""
        self.last_sequence = 0
        self.num_deliveries = 0
        self._clients: list[Client] = []
        self._by_flow: dict[str, dict[int, Message]] = {}
        self._down_until = 0.0
        self._wait = trio.CancelScope()
        """Scope around the wait for the next due time; each change updates its deadline."""

    @property
    def ack_wait(self) -> float:
        """The consumers' ack wait (s)."""
        return self.consumer.ack_wait if not self.by_function else self._ack_wait

    @property
    def consumer(self) -> PullConsumer:
        """The only consumer, in static mode."""
        return self.groups[""].consumer

    @consumer.setter
    def consumer(self, consumer: PullConsumer) -> None:
        self.groups[""].consumer = consumer

    @property
    def pending(self) -> bool:
        """Whether any delivery is pending."""
        return any(group.consumer.state.pending for group in self.groups.values())

    @property
    def answers(self) -> bool:
        """Whether the server runs and has a leader."""
        return trio.current_time() >= self._down_until

    # Publishing.

    def publish(self, payload: bytes, subject: str = STREAM) -> Message:
        """Store one message."""
        self.last_sequence += 1
        now = trio.current_time()
        message = self.messages[self.last_sequence] = Message(
            (self.last_sequence, round((EPOCH + now) * 1e9)), subject, payload, now
        )
        flow = self._flow(message)
        self._by_flow.setdefault(flow, {})[self.last_sequence] = message
        for group in self._groups(flow):
            group.num_pending += 1
        for client in self._clients:
            if client.published and client.link.up:
                client.link.from_broker.send("published", partial(client.published, flow))
        self._serve(flow)
        return message

    def announce(self, count: AttemptCount) -> None:
        """Send a worker's announcement to all clients, to that worker also."""
        for client in self._clients:
            if client.link.up and self.answers:
                client.link.from_broker.send("announcement", partial(client.announced, count))

    def store_token(self, kind: str, function: str, number: int) -> None:
        """Create a token unless it exists. It is no message of the queue: it is in no notification and no backlog."""
        flow, subject = token_flow(kind, function), f"{_TOKENS}{kind}.{function}.{number}"
        stored = self._by_flow.setdefault(flow, {})
        if any(message.subject == subject for message in stored.values()):
            return
        self.last_sequence += 1
        now = trio.current_time()
        token = Message((self.last_sequence, round((EPOCH + now) * 1e9)), subject, b"", now)
        self.messages[self.last_sequence] = stored[self.last_sequence] = token
        for group in self._groups(flow):
            group.num_pending += 1
        self._serve(flow)

    def store_callback(self, payload: bytes, key: str) -> bool:
        """Store a callback, or its copy; it is no message of the queue. Return whether it is stored."""
        if self.refuses_callbacks or not self.answers:
            return False
        if key in self.callback_keys:
            return True
        self.callback_keys[key] = self.publish_callback(payload)
        return True

    def publish_callback(self, payload: bytes) -> Message:
        """Publish a message to the stream of callbacks."""
        self.last_sequence += 1
        now = trio.current_time()
        stored = Message((self.last_sequence, round((EPOCH + now) * 1e9)), _CALLBACKS, payload, now)
        self.messages[self.last_sequence] = stored
        self._by_flow.setdefault(CALLBACKS, {})[self.last_sequence] = stored
        for group in self._groups(CALLBACKS):
            group.num_pending += 1
        self._serve(CALLBACKS)
        return stored

    def num_callbacks(self) -> int:
        """Return the number of stored callbacks."""
        return len(self._by_flow.get(CALLBACKS, {}))

    def ack_wait_of(self, flow: str) -> float:
        """Return the ack wait (s) of a flow's consumer."""
        return self.ack_waits.get(flow, self._ack_wait) if self.by_function else self.ack_wait

    def _flow(self, message: Message) -> str:
        if message.subject.startswith(_TOKENS):
            kind, _, rest = message.subject.removeprefix(_TOKENS).partition(".")
            return token_flow(kind, rest.rpartition(".")[0])
        if message.subject == _CALLBACKS:
            return CALLBACKS
        return message.subject if self.by_function else ""

    def _groups(self, flow: str) -> list[Group]:
        return [self.groups[flow]] if flow in self.groups else []

    def store_dead_letter(self, letter: DeadLetter) -> bool:
        """Store a dead letter, and return whether it was stored."""
        if self.refuses_dead_letters:
            return False
        headers = dead_letter_headers(letter, stream=STREAM)
        key = _key(letter.delivery.id)
        if letter.kind and letter.delivery.flow != CALLBACKS:
            key += ".callback"
        subject = f"DEAD-LETTERS.{STREAM}.{letter.function or 'undecodable'}"
        self.dead_letters.setdefault(
            key, StoredMessage(len(self.dead_letters) + 1, subject, headers, letter.delivery.payload)
        )
        return True

    def backlog(self) -> Backlog:
        """See :class:`worker.model.Backlog`."""
        by_subject: dict[str, int] = {}
        for message in self.messages.values():
            if message.subject.startswith((_TOKENS, _CALLBACKS)):
                continue
            by_subject[message.subject] = by_subject.get(message.subject, 0) + 1
        return Backlog(self.last_sequence, by_subject)

    def numbers(self) -> dict[str, int]:
        """Return the numbers that nats-server reports of the stream and its consumer."""
        self.groups[""].requests.prune()
        state = self.consumer.state
        return {
            "messages": len(self.messages),
            "num_pending": sum(sequence > state.last_delivered for sequence in self.messages),
            "num_ack_pending": len(state.pending),
            "num_redelivered": len(state.redelivered),
        }

    # Consuming.

    def join(self, client: Client) -> None:
        """Add a connection."""
        self._clients.append(client)

    def open(self, flow: str) -> int:
        """Create a flow's consumer unless it exists, and return the number of messages that it has not delivered."""
        if flow not in self.groups:
            group = self.groups[flow] = Group(flow, PullConsumer(self.ack_wait_of(flow)))
            stored = self._by_flow.get(flow, {})
            group.consumer.reset(
                self.ack_waits.get(group.flow, self._ack_wait), next(iter(stored), self.last_sequence + 1)
            )
            group.num_pending = len(stored)
        return self.groups[flow].num_pending

    def close(self, flow: str) -> bool:
        """Delete a flow's consumer unless it has messages, and return whether it is deleted."""
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
        """Open a pull request for *batch* messages of a flow, which expires after *seconds*."""
        if not self.answers:
            # A real client is rejected and retries several times a second. This server delays its answer instead.
            self._drop_and_notify(client)
        elif session == client.session:
            self.open(flow)
            self.groups[flow].requests.add(Request(client, batch, trio.current_time() + seconds, inbox))
            self._serve(flow)

    def cancel_requests(self, client: Client, flow: str | None = None) -> None:
        """Delete a connection's requests, of one flow or of all, because it unsubscribed or was lost."""
        for group in self.groups.values():
            if flow in (None, group.flow):
                for request in group.requests.of(client):
                    request.unsubscribed = True

    def apply(self, token: str, settlement: Settlement | None) -> bool:
        """Apply a settlement or an extension, and return whether it is confirmed."""
        if not self.answers:
            return False
        delivery, _, flow = token.partition("|")
        if flow not in self.groups:
            return False
        sequence, number = (int(part) for part in delivery.split(".")[:2])
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
                consumer.nak(sequence, number, delay, now)
            case None:
                consumer.extend(sequence, now)
        self.applied.append(AppliedVerb(now, sequence, token, settlement))
        self._serve(flow)
        return True

    # Faults.

    def recreate_consumers(self, ack_wait: float | None = None) -> None:
        """Recreate the consumers, with another ack wait (s) if one is given."""
        self._disturb()
        self._ack_wait = ack_wait or self.ack_wait
        for group in self.groups.values():
            stored = self._by_flow.get(group.flow, {})
            group.consumer.reset(
                self.ack_waits.get(group.flow, self._ack_wait), next(iter(stored), self.last_sequence + 1)
            )
            group.num_pending = len(stored)
            for client in self._clients:
                for request in group.requests.of(client):
                    request.end("409 Consumer Deleted")
        for client in self._clients:
            self._drop_and_notify(client)

    def configure(self, ack_wait: float) -> None:
        """Change the ack wait (s) of the running consumers."""
        self._disturb()
        self._ack_wait = ack_wait
        for group in self.groups.values():
            group.consumer.configure(self.ack_waits.get(group.flow, ack_wait), trio.current_time())
        self._wait.deadline = self._next_event()

    def restart(self, down: float) -> None:
        """Stop in order, and start again after *down* seconds."""
        for client in self._clients:
            for group in self.groups.values():
                for request in group.requests.of(client):
                    client.status(request.inbox, "409 Server Shutdown")  # while the connection lasts
        for group in self.groups.values():
            group.consumer.stop()
        self._start_later(down)

    def crash(self, down: float, *, loses_state: bool = True) -> None:
        """Stop at once (SIGKILL), lose the messages in flight, and start again after *down* seconds.

        Messages, dead letters and acks are stored before they are confirmed. The consumer may lose its state of the
        last 100 ms: delays of NAKs, extensions, and delivery counts.

        Args:
            down: seconds.
            loses_state: whether the consumer loses that state.
        """
        for group in self.groups.values():
            if loses_state:
                group.consumer.crash(trio.current_time())
            else:
                group.consumer.stop()
        self._start_later(down)

    def elect(self, seconds: float, *, notifies: bool = True) -> None:
        """Lose the leader of the replicated consumer for *seconds*; connections stay, but the server receives nothing.

        With ``notifies``, open requests end with a status; without it they do not, as after the old leader was killed.
        """
        self._down_until = trio.current_time() + seconds
        self._disturb()
        for group in self.groups.values():
            group.consumer.take_over()
        for client in self._clients:
            (self._drop_and_notify if notifies else self._drop_silently)(client)
        self._wait.deadline = self._next_event()

    async def run(self) -> None:
        """Redeliver messages that are due, forever."""
        while True:
            with trio.CancelScope(deadline=self._next_event()) as self._wait:
                await trio.sleep_forever()
            self._serve()

    def _next_event(self, *groups: Group) -> float:
        due = (min(group.consumer.next_due(), group.requests.next_expiry()) for group in groups or self.groups.values())
        return max(min(due, default=inf), self._down_until)

    def _start_later(self, down: float) -> None:
        self._disturb()
        for client in self._clients:
            client.link.cut(down)
            self._drop(client)
        self._down_until = trio.current_time() + down
        for group in self.groups.values():
            group.consumer.start()
            reached = group.consumer.state.last_delivered
            group.num_pending = sum(sequence > reached for sequence in self._by_flow.get(group.flow, {}))
        self._wait.deadline = self._next_event()

    def _disturb(self) -> None:
        """Record the held messages as disturbed, because they can be redelivered."""
        for group in self.groups.values():
            self.disturbed.update(filter(group.consumer.held, self._by_flow.get(group.flow, {})))

    def _drop(self, client: Client) -> dict[str, int]:
        """Delete a connection's requests, and return flow -> number of messages that they were for."""
        missing = {}
        for flow, group in self.groups.items():
            missing[flow] = sum(request.batch for request in group.requests.of(client))
            group.requests.drop(client)
        return missing

    def _drop_and_notify(self, client: Client) -> None:
        """Delete a connection's requests, and notify it as soon as the server answers."""
        self._drop(client)
        client.session += 1
        after = max(self._down_until - trio.current_time(), 0.0)
        client.link.from_broker.send("status", partial(client.on_dropped, client.session), after)

    def _drop_silently(self, client: Client) -> None:
        """Delete a connection's requests without notifying it."""
        client.on_lost(self._drop(client))

    def _remove(self, sequence: int, settlement: Ack | Term) -> None:
        if message := self.messages.pop(sequence, None):
            del self._by_flow[self._flow(message)][sequence]
            if isinstance(settlement, Term) and _key(message.id) not in self.dead_letters:
                self.missing_dead_letters.add(sequence)
            message.verdict = settlement
            message.removed.set()

    def _serve(self, flow: str | None = None) -> None:
        """Deliver the messages of one flow or of all for which requests are open."""
        groups = [*self.groups.values()] if flow is None else self._groups(flow)
        if self.answers:
            for group in groups:
                self._deliver_due(group, trio.current_time())
        if flow is None:
            self._wait.deadline = self._next_event()
        elif groups:
            self._wait.deadline = min(self._wait.deadline, self._next_event(*groups))

    def _deliver_due(self, group: Group, now: float) -> None:
        group.consumer.expire(now)
        group.requests.expire(now)
        while group.requests and (message := self._next(group)):
            if not (request := group.requests.take()):
                group.consumer.requeue(message.id[0])
                break
            self._deliver(message, request, group)
        group.requests.prune()

    def _next(self, group: Group) -> Message | None:
        """Return the message that is next in turn, and take it out of the queue of due messages."""
        consumer, stored = group.consumer, self._by_flow.get(group.flow, {})
        while consumer.due:
            sequence = consumer.due.popleft()
            if message := stored.get(sequence):
                return message
            consumer.forget(sequence)
        if not group.num_pending:
            return None
        reached = consumer.state.last_delivered
        return next((message for sequence, message in stored.items() if sequence > reached), None)

    def _deliver(self, message: Message, request: Request, group: Group) -> None:
        now, sequence = trio.current_time(), message.id[0]
        group.num_pending -= sequence > group.consumer.state.last_delivered
        count, number = group.consumer.deliver(sequence, message.published, now)
        self.num_deliveries += 1
        message.token = (
            f"{sequence}.{number}.{count}"  # as JetStream's: after a crash, another delivery can have the same token
        )
        if group.flow:
            message.token += f"|{group.flow}"
        delivery = SentDelivery(
            message.id,
            message.token,
            count,
            now,
            message.subject,
            message.payload,
            request.inbox,
            group.flow,
            group.num_pending,
        )
        request.client.link.from_broker.send("delivery", partial(request.client.deliver, delivery))
