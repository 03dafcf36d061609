"""Telling the queue how a delivery ended. Nothing here waits, so nothing here can be cancelled half-way."""

from __future__ import annotations

import trio

from .bench import Bench
from .events import Settled
from .heartbeat import Lease
from .model import Abandon, Ack, Verdict


def settle(bench: Bench, lease: Lease, attempt: int, verdict: Verdict, *, attempted: bool) -> None:
    """End a lease, by the verdict on attempt number *attempt*; *attempted*: whether that counts as one."""
    now = trio.current_time()
    before = bench.leases.lost_at(lease)
    if (lease.lost or now >= before) and not isinstance(verdict, Ack):
        # Someone else may have the message, and anything we said would disturb them. An ack says what stays true.
        verdict = Abandon()
    bench.leases.release(lease)
    bench.ledger.ended(lease.delivery, attempt, verdict, attempted=attempted, now=now)
    if not isinstance(verdict, Abandon):
        bench.queue.settle(lease.delivery, verdict, before=before)
    bench.emit(Settled(verdict))
