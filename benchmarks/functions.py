"""The function server: answers every invocation with ``ok``, at once or after a delay. It must never be the bottleneck.

``python -m benchmarks.functions PORT_FILE [--delay SECONDS]``

It reads just enough of HTTP/1.1 to know where a request ends, and costs about a tenth of the fastest worker's CPU.
``GET /stats`` tells what it has seen, as JSON. What it cannot read it answers with 400, counts, and hangs up.

All delays are the same length, so those who wait stand in a queue in the order of their ends: one timer serves ten
thousand of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import time
from collections import deque
from pathlib import Path
from typing import cast

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
_REFUSAL = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")
_TICK = 0.005
"""Seconds between two looks at who has waited long enough."""


class Functions:
    """What all connections share: the counts, and who waits."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.served = self.running = self.connections = self.refused = 0
        self.last = 0.0
        """When the last answer was given, by the machine's monotonic clock (s)."""
        self._waiting: deque[tuple[float, asyncio.Transport]] = deque()

    def invoke(self, connection: asyncio.Transport) -> None:
        """One whole request has come."""
        self.running += 1
        if not self.delay:
            self._answer(connection)
            return
        if not self._waiting:
            asyncio.get_running_loop().call_later(_TICK, self._tick)
        self._waiting.append((time.monotonic() + self.delay, connection))

    def stats(self) -> bytes:
        """Counts of invocations answered, running, refused; of connections open; when the last answer was given."""
        names = ("served", "running", "refused", "connections", "last")
        return json.dumps({name: getattr(self, name) for name in names}).encode()

    def _tick(self) -> None:
        now = time.monotonic()
        while self._waiting and self._waiting[0][0] <= now:
            self._answer(self._waiting.popleft()[1])
            self.last = time.monotonic()
        if self._waiting:
            asyncio.get_running_loop().call_later(_TICK, self._tick)

    def _answer(self, connection: asyncio.Transport) -> None:
        self.running -= 1
        self.served += 1
        connection.write(_ANSWER)


class Connection(asyncio.Protocol):
    """One connection: finds where each request ends."""

    def __init__(self, functions: Functions) -> None:
        self._functions = functions
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name
        self._functions.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 -- the protocol's signature
        self._functions.connections -= 1

    def data_received(self, data: bytes) -> None:
        unread = self._unread + data if self._unread else data
        while (end := unread.find(b"\r\n\r\n") + 4) > 3:
            if unread.startswith(b"GET /stats"):
                self._tell()
                unread = unread[end:]
                continue
            length = _LENGTH.search(unread, 0, end)
            if not length or not unread.startswith(b"POST /function/"):
                self._refuse()
                return
            end += int(length[1])
            if len(unread) < end:
                break
            self._functions.invoke(self._transport)
            unread = unread[end:]
        self._unread = unread

    def _tell(self) -> None:
        stats = self._functions.stats()
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(stats), stats))

    def _refuse(self) -> None:
        self._functions.refused += 1
        self._transport.write(_REFUSAL)
        self._transport.close()


async def serve(port_file: Path, delay: float) -> None:
    """Serve until SIGTERM, having written the port to *port_file*."""
    loop = asyncio.get_running_loop()
    functions = Functions(delay)
    server = await loop.create_server(lambda: Connection(functions), "127.0.0.1", 0, backlog=16384)
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    told_port(port_file, server)
    await stop.wait()


def told_port(port_file: Path, server: asyncio.Server) -> None:
    """Write the port that *server* listens on, whole or not at all."""
    written = port_file.with_suffix(".part")
    written.write_text(str(server.sockets[0].getsockname()[1]))
    written.rename(port_file)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port_file", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    import uvloop  # noqa: PLC0415 -- of the bench extra; the rest of this module is tested without

    uvloop.run(serve(arguments.port_file, arguments.delay))


if __name__ == "__main__":
    main()
