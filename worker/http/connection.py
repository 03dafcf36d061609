"""One connection to the gateway: a request goes out, a response comes in. One task polls all connections with epoll.

A connection uses Python's own socket and tries to send before it waits: Trio's streams cost as much as all the rest of
an exchange. Trio's ``wait_readable`` costs a system call for each wait, and as much again for its own bookkeeping. So a
connection is registered once, for as long as it is open.
"""

from __future__ import annotations

import math
import select
from contextlib import suppress
from socket import SHUT_RDWR, socket

import httpx
import outcome
import trio

from .http11 import UNRESERVED, ProtocolError, ResponseParser, StreamedBody

_READ_SIZE = 65_536
"""Bytes of one read."""
MAX_POLL_AGE = 0.001
"""Seconds for which the last poll counts as current; each poll costs a system call.

A server can close an idle connection in this time unnoticed. It can also close one while a request is on its way, which
no poll can detect, so this adds little to how often a request fails.
"""

_EVENTS = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
_CLOSED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR


class StaleConnectionError(Exception):
    """The server had closed the idle connection before any byte of the request was sent: this was no attempt."""


class Connection:
    """A connection that runs one exchange at a time and is idle between two. *sock* is connected and non-blocking."""

    __slots__ = (
        *("_idle", "_idle_since", "_overdue", "_poller", "_response", "_sock", "_spent", "_task", "_time_left"),
        *("idle_until", "paused", "scope"),
    )

    def __init__(self, sock: socket, poller: ReadinessPoller) -> None:
        self.idle_until = 0.0
        """Time at which the connection is too old to be used; 0 if it was never used."""
        self._idle, self._idle_since = False, 0.0
        self.paused = False
        """Flag: the response waits for memory, which does not count for its timeout."""
        self.scope: trio.CancelScope | None = None
        """The scope with the timeout of the first exchange."""
        self._time_left = math.inf
        self._overdue = False
        """Flag: :meth:`abort` has ended the exchange."""
        self._spent = False
        """Flag: more bytes than a response have arrived, or the end, so that no other exchange may begin."""
        self._task: trio.lowlevel.Task | None = None
        """The task that waits for the response."""
        self._response: ResponseParser | None = None
        self._sock, self._poller = sock, poller
        poller.register(sock.fileno(), self)

    @property
    def reusable(self) -> bool:
        """Flag: nothing but a response has arrived, neither more bytes nor the end."""
        return not (self._spent or self._overdue)

    def park(self, now: float, until: float) -> None:
        """Keep the connection idle, *until* it is too old to be used."""
        self._idle, self._idle_since, self.idle_until = True, now, until

    def claim(self, now: float) -> bool:
        """End the idle time and return whether an exchange may begin; close the connection if not."""
        if self._idle and self.idle_until >= now:
            # A server that closes a connection does so just after its response, so a poll before that shows nothing.
            if self._poller.polled_at <= self._idle_since or now - self._poller.polled_at > MAX_POLL_AGE:
                self._poller.poll(now)  # this closes a connection with its end or a response to no request
            if self._idle:
                self._idle = False
                return True
        self.close()
        return False

    def abort(self) -> None:
        """End the exchange that another task runs on this connection."""
        self._overdue = True
        with suppress(OSError):  # the server has closed it already
            self._sock.shutdown(SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, on which no exchange may be running. It may be closed already."""
        self._idle = False
        if (fd := self._sock.fileno()) != -1:
            self._poller.unregister(fd)
            self._sock.close()

    async def send(self, request: bytes, more: bytes | StreamedBody) -> None:
        """Send *request* and *more*, or as much as the server takes.

        If the connection breaks after the first byte, return: the response may have arrived before.

        Raises:
            StaleConnectionError: the connection was used before and took no byte.
        """
        try:
            sent = self._sock.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            if self.idle_until:
                raise StaleConnectionError from None
            return
        if more or sent < len(request):
            await self._send_rest(memoryview(request)[sent:])
            if isinstance(more, bytes):
                await self._send_rest(memoryview(more))
            else:
                async for part in more.parts:
                    if not await self._send_rest(memoryview(part)):
                        break
            # An early response was reported while no task waited for it. Only what can be read from here on counts.
            self._spent = False
            self._poller.rearm(self._sock.fileno())

    async def _send_rest(self, rest: memoryview) -> bool:
        """Return whether the server took all of it."""
        while rest:
            await trio.lowlevel.wait_writable(self._sock.fileno())
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                continue
            except OSError:
                return False
        return True

    async def receive(self, response: ResponseParser) -> None:
        """Wait until *response* is complete.

        Raises:
            trio.TooSlowError: :meth:`abort` was called before.
            httpx.ReadError: the connection broke.
            httpx.RemoteProtocolError: the server sent something else than one whole response.
        """
        self._task, self._response = trio.lowlevel.current_task(), response
        try:
            await trio.lowlevel.wait_task_rescheduled(self._on_cancel)
        except (OSError, ProtocolError) as error:
            if self._overdue:
                raise trio.TooSlowError from None
            if isinstance(error, OSError):
                raise httpx.ReadError(f"the connection broke: {error}") from None
            raise httpx.RemoteProtocolError(str(error)) from None

    def _on_cancel(self, _: object) -> trio.lowlevel.Abort:
        self._task = self._response = None
        return trio.lowlevel.Abort.SUCCEEDED

    def on_readable(self, *, closed: bool) -> None:
        """Read what has arrived, or the end; *closed* is whether the server has closed the connection."""
        # No later report repeats this one, so what it means for the next exchange is noted now.
        self._spent = self._spent or closed or not self._task
        if self._idle:
            self.close()
        elif self._task and self._response and self._response.size > UNRESERVED and not self._has_memory():
            pass  # resume() reads on
        elif self._task and self._response:
            # One read only, however much has arrived: other connections get their turn. Any error is the exchange's.
            result = outcome.capture(self._read, self._response)
            if self._response.complete or isinstance(result, outcome.Error):
                trio.lowlevel.reschedule(self._task, result)
                self._task = self._response = None
            else:
                self._poller.rearm(self._sock.fileno())

    def _has_memory(self) -> bool:
        if self._response and not self._response.reserve(self._resume):
            if not self.paused and self.scope:
                self._time_left, self.scope.deadline = self.scope.deadline - trio.current_time(), math.inf
            self.paused = True
        return not self.paused

    def _resume(self) -> None:
        self.paused = False
        if self.scope:
            self.scope.deadline = trio.current_time() + self._time_left
        if self._task:
            self._poller.rearm(self._sock.fileno())

    def _read(self, response: ResponseParser) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:  # a spurious report
            return
        if data:
            response.feed(data)
            if response.complete and len(data) == _READ_SIZE:
                self._spent = True  # more may follow the response, and that is not reported again
        elif self._overdue:  # the end that abort() made is not the server's, so it completes no body
            raise ProtocolError("aborted")
        else:
            response.feed_eof()


class ReadinessPoller:
    """Reports data or the end that arrives on a socket to its connection, each change once (edge-triggered)."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._connections: dict[int, Connection] = {}
        self.polled_at = -math.inf

    def close(self) -> None:
        """Release the epoll set. :meth:`run` must have ended."""
        self._epoll.close()

    def register(self, fd: int, connection: Connection) -> None:
        """Report each change of *fd* to its connection, which may close itself then, and no other."""
        self._connections[fd] = connection
        self._epoll.register(fd, _EVENTS)

    def rearm(self, fd: int) -> None:
        """Report *fd* again if it is readable now, because the last report was ignored or not all data was read."""
        self._epoll.modify(fd, _EVENTS)

    def unregister(self, fd: int) -> None:
        """Forget *fd*, which is closed next: the kernel then removes it from the epoll set."""
        self._connections.pop(fd, None)

    def poll(self, now: float) -> None:
        """Report all changes until *now*."""
        self.polled_at = now
        for fd, events in self._epoll.poll(0):
            if connection := self._connections.get(fd):
                connection.on_readable(closed=events & _CLOSED != 0)

    async def run(self) -> None:
        """Poll whenever something has changed, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.poll(trio.current_time())
