"""One caller's connection: uvicorn's protocol, with a bound for each wait and each buffer.

- A start: :data:`MAX_START` bytes, and the timeout from its first byte. Above: 414, 431 or 408.
- A body: :data:`_MIN_RATE` in each timeout in which the application waits for it. Below: 408.
- Chunk lengths and trailers: :data:`_MAX_FRAMING` bytes in a row. Above: 400.
- What follows a request that is not answered: :data:`_MAX_HELD` bytes, which are not parsed. Above: closed.
- Responses that are not read: uvicorn's 64 kB, and the timeout without room for more. Above: closed.
- A body after its early answer: :data:`_MAX_DISCARDED` bytes, and the timeout. Above: closed.
- Silence: :data:`_KEEP_ALIVE` between requests, the timeout before the first. Above: closed.

Whatever two servers could read differently is rejected, because callers reach the producer through proxies: a request
that ends earlier for one of them than for the other smuggles in what is after it. httptools, which is Node.js's parser,
rejects most of it. The rest is rejected here: a coding besides ``chunked``, two lengths, and a host that is missing,
repeated or not that of the target. Trailers are dropped.
"""

from __future__ import annotations

import asyncio
import re
from http import HTTPStatus
from math import inf
from typing import ClassVar, cast

import httptools
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .connections import Connections

MAX_START = 72 * 1024
"""Bytes of request line and header. nginx takes 32 kB, Go 1 MB."""
_KEEP_ALIVE = 75.0
"""Seconds to keep an idle connection: as nginx, and more than the 60 for which load balancers commonly reuse one."""
_MIN_RATE = 500
"""Bytes a second of a body: a modem sends ten times as many."""
_MAX_FRAMING = 64 * 1024
_MAX_HELD = 512 * 1024
"""Twice what asyncio reads at once."""
_MAX_TARGET = 65_535
"""Bytes of a target: the parser's limit for an URL."""
_SLICE = 2_048
"""Bytes that the parser gets at once outside of bodies. It does not stop after a request, and uvicorn keeps some kB for
each that waits for the answer to another one."""
_MAX_PIPELINED = 100
"""Requests that wait for it, after a body."""
_MAX_DISCARDED = 32 * 2**20
"""Many clients read an early answer only after they have sent all."""
_HEALTH = ("/healthz", "/readyz")
"""Paths that are served to limited connections."""
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]+|\[[0-9A-Fa-f:.%A-Za-z]+\])?(?::[0-9]*)?")
"""A host without commas and users, which others may split. It may be empty, where the caller has no name for it."""
_ABSOLUTE = re.compile(rb"(?i:http)://([^/?#]*)")

Fields = list[tuple[bytes, bytes]]


class _RejectedRequestError(Exception):
    """A request that is not taken. The text is for the caller, and contains no value."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class CallerConnection(HttpToolsProtocol):
    """One of *connections*, which a subclass for one server has as an attribute."""

    all: ClassVar[Connections]
    limited = False
    _ending = False
    """True if what still comes is dropped: after a rejection, or a change of the protocol."""
    _in_start = False
    """True from the first byte of a request to the end of its header."""
    _in_body = False
    """True from the end of a request's header to the end of the request."""
    _start = _framing = _discarded = _body = 0
    """Bytes: of the start; of framing since the last part of a body; dropped; of the body since `_since`."""
    _since = 0.0
    """The time at which the wait began that is bounded now: for a request, for the rest of its start or body."""
    _stuck_since = inf
    """The time since which the caller does not read, or the connection is being closed."""
    _held = b""
    """Bytes after a request that is not answered."""

    # Called by the event loop.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._since = self.loop.time()
        self.all.add(self)
        if self.limited:
            self.app = cast("ASGI3Application", _serve_health_only(cast("ASGIApp", self.app)))

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.remove(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ending:
            self._discard(len(data))
        else:
            self._held += data
            while self._held and not self._ending and (self._in_body or not self._busy):
                size = _MAX_HELD if self._in_body else _SLICE
                part, self._held = self._held[:size], self._held[size:]
                self._feed(part)
            if self._ending:
                self._held = b""
            elif self._held:
                self.flow.pause_reading()  # until the application waits for the caller's end, or has answered
            if len(self._held) > _MAX_HELD:
                self.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stuck_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stuck_since = inf

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._in_start, self._start, self._since = True, 0, self.loop.time()
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:  # else it is a trailer
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_start = False
        self._check_size(len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers))
        _check_start(self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers)
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise _RejectedRequestError(429, "too many requests before the answer to the first")
        self._in_body, self._framing, self._discarded, self._body = True, 0, 0, 0
        self.all.set_busy(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._framing = 0
        self._body += len(body)
        if self.cycle.response_complete:
            self._discard(len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    # Called by uvicorn when a response is complete.

    def on_response_complete(self) -> None:
        """Start the next request. :meth:`check` bounds the wait for it, instead of uvicorn's timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self._since = self.loop.time()
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self.all.set_waiting(self)
        if self._held:
            self.data_received(b"")

    # Called by the connections.

    def abort(self) -> None:
        """Close the connection now, and drop what is not sent."""
        self.transport.abort()

    def check(self, now: float) -> None:
        """End what has taken too long at the time *now*."""
        timeout, busy = self.all.timeout, self._busy
        if self.transport.is_closing() or (self._ending and not busy):
            self._stuck_since = min(self._stuck_since, now)
        if self._stuck_since < inf:
            if now - self._stuck_since > timeout:
                self.abort()
        elif busy:
            self._check_body(now)
        elif self._in_start:
            if now - self._since > timeout:
                self._reject(_RejectedRequestError(408, f"the header did not arrive within {timeout:g} s"))
        elif now - self._since > (_KEEP_ALIVE if self.cycle and not self._in_body else timeout):
            self.transport.close()

    def _check_body(self, now: float) -> None:
        cycle, timeout = self.cycle, self.all.timeout
        waits = self._in_body and not cycle.body and not cycle.waiting_for_100_continue
        if waits and now - self._since <= timeout:
            return
        if waits and self._body < _MIN_RATE * timeout:
            self._reject(_RejectedRequestError(408, f"the body came with less than {_MIN_RATE} bytes a second"))
        self._since, self._body = now, 0

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not (self.cycle.response_complete or self.cycle.disconnected)

    def _feed(self, data: bytes) -> None:
        in_start, in_body, read = self._in_start, self._in_body, self._body
        try:
            self.parser.feed_data(data)
            if in_start and self._in_start:
                self._start += len(data)
                self._check_size(self._start)
            elif in_body and self._in_body and self._body == read:
                self._count_framing(len(data))
        except httptools.HttpParserUpgrade as upgrade:
            # Another protocol is offered, and not spoken, which is no error. But the parser stops there.
            self.parser = httptools.HttpRequestParser(self)
            self._held = data[upgrade.args[0] :] + self._held
        except httptools.HttpParserError as error:
            cause = error.__context__
            rejected = cause if isinstance(cause, _RejectedRequestError) else None
            self._reject(rejected or _RejectedRequestError(400, f"not a valid HTTP/1.1 request: {error}"))
        except _RejectedRequestError as rejected:
            self._reject(rejected)

    def _check_size(self, size: int) -> None:
        if len(self.url) > _MAX_TARGET:
            raise _RejectedRequestError(414, f"a target of more than {_MAX_TARGET} bytes")
        if size > MAX_START:
            raise _RejectedRequestError(431, f"request line and header of more than {MAX_START} bytes")

    def _count_framing(self, size: int) -> None:
        self._framing += size
        if self._framing > _MAX_FRAMING:
            raise _RejectedRequestError(400, f"more than {_MAX_FRAMING} bytes of chunk lengths or trailers")

    def _discard(self, size: int) -> None:
        self._discarded += size
        if self._discarded > _MAX_DISCARDED:
            self.abort()

    def _reject(self, rejected: _RejectedRequestError) -> None:
        """Answer with an error. What still comes is dropped, as a close with unread bytes could destroy the answer."""
        self._ending = True
        self.all.rejected[rejected.status] += 1
        if self._busy:
            if not self._in_body:  # another request is being answered, and its answer goes first
                self.cycle.keep_alive = False
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            if self.cycle.response_started or self.pipeline:
                self.abort()
                return
        text = f"{rejected.text}\n"
        status = HTTPStatus(rejected.status)
        self.transport.write(
            f"HTTP/1.1 {status} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(text)}\r\nx-openfaas-internal: queue-worker\r\n"
            f"connection: close\r\n\r\n{text}".encode()
        )
        self.transport.write_eof()


def _check_start(method: bytes, version: str, target: bytes, headers: Fields) -> None:
    """Reject what the parser takes, and another server could take differently."""
    values: dict[bytes, list[bytes]] = {b"host": [], b"content-length": [], b"transfer-encoding": []}
    for name, value in headers:
        if name in values:
            values[name].append(value)
    hosts, lengths, codings = values.values()
    if version not in ("1.0", "1.1"):
        raise _RejectedRequestError(505, "another version than HTTP/1.1 or HTTP/1.0")
    if method == b"CONNECT":
        raise _RejectedRequestError(501, "CONNECT: this is no proxy")
    if len(lengths) > 1 or (codings and (lengths or version != "1.1")):
        raise _RejectedRequestError(400, "more than one length, or a Transfer-Encoding in HTTP/1.0")
    if len(codings) > 1 or (codings and codings[0].strip().lower() != b"chunked"):
        raise _RejectedRequestError(501, "a Transfer-Encoding besides chunked")
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise _RejectedRequestError(400, "no Host, or more than one")
    _check_target(target, [host.strip(b" \t").lower() for host in hosts])


def _check_target(target: bytes, hosts: list[bytes]) -> None:
    absolute = _ABSOLUTE.match(target)
    if b"#" in target or not (absolute or target.startswith(b"/")):
        raise _RejectedRequestError(400, "an invalid target: write one that begins with a / and has no #")
    if hosts and not _HOST.fullmatch(hosts[0]):
        raise _RejectedRequestError(400, "an invalid Host")
    if absolute and [absolute[1].lower().removesuffix(b":80")] != [host.removesuffix(b":80") for host in hosts]:
        raise _RejectedRequestError(400, "a target with another host than Host")


def _serve_health_only(app: ASGIApp) -> ASGIApp:
    busy = PlainTextResponse("too many connections: try again\n", 503, {"Retry-After": "1", "Connection": "close"})

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await (app if scope["path"] in _HEALTH else busy)(scope, receive, send)

    return serve
