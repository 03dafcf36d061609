"""The queue as the worker sees it, on the in-memory broker: the counterpart of :mod:`worker.nats`, without NATS.

It follows the adapter's rules. Unconfirmed settlements and extensions are sent again, but no extension after the
settlement of its delivery, and no NAK when another worker may have the message. No more messages are delivered than
were requested. A violation by the worker is recorded and not raised, because the worker would catch the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TypeVar

import trio

from worker.model import (
    CALLBACKS,
    AttemptCount,
    Backlog,
    CreditReturned,
    DeadLetter,
    Delivery,
    Final,
    FlowEnded,
    MessageId,
    Nak,
    Notice,
    PendingCount,
    Published,
    QueueShared,
    Settlement,
    StoredBody,
    StoredCallback,
    StoredCount,
)
from worker.policy.quota import is_token_flow
from worker.policy.stored_callback import encode_callback
from worker.ports import BrokerUnavailableError, Consumer, MisconfiguredError

from .link import Link
from .requests import Client, SentDelivery
from .server import Server

T = TypeVar("T")

REPEAT_AFTER = 2.0
"""Seconds without a confirmation until something is sent again; also the longest wait of stopping."""
REQUEST_TIMEOUT = 5.0
"""Timeout of a request (s)."""
INACTIVE_THRESHOLD = 30.0
"""Seconds after which a flow without stored messages ends."""
BACKLOG_INTERVAL = 2.0
"""Seconds between two reads of the backlog."""
DETECTION_TIME = 11.0
"""Seconds after which lost pull requests are detected: two heartbeats, as in :mod:`worker.nats.credit`."""


class FakeConsumer:
    """See :class:`worker.ports.Consumer`."""

    def __init__(self, queue: FakeQueue, server: Server, link: Link, violated: Callable[[str], None]) -> None:
        self.ack_wait = server.ack_wait
        self.credit: dict[str, int] = {}
        """Flow -> credit: the number of messages that may still arrive."""
        self._queue, self._server, self._link, self._violated = queue, server, link, violated
        published = self._published if server.by_function else None
        self.client = Client(
            link, self._deliver, self._on_dropped, self._on_lost, published=published, announced=self._announced
        )
        self.joined_at = trio.current_time()
        self.loss_detected_at = inf
        """Time (s) at which the loss of requests will be detected."""
        self._lost_credit: dict[str, int] = {}
        """Flow -> credit of the lost requests."""
        self._session = 0
        self._stopped = False
        self._recalled: set[str] = set()
        self._last_stored: dict[str, float] = {}
        """Flow -> time (s) when it last had stored messages."""
        self._buffer: list[Delivery | Notice] = []
        self._arrived = trio.Event()
        server.join(self.client)
        link.changed.append(self._on_change)
        if not server.by_function:
            self.notify(QueueShared())

    @property
    def total_credit(self) -> int:
        """Credit of all flows of the queue."""
        return sum(count for flow, count in self.credit.items() if flow != CALLBACKS)

    def add_credit(self, count: int, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.add_credit`."""
        if count < 1:
            self._violated(f"added credit of {count}")
        if flow and flow not in self._last_stored and not is_token_flow(flow) and flow != CALLBACKS:
            self._violated(f"added credit of {count} to {flow}, which has ended")
        self.credit[flow] = self.credit.get(flow, 0) + count
        self._pull(min(count, self.credit[flow]), flow)

    def recall_credit(self, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.recall_credit`."""
        if flow in self._recalled:
            self._violated(f"recalled {flow} twice")
        self._recalled.add(flow)
        if self._link.up and not self._stopped:
            self._link.to_broker.send("recall", partial(self._cancel_credit, flow, self._session))

    def _cancel_credit(self, flow: str, session: int) -> None:
        """Withdraw a flow's requests at the broker; its answer follows all earlier deliveries."""
        self._server.cancel_requests(self.client, flow)
        self._link.from_broker.send("recall", partial(self._on_recalled, flow, session))

    def _on_recalled(self, flow: str, session: int) -> None:
        if session == self._session and flow in self._recalled:
            self._return_credit(flow)

    def _return_credit(self, flow: str) -> None:
        self._recalled.discard(flow)
        self.notify(CreditReturned(flow, max(0, self.credit.pop(flow, 0))))

    async def receive(self) -> Sequence[Delivery | Notice]:
        """See :meth:`worker.ports.Consumer.receive`."""
        await trio.lowlevel.checkpoint()
        while not self._buffer:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._take_buffered()

    async def stop(self) -> Sequence[Delivery]:
        """See :meth:`worker.ports.Consumer.stop`."""
        self._stopped = True
        with trio.move_on_after(REPEAT_AFTER):
            # The answer follows all earlier deliveries.
            await self._queue.request(partial(self._server.cancel_requests, self.client))
        return [each for each in self._take_buffered() if isinstance(each, Delivery)]

    def _take_buffered(self) -> list[Delivery | Notice]:
        buffered, self._buffer = self._buffer, []
        for each in buffered:
            if isinstance(each, Delivery):
                self._queue.record_delivery(each)
        return buffered

    def notify(self, what: Delivery | Notice) -> None:
        """Hand a delivery or notice to the worker."""
        self._buffer.append(what)
        self._arrived.set()

    def _deliver(self, sent: SentDelivery) -> None:
        flow = sent.flow
        self.credit[flow] = self.credit.get(flow, 0) - 1
        if self.credit[flow] < 0:
            self._violated(f"message {sent.id[0]} exceeds the credit")
        now = trio.current_time()
        if now - sent.sent > self.ack_wait / 3:
            # A lease counts from the arrival. A worker cannot know how long a delivery was on its way.
            self._server.disturbed.add(sent.id[0])
        self.notify(Delivery(sent.id, sent.token, sent.count, now, sent.subject, sent.payload, flow, sent.num_pending))

    def _published(self, flow: str) -> None:
        self.notify(Published(flow) if flow in self._last_stored else StoredCount(flow, 1))
        self._last_stored[flow] = trio.current_time()

    def _announced(self, count: AttemptCount) -> None:
        if not self._stopped:
            self.notify(count)

    def apply_backlog(self, backlog: Backlog) -> None:
        """Apply a read of the backlog: report the stored messages of each flow, and close flows that stayed empty."""
        now = trio.current_time()
        for flow, stored in backlog.by_subject.items():
            self._last_stored[flow] = now
            self.notify(StoredCount(flow, stored))
        for flow in self._last_stored.keys() - backlog.by_subject.keys():
            self.notify(StoredCount(flow, 0))
        for flow in [flow for flow, at in self._last_stored.items() if now - at >= INACTIVE_THRESHOLD]:
            self._link.to_broker.send("close", partial(self._close, flow))

    def _close(self, flow: str) -> None:
        if self._server.close(flow):
            self._link.from_broker.send("closed", partial(self._closed, flow))

    def _closed(self, flow: str) -> None:
        if trio.current_time() - self._last_stored.get(flow, inf) >= INACTIVE_THRESHOLD:
            del self._last_stored[flow]
            self.credit.pop(flow, None)
            self._recalled.discard(flow)
            self.notify(FlowEnded(flow))

    def _on_dropped(self, session: int) -> None:
        self.ack_wait = self._server.ack_wait
        self._pull_all(session)

    def _on_lost(self, lost: dict[str, int]) -> None:
        if any(lost.values()):
            for flow, count in lost.items():
                self._lost_credit[flow] = self._lost_credit.get(flow, 0) + count
            self.loss_detected_at = trio.current_time() + DETECTION_TIME
            self._queue.wake_at(self.loss_detected_at)

    def pull_again(self) -> None:
        """Pull again for the credit of lost requests."""
        lost, self._lost_credit, self.loss_detected_at = self._lost_credit, {}, inf
        for flow, count in lost.items():
            self._pull(min(count, self.credit.get(flow, 0)), flow)

    def _on_change(self, up: bool) -> None:
        if up:
            self._pull_all(self.client.session)
        else:
            self._server.cancel_requests(self.client)

    def _pull_all(self, session: int) -> None:
        self._session, self._lost_credit, self.loss_detected_at = session, {}, inf
        for flow in [*self._recalled]:
            self._return_credit(flow)
        for flow, credit in self.credit.items():
            self._pull(credit, flow)

    def _pull(self, batch: int, flow: str) -> None:
        if batch > 0 and self._link.up and not self._stopped:
            self._link.to_broker.send("pull", partial(self._open_request, self._session, batch, flow))

    def _open_request(self, session: int, batch: int, flow: str) -> None:
        """Open a pull request at the broker."""
        if flow and flow not in self._server.groups and self._server.answers:
            self._link.from_broker.send("status", partial(self.notify, PendingCount(flow, self._server.open(flow))))
        self._server.pull(self.client, session, batch, flow=flow)


@dataclass(slots=True, eq=False)
class PendingAck:
    """One entry of the outbox, about one delivery. *settlement* is None for an extension."""

    delivery: Delivery
    settlement: Settlement | None
    before: float
    confirmed: Callable[[], None]
    due: float
    """Time (s) at which a NAK's delay ends."""
    sent: float = inf
    tries: int = 0

    def sendable(self, now: float) -> bool:
        """Return whether it may still be sent, for the first time or again."""
        match self.settlement:
            case None:
                return now < self.before
            case Nak():
                return now < self.before and (not self.tries or now < self.due)
            case _:
                return True


class FakeQueue:
    """See :class:`worker.ports.Queue`.

    Args:
        server: the broker.
        link: the connection to the broker; the caller runs it, and also :meth:`run`.
        violated: called with each violation by the worker.
    """

    def __init__(self, server: Server, link: Link, violated: Callable[[str], None]) -> None:
        self.link = link
        self.consumer: FakeConsumer | None = None
        self.held: dict[str, Delivery] = {}
        """Token -> delivery that the worker has received and not settled."""
        self._newest: dict[MessageId, str] = {}
        """Message -> token of its newest delivery."""
        self.lease_from: dict[MessageId, float] = {}
        """Message -> time (s) when it was received, or its last confirmed extension was sent."""
        self.settlements: list[tuple[float, Delivery, Settlement]] = []
        """All settlements by the worker, with time (s) and delivery."""
        self._server, self._violated = server, violated
        self._outbox: dict[int, PendingAck] = {}
        """Number -> unconfirmed settlement or extension, in order."""
        self._counts: list[AttemptCount] = []
        """Announcements that wait for the connection."""
        self._number = 0
        self._changed = trio.Event()
        self._wait = trio.CancelScope()
        """Scope around the wait for the next repetition; a new entry may shorten it."""
        link.changed.append(self._on_change)

    def record_delivery(self, delivery: Delivery) -> None:
        """Record that the worker has received a delivery."""
        self.held[delivery.token] = delivery
        self._newest[delivery.id] = delivery.token
        self.lease_from[delivery.id] = delivery.received_at

    async def consume(self) -> Consumer:
        """See :meth:`worker.ports.Queue.consume`."""
        await trio.lowlevel.checkpoint()
        while not self.link.up:
            await self._change()
        if self._server.misconfiguration:
            raise MisconfiguredError(self._server.misconfiguration)
        self.consumer = FakeConsumer(self, self._server, self.link, self._violated)
        return self.consumer

    def settle(
        self, delivery: Delivery, settlement: Settlement, *, before: float, body: StoredBody | None = None
    ) -> None:
        """See :meth:`worker.ports.Queue.settle`."""
        now = trio.current_time()
        self._check(delivery, settlement)
        if body and isinstance(settlement, Nak):
            self._violated(f"{settlement} for {delivery.token}, which would delete its body")
        if isinstance(settlement, Nak) and now >= before:
            self._violated(f"{settlement} for {delivery.token}, {now - before:.3f} s too late")
        if isinstance(settlement, Nak) and before > self.lease_from[delivery.id] + self._server.ack_wait_of(
            delivery.flow
        ):
            self._violated(f"{settlement} for {delivery.token} may be sent after its lease")
        self.held.pop(delivery.token, None)
        self.settlements.append((now, delivery, settlement))
        delay = settlement.delay if isinstance(settlement, Nak) else inf
        for number, entry in [*self._outbox.items()]:
            if entry.settlement is None and entry.delivery.id == delivery.id:
                del self._outbox[number]
        self._append(PendingAck(delivery, settlement, before, lambda: None, now + delay))

    def announce(self, count: AttemptCount) -> None:
        """See :meth:`worker.ports.Queue.announce`."""
        self._counts.append(count)

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        """See :meth:`worker.ports.Queue.extend`."""
        self._check(delivery, None)
        now = trio.current_time()

        def on_confirmed() -> None:
            self.lease_from[delivery.id] = max(self.lease_from[delivery.id], now)
            confirmed()

        self._append(PendingAck(delivery, None, before, on_confirmed, inf))

    async def wait_settled(self) -> None:
        """See :meth:`worker.ports.Queue.wait_settled`."""
        await trio.lowlevel.checkpoint()
        while any(entry.settlement for entry in self._outbox.values()):
            await self._change()

    async def store_dead_letter(self, letter: DeadLetter) -> None:
        """See :meth:`worker.ports.Queue.store_dead_letter`."""
        if not await self.request(partial(self._server.store_dead_letter, letter)):
            raise BrokerUnavailableError("it was not confirmed")

    async def store_callback(self, stored: StoredCallback, key: str) -> None:
        """See :meth:`worker.ports.Queue.store_callback`."""
        if not await self.request(partial(self._server.store_callback, encode_callback(stored), key)):
            raise BrokerUnavailableError("it was not confirmed")

    async def backlog(self) -> Backlog:
        """See :meth:`worker.ports.Queue.backlog`."""
        if (backlog := await self.request(self._server.backlog)) is None:
            raise BrokerUnavailableError("no answer")
        return backlog

    async def request(self, effect: Callable[[], T]) -> T | None:
        """Call *effect* at the broker, and return its result; None without an answer."""
        answered, answers = trio.Event(), list[T]()

        def answer(result: T) -> None:
            answers.append(result)
            answered.set()

        def arrive() -> None:
            if self._server.answers:
                self.link.from_broker.send("answer", partial(answer, effect()))

        await trio.lowlevel.checkpoint()
        if self.link.up:
            self.link.to_broker.send("request", arrive)
            with trio.move_on_after(REQUEST_TIMEOUT):
                await answered.wait()
        return answers[0] if answers else None

    async def run(self) -> None:
        """Read the backlog and repeat unconfirmed messages, forever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._read_backlog)
            await self._repeat()

    async def _read_backlog(self) -> None:
        """Read the backlog every two seconds."""
        while self._server.by_function:
            with suppress(BrokerUnavailableError):
                backlog = await self.backlog()
                if self.consumer:
                    self.consumer.apply_backlog(backlog)
            await trio.sleep(BACKLOG_INTERVAL)

    async def _repeat(self) -> None:
        """Send unconfirmed settlements and extensions again, and replace lost pull requests."""
        while True:
            oldest = min((entry.sent for entry in self._outbox.values()), default=inf)
            detected = self.consumer.loss_detected_at if self.consumer else inf
            deadline = min(oldest + REPEAT_AFTER, detected) if self.link.up else inf
            with trio.CancelScope(deadline=deadline) as self._wait:
                await trio.sleep_forever()
            if self.consumer and trio.current_time() >= self.consumer.loss_detected_at:
                self.consumer.pull_again()
            for number, entry in [*self._outbox.items()]:
                if self.link.up and trio.current_time() >= entry.sent + REPEAT_AFTER:
                    self._send(number, entry)

    def _check(self, delivery: Delivery, settlement: Settlement | None) -> None:
        what = f"{settlement or 'extension'} for {delivery.token}"
        if delivery.token not in self.held:
            self._violated(f"{what}, which is settled, or was never received")
        if self._newest.get(delivery.id) != delivery.token and not isinstance(settlement, Final):
            self._violated(f"{what}, while {self._newest.get(delivery.id)} is the newest")

    def _append(self, entry: PendingAck) -> None:
        self._number += 1
        self._outbox[self._number] = entry
        if self.link.up:
            self._send(self._number, entry)

    def _send(self, number: int, entry: PendingAck) -> None:
        now = trio.current_time()
        counts, self._counts = self._counts, []
        for count in counts:
            self.link.to_broker.send("announcement", partial(self._server.announce, count))
        if not entry.sendable(now):
            self._forget(number)
            return
        entry.sent, entry.tries = now, entry.tries + 1
        self.wake_at(now + REPEAT_AFTER)
        again = entry.tries > 1 and isinstance(entry.settlement, Nak)
        settlement = Nak(entry.due - now) if again else entry.settlement

        def arrive() -> None:
            if self._server.apply(entry.delivery.token, settlement) and self.link.up:
                self.link.from_broker.send("confirmation", partial(self._confirm, number))

        self.link.to_broker.send("settlement" if settlement else "extension", arrive)

    def _confirm(self, number: int) -> None:
        if entry := self._outbox.get(number):
            self._forget(number)
            entry.confirmed()  # this may send more

    def _forget(self, number: int) -> None:
        del self._outbox[number]
        self._wake()

    def _on_change(self, up: bool) -> None:
        for number, entry in [*self._outbox.items()]:
            if up:
                self._send(number, entry)
        if up:
            self.wake_at(trio.current_time())
        self._wake()

    async def _change(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        """Wake the tasks that wait for a change."""
        self._changed.set()
        self._changed = trio.Event()

    def wake_at(self, when: float) -> None:
        """Check for repetitions by that time (s)."""
        self._wait.deadline = min(self._wait.deadline, when)
