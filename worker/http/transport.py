"""Plain HTTP/1.1 to one origin: request bytes out, a parsed response in.

httpx's own transport scans its pool for each request. Here idle connections are a stack, and taking one is a pop.
"""

from __future__ import annotations

import socket
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress

import httpx
import trio

from .connection import Connection, ReadinessPoller, StaleConnectionError
from .http11 import Fields, ResponseParser, StreamedBody, write_request
from .names import LookUp, NameCache, open_names

CONNECT_TIMEOUT = 10.0
"""Seconds to connect, name look-up and all addresses included: less than any sensible ``upstream_timeout``."""
NEXT_ADDRESS_DELAY = 0.25
"""Seconds before the next address of a host is tried beside the last one (Happy Eyeballs, RFC 8305, section 8)."""
MAX_IDLE = 4.0
"""Seconds that an idle connection is kept: less than the 5 s after which Node.js and uvicorn close theirs."""
KEEP_ALIVE_MARGIN = 1.0
"""Seconds before the end of the server's announced idle time: a request takes a while to reach it."""


class PlainTransport:
    """Client that connects as needed and keeps idle connections. Its caller limits how many exchanges run.

    Args:
        max_idle: idle connections that are kept.
        exchange_timeout: seconds that an exchange may take. :meth:`enforce_timeouts` must be running.
    """

    def __init__(self, names: NameCache, poller: ReadinessPoller, *, max_idle: int, exchange_timeout: float) -> None:
        self._names, self._poller, self._max_idle, self._timeout = names, poller, max_idle, exchange_timeout
        self._idle: deque[Connection] = deque()
        self._deadlines: OrderedDict[Connection, float] = OrderedDict()
        """Of exchanges on reused connections. All have the same timeout, so the first to begin is the first to end."""

    async def exchange(
        self, method: str, target: bytes, fields: Fields, body: bytes | StreamedBody, response: ResponseParser
    ) -> None:
        """Send a request and receive its *response*.

        Raises:
            trio.TooSlowError: the exchange took longer than *exchange_timeout*.
            httpx.TransportError: no whole response arrived; the text contains the reason.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # a cancelled task sends nothing
        request, more = write_request(method, target, fields, body)
        now = trio.current_time()
        deadline = now + self._timeout
        while self._idle:
            connection = self._idle.pop()  # the one that was used last
            if not connection.claim(now):
                continue
            # One task watches these deadlines: a cancel scope for each exchange costs 8 µs.
            self._deadlines[connection] = deadline
            try:
                return await self._exchange_on(connection, request, more, response)
            except StaleConnectionError:
                continue
            finally:
                self._deadlines.pop(connection, None)
        with trio.fail_at(deadline) as scope:
            connection = Connection(await self._connect(), self._poller)
            connection.scope = scope
            return await self._exchange_on(connection, request, more, response)

    async def enforce_timeouts(self) -> None:
        """Abort overdue exchanges and close connections that were idle for too long, until cancelled."""
        while True:
            now = trio.current_time()
            while self._deadlines and next(iter(self._deadlines.values())) <= now:
                connection, _ = self._deadlines.popitem(last=False)
                if connection.paused:  # the function does not cause the wait
                    self._deadlines[connection] = now + self._timeout
                else:
                    connection.abort()
            self._close_expired(now)
            next_deadline = next(iter(self._deadlines.values()), now + self._timeout)
            await trio.sleep_until(min(next_deadline, now + MAX_IDLE))

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _exchange_on(
        self, connection: Connection, request: bytes, more: bytes | StreamedBody, response: ResponseParser
    ) -> None:
        try:
            await connection.send(request, more)
            await connection.receive(response)
        finally:
            connection.scope = None
            # After an error or a cancellation the connection may be half used, and the response is not reusable.
            if response.reusable and connection.reusable:
                now = trio.current_time()
                connection.park(now, now + min(MAX_IDLE, response.keep_alive_timeout - KEEP_ALIVE_MARGIN))
                self._idle.append(connection)
                self._close_expired(now)
            else:
                connection.close()

    async def _connect(self) -> socket.socket:
        origin = f"{self._names.host}:{self._names.port}"
        remembered = self._names.remembered
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                try:
                    return await self._open_socket()
                except OSError:
                    self._names.forget()
                    if not remembered:
                        raise
                # The host may have moved. No byte was sent, so this is the same attempt.
                return await self._open_socket()
        except trio.TooSlowError:
            # A name server that does not answer is no failure of the function: see local_failure().
            cause = socket.gaierror(socket.EAI_AGAIN, "no answer") if self._names.unanswered else None
            raise httpx.ConnectTimeout(f"no connection to {origin} within {CONNECT_TIMEOUT:g} s") from cause
        except OSError as error:
            causes = error.__cause__  # Trio puts the reason of each address there; the last one's is reported
            reason = causes.exceptions[-1] if isinstance(causes, ExceptionGroup) else error
            raise httpx.ConnectError(f"cannot connect to {origin}: {reason}") from error

    async def _open_socket(self) -> socket.socket:
        names = self._names
        stream = await trio.open_tcp_stream(names.host, names.port, happy_eyeballs_delay=NEXT_ADDRESS_DELAY)
        sock = socket.socket(fileno=stream.socket.detach())
        sock.setblocking(False)
        with suppress(OSError):  # the server may have reset the connection already
            names.connected(sock.getpeername())
        return sock

    def _close_expired(self, now: float) -> None:
        while self._idle and (len(self._idle) > self._max_idle or self._idle[0].idle_until < now):
            self._idle.popleft().close()


@asynccontextmanager
async def open_transport(
    host: str, port: int, *, max_idle: int, exchange_timeout: float, look_up: LookUp = socket.getaddrinfo
) -> AsyncIterator[PlainTransport]:
    """Run a :class:`PlainTransport`; *look_up* asks the system for addresses. No exchange may be running at the end."""
    with closing(ReadinessPoller()) as poller:
        async with open_names(host, port, look_up) as names, trio.open_nursery() as nursery:
            transport = PlainTransport(names, poller, max_idle=max_idle, exchange_timeout=exchange_timeout)
            nursery.start_soon(poller.run)
            nursery.start_soon(transport.enforce_timeouts)
            try:
                yield transport
            finally:
                transport.close()
                nursery.cancel_scope.cancel()
