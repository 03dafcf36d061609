"""The times of a lease."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """The times of a lease under an ack wait (s), which the queue counts from the last extension that it received.

    The worker counts from when it *sent* the confirmed extension, which is earlier, so it errs on the safe side.
    Renewing at a third leaves room for one lost confirmation before two thirds, where the work is cancelled. The last
    third covers clocks that drift, a scheduler that stalls, and an invocation that takes a while to end.
    """

    ack_wait: float

    def renew_at(self, sent_at: float) -> float:
        """Return when the next extension is due after one that was sent at *sent_at*."""
        return sent_at + self.ack_wait / 3

    def lost_at(self, confirmed_at: float) -> float:
        """Return when a lease is lost whose last confirmed extension was sent, or which began, at *confirmed_at*."""
        return confirmed_at + self.ack_wait * 2 / 3
