"""Leases: this worker has the right to a delivery as long as the queue confirms its extensions.

One task renews all leases. The ack wait is the same for all, so the next to renew is always the one whose last
extension is oldest: an ordered dict by time of sending, O(1) a message, with no timer and no nursery for each.
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
    """The right of this worker to a message, from its arrival until it is settled.

    Only an extension that the queue *confirmed* counts. One that was merely sent may never have arrived, so another
    worker may run the message already.
    """

    __slots__ = ("_scope", "confirmed_at", "delivery", "lost", "sent_at")

    def __init__(self, delivery: Delivery) -> None:
        self.delivery = delivery
        """The newest delivery of the message; a redelivery while the lease lasts replaces the older."""
        self.confirmed_at = delivery.received_at
        """Time at which the last confirmed extension was sent."""
        self.sent_at = delivery.received_at
        """Time at which the last extension was sent, confirmed or not."""
        self.lost = False
        self._scope: trio.CancelScope | None = None

    def guard(self, scope: trio.CancelScope | None) -> None:
        """Cancel *scope* when the lease is lost, or now if it is; None: cancel nothing any more."""
        self._scope = scope
        if self.lost and scope:
            scope.cancel()

    def mark_lost(self) -> None:
        """Note that another worker may have the message, and cancel the guarded scope."""
        self.lost = True
        if self._scope:
            self._scope.cancel()

    def confirm(self, sent_at: float) -> None:
        """Note that the queue confirmed the extension that was sent at that time."""
        self.confirmed_at = max(self.confirmed_at, sent_at)


class Leases:
    """All leases of one worker."""

    def __init__(self, queue: Queue, emit: Emit) -> None:
        self._queue, self._emit = queue, emit
        self.terms = LeaseTerms(float("inf"))
        self._held: OrderedDict[MessageId, Lease] = OrderedDict()
        self._earlier = trio.Event()
        """Set when a lease is due earlier than :meth:`run` expects."""

    def add(self, delivery: Delivery) -> Lease:
        """Begin a lease."""
        lease = self._held[delivery.id] = Lease(delivery)
        if len(self._held) == 1:
            self._earlier.set()
        return lease

    def replace_delivery(self, delivery: Delivery) -> None:
        """Use a redelivery of a leased message: it is as good as an extension, and its token is the newest."""
        if lease := self._held.get(delivery.id):
            lease.delivery = delivery
            lease.confirmed_at = lease.sent_at = delivery.received_at
            self._held.move_to_end(delivery.id)

    def remove(self, lease: Lease) -> None:
        """End a lease before its message is settled: no extension may follow the settlement."""
        self._held.pop(lease.delivery.id, None)

    def set_ack_wait(self, ack_wait: float) -> None:
        """Use the consumer's ack wait (s) from now on: it is known now, or the consumer was changed."""
        if ack_wait != self.terms.ack_wait:
            self.terms = LeaseTerms(ack_wait)
            self._earlier.set()

    def lost_at(self, lease: Lease) -> float:
        """Return when the lease must be taken for lost, unless another extension is confirmed."""
        return self.terms.lost_at(lease.confirmed_at)

    async def run(self) -> None:
        """Renew leases until cancelled."""
        while True:
            self._earlier = trio.Event()
            oldest = next(iter(self._held.values()), None)
            with trio.move_on_at(self.terms.renew_at(oldest.sent_at) if oldest else float("inf")):
                await self._earlier.wait()
            self._renew(trio.current_time())

    def _renew(self, now: float) -> None:
        extended = 0
        while self._held:
            lease = next(iter(self._held.values()))
            if self.terms.renew_at(lease.sent_at) > now:
                break
            if lease.confirmed_at < lease.sent_at or now >= self.lost_at(lease):
                # Two thirds of the ack wait have passed without a confirmation.
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
