"""A server by script: one call for each connection, over TLS where it is given a certificate."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

Stream = trio.abc.Stream

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Server:
    """A server by script: one call for each connection; *requests* are the bytes as they came."""

    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)

    async def read(self, stream: Stream) -> bytes:
        """One request, by its Content-Length; b"" at the end."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := await stream.receive_some(65536)):
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line[15:]):
                    body += await stream.receive_some(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return head


Script = Callable[[Server, Stream], Awaitable[None]]


@asynccontextmanager
async def serving(script: Script, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    """Run *script* for each connection."""
    server = Server()

    async def handle(stream: Stream) -> None:
        server.connections += 1
        try:
            await script(server, stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    serve = partial(trio.serve_ssl_over_tcp, ssl_context=tls, https_compatible=True) if tls else trio.serve_tcp
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(serve, handle, 0, host="127.0.0.1", backlog=4096))
        server.port = getattr(listener, "transport_listener", listener).socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


async def answer_all(server: Server, stream: Stream) -> None:
    """200 to each request, the connection kept."""
    while await server.read(stream):
        await stream.send_all(OK)


def one_answer(data: bytes) -> Script:
    """The same bytes to the first request, then the end."""

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        await stream.send_all(data)

    return script
