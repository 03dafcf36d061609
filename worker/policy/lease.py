"""How long a delivery stays ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """Times of a lease that lasts *lasts* seconds from when the queue last heard of us.

    We count from when we *sent* what it confirmed, which is earlier than when it heard, so we err on the safe side.
    Renewing at a third leaves room for one lost extension's answer before two thirds, where we stop; the last third
    covers what we cannot see: clocks that drift, a scheduler that stalls, an invocation that takes a while to die.
    """

    ack_wait: float

    def renew_at(self, sent_at: float) -> float:
        """When the next extension is due, the last one having been sent at *sent*."""
        return sent_at + self.ack_wait / 3

    def lost_at(self, confirmed_at: float) -> float:
        """When we must take it for lost, the last confirmed extension (or the arrival) being from *kept*."""
        return confirmed_at + self.ack_wait * 2 / 3
