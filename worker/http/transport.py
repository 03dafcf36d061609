"""Plain HTTP/1.1 to few origins, for httpx, on Trio's sockets.

httpx's own transport costs 2 ms of CPU a request with 50 in flight, and 5 ms with 500: it scans its pool for each
one. Here idle connections of an origin are a stack, and taking one is a pop.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import httpx
import trio

from .http11 import Answer, ProtocolError, write_request

CONNECT = 10.0
"""Seconds to connect, names and all addresses included. Below any sensible ``upstream_timeout``, to be told apart."""
IDLE = 4.0
"""Seconds an idle connection is kept: less than the 5 s after which common servers (Node.js, uvicorn) close theirs."""
_READ = 65_536
"""Bytes asked for in one read."""

Origin = tuple[str, int]


@dataclass(frozen=True, slots=True)
class _Idle:
    stream: trio.SocketStream
    since: float


class PlainTransport(httpx.AsyncBaseTransport):
    """Connections are made as needed and kept while idle; how many are in use is the caller's to bound.

    The request's extension ``target`` (bytes) replaces the URL's path and query, byte for byte; ``keep_body`` False
    has the response's body read, counted and dropped. The response's extensions tell ``size`` (bytes of body read)
    and ``truncated``.

    Args:
        most_body: bytes of a response's body that are read; a longer one is cut there, and its connection closed.
        most_idle: idle connections kept for each origin.
    """

    def __init__(self, *, most_body: int, most_idle: int) -> None:
        self._most_body, self._most_idle = most_body, most_idle
        self._idle: dict[Origin, deque[_Idle]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """One exchange.

        Raises:
            httpx.TransportError: there was no whole answer. The text says why.
        """
        origin = request.url.host, request.url.port or 80
        target = request.extensions.get("target") or request.url.raw_path
        data = write_request(request.method, target, request.headers.raw, request.content)
        while idle := self._take(origin):
            try:
                return await self._exchange(idle, origin, data, request, reused=True)
            except _DiedIdle:
                continue
        return await self._exchange(await _connect(origin), origin, data, request, reused=False)

    async def aclose(self) -> None:
        """Close what is idle."""
        for stack in self._idle.values():
            for idle in stack:
                idle.stream.socket.close()
        self._idle.clear()

    async def _exchange(
        self, stream: trio.SocketStream, origin: Origin, data: bytes, request: httpx.Request, *, reused: bool
    ) -> httpx.Response:
        answer = Answer(request.method, self._most_body, keep=request.extensions.get("keep_body", True))
        try:
            await _send(stream, data, reused=reused)
            while not answer.complete:
                if received := await stream.receive_some(_READ):
                    answer.feed(received)
                else:
                    answer.end()
        except trio.BrokenResourceError as error:
            raise httpx.ReadError(f"the connection broke: {error.__cause__ or error}") from None
        except ProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from None
        finally:
            # Whatever ended this, a cancellation too: only a connection in a known state is used again.
            if answer.complete and answer.reusable:
                self._give_back(origin, stream)
            else:
                stream.socket.close()
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=httpx.ByteStream(bytes(answer.body)),
            extensions={"size": answer.size, "truncated": answer.truncated},
        )

    def _take(self, origin: Origin) -> trio.SocketStream | None:
        """The idle connection that was used last, less those that died or grew old."""
        stack = self._idle.get(origin)
        oldest = trio.current_time() - IDLE
        while stack:
            idle = stack.pop()
            # Nothing is to come on an idle connection: what can be read is its end, or an answer to nothing.
            if idle.since >= oldest and not idle.stream.socket.is_readable():
                return idle.stream
            idle.stream.socket.close()
        return None

    def _give_back(self, origin: Origin, stream: trio.SocketStream) -> None:
        stack = self._idle.setdefault(origin, deque())
        stack.append(_Idle(stream, trio.current_time()))
        oldest = trio.current_time() - IDLE
        while len(stack) > self._most_idle or stack[0].since < oldest:
            stack.popleft().stream.socket.close()


class _DiedIdle(Exception):  # noqa: N818 -- never leaves this module
    """A connection had been closed before our request was on it: no attempt was made."""


async def _connect(origin: Origin) -> trio.SocketStream:
    try:
        with trio.fail_after(CONNECT):
            return await trio.open_tcp_stream(*origin)
    except trio.TooSlowError:
        raise httpx.ConnectTimeout(f"no connection to {origin[0]}:{origin[1]} within {CONNECT:g} s") from None
    except OSError as error:
        raise httpx.ConnectError(f"cannot connect to {origin[0]}:{origin[1]}: {_innermost(error)}") from None


async def _send(stream: trio.SocketStream, data: bytes, *, reused: bool) -> None:
    try:
        await stream.send_all(data)
    except trio.BrokenResourceError:
        if reused:
            raise _DiedIdle from None
        # A server may answer, and close, without reading all of a request: what it says comes next.


def _innermost(error: BaseException) -> BaseException:
    """Of several addresses tried, why the last one failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _innermost(error.exceptions[-1]) if isinstance(error, BaseExceptionGroup) else error
