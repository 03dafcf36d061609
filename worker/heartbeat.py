"""Leases: a delivery stays ours as long as the queue hears of it.

One task renews them all. The ack wait is the same for all, so the next to renew is always the one whose last
extension is oldest: a queue in order of sending, O(1) a message, no timer and no nursery each.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import trio

from .events import LeaseExpired, LeasesExtended
from .model import Delivery, MessageId
from .policy.lease import LeaseTerms
from .ports import Emit, Queue


class Lease:
    """Our hold on a message, from its arrival until it is settled.

    Only an extension that the queue *confirmed* counts: one that was merely sent may never have arrived, and a worker
    that trusted it would give back, or settle, what another worker is already running.
    """

    __slots__ = ("_scope", "confirmed_at", "delivery", "lost", "sent_at")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        """The newest delivery of the message; a redelivery while we hold it replaces the older."""
        self.confirmed_at = delivery.received_at
        """When the last confirmed extension was sent."""
        self.sent_at = delivery.received_at
        """When the last extension was sent."""
        self.lost = False
        self._scope: trio.CancelScope | None = None

    def guard(self, scope: trio.CancelScope) -> None:
        """Cancel it when the lease is lost, or now if it is."""
        self._scope = scope
        if self.lost:
            scope.cancel()

    def unguard(self) -> None:
        """What it guarded is over."""
        self._scope = None

    def mark_lost(self) -> None:
        """Someone else may have the message."""
        self.lost = True
        if self._scope:
            self._scope.cancel()

    def confirm(self, sent_at: float) -> None:
        """The queue heard the extension that was sent then."""
        self.confirmed_at = max(self.confirmed_at, sent_at)


class Leases:
    """All leases that this worker holds."""

    def __init__(self, queue: Queue, emit: Emit) -> None:
        self._queue = queue
        self._emit = emit
        self.terms = LeaseTerms(float("inf"))
        """How long a lease lasts: the consumer's ack wait."""
        self._held: OrderedDict[MessageId, Lease] = OrderedDict()
        self._sooner = trio.Event()
        """Something is due earlier than :meth:`run` thought."""

    def add(self, delivery: Delivery) -> Lease:
        """Begin to keep a delivery."""
        lease = self._held[delivery.id] = Lease(delivery)
        if len(self._held) == 1:
            self._sooner.set()
        return lease

    def replace_delivery(self, delivery: Delivery) -> None:
        """A message that we hold was handed to us once more: as good as an extension, and its token is the newest."""
        if lease := self._held.get(delivery.id):
            lease.delivery = delivery
            lease.confirmed_at = lease.sent_at = delivery.received_at
            self._held.move_to_end(delivery.id)

    def remove(self, lease: Lease) -> None:
        """Stop keeping it: it is about to be settled, and no extension may follow that."""
        self._held.pop(lease.delivery.id, None)

    def set_ack_wait(self, ack_wait: float) -> None:
        """From now on leases last so long (s): the consumer is known, or was made anew by someone."""
        if ack_wait != self.terms.ack_wait:
            self.terms = LeaseTerms(ack_wait)
            self._sooner.set()

    def lost_at(self, lease: Lease) -> float:
        """When we must take it that someone else has the message."""
        return self.terms.lost_at(lease.confirmed_at)

    async def run(self) -> None:
        """Renew until cancelled."""
        while True:
            self._sooner = trio.Event()
            oldest = next(iter(self._held.values()), None)
            with trio.move_on_at(self.terms.renew_at(oldest.sent_at) if oldest else float("inf")):
                await self._sooner.wait()
            self._renew(trio.current_time())

    def _renew(self, now: float) -> None:
        extended = 0
        while self._held:
            lease = next(iter(self._held.values()))
            if self.terms.renew_at(lease.sent_at) > now:
                break
            if lease.confirmed_at < lease.sent_at or now >= self.lost_at(lease):
                self._lose(lease)
                continue
            lease.sent_at = now
            self._held.move_to_end(lease.delivery.id)
            self._queue.extend(lease.delivery, partial(lease.confirm, now), before=self.lost_at(lease))
            extended += 1
        if extended:
            self._emit(LeasesExtended(extended))

    def _lose(self, lease: Lease) -> None:
        self.remove(lease)
        lease.mark_lost()
        self._emit(LeaseExpired(lease.delivery))
