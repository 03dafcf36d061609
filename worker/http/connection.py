"""One connection to the gateway: a request goes out, a response comes in.

It uses Python's own sockets and tries to send before it waits: Trio's streams cost as much as all the rest of an
exchange.
"""

from __future__ import annotations

from contextlib import suppress
from socket import SHUT_RDWR, socket

import httpx
import outcome
import trio

from .http11 import ProtocolError, ResponseParser
from .poller import ReadinessPoller

_READ_SIZE = 65_536
"""Bytes of one read."""


class StaleConnectionError(Exception):
    """The server had closed the idle connection before any byte of the request was sent: this was no attempt."""


class Connection:
    """A connection that runs one exchange at a time and is idle between two. *sock* is connected and non-blocking."""

    __slots__ = (
        *("idle_until", "overdue"),
        *("_fd", "_idle", "_idle_since", "_poller", "_response", "_sock", "_spent", "_task"),
    )

    def __init__(self, sock: socket, poller: ReadinessPoller) -> None:
        self.idle_until = 0.0
        """Time at which the connection is too old to be used."""
        self.overdue = False
        """Flag: :meth:`abort` has ended the exchange."""
        self._idle, self._idle_since = False, 0.0
        self._spent = False
        """Flag: more bytes than a response have arrived, or the end, so that no other exchange may begin."""
        self._sock, self._fd = sock, sock.fileno()
        self._task: trio.lowlevel.Task | None = None
        """The task that waits for the response."""
        self._response: ResponseParser | None = None
        self._poller = poller
        poller.register(self._fd, self._on_readable)

    @property
    def reusable(self) -> bool:
        """Flag: nothing but a response has arrived, neither more bytes nor the end."""
        return not (self._spent or self.overdue)

    def park(self, now: float, until: float) -> None:
        """Keep the connection idle, *until* it is too old to be used."""
        self._idle, self._idle_since, self.idle_until = True, now, until

    def claim(self, now: float) -> bool:
        """End the idle time and return whether an exchange may begin; close the connection if not."""
        if self._idle and self.idle_until >= now:
            # Data on an idle connection is its end, or a response to no request: then the poll closes it.
            self._poller.poll_if_stale(now, self._idle_since)
            if self._idle:
                self._idle = False
                return True
        self.close()
        return False

    def abort(self) -> None:
        """End the exchange that another task runs on this connection."""
        self.overdue = True
        with suppress(OSError):  # the server has closed it already
            self._sock.shutdown(SHUT_RDWR)

    def close(self) -> None:
        """Close the socket, on which no exchange may be running. It may be closed already."""
        self._idle = False
        if self._sock.fileno() != -1:
            self._poller.unregister(self._fd)
            self._sock.close()

    async def send(self, request: bytes, more: bytes, *, reused: bool) -> None:
        """Send *request* and *more*, or as much as the server takes.

        If the connection breaks after the first byte, return: the response may have arrived before.

        Raises:
            StaleConnectionError: the connection was *reused* and took no byte.
        """
        try:
            sent = self._sock.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            if reused:
                raise StaleConnectionError from None
            return
        if more or sent < len(request):
            await self._send_rest(memoryview(request)[sent:])
            await self._send_rest(memoryview(more))
            # An early response was reported while no task waited for it. Only what can be read from here on counts.
            self._spent = False
            self._poller.rearm(self._fd)

    async def _send_rest(self, rest: memoryview) -> None:
        while rest:
            await trio.lowlevel.wait_writable(self._fd)
            try:
                rest = rest[self._sock.send(rest) :]
            except BlockingIOError:
                continue
            except OSError:
                return

    async def receive(self, response: ResponseParser) -> None:
        """Wait until *response* is complete.

        Raises:
            httpx.ReadError: the connection broke.
            httpx.RemoteProtocolError: the server sent something else than one whole response.
        """
        self._task, self._response = trio.lowlevel.current_task(), response
        try:
            await trio.lowlevel.wait_task_rescheduled(self._on_cancel)
        except OSError as error:
            raise httpx.ReadError(f"the connection broke: {error}") from None
        except ProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from None

    def _on_cancel(self, _: object) -> trio.lowlevel.Abort:
        self._task = self._response = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _on_readable(self, closed: bool) -> None:
        # No later report repeats this one, so what it means for the next exchange is noted now.
        self._spent = self._spent or closed or not self._task
        if self._idle:
            self.close()
        elif self._task and self._response:
            result: outcome.Outcome[None] = outcome.Value(None)
            try:
                # One read only, however much has arrived: other connections get their turn.
                self._read(self._response)
            except Exception as error:  # noqa: BLE001 -- any error belongs to the exchange and not to the poller
                result = outcome.Error(error)
            else:
                if not self._response.complete:
                    return self._poller.rearm(self._fd)
            task, self._task, self._response = self._task, None, None
            trio.lowlevel.reschedule(task, result)
        return None

    def _read(self, response: ResponseParser) -> None:
        try:
            data = self._sock.recv(_READ_SIZE)
        except BlockingIOError:  # a spurious report
            return
        if data:
            response.feed(data)
            if response.complete and len(data) == _READ_SIZE:
                self._spent = True  # more may follow the response, and that is not reported again
        elif self.overdue:  # the end that abort() made is not the server's, so it completes no body
            raise ProtocolError("aborted")
        else:
            response.feed_eof()
