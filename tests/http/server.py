"""A server that runs a script for each connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from worker.events import Event

Stream = trio.abc.Stream

LOOPBACK = {"callback_allow": "127.0.0.0/8,::1"}
"""The setting that allows callbacks to the receivers of tests."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def ignore(event: Event) -> None:
    """Ignore an event: a sink for tests of what emits none."""


@dataclass
class Server:
    """A server that runs a script for each connection; *requests* are the bytes that arrived."""

    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)

    async def read(self, stream: Stream) -> bytes:
        """Read one request, by its Content-Length; return its header, or b"" where the connection ends."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := await stream.receive_some(65536)):
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line[15:]):
                    if not (more := await stream.receive_some(65536)):
                        return b""
                    body += more
        self.requests.append(head + b"\r\n\r\n" + body)
        return head


Script = Callable[[Server, Stream], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    """Run *script* for each connection, on a free port."""
    server = Server()

    async def handle(stream: Stream) -> None:
        server.connections += 1
        try:
            await script(server, stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1", backlog=4096))
        server.port = listener.socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


async def answer_all(server: Server, stream: Stream) -> None:
    """Answer 200 to each request and keep the connection."""
    while await server.read(stream):
        await stream.send_all(OK)


def one_answer(data: bytes) -> Script:
    """Return a script that answers the first request with *data* and closes the connection."""

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        await stream.send_all(data)

    return script
