"""The benchmarks' function server: it answers each invocation with ``ok``, at once or after a delay.

``python -m benchmarks.functions PORT_FILE [--delay SECONDS]``

The server must never be the bottleneck. It parses just enough of HTTP/1.1 to find the end of a request
(:class:`tests.functions.Connection`), and costs about a tenth of the fastest worker's CPU. ``GET /stats`` returns its
counts as JSON. It answers a request that it cannot read with 400, counts it, and closes the connection.

All delays have the same length, so waiting requests form a queue in the order of their ends: one timer serves ten
thousand of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import time
from collections import deque
from pathlib import Path

from tests.functions import Connection, listen, port_of

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"
_UNAVAILABLE = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"
_REFUSAL = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_TICK = 0.005
"""Seconds between two checks of the waiting requests."""


class FixedAnswer:
    """A :class:`tests.functions.Server`: the counts of all connections, and the waiting requests.

    Args:
        delay: seconds from a request to its answer.
    """

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.served = self.running = self.connections = self.refused = 0
        self.last = 0.0
        """The time of the last answer, by the machine's monotonic clock (s)."""
        self._failed = set[bytes]()
        self._waiting: deque[tuple[float, asyncio.Transport]] = deque()

    def opened(self, connection: Connection) -> None:  # noqa: ARG002 -- the protocol's signature
        """Count a connection."""
        self.connections += 1

    def closed(self, connection: Connection) -> None:  # noqa: ARG002 -- the protocol's signature
        """Remove a connection from the count."""
        self.connections -= 1

    def received_while_busy(self, connection: Connection) -> None:
        """Ignore pipelining: no connection is ever busy here."""

    def received(self, connection: Connection, head: bytes, body: bytes | None) -> None:
        """Answer an invocation, or a request for the counts."""
        if body is not None and head.startswith(b"POST /function/failing-once/"):
            self._fail_once(head.split(b" ", 2)[1], connection.transport)
        elif body is not None and head.startswith(b"POST /function/"):
            self.invoke(connection.transport)
        elif body is None and head.startswith(b"GET /stats"):
            stats = self.stats()
            connection.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(stats), stats))
        else:
            self.refused += 1
            connection.busy = True  # further bytes are not read
            connection.transport.write(_REFUSAL)
            connection.transport.close()

    def _fail_once(self, target: bytes, connection: asyncio.Transport) -> None:
        """Answer the first request for a target with 503, and the second one as usual. Both count."""
        if target in self._failed:
            self._failed.remove(target)
            self.invoke(connection)
        else:
            self._failed.add(target)
            self.served += 1
            connection.write(_UNAVAILABLE)

    def invoke(self, connection: asyncio.Transport) -> None:
        """Answer one invocation, after the delay."""
        self.running += 1
        if not self.delay:
            self._answer(connection)
            return
        if not self._waiting:
            asyncio.get_running_loop().call_later(_TICK, self._tick)
        self._waiting.append((time.monotonic() + self.delay, connection))

    def stats(self) -> bytes:
        """Return the counts as JSON: invocations answered, running, refused; connections open; time of last answer."""
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


async def serve(port_file: Path, delay: float) -> None:
    """Write the port to *port_file*, and serve until SIGTERM."""
    server = await listen(FixedAnswer(delay))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    write_port(port_file, server)
    await stop.wait()


def write_port(port_file: Path, server: asyncio.Server) -> None:
    """Write the port that *server* listens on, whole or not at all."""
    written = port_file.with_suffix(".part")
    written.write_text(str(port_of(server)))
    written.rename(port_file)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port_file", type=Path)
    parser.add_argument("--delay", type=float, default=0.0)
    arguments = parser.parse_args()
    import uvloop  # noqa: PLC0415 -- of the bench extra; the rest of this module is tested without

    uvloop.run(serve(arguments.port_file, arguments.delay))


if __name__ == "__main__":
    main()
