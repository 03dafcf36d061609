"""A client that repeats one request on many connections, to measure the capacity of a server.

``python -m benchmarks.client HOST:PORT PATH COUNT CONNECTIONS < body``

One request at a time on each connection. Prints how many were answered with 2xx, in how many
seconds, and how much CPU (s) that took here.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from typing import cast

import uvloop

_STATUS = re.compile(rb"HTTP/1\.1 2\d\d ")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)\r\n")


class Load:
    """The counts that all connections share: requests still to be sent, and to be answered."""

    def __init__(self, request: bytes, count: int) -> None:
        self.request = request
        self.unsent = self.unanswered = count
        self.good = 0
        self.done = asyncio.Event()

    def answered(self, *, good: bool) -> None:
        """Count one complete response."""
        self.good += good
        self.unanswered -= 1
        if not self.unanswered:
            self.done.set()


class Connection(asyncio.Protocol):
    """One connection: a request, its answer, the next request."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._unread = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport is no subclass
        self._next()

    def data_received(self, data: bytes) -> None:
        self._unread += data
        end = self._unread.find(b"\r\n\r\n") + 4
        if end < 4:
            return
        length = _LENGTH.search(self._unread, 0, end)
        if len(self._unread) < end + int(length[1] if length else 0):
            return
        good = _STATUS.match(self._unread) is not None
        self._unread = b""
        self._load.answered(good=good)
        self._next()

    def _next(self) -> None:
        if self._load.unsent:
            self._load.unsent -= 1
            self._transport.write(self._load.request)


async def load(address: str, path: str, body: bytes, count: int, connections: int) -> None:
    """Send all requests, and print the counts."""
    host, _, port = address.partition(":")
    head = f"POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
    shared = Load(head.encode() + body, count)
    started_at = time.monotonic()
    loop = asyncio.get_running_loop()
    await asyncio.gather(
        *(loop.create_connection(lambda: Connection(shared), host, int(port)) for _ in range(connections))
    )
    await shared.done.wait()
    print(shared.good, time.monotonic() - started_at, time.process_time())


def main() -> None:
    """Run the command."""
    address, path, count, connections = sys.argv[1:]
    uvloop.run(load(address, path, sys.stdin.buffer.read(), int(count), int(connections)))


if __name__ == "__main__":
    main()
