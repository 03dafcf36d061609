"""Pull requests by credit: which to send, and what their answers mean. No I/O, no clock.

The law is conservation. What was wanted is at every moment exactly what is *unasked*, plus what is *outstanding* in
requests that the server may still answer, plus what has come, plus what was given back; so no more can come than was
wanted, and nothing wanted is forgotten.

A request lives in a *lane*: an inbox of its own, since a delivery shows only where it arrived, not which request it
answers. Several lanes let a request be sent while another is still being answered; a lane has at most one. A request
ends when its last message came, by a status, or when nothing was heard of it for too long: then the lane needs a new
inbox, because the server may still answer the old one.
"""

from __future__ import annotations

from dataclasses import dataclass

LANES = 4
"""With a request sent for no less than a quarter of the credit while another is open, more could not be in use."""
FEW_LANES = 2
"""Of one flow among many, each with a fraction of the credit."""
EXPIRES = 30.0
"""Seconds a request stays open at the server."""
HEARTBEAT = 5.0
"""Seconds between signs of life of an open request. At most half of EXPIRES, or the server refuses it."""
SILENCE = 2 * HEARTBEAT + 1.0
"""Seconds without any after which a request is taken for lost: two heartbeats missed."""


PORTION = 250
"""Messages asked for in one request, unless a setting says otherwise: with four lanes, a worker starts in half a second
what is on its way to it. More would wait in sockets, its leases running out unseen, and be lost to the ack wait when
the connection breaks; while a request of 250 costs nothing that could be measured beside its messages."""


@dataclass(slots=True)
class PullInbox:
    """One inbox, and the request that is answered there."""

    number: int
    outstanding: int = 0
    heard: float = 0.0
    """When something last came, or the request was sent."""


@dataclass(frozen=True, slots=True)
class Request:
    """To be sent: up to *batch* messages, into this lane."""

    lane: PullInbox
    batch: int


class Credit:
    """The books of one consumer.

    Args:
        most: most messages asked for in one request.
        lanes: how many requests may be open.
    """

    def __init__(self, most: int = PORTION, lanes: int = LANES) -> None:
        self.lanes = tuple(PullInbox(number) for number in range(lanes))
        self.unasked = 0
        """Wanted, and not asked for yet. Below zero when more came than was wanted."""
        self.outstanding = 0
        """What requests may still bring: the sum over the lanes."""
        self._most = most
        self._total = 0

    def want(self, more: int) -> None:
        """There is room for *more*."""
        self.unasked += more
        self._total = max(self._total, self.unasked + self.outstanding)

    def received(self, lane: PullInbox | None, now: float) -> None:
        """A message came, into *lane*, or None where its request had been taken for lost."""
        if lane is None:
            self.unasked -= 1
            return
        lane.heard = now
        if lane.outstanding > 0:
            lane.outstanding -= 1
            self.outstanding -= 1
        else:
            self.unasked -= 1

    def heard(self, lane: PullInbox, now: float) -> None:
        """A sign of life."""
        lane.heard = now

    def ended(self, lane: PullInbox) -> None:
        """A lane's request brings nothing more."""
        self.unasked += lane.outstanding
        self.outstanding -= lane.outstanding
        lane.outstanding = 0

    def give_back(self) -> int:
        """How much is wanted and will not come, now that no request is open; it is not wanted any more."""
        for lane in self.lanes:
            self.ended(lane)
        back = max(0, self.unasked)
        self.unasked -= back
        self._total = 0
        return back

    def silent(self, now: float) -> list[PullInbox]:
        """The lanes whose request must be taken for lost."""
        return [lane for lane in self.lanes if lane.outstanding and now - lane.heard > SILENCE]

    def excuse(self, now: float) -> None:
        """We were not listening until now: no silence before counts."""
        for lane in self.lanes:
            lane.heard = max(lane.heard, now)

    def request(self, now: float) -> Request | None:
        """The next request to be sent; it counts as sent.

        Small ones are worth their cost only when nothing else is open: then a message can come at once, and else the
        next request will be larger, up to the most that one may be.
        """
        idle = next((lane for lane in self.lanes if not lane.outstanding), None)
        if idle is None or self.unasked <= 0 or (self.outstanding and self.unasked < self._worth()):
            return None
        batch = min(self.unasked, self._most)
        self.unasked -= batch
        self.outstanding += batch
        idle.outstanding, idle.heard = batch, now
        return Request(idle, batch)

    def _worth(self) -> float:
        """How many a request must be for to be worth its cost while others are open."""
        return min(self._total / len(self.lanes), self._most)
