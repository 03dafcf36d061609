"""Memory for results: the responses that are kept until their callback has ended. Their sum is bounded.

A response is read up to :data:`UNRESERVED` bytes. For more it needs a reservation for all that may follow. Without one
its connection is not read, so TCP holds the function back. A response with a reservation never waits again, and its
callback ends in bounded time, so those that wait are served in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from ..events import ResultMemoryUnavailable
from ..ports import Emit
from .http11 import ResponseParser

REPORT_AFTER = 5.0
"""Seconds of waiting after which it is reported: most callbacks have ended until then."""
REPORT_EVERY = 60.0
"""Seconds between two reports, however many results wait."""


class ResultMemory:
    """*limit*: bytes of all results. One result alone may be larger, because it could never be kept otherwise."""

    def __init__(self, limit: int, clock: Callable[[], float] = trio.current_time) -> None:
        self._limit, self._clock = limit, clock
        self.used = 0
        self._waiting: deque[Reservation] = deque()

    @property
    def waiting(self) -> int:
        """The number of reservations that wait for memory."""
        return sum(not reservation.released for reservation in self._waiting)

    async def report_waits(self, emit: Emit) -> None:
        """Emit an event while results wait for longer than REPORT_AFTER, until cancelled."""
        while True:
            await trio.sleep(REPORT_AFTER)
            # The first one has waited longest, and is never a released one.
            waited = self._clock() - self._waiting[0].since if self._waiting else 0.0
            if waited >= REPORT_AFTER:
                emit(ResultMemoryUnavailable(self.waiting, waited, self.used, self._limit))
                await trio.sleep(REPORT_EVERY - REPORT_AFTER)

    def reserve(self, size: int, resume: Callable[[], None]) -> Reservation:
        """Return a reservation of *size* bytes; if it is not granted yet, *resume* is called when it is."""
        reservation = Reservation(self, size)
        self._waiting.append(reservation)
        self.grant()
        if not reservation.granted:
            reservation.resume, reservation.since = resume, self._clock()
        return reservation

    def grant(self) -> None:
        """Grant the reservations that have room, in their order."""
        while self._waiting:
            reservation = self._waiting[0]
            if self.used and self.used + reservation.size > self._limit and not reservation.released:
                return
            self._waiting.popleft()
            if not reservation.released:
                self.used += reservation.size
                reservation.granted = True
                resume, reservation.resume = reservation.resume, None
                if resume:
                    resume()


class Reservation:
    """A part of the memory, from its grant to its release."""

    def __init__(self, memory: ResultMemory, size: int) -> None:
        self._memory, self.size = memory, size
        self.granted = self.released = False
        self.resume: Callable[[], None] | None = None
        self.since = 0.0
        """Time at which it began to wait."""

    def shrink(self, size: int) -> None:
        """Return all but *size* bytes."""
        self._memory.used -= self.size - size
        self.size = size
        self._memory.grant()

    def release(self) -> None:
        """Return the memory, or stop waiting for it. Another call has no effect."""
        if not self.released:
            self.released, self.resume = True, None
            if self.granted:
                self._memory.used -= self.size
            self._memory.grant()


class ResultParser(ResponseParser):
    """Parser of a response whose body is kept, in *memory*."""

    __slots__ = ("_memory", "reservation")

    def __init__(self, method: str, max_body: int, memory: ResultMemory) -> None:
        super().__init__(method, max_body, keep_body=True)
        self._memory = memory
        self.reservation: Reservation | None = None
        """The memory of a large body."""

    def reserve(self, resume: Callable[[], None]) -> bool:
        """Return whether more may be read now; if not, *resume* is called when it may."""
        if self.reservation is None:
            lengths = [value for name, value in self.headers if name.lower() == b"content-length"]
            size = int(lengths[0]) if lengths and lengths[0].isdigit() else self._max_body
            self.reservation = self._memory.reserve(min(self._max_body, size), resume)
        return self.reservation.granted
