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
    StoredCount,
)
from worker.policy.quota import is_token_flow
from worker.ports import BrokerUnavailableError, Consumer, MisconfiguredError

from .link import Link
from .requests import Client, HandedOut
from .server import Server

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds without a confirmation until something is sent again; also the longest wait of stopping."""
ANSWER = 5.0
"""Timeout of a request (s)."""
INACTIVE = 30.0
"""Seconds after which a flow without stored messages ends."""
LOOK = 2.0
"""Seconds between two reads of the backlog."""
SILENCE = 11.0
"""Seconds after which lost pull requests are detected: two heartbeats, as in :mod:`worker.nats.credit`."""


class FakeConsumer:
    """See :class:`worker.ports.Consumer`."""

    def __init__(self, queue: FakeQueue, server: Server, link: Link, violated: Callable[[str], None]) -> None:
        self.ack_wait = server.ack_wait
        self.wants: dict[str, int] = {}
        """Flow -> credit: the number of messages that may still arrive."""
        self._queue, self._server, self._link, self._violated = queue, server, link, violated
        published = self._published if server.by_function else None
        self.client = Client(link, self._deliver, self._dismiss, self._abandon, published=published)
        self.missed_at = inf
        """Time (s) at which the loss of requests will be detected."""
        self._missing: dict[str, int] = {}
        """Flow -> credit of the lost requests."""
        self._session = 0
        self._stopped = False
        self._recalled: set[str] = set()
        self._told: dict[str, float] = {}
        """Flow -> time (s) when it last had stored messages."""
        self._here: list[Delivery | Notice] = []
        self._something = trio.Event()
        server.join(self.client)
        link.changed.append(self._on_change)
        if not server.by_function:
            self.tell(QueueShared())

    @property
    def wanted(self) -> int:
        """Credit of all flows."""
        return sum(self.wants.values())

    def add_credit(self, count: int, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.add_credit`."""
        if count < 1:
            self._violated(f"wanted {count} more")
        if flow and flow not in self._told and not is_token_flow(flow):
            self._violated(f"wanted {count} of {flow}, which is gone")
        self.wants[flow] = self.wants.get(flow, 0) + count
        self._pull(min(count, self.wants[flow]), flow)

    def recall_credit(self, flow: str) -> None:
        """See :meth:`worker.ports.Consumer.recall_credit`."""
        if flow in self._recalled:
            self._violated(f"recalled {flow} twice")
        self._recalled.add(flow)
        if self._link.up and not self._stopped:
            self._link.there.send("recall", partial(self._take_back, flow, self._session))

    def _take_back(self, flow: str, session: int) -> None:
        """Withdraw a flow's requests at the broker; its answer follows all earlier deliveries."""
        self._server.withdraw(self.client, flow)
        self._link.down.send("recall", partial(self._returned, flow, session))

    def _returned(self, flow: str, session: int) -> None:
        if session == self._session and flow in self._recalled:
            self._return(flow)

    def _return(self, flow: str) -> None:
        self._recalled.discard(flow)
        self.tell(CreditReturned(flow, max(0, self.wants.pop(flow, 0))))

    async def receive(self) -> Sequence[Delivery | Notice]:
        """See :meth:`worker.ports.Consumer.receive`."""
        await trio.lowlevel.checkpoint()
        while not self._here:
            self._something = trio.Event()
            await self._something.wait()
        return self._taken()

    async def stop(self) -> Sequence[Delivery]:
        """See :meth:`worker.ports.Consumer.stop`."""
        self._stopped = True
        with trio.move_on_after(PATIENCE):
            # The answer follows all earlier deliveries.
            await self._queue.request(partial(self._server.withdraw, self.client))
        return [each for each in self._taken() if isinstance(each, Delivery)]

    def _taken(self) -> list[Delivery | Notice]:
        taken, self._here = self._here, []
        for each in taken:
            if isinstance(each, Delivery):
                self._queue.handed_out(each)
        return taken

    def tell(self, what: Delivery | Notice) -> None:
        """Hand a delivery or notice to the worker."""
        self._here.append(what)
        self._something.set()

    def _deliver(self, handed: HandedOut) -> None:
        flow = handed.flow
        self.wants[flow] = self.wants.get(flow, 0) - 1
        if self.wants[flow] < 0:
            self._violated(f"message {handed.id[0]} was more than was wanted")
        now = trio.current_time()
        if now - handed.sent > self.ack_wait / 3:
            # A lease counts from the arrival. A worker cannot know how long a delivery was on its way.
            self._server.disturbed.add(handed.id[0])
        self.tell(
            Delivery(handed.id, handed.token, handed.count, now, handed.subject, handed.payload, flow, handed.behind)
        )

    def _published(self, flow: str) -> None:
        self.tell(Published(flow) if flow in self._told else StoredCount(flow, 1))
        self._told[flow] = trio.current_time()

    def seen(self, backlog: Backlog) -> None:
        """Apply a read of the backlog: report the stored messages of each flow, and close flows that stayed empty."""
        now = trio.current_time()
        for flow, stored in backlog.by_subject.items():
            self._told[flow] = now
            self.tell(StoredCount(flow, stored))
        for flow in self._told.keys() - backlog.by_subject.keys():
            self.tell(StoredCount(flow, 0))
        for flow in [flow for flow, at in self._told.items() if now - at >= INACTIVE]:
            self._link.there.send("close", partial(self._close, flow))

    def _close(self, flow: str) -> None:
        if self._server.close(flow):
            self._link.down.send("closed", partial(self._closed, flow))

    def _closed(self, flow: str) -> None:
        if trio.current_time() - self._told.get(flow, inf) >= INACTIVE:
            del self._told[flow]
            self.wants.pop(flow, None)
            self._recalled.discard(flow)
            self.tell(FlowEnded(flow))

    def _dismiss(self, session: int) -> None:
        self.ack_wait = self._server.ack_wait
        self._begin(session)

    def _abandon(self, missing: dict[str, int]) -> None:
        if any(missing.values()):
            for flow, count in missing.items():
                self._missing[flow] = self._missing.get(flow, 0) + count
            self.missed_at = trio.current_time() + SILENCE
            self._queue.look_at(self.missed_at)

    def ask_again(self) -> None:
        """Pull again for the credit of lost requests."""
        missing, self._missing, self.missed_at = self._missing, {}, inf
        for flow, count in missing.items():
            self._pull(min(count, self.wants.get(flow, 0)), flow)

    def _on_change(self, up: bool) -> None:
        if up:
            self._begin(self.client.session)
        else:
            self._server.withdraw(self.client)

    def _begin(self, session: int) -> None:
        self._session, self._missing, self.missed_at = session, {}, inf
        for flow in [*self._recalled]:
            self._return(flow)
        for flow, wanted in self.wants.items():
            self._pull(wanted, flow)

    def _pull(self, batch: int, flow: str) -> None:
        if batch > 0 and self._link.up and not self._stopped:
            self._link.there.send("pull", partial(self._ask, self._session, batch, flow))

    def _ask(self, session: int, batch: int, flow: str) -> None:
        """Open a pull request at the broker."""
        if flow and flow not in self._server.groups and self._server.answers:
            self._link.down.send("status", partial(self.tell, PendingCount(flow, self._server.open(flow))))
        self._server.pull(self.client, session, batch, flow=flow)


@dataclass(slots=True, eq=False)
class Said:
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
        self.kept: dict[MessageId, float] = {}
        """Message -> time (s) when it was received, or its last confirmed extension was sent."""
        self.said: list[tuple[float, Delivery, Settlement]] = []
        """All settlements by the worker, with time (s) and delivery."""
        self._server, self._violated = server, violated
        self._outbox: dict[int, Said] = {}
        """Number -> unconfirmed settlement or extension, in order."""
        self._number = 0
        self._changed = trio.Event()
        self._wait = trio.CancelScope()
        """Scope around the wait for the next repetition; a new entry may shorten it."""
        link.changed.append(self._on_change)

    def handed_out(self, delivery: Delivery) -> None:
        """Record that the worker has received a delivery."""
        self.held[delivery.token] = delivery
        self._newest[delivery.id] = delivery.token
        self.kept[delivery.id] = delivery.received_at

    async def consume(self) -> Consumer:
        """See :meth:`worker.ports.Queue.consume`."""
        await trio.lowlevel.checkpoint()
        while not self.link.up:
            await self._change()
        if self._server.unusable:
            raise MisconfiguredError(self._server.unusable)
        self.consumer = FakeConsumer(self, self._server, self.link, self._violated)
        return self.consumer

    def settle(self, delivery: Delivery, settlement: Settlement, *, before: float) -> None:
        """See :meth:`worker.ports.Queue.settle`."""
        now = trio.current_time()
        self._check(delivery, settlement)
        if isinstance(settlement, Nak) and now >= before:
            self._violated(f"{settlement} for {delivery.token}, {now - before:.3f} s too late")
        if isinstance(settlement, Nak) and before > self.kept[delivery.id] + self._server.ack_wait_of(delivery.flow):
            self._violated(f"{settlement} for {delivery.token} to be sent when others may have it")
        self.held.pop(delivery.token, None)
        self.said.append((now, delivery, settlement))
        delay = settlement.delay if isinstance(settlement, Nak) else inf
        for number, said in [*self._outbox.items()]:
            if said.settlement is None and said.delivery.id == delivery.id:
                del self._outbox[number]
        self._note(Said(delivery, settlement, before, lambda: None, now + delay))

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        """See :meth:`worker.ports.Queue.extend`."""
        self._check(delivery, None)
        now = trio.current_time()

        def on_confirmed() -> None:
            self.kept[delivery.id] = max(self.kept[delivery.id], now)
            confirmed()

        self._note(Said(delivery, None, before, on_confirmed, inf))

    async def wait_settled(self) -> None:
        """See :meth:`worker.ports.Queue.wait_settled`."""
        await trio.lowlevel.checkpoint()
        while any(said.settlement for said in self._outbox.values()):
            await self._change()

    async def store_dead_letter(self, letter: DeadLetter) -> None:
        """See :meth:`worker.ports.Queue.bury`."""
        if not await self.request(partial(self._server.bury, letter)):
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
                self.link.down.send("answer", partial(answer, effect()))

        await trio.lowlevel.checkpoint()
        if self.link.up:
            self.link.there.send("request", arrive)
            with trio.move_on_after(ANSWER):
                await answered.wait()
        return answers[0] if answers else None

    async def run(self) -> None:
        """Read the backlog and repeat unconfirmed messages, forever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look)
            await self._repeat()

    async def _look(self) -> None:
        """Read the backlog every two seconds."""
        while self._server.by_function:
            with suppress(BrokerUnavailableError):
                backlog = await self.backlog()
                if self.consumer:
                    self.consumer.seen(backlog)
            await trio.sleep(LOOK)

    async def _repeat(self) -> None:
        """Send unconfirmed settlements and extensions again, and replace lost pull requests."""
        while True:
            oldest = min((said.sent for said in self._outbox.values()), default=inf)
            missed = self.consumer.missed_at if self.consumer else inf
            deadline = min(oldest + PATIENCE, missed) if self.link.up else inf
            with trio.CancelScope(deadline=deadline) as self._wait:
                await trio.sleep_forever()
            if self.consumer and trio.current_time() >= self.consumer.missed_at:
                self.consumer.ask_again()
            for number, said in [*self._outbox.items()]:
                if self.link.up and trio.current_time() >= said.sent + PATIENCE:
                    self._send(number, said)

    def _check(self, delivery: Delivery, settlement: Settlement | None) -> None:
        what = f"{settlement or 'extension'} for {delivery.token}"
        if delivery.token not in self.held:
            self._violated(f"{what}, which is settled, or was never received")
        if self._newest.get(delivery.id) != delivery.token and not isinstance(settlement, Final):
            self._violated(f"{what}, while {self._newest.get(delivery.id)} is the newest")

    def _note(self, said: Said) -> None:
        self._number += 1
        self._outbox[self._number] = said
        if self.link.up:
            self._send(self._number, said)

    def _send(self, number: int, said: Said) -> None:
        now = trio.current_time()
        if not said.sendable(now):
            self._forget(number)
            return
        said.sent, said.tries = now, said.tries + 1
        self.look_at(now + PATIENCE)
        again = said.tries > 1 and isinstance(said.settlement, Nak)
        settlement = Nak(said.due - now) if again else said.settlement

        def arrive() -> None:
            if self._server.say(said.delivery.token, settlement) and self.link.up:
                self.link.down.send("confirmation", partial(self._confirm, number))

        self.link.there.send("settlement" if settlement else "extension", arrive)

    def _confirm(self, number: int) -> None:
        if said := self._outbox.get(number):
            self._forget(number)
            said.confirmed()  # this may send more

    def _forget(self, number: int) -> None:
        del self._outbox[number]
        self._tell()

    def _on_change(self, up: bool) -> None:
        for number, said in [*self._outbox.items()]:
            if up:
                self._send(number, said)
        if up:
            self.look_at(trio.current_time())
        self._tell()

    async def _change(self) -> None:
        await self._changed.wait()

    def _tell(self) -> None:
        """Wake the tasks that wait for a change."""
        self._changed.set()
        self._changed = trio.Event()

    def look_at(self, when: float) -> None:
        """Check for repetitions by that time (s)."""
        self._wait.deadline = min(self._wait.deadline, when)
