"""The decision about a delivery that has arrived: start it, give it back, or leave it to another worker."""

from __future__ import annotations

from msgspec import Struct

from ..model import Abandon
from .ledger import Extend, Known, Postpone, SettleAgain, Start

NO_TOKEN = 0.1
"""Seconds until a message returns that arrived when there was no token for it."""


class GiveBack(Struct, frozen=True, gc=False):
    """Give the message back unstarted, to be redelivered after *delay* seconds."""

    attempt: int
    delay: float


Action = Start | Extend | SettleAgain | Postpone | GiveBack | Abandon


def decide_delivery(known: Known, *, newest: bool, leased: bool, room: bool, token: bool) -> Action:
    """Return what to do with a delivery.

    Args:
        known: what this worker's memory of the message implies.
        newest: whether no later delivery of the same message arrived in the same batch. Only the newest is given back:
            a NAK of the other would take the message from its next worker.
        leased: whether the message is still this worker's. It is not after it lay in a buffer for long because the
            process stood still: another worker may have it by now.
        room: whether there is a slot. Credit makes it rare, not impossible, that there is none: a pull request may
            outlive its connection.
        token: whether the flow may start another invocation. A token can get lost, or expire, while the message that it
            was for is on its way.
    """
    if isinstance(known, Start):
        if leased and room and token:
            return known
        return GiveBack(known.attempt, NO_TOKEN if room else 0.0) if newest and leased else Abandon()
    if isinstance(known, Postpone):
        return known if newest and leased else Abandon()
    return known
