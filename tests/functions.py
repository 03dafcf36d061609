"""The function server of all tests and benchmarks: the functions behind a gateway, or a receiver of callbacks.

:class:`Connection` finds the end of each HTTP request, and passes it to a :class:`Server`. There are two servers:
:class:`Functions` here answers by script and records each request to the byte; the one of :mod:`benchmarks.functions`
counts requests and sends all the same response, at the lowest cost. Both run on asyncio, so both can use uvloop.

:class:`Functions` runs in a thread of its own, so that tests can block::

    with Functions() as functions:
        functions.answer("flaky", Reply(500), Reply(200))  # each call id gets the first, then always the second
        ...
        assert [request.line for request in functions.of("call-1")] == [...]
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Literal, Protocol, Self, cast
from urllib.parse import parse_qs, urlsplit

from tests.patience import LAST_RESORT

_BACKLOG = 16_384
"""Connections that the kernel accepts before the server does: more than any test opens at once."""
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+) *\r\n")
_NO_LINGER = struct.pack("ii", 1, 0)
"""With this option, closing a socket resets the connection."""


# HTTP.


class Server(Protocol):
    """A server that answers the requests of all connections. All methods are called on the event loop."""

    def opened(self, connection: Connection) -> None:
        """Note a new connection."""

    def closed(self, connection: Connection) -> None:
        """Note the end of a connection."""

    def received(self, connection: Connection, head: bytes, body: bytes | None) -> None:
        """Answer a whole request. *head* ends with an empty line; *body* is None without a Content-Length."""

    def received_while_busy(self, connection: Connection) -> None:
        """Note bytes that arrived while the connection was :attr:`Connection.busy`."""


class Connection(asyncio.Protocol):
    """One connection to a :class:`Server`."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.busy = False
        """The server has not answered the last request: the next one stays unread."""
        self._server = server
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport is no subclass
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- the protocol's signature
        self._server.closed(self)

    def data_received(self, data: bytes) -> None:
        if self.busy:
            self._server.received_while_busy(self)
        self._unread = self._unread + data if self._unread else data
        self.read()

    def read(self) -> None:
        """Pass each complete request to the server, until the server is busy with one."""
        unread = self._unread
        while not self.busy and (end := unread.find(b"\r\n\r\n") + 4) > 3:
            length = _LENGTH.search(unread, 0, end)
            if length:
                ends = end + int(length[1])
                if len(unread) < ends:
                    break
                self._unread = unread[ends:]
                self._server.received(self, unread[:end], unread[end:ends])
            else:
                self._unread = unread[end:]
                self._server.received(self, unread[:end], None)
            unread = self._unread


async def listen(server: Server, port: int = 0) -> asyncio.Server:
    """Serve on a port of the loopback, by default a free one."""
    loop = asyncio.get_running_loop()
    return await loop.create_server(lambda: Connection(server), "127.0.0.1", port, backlog=_BACKLOG)


def port_of(server: asyncio.Server) -> int:
    """Return the port that a server listens on."""
    return int(server.sockets[0].getsockname()[1])


# The script.


@dataclass(frozen=True, slots=True)
class Reply:
    """The response to a request."""

    status: int = 200
    body: bytes = b"ok"
    headers: tuple[tuple[str, str], ...] = ()
    after: float = 0.0
    """Seconds from the end of the request to the start of the response."""
    held: bool = False
    """Respond only after :meth:`Functions.release` for this function."""
    framing: Literal["length", "chunked", "close"] = "length"
    """The way in which the end of the body is marked."""
    close: bool = False
    """Close the connection afterwards, without a Connection header that announces it."""
    raw: bytes | None = None
    """Send exactly these bytes, and close."""
    reset: bool = False
    """Reset the connection after the response."""
    stall: bool = False
    """Do nothing after the response; the connection stays open."""

    def encode(self) -> bytes:
        """Return the bytes on the wire."""
        if self.raw is not None:
            return self.raw
        body, ending = self.body, f"Content-Length: {len(self.body)}"
        if self.framing == "chunked":
            pieces = [body[at : at + 1000] for at in range(0, len(body), 1000)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
            ending = "Transfer-Encoding: chunked"
        elif self.framing == "close":
            ending = "Connection: close"
        lines = [f"HTTP/1.1 {self.status} Whatever", *(f"{name}: {value}" for name, value in self.headers), ending]
        return "\r\n".join([*lines, "", ""]).encode() + body

    @property
    def closes(self) -> bool:
        """Whether the connection ends after the response."""
        return self.close or self.reset or self.raw is not None or self.framing == "close"


@dataclass(slots=True, eq=False)
class Request:
    """A request, byte for byte."""

    line: bytes
    """The request line."""
    headers: tuple[tuple[bytes, bytes], ...]
    """Names and values, unchanged and in order."""
    connection: int
    """The number of its connection, from 1."""
    began: float
    """The time when its header was read (s, ``time.monotonic``)."""
    number: int = 0
    """Its number among the requests of its call id, from 1."""
    body: bytes = b""
    ended: float | None = None
    """The time at which its response was sent, or its sender had disconnected."""
    disconnected: bool = False
    """Whether the sender closed the connection before the response."""
    reply: Reply | None = None
    """Its response; None while it runs, and if its sender disconnected first."""

    @property
    def method(self) -> str:
        return self.line.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.line.split(b" ")[1].decode()

    @property
    def name(self) -> str:
        """The name of the invoked function, without its namespace; elsewhere the path's first segment."""
        before, found, after = self.target.partition("?")[0].partition("/function/")
        name = (after if found else before).lstrip("/").partition("/")[0].partition(".")[0]
        return f"system/{name}" if self.is_look_up else name

    @property
    def is_look_up(self) -> bool:
        """Whether it asks OpenFaaS's gateway what it has about a function."""
        return "/system/function/" in self.target.partition("?")[0]

    @property
    def prefix(self) -> str:
        """The part of its path before ``/function/``, which comes from its sender's ``gateway_url``."""
        return self.target.partition("/function/")[0].lstrip("/")

    @property
    def call_id(self) -> str:
        return (self.all("X-Call-Id") or [""])[0]

    def all(self, name: str) -> list[str]:
        """Return all values of a header."""
        return [value.decode() for key, value in self.headers if key.lower() == name.lower().encode()]

    def header(self, name: str) -> str | None:
        """Return the only value of a header, or None without one.

        Raises:
            AssertionError: the header occurs more than once.
        """
        values = self.all(name)
        assert len(values) < 2, (name, values)
        return values[0] if values else None


@dataclass(slots=True)
class _Script:
    replies: tuple[Reply, ...]
    held: deque[asyncio.Future[None]] = field(default_factory=deque)
    released: float = 0
    """Number of held requests that may still be answered."""

    def hold(self) -> asyncio.Future[None]:
        """Hold a request: the future is done when it may be answered."""
        future = asyncio.get_running_loop().create_future()
        self.held.append(future)
        self.release(0)
        return future

    def release(self, count: float) -> None:
        """Let *count* more requests be answered, in the order of their arrival."""
        self.released += count
        while self.released and self.held:
            future = self.held.popleft()
            if not future.done():
                future.set_result(None)
                self.released -= 1


class Functions:
    """A :class:`Server` by script, in a thread of its own.

    Args:
        port: the port on the loopback; a free one by default.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.requests: list[Request] = []
        """All requests, in order of arrival."""
        self.running = 0
        """Number of requests that are not answered yet."""
        self.max_running = 0
        """Greatest number of requests that ran at once."""
        self.max_running_of: Counter[str] = Counter()
        """Greatest number of requests that ran at once, by function."""
        self.protocol_errors: list[str] = []
        """Violations of HTTP by clients."""
        self.override: Reply | None = None
        """While it is set, the reply to all requests, in place of the script's replies."""
        self.open = 0
        """Number of open connections."""
        self.look_ups: list[Request] = []
        """All requests for what the gateway has about a function, in order of arrival; not among the others."""
        self.look_up_reply: Reply | None = None
        """While it is set, the reply to these."""
        self.credentials = ""
        """The ``user:password`` that these must bring; empty for none."""
        self._deployed: dict[str, dict[str, str]] = {}
        self._limits: dict[str, int] = {}
        self._running: Counter[str] = Counter()
        self._scripts: dict[str, _Script] = {}
        self._default = _Script((Reply(),))
        self._numbers: Counter[str] = Counter()
        self._connections: dict[Connection, int] = {}
        self._accepted = 0
        self._answering: dict[Connection, tuple[Request, asyncio.Task[None] | None]] = {}
        """The request that each busy connection waits for, and the task that will answer it."""
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="functions", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(LAST_RESORT), "the function server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LAST_RESORT)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # The script.

    def answer(self, name: str, *replies: Reply) -> None:
        """Set the replies of a function, one for each request of a call id in turn; the last reply repeats."""
        self._scripts[name] = _Script(replies)

    def deploy(self, name: str, namespace: str = "openfaas-fn", **annotations: str) -> None:
        """Let the gateway have a function with annotations, ``retry_attempts`` for ``com.openfaas.retry.attempts``.

        Only the first underscore stands for a dot.
        """
        named = {f"com.openfaas.{key.replace('_', '.', 1)}": value for key, value in annotations.items()}
        self._deployed[f"{name}.{namespace}"] = named

    def remove(self, name: str, namespace: str = "openfaas-fn") -> None:
        """Let the gateway have a function no more."""
        self._deployed.pop(f"{name}.{namespace}", None)

    def limit(self, name: str, max_running: int) -> None:
        """Answer 429 to a request for *name* while *max_running* others run."""
        self._limits[name] = max_running

    def release(self, name: str, count: float = inf) -> None:
        """Answer *count* held requests for *name*, in order of arrival; by default all, also later ones."""
        self._loop.call_soon_threadsafe(self._scripts[name].release, count)

    # Requests.

    def of(self, call_id: str) -> list[Request]:
        """Return the requests of one call id, in order of arrival."""
        return [request for request in self.requests if request.call_id == call_id]

    def to(self, name: str) -> list[Request]:
        """Return the requests for one function, in order of arrival."""
        return [request for request in self.requests if request.name == name]

    def running_of(self, name: str) -> int:
        """Count the requests for one function that are not answered yet."""
        return self._running[name]

    def calls(self) -> Counter[str]:
        """Count the requests of each call id."""
        return Counter(request.call_id for request in self.requests)

    def gaps(self, call_id: str) -> Iterator[float]:
        """Yield the seconds from each answer of a call id to its next request."""
        requests = self.of(call_id)
        for one, following in pairwise(requests):
            assert one.ended is not None
            yield following.began - one.ended

    # The server.

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await listen(self, self.port)
        self.port = port_of(server)
        self._up.set()
        await self._stop.wait()
        server.close()
        for connection in [*self._connections]:
            connection.transport.abort()

    def opened(self, connection: Connection) -> None:
        """See :class:`Server`."""
        self._accepted += 1
        self.open += 1
        self._connections[connection] = self._accepted

    def closed(self, connection: Connection) -> None:
        """See :class:`Server`."""
        self.open -= 1
        del self._connections[connection]
        request, task = self._answering.pop(connection, (None, None))
        if request:
            request.disconnected = True
            if task:
                task.cancel()
                self._end(request)
            else:  # a stalled reply, which has begun
                request.ended = time.monotonic()

    def received_while_busy(self, connection: Connection) -> None:
        """See :class:`Server`."""
        self.protocol_errors.append(
            f"a request was sent on connection {self._connections[connection]} before the last answer"
        )

    def received(self, connection: Connection, head: bytes, body: bytes | None) -> None:
        """See :class:`Server`."""
        request = self._record(connection, head, body or b"")
        script = self._scripts.get(request.name, self._default)
        if request.is_look_up:
            reply = self.look_up_reply or self._describe(request)
        else:
            reply = self.override or script.replies[min(request.number, len(script.replies)) - 1]
        if self._running[request.name] >= self._limits.get(request.name, inf):
            reply = Reply(429)
        self.running += 1
        self._running[request.name] += 1
        self.max_running = max(self.max_running, self.running)
        self.max_running_of[request.name] = max(self.max_running_of[request.name], self._running[request.name])
        if reply.after or reply.held:
            connection.busy = True
            task = self._loop.create_task(self._answer_later(connection, request, reply, script))
            self._answering[connection] = request, task
        else:
            self._answer(connection, request, reply)

    def _record(self, connection: Connection, head: bytes, body: bytes) -> Request:
        line, *fields = head[:-4].split(b"\r\n")
        headers = tuple((name, value.strip(b" ")) for name, _, value in (each.partition(b":") for each in fields))
        request = Request(line, headers, self._connections[connection], time.monotonic(), body=body)
        if request.is_look_up:
            self.look_ups.append(request)
            return request
        self._numbers[request.call_id] += 1
        request.number = self._numbers[request.call_id]
        self.requests.append(request)
        return request

    def _describe(self, request: Request) -> Reply:
        """Return the reply of OpenFaaS's gateway and provider: a FunctionStatus, or 404 without a body."""
        basic = f"Basic {base64.b64encode(self.credentials.encode()).decode()}"
        if self.credentials and request.header("Authorization") != basic:
            return Reply(401, b"invalid credentials")
        parts = urlsplit(request.target)
        name, (namespace, *_) = parts.path.rpartition("/")[2], parse_qs(parts.query).get("namespace", ["openfaas-fn"])
        if (annotations := self._deployed.get(f"{name}.{namespace}")) is None:
            return Reply(404, b"")
        status = {
            "name": name,
            "image": f"registry.example/{name}:latest",
            "namespace": namespace,
            "labels": {"faas_function": name},
            "annotations": {"prometheus.io.scrape": "false"} | annotations,
            "invocationCount": 3,
            "replicas": 1,
            "availableReplicas": 1,
            "createdAt": "2026-11-28T20:00:00Z",
        }
        return Reply(200, json.dumps(status).encode(), (("Content-Type", "application/json"),))

    async def _answer_later(self, connection: Connection, request: Request, reply: Reply, script: _Script) -> None:
        await asyncio.sleep(reply.after)
        if reply.held:
            await script.hold()
        del self._answering[connection]
        connection.busy = False
        self._answer(connection, request, reply)
        connection.read()

    def _answer(self, connection: Connection, request: Request, reply: Reply) -> None:
        # Before the response is sent: its receiver may send the next request before this loop runs again.
        self._end(request)
        request.reply = reply
        transport = connection.transport
        transport.write(reply.encode())
        if reply.stall:
            connection.busy = True
            self._answering[connection] = request, None
        elif reply.reset:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()
        elif reply.closes:
            connection.busy = True  # further bytes are not read
            transport.close()

    def _end(self, request: Request) -> None:
        self.running -= 1
        self._running[request.name] -= 1
        request.ended = time.monotonic()
