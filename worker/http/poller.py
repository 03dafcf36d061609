"""Readiness of all connections, polled by one task with epoll.

Trio's ``wait_readable`` costs a system call for each wait, and as much again for its own bookkeeping. Here a connection
is registered once, for as long as it is open.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable

import trio

MAX_POLL_AGE = 0.001
"""Seconds for which the last poll counts as current; each poll costs a system call.

A server can close an idle connection in this time unnoticed. It can also close one while a request is on its way, which
no poll can detect, so this adds little to how often a request fails.
"""

_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_CLOSED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR

OnReadable = Callable[[bool], None]
"""Called with whether the other side has closed the connection. It may close its own connection, and no other."""


class ReadinessPoller:
    """Calls a function when data or the end arrives on its socket. Each change is reported once (edge-triggered)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, OnReadable] = {}
        self._polled_at = -math.inf

    def close(self) -> None:
        """Release the epoll set. :meth:`run` must have ended."""
        self._epoll.close()

    def register(self, fd: int, on_readable: OnReadable) -> None:
        """Call *on_readable* at each change of *fd*."""
        self._callbacks[fd] = on_readable
        self._epoll.register(fd, _EVENTS)

    def rearm(self, fd: int) -> None:
        """Report *fd* again if it is readable now, because the last report was ignored or not all data was read."""
        self._epoll.modify(fd, _EVENTS)

    def unregister(self, fd: int) -> None:
        """Forget *fd*, which is closed next: the kernel then removes it from the epoll set."""
        self._callbacks.pop(fd, None)

    def poll(self, now: float) -> None:
        """Report all changes until *now*."""
        self._polled_at = now
        for fd, events in self._epoll.poll(0):
            if on_readable := self._callbacks.get(fd):
                on_readable(events & _CLOSED != 0)

    def poll_if_stale(self, now: float, since: float) -> None:
        """Poll unless the last poll is recent and later than *since*, when the connection became idle.

        A server that closes a connection does so just after its response, so a poll before that shows nothing.
        """
        if self._polled_at <= since or now - self._polled_at > MAX_POLL_AGE:
            self.poll(now)

    async def run(self) -> None:
        """Poll whenever something has changed, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.poll(trio.current_time())
