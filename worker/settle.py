"""Settling a delivery. Nothing here waits, so nothing here can be cancelled half-way."""

from __future__ import annotations

import trio

from .events import Settled
from .heartbeat import Lease
from .model import Abandon, Ack, Verdict
from .services import Services


def settle(services: Services, lease: Lease, attempt: int, verdict: Verdict, *, counts: bool) -> None:
    """End a lease by the verdict on attempt number *attempt*; *counts*: whether it counts as an attempt."""
    now = trio.current_time()
    before = services.leases.lost_at(lease)
    if (lease.lost or now >= before) and not isinstance(verdict, Ack):
        # Another worker may have the message, and a NAK or Term would disturb it. An Ack states what stays true.
        verdict = Abandon()
    services.leases.remove(lease)
    services.ledger.record(lease.delivery, attempt, verdict, counts=counts, now=now)
    if not isinstance(verdict, Abandon):
        services.queue.settle(lease.delivery, verdict, before=before)
    services.emit(Settled(verdict))
