"""The time from publication to invocation, with publisher and function in one process, and so one clock.

``python -m benchmarks.prober PORT_FILE NATS_PORT SUBJECT COUNT PACE < message``

Publishes the message from standard input, waits until it arrives as an invocation, waits for the next beat of *PACE*
seconds, and so on, *COUNT* times; then prints the times (µs), one a line. One message is in flight at a time, so
that none waits. It uses its own socket to NATS, because a client's buffering would be measured too.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import uvloop

from tests.functions import listen

from .functions import FixedAnswer, write_port


class Arrivals(FixedAnswer):
    """A function server that records when an invocation arrives."""

    def __init__(self) -> None:
        super().__init__(delay=0.0)
        self.arrived: asyncio.Future[int] | None = None

    def invoke(self, connection: asyncio.Transport) -> None:
        """Record the time of the awaited invocation, and answer it."""
        now = time.monotonic_ns()
        if self.arrived and not self.arrived.done():
            self.arrived.set_result(now)
        super().invoke(connection)


async def probe(port_file: Path, nats_port: int, subject: str, count: int, pace: float) -> None:
    """Print the times from publication to invocation."""
    loop = asyncio.get_running_loop()
    arrivals = Arrivals()
    write_port(port_file, await listen(arrivals))
    payload = sys.stdin.buffer.read()
    block = b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(payload), payload)
    reader, writer = await asyncio.open_connection("127.0.0.1", nats_port)
    writer.write(b'CONNECT {"verbose":false,"pedantic":false}\r\n')
    answering = asyncio.create_task(_answer_pings(reader, writer))
    beat = time.monotonic() + pace
    for _ in range(count):
        arrivals.arrived = loop.create_future()
        started_at = time.monotonic_ns()
        writer.write(block)
        print((await arrivals.arrived - started_at) / 1e3)
        await asyncio.sleep(max(0.0, beat - time.monotonic()))
        beat = max(beat, time.monotonic()) + pace
    answering.cancel()


async def _answer_pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while line := await reader.readline():
        if line.startswith(b"PING"):
            writer.write(b"PONG\r\n")


def main() -> None:
    """Run the command."""
    port_file, nats_port, subject, count, pace = sys.argv[1:]
    uvloop.run(probe(Path(port_file), int(nats_port), subject, int(count), float(pace)))


if __name__ == "__main__":
    main()
