"""Plain HTTP/1.1 to few origins, on sockets that Trio waits for.

It has two faces. Functions use :meth:`PlainTransport.exchange`: bytes out, an answer in. Whatever speaks httpx uses
:meth:`PlainTransport.handle_async_request`, which is the same exchange in httpx's words. httpx's own transport scans
its pool for each request; here idle connections of an origin are a stack, and taking one is a pop.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Mapping
from socket import socket

import httpx
import trio

from .connect import connect
from .connection import Connection, StaleConnectionError
from .face import NamedAnswer, response_of, written
from .http11 import ResponseParser
from .names import NameCache
from .watch import Watch, watching

CONNECT = 10.0
"""Seconds to connect, names and all addresses included. Below any sensible ``upstream_timeout``, to be told apart."""
IDLE = 4.0
"""Seconds an idle connection is kept: less than the 5 s after which common servers (Node.js, uvicorn) close theirs."""
BEFORE = 1.0
"""Seconds before the end of the idle time that a server tells of: our request takes a while to reach it."""

Origin = tuple[str, int]
_NONE: Mapping[str, float | None] = {}


class PlainTransport(httpx.AsyncBaseTransport):
    """Connections are made as needed and kept while idle; how many are in use is the caller's to bound.

    Args:
        most_body: bytes of a response's body that httpx's face reads; it cuts a longer one there, and tells so in the
            response's extension ``truncated``. (The other face is given an answer to fill, which has its own bound.)
        most_idle: idle connections kept for each origin.
        timeout: seconds that an exchange may take. :meth:`keep` must be running for this to hold.
        names: where origins are.
    """

    def __init__(
        self, *, most_body: int, most_idle: int, timeout: float = math.inf, names: NameCache | None = None
    ) -> None:
        self._most_body, self._most_idle, self._timeout = most_body, most_idle, timeout
        self._names = names or NameCache()
        self._watch: Watch | None = None
        """While :meth:`keep` runs, of the connections made meanwhile."""
        self._idle: dict[Origin, deque[Connection]] = {}
        self._busy: OrderedDict[Connection, float] = OrderedDict()
        """Exchanges on connections that were idle, by their deadlines: all have the same time, so the first is next."""

    async def exchange(
        self,
        origin: Origin,
        request: bytes,
        answer: ResponseParser,
        *,
        more: bytes = b"",
        timeouts: Mapping[str, float | None] = _NONE,
    ) -> None:
        """One exchange.

        Args:
            origin: host and port.
            request: its bytes, from the request line on.
            answer: is filled.
            more: the rest of the request's bytes, so that a large body need not be copied behind its header.
            timeouts: seconds to *connect*, and between two moves when we *read* or *write*; None is no bound.

        Raises:
            httpx.TransportError: there was no whole answer. The text says why. ``ReadTimeout`` means that the exchange
                took longer than it may.
        """
        await trio.lowlevel.checkpoint_if_cancelled()  # what is cancelled before it begins is not sent
        now = trio.current_time()
        deadline = now + self._timeout
        while connection := self._take(origin, now):
            self._busy[connection] = deadline
            try:
                return await self._converse(connection, request, more, answer, timeouts, reused=True)
            except StaleConnectionError:
                continue
            finally:
                self._busy.pop(connection, None)
        with trio.move_on_at(deadline):
            connection = await self._connect(origin, timeouts.get("connect"))
            return await self._converse(connection, request, more, answer, timeouts, reused=False)
        raise self._took_too_long()

    async def keep(self) -> None:
        """Hear for all exchanges, end those that are overdue, and close what is idle for too long, until cancelled."""
        with watching() as watch:
            self._watch = watch
            try:
                async with trio.open_nursery() as nursery:
                    if watch:
                        nursery.start_soon(watch.keep)
                    await self._keep_time()
            finally:
                self._watch = None

    async def _keep_time(self) -> None:
        while True:
            now = trio.current_time()
            self._end_overdue(now)
            for stack in self._idle.values():
                self._close_old(stack, now)
            due = next(iter(self._busy.values()), now + self._timeout)
            await trio.sleep_until(min(due, now + IDLE))

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The same, as httpx has it. The body of the response has been read.

        Raises:
            httpx.TransportError: as above; or what is asked for cannot be sent.
        """
        data = await written(request)
        answer = NamedAnswer(request.method, self._most_body)
        origin = request.url.raw_host.decode("ascii"), request.url.port or 80
        await self.exchange(origin, data, answer, timeouts=request.extensions.get("timeout", _NONE))
        return response_of(answer)

    async def aclose(self) -> None:
        """Close what is idle."""
        for stack in self._idle.values():
            for connection in stack:
                connection.close()
        self._idle.clear()

    async def _converse(
        self,
        connection: Connection,
        request: bytes,
        more: bytes,
        answer: ResponseParser,
        timeouts: Mapping[str, float | None],
        *,
        reused: bool,
    ) -> None:
        try:
            await connection.send(request, more, timeouts.get("write"), reused=reused)
            await connection.receive(answer, timeouts.get("read"))
        except httpx.TransportError:
            if connection.overdue:
                raise self._took_too_long() from None
            raise
        finally:
            # Whatever ended this, a cancellation too: only a connection in a known state is used again.
            if answer.reusable and not connection.overdue and not connection.spent:
                self._give_back(connection, answer)
            else:
                connection.close()

    async def _connect(self, origin: Origin, timeout: float | None) -> Connection:  # noqa: ASYNC109 -- httpx's word
        within = CONNECT if timeout is None else min(timeout, CONNECT)
        try:
            with trio.fail_after(within):
                return Connection(origin, await self._reach(origin), self._watch)
        except trio.TooSlowError:
            raise httpx.ConnectTimeout(f"no connection to {origin[0]}:{origin[1]} within {within:g} s") from None
        except OSError as error:
            raise httpx.ConnectError(f"cannot connect to {origin[0]}:{origin[1]}: {error}") from None

    async def _reach(self, origin: Origin) -> socket:
        addresses, remembered = await self._names.addresses(*origin)
        try:
            sock, tried = await connect(addresses)
        except OSError:
            self._names.forget(*origin)
            if not remembered:
                raise
            # Nothing has been sent, so this is the same attempt.
            addresses, _ = await self._names.addresses(*origin)
            sock, tried = await connect(addresses)
        self._names.tried(*origin, tried)
        return sock

    def _take(self, origin: Origin, now: float) -> Connection | None:
        """The idle connection that was used last, less those that died or grew old."""
        stack = self._idle.get(origin)
        while stack:
            connection = stack.pop()
            if connection.idle_until >= now and connection.silent(now):
                connection.idle = False
                return connection
            connection.close()
        return None

    def _give_back(self, connection: Connection, answer: ResponseParser) -> None:
        now = trio.current_time()
        connection.idle, connection.idle_since = True, now
        connection.idle_until = now + min(IDLE, answer.keeps_idle - BEFORE)
        stack = self._idle.setdefault(connection.origin, deque())
        stack.append(connection)
        self._close_old(stack, now)

    def _close_old(self, stack: deque[Connection], now: float) -> None:
        while stack and (len(stack) > self._most_idle or stack[0].idle_until < now):
            stack.popleft().close()

    def _end_overdue(self, now: float) -> None:
        while self._busy:
            connection, deadline = next(iter(self._busy.items()))
            if deadline > now:
                break
            del self._busy[connection]
            connection.end()

    def _took_too_long(self) -> httpx.ReadTimeout:
        return httpx.ReadTimeout(f"no answer within {self._timeout:g} s")
