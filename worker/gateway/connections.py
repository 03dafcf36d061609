"""The open connections of callers: how many there are, and which of them is closed for a new one.

A connection is *busy* while a request of it is answered, else *waiting*: silent, idle, or with a part of a request. At
the limit, the connection that has waited longest is closed for a new one, so silent callers cost nothing. If all are
busy, a new one is *limited*: requests about health are served, others get 503. So probes get an answer whatever the
callers do.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Protocol

from structlog.typing import FilteringBoundLogger

from .bounded_log import BoundedLog

LIMITED = 64
"""Connections above the limit: probes, and callers that get a 503."""


class _Connection(Protocol):
    """A connection that can be ended."""

    limited: bool
    """Whether only requests about health are served."""

    def abort(self) -> None:
        """Close it now, and drop what is not sent."""

    def check(self, now: float) -> None:
        """End what has taken too long at the time *now*."""


class Connections:
    """The connections of one server: at most *maximum*, and the limited ones."""

    def __init__(self, maximum: int, timeout: float, log: FilteringBoundLogger) -> None:
        self.timeout = timeout
        """Longest wait for a caller's bytes (s)."""
        self._maximum, self._log = maximum, BoundedLog(log)
        self._waiting: dict[_Connection, None] = {}
        """The waiting ones, without limited ones; the longest first."""
        self._busy: dict[_Connection, None] = {}
        self._limited: dict[_Connection, None] = {}
        self.rejected: Counter[int] = Counter()
        """Number of requests that were rejected before they reached the application, by status."""
        self.closed = 0
        """Number of connections that were closed for a new one."""

    def add(self, connection: _Connection) -> None:
        """Add a new connection, and make room for it."""
        if len(self._waiting) + len(self._busy) < self._maximum:
            self._waiting[connection] = None
            return
        self._log.warning(
            "Too many connections; the longest waiting are closed, and requests get 503 if there are none",
            max_connections=self._maximum,
            busy=len(self._busy),
        )
        if self._waiting:
            self._end(self._waiting)
            self._waiting[connection] = None
            return
        if len(self._limited) >= LIMITED:
            self._end(self._limited)
        connection.limited = True
        self._limited[connection] = None

    def count(self) -> dict[str, int]:
        """Return the number of open connections by state."""
        return {"busy": len(self._busy), "waiting": len(self._waiting), "limited": len(self._limited)}

    def remove(self, connection: _Connection) -> None:
        """Remove a connection that was closed."""
        for group in (self._waiting, self._busy, self._limited):
            group.pop(connection, None)

    def set_busy(self, connection: _Connection) -> None:
        """Note that a request is being answered."""
        if not connection.limited:
            self._waiting.pop(connection, None)
            self._busy[connection] = None

    def set_waiting(self, connection: _Connection) -> None:
        """Note that all requests are answered."""
        if not connection.limited:
            self._busy.pop(connection, None)
            self._waiting[connection] = None

    async def check(self) -> None:
        """End what has taken too long; to be called each second. No request needs a timer of its own then."""
        now = asyncio.get_running_loop().time()
        for connection in (*self._waiting, *self._busy, *self._limited):
            connection.check(now)

    def _end(self, group: dict[_Connection, None]) -> None:
        self.closed += 1
        longest = next(iter(group))
        del group[longest]
        longest.abort()
