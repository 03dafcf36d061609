"""The credit of one flow, and the pull requests to send for it. No I/O, no clock.

The law is conservation. The credit that was given is at every moment the sum of what is *unrequested*, what is
*outstanding* in open requests, what has arrived, and what was taken back. So no more messages arrive than there was
credit for, and no credit is forgotten.

Each open request has an inbox of its own, because a delivery shows only where it arrives, not which request it answers.
A request ends when its last message has arrived, by a status, or after a silence.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_REQUESTS = 4
"""Open requests of one flow. Each but the first is for a quarter of the credit at least, so no more could be open."""
MAX_REQUESTS_OF_MANY = 2
"""Open requests of one flow where there are many, each with a fraction of the credit."""
EXPIRES = 30.0
"""Seconds that a request stays open at the server."""
HEARTBEAT = 5.0
"""Seconds between the server's heartbeats for an open request. At most half of EXPIRES, or the server refuses it."""
SILENCE = 2 * HEARTBEAT + 1.0
"""Seconds after which a request without any sign of life has ended: two heartbeats are missing."""
DEFAULT_BATCH = 250
"""Messages in one request at most, unless a setting changes that. With four requests, a worker starts in half a second
what is on its way to it. More would wait in sockets while their leases run out, and would be lost until the ack wait is
over when the connection breaks. The cost of a request could not be measured beside that of 250 messages."""


@dataclass(slots=True, eq=False)
class PullInbox:
    """An inbox, and the request that is answered there."""

    outstanding: int = 0
    """Messages that the request may still bring; 0 where none is open."""
    expires: float = 0.0
    """Seconds that the request may stay open at the server."""
    last_sign: float = 0.0
    """The time when something last arrived, or the request was sent."""


class Credit:
    """The credit of one flow, in at most *max_requests* open requests of at most *max_batch* messages.

    *debts*: what arrives without credit counts against later credit, because the scheduler counts it, too. Tokens do
    not: their worker counts none that it did not request, so it would wait for as many forever.
    """

    def __init__(self, max_batch: int = DEFAULT_BATCH, max_requests: int = MAX_REQUESTS, *, debts: bool = True) -> None:
        self.inboxes = [PullInbox() for _ in range(max_requests)]
        self.unrequested = 0
        """Credit that no request was sent for. Below zero where more arrived than there was credit for."""
        self.outstanding = 0
        """Messages that open requests may still bring: the sum over the inboxes."""
        self.max_requests = max_requests
        """Open requests at most."""
        self.max_batch = max_batch
        """Messages in one request at most."""
        self._total, self._debts = 0, debts

    def add(self, more: int) -> None:
        """Give credit for more messages."""
        self.unrequested += more
        self._total = max(self._total, self.unrequested + self.outstanding)

    def received(self, inbox: PullInbox, now: float) -> None:
        """Count a message that arrived in an inbox, which may have been replaced."""
        inbox.last_sign = now
        if inbox.outstanding > 0:
            inbox.outstanding -= 1
            self.outstanding -= 1
        elif self._debts or self.unrequested > 0:
            self.unrequested -= 1

    def end_request(self, inbox: PullInbox) -> None:
        """Expect nothing more from the request of an inbox."""
        self.unrequested += inbox.outstanding
        self.outstanding -= inbox.outstanding
        inbox.outstanding = 0

    def replace(self, inbox: PullInbox) -> None:
        """Send no more requests into an inbox, but into a new one."""
        self.end_request(inbox)
        self.inboxes[self.inboxes.index(inbox)] = PullInbox()

    def take_back(self) -> int:
        """Take back all credit that brought no message, now that no request is open; return how much it was."""
        for inbox in self.inboxes:
            self.end_request(inbox)
        taken = max(0, self.unrequested)
        self.unrequested -= taken
        self._total = 0
        return taken

    def silent(self, now: float) -> list[PullInbox]:
        """Return the inboxes whose request has ended by its silence."""
        return [inbox for inbox in self.inboxes if inbox.outstanding and now - inbox.last_sign > SILENCE]

    def excuse_silence(self, now: float) -> None:
        """Count no silence until now, because nothing was read."""
        for inbox in self.inboxes:
            inbox.last_sign = max(inbox.last_sign, now)

    def next_request(self, now: float) -> PullInbox | None:
        """Return the inbox of the next request to send, if there is one; it counts as sent.

        A small one is worth its cost only while no other is open, because then a message can arrive at once. Else the
        credit is kept for a larger one.
        """
        free = next((inbox for inbox in self.inboxes[: self.max_requests] if not inbox.outstanding), None)
        if free is None or self.unrequested <= 0:
            return None
        if self.outstanding and self.unrequested < min(self._total / self.max_requests, self.max_batch):
            return None
        batch = min(self.unrequested, self.max_batch)
        self.unrequested -= batch
        self.outstanding += batch
        free.outstanding, free.last_sign = batch, now
        return free
