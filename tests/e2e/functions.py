"""A scriptable HTTP server: the functions behind a gateway, or what takes callbacks.

It runs in a thread of its own, so that tests can block. It records each request to the byte, and answers by script::

    with Functions() as functions:
        functions.answer("flaky", Reply(500), Reply(200))  # each call id gets the first, then the second for ever
        ...
        assert [request.line for request in functions.of("call-1")] == [...]
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Literal, Self

import trio

_READ = 65_536
_NO_LINGER = struct.pack("ii", 1, 0)
"""With it, closing a socket resets the connection."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer."""

    status: int = 200
    body: bytes = b"ok"
    headers: tuple[tuple[str, str], ...] = ()
    after: float = 0.0
    """Seconds from the request's end to the answer's beginning."""
    held: bool = False
    """Answer only when :meth:`SubjectDiscovery.release` was called for this function."""
    framing: Literal["length", "chunked", "close"] = "length"
    """How the body ends."""
    close: bool = False
    """Close the connection afterwards, without having said so."""
    raw: bytes | None = None
    """Send just this, and close."""
    reset: bool = False
    """Having sent it, reset the connection."""
    stall: bool = False
    """Having sent it, do nothing more; the connection stays open."""

    def written(self) -> bytes:
        """The bytes on the wire."""
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
    def last(self) -> bool:
        """Whether the connection ends with it."""
        return self.close or self.reset or self.raw is not None or self.framing == "close"


@dataclass(slots=True, eq=False)
class Request:
    """One request, as it came over the wire."""

    line: bytes
    """The request line."""
    headers: tuple[tuple[bytes, bytes], ...]
    """In order, names and values as they were written."""
    connection: int
    """Which connection of the server it came over."""
    began: float
    """When its header was read (s, ``time.monotonic``)."""
    number: int = 0
    """Which request of its call id this is, from 1."""
    body: bytes = b""
    ended: float | None = None
    """When its answer was about to be sent, or its sender had gone."""
    gone: bool = False
    """The sender closed the connection before the answer."""
    reply: Reply | None = None
    """What it was answered; None while it runs, and where its sender had gone."""

    @property
    def method(self) -> str:
        return self.line.split(b" ")[0].decode()

    @property
    def target(self) -> str:
        return self.line.split(b" ")[1].decode()

    @property
    def name(self) -> str:
        """The function asked for, without its namespace; elsewhere the path's first segment."""
        before, found, after = self.target.partition("?")[0].partition("/function/")
        return (after if found else before).lstrip("/").partition("/")[0].partition(".")[0]

    @property
    def prefix(self) -> str:
        """What stands before ``/function/`` in its path: that of its sender's ``gateway_url``."""
        return self.target.partition("/function/")[0].lstrip("/")

    @property
    def call_id(self) -> str:
        return (self.all("X-Call-Id") or [""])[0]

    def all(self, name: str) -> list[str]:
        """All values of a header."""
        return [value.decode() for key, value in self.headers if key.lower() == name.lower().encode()]

    def header(self, name: str) -> str | None:
        """The one value of a header, None where there is none.

        Raises:
            AssertionError: it stands there more than once.
        """
        values = self.all(name)
        assert len(values) < 2, (name, values)
        return values[0] if values else None


@dataclass(slots=True)
class _Script:
    replies: tuple[Reply, ...]
    released: trio.Event = field(default_factory=trio.Event)


class Functions:
    """The server, on a port of the loopback.

    Args:
        port: which; a free one by default.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.requests: list[Request] = []
        """All of them, in order of arrival."""
        self.running = 0
        """Requests that came and are not answered yet."""
        self.most = 0
        """The most that ever ran at once."""
        self.peaks: Counter[str] = Counter()
        """The same, by name."""
        self.faults: list[str] = []
        """What no HTTP client may do."""
        self.instead: Reply | None = None
        """What everyone gets, as long as it is set, whatever the script says."""
        self._limits: dict[str, int] = {}
        """Most requests at once, by name; one more is answered 429."""
        self._running: Counter[str] = Counter()
        self._scripts: dict[str, _Script] = {}
        self._numbers: Counter[str] = Counter()
        self._connections = 0
        self.open = 0
        """Connections that are."""
        self._default = _Script((Reply(),))
        self._up = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,), name="functions", daemon=True)
        self._token: trio.lowlevel.TrioToken
        self._life: trio.CancelScope

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._up.wait(15), "the function server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        trio.from_thread.run_sync(self._life.cancel, trio_token=self._token)
        self._thread.join(15)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    # The script.

    def answer(self, name: str, *replies: Reply) -> None:
        """What requests for *name* get: the first of a call id the first reply, and so on, the last one for ever."""
        self._scripts[name] = _Script(replies)

    def limit(self, name: str, most: int) -> None:
        """Answer 429 to requests for *name* while so many of them run."""
        self._limits[name] = most

    def release(self, name: str) -> None:
        """Answer the held requests for *name*, those to come too."""
        trio.from_thread.run_sync(self._scripts[name].released.set, trio_token=self._token)

    # What came.

    def of(self, call_id: str) -> list[Request]:
        """The requests of one call id, in order of arrival."""
        return [request for request in self.requests if request.call_id == call_id]

    def to(self, name: str) -> list[Request]:
        """The requests for one function, in order of arrival."""
        return [request for request in self.requests if request.name == name]

    def calls(self) -> Counter[str]:
        """How many requests each call id had."""
        return Counter(request.call_id for request in self.requests)

    def gaps(self, call_id: str) -> Iterator[float]:
        """Seconds from each answer of a call id to its next request."""
        requests = self.of(call_id)
        for one, following in pairwise(requests):
            assert one.ended is not None
            yield following.began - one.ended

    # The server.

    async def _main(self) -> None:
        with trio.CancelScope() as self._life:
            self._token = trio.lowlevel.current_trio_token()
            listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1", backlog=1024)
            self.port = listeners[0].socket.getsockname()[1]
            self._up.set()
            await trio.serve_listeners(self._connection, listeners)

    async def _connection(self, stream: trio.SocketStream) -> None:
        self._connections += 1
        self.open += 1
        number, buffer = self._connections, bytearray()
        try:
            async with stream:
                while request := await self._read(stream, buffer, number):
                    if not await self._answer(stream, request):
                        return
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1

    async def _read(self, stream: trio.SocketStream, buffer: bytearray, connection: int) -> Request | None:
        while (end := buffer.find(b"\r\n\r\n")) < 0:
            if not (data := await stream.receive_some(_READ)):
                return None
            buffer += data
        line, *fields = bytes(buffer[:end]).split(b"\r\n")
        del buffer[: end + 4]
        headers = tuple((name, value.strip(b" ")) for name, _, value in (each.partition(b":") for each in fields))
        request = Request(line, headers, connection, time.monotonic())
        length = int(request.header("Content-Length") or 0)
        while len(buffer) < length:
            if not (data := await stream.receive_some(_READ)):
                return None
            buffer += data
        request.body = bytes(buffer[:length])
        del buffer[:length]
        self._numbers[request.call_id] += 1
        request.number = self._numbers[request.call_id]
        self.requests.append(request)
        return request

    async def _answer(self, stream: trio.SocketStream, request: Request) -> bool:
        """Answer; whether the connection can be used again."""
        script = self._scripts.get(request.name, self._default)
        reply = self.instead or script.replies[min(request.number, len(script.replies)) - 1]
        if self._running[request.name] >= self._limits.get(request.name, inf):
            reply = Reply(429)
        self.running += 1
        self._running[request.name] += 1
        self.most = max(self.most, self.running)
        self.peaks[request.name] = max(self.peaks[request.name], self._running[request.name])
        if reply.after or reply.held:
            await self._wait(stream, request, reply, script.released)
        # Before the answer is sent: its receiver may begin the next request before we run again.
        self.running -= 1
        self._running[request.name] -= 1
        request.ended = time.monotonic()
        if request.gone:
            return False
        request.reply = reply
        await stream.send_all(reply.written())
        if reply.stall:
            await self._listen_for_end(stream)
            request.gone, request.ended = True, time.monotonic()
        if reply.reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            stream.socket.close()
        return not reply.last and not reply.stall

    async def _wait(self, stream: trio.SocketStream, request: Request, reply: Reply, released: trio.Event) -> None:
        async def watch() -> None:
            await self._listen_for_end(stream)
            request.gone = True
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(reply.after)
            if reply.held:
                await released.wait()
            nursery.cancel_scope.cancel()

    async def _listen_for_end(self, stream: trio.SocketStream) -> None:
        try:
            if await stream.receive_some(1):
                self.faults.append("a request was sent before the last one of its connection was answered")
        except trio.BrokenResourceError:
            pass
