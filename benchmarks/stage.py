"""One run: a broker with a full queue, a function server, and a contender that processes the queue."""

from __future__ import annotations

import http.client
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import NatsServer
from worker.dev.stack import free_port

from .contenders import Contender
from .machine import MEASURED, cpu
from .programs import RunFailedError, Running, program, wait
from .queue import DURABLE, STREAM, empty_queue, fill


class FunctionServer:
    """A running function server with its counts: see :mod:`benchmarks.functions`."""

    def __init__(self, running: Running, port: int) -> None:
        self.running = running
        self.url = f"http://127.0.0.1:{port}"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def stats(self) -> dict[str, Any]:
        """Return the server's counts."""
        self._connection.request("GET", "/stats")
        stats: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return stats

    def wait_for(self, served: int, worker: Running) -> None:
        """Wait until *served* invocations of *worker* were answered.

        Raises:
            RunFailedError: it ended, sent a request that was refused, or took more than ten minutes.
        """
        wait(lambda: self.stats()["served"] >= served, 600, f"{worker.name} to have run {served:,}", worker)
        if refused := self.stats()["refused"]:
            raise RunFailedError(f"{worker.name} sent {refused} requests that the function server refused")


@contextmanager
def functions(directory: Path, delay: float = 0.0) -> Iterator[FunctionServer]:
    """Run a function server with all its counts at zero."""
    port_file = directory / "functions.port"
    port_file.unlink(missing_ok=True)
    command = (sys.executable, "-m", "benchmarks.functions", str(port_file), "--delay", str(delay))
    with program("functions", command, directory, {}) as running:
        port = wait(lambda: port_file.exists() and int(port_file.read_text()), 30, "the function server", running)
        yield FunctionServer(running, port)


@contextmanager
def start_contender(
    contender: Contender,
    directory: Path,
    nats: NatsServer,
    gateway: str,
    *,
    cores: frozenset[int] = MEASURED,
    **settings: object,
) -> Iterator[Running]:
    """Run *contender* on the queue, with its functions at *gateway* and the worker's other settings by name."""
    values = {
        "nats_port": nats.port,
        "nats_stream": STREAM,
        "nats_durable": DURABLE,
        "gateway_url": gateway,
        "max_inflight": 50,
        "http_host": "127.0.0.1",
        "http_port": free_port(),
        **contender.settings,
        **settings,
    }
    with program(
        contender.name, contender.command, directory, {k: str(v) for k, v in values.items()}, cores=cores
    ) as running:
        yield running


@dataclass(frozen=True, slots=True)
class Sample:
    """The counts at one time."""

    at: float
    served: int
    worker: float
    functions: float
    """CPU of the function server (s); the others are those of worker and broker."""
    broker: float
    running: int


@dataclass(frozen=True, slots=True)
class Span:
    """The cost of a run between two samples."""

    messages: int
    rate: float
    """Messages a second."""
    cpu: float
    """The worker's CPU a message (s)."""
    functions: float
    """The function server's CPU a message (s)."""
    broker: float
    running: int
    """Running invocations at the function server at the end."""


def between(first: Sample, last: Sample) -> Span:
    """Compute the cost from the first sample to the last."""
    count = last.served - first.served
    return Span(
        count,
        count / (last.at - first.at),
        (last.worker - first.worker) / count,
        (last.functions - first.functions) / count,
        (last.broker - first.broker) / count,
        last.running,
    )


def run_contender(
    contender: Contender,
    directory: Path,
    nats: NatsServer,
    *,
    warm: int,
    count: int,
    inflight: int,
    delay: float = 0.0,
    cores: frozenset[int] = MEASURED,
    **settings: object,
) -> Span:
    """Let *contender* process a full queue, and return the cost of *count* messages after *warm* messages.

    The queue is filled before the clock starts, and is not empty when it stops.
    """
    margin = max(1000, 2 * inflight)
    empty_queue(nats)
    fill(nats, warm + count + margin)
    with (
        functions(directory, delay) as server,
        start_contender(
            contender, directory, nats, server.url, cores=cores, max_inflight=inflight, **settings
        ) as worker,
    ):

        def sample_after(served: int) -> Sample:
            server.wait_for(served, worker)
            at, stats = time.monotonic(), server.stats()
            return Sample(
                at, stats["served"], cpu(worker.pid), cpu(server.running.pid), cpu(nats.pid), stats["running"]
            )

        return between(sample_after(warm), sample_after(warm + count))
