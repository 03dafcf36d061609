"""One run: a broker with a queue full of messages, a function server, and a contender that works it off."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.servers import ROOT, NatsServer, environment, free_port
from worker.gateway.message import compose

from .contenders import Contender
from .machine import MEASURED, REST, cpu, pin

STREAM, DURABLE = "faas-request", "faas-workers"
_BATCH = 2000
"""Messages published at once: below the server's bound of what may wait to be stored."""
_LOOK = 0.01
"""Seconds between two looks at the counts: about one message in a hundred of a second's."""


class Failed(Exception):  # noqa: N818 -- it says what happened
    """A run is not worth anything: a program ended, or nothing moved. The text says which."""


@dataclass(frozen=True, slots=True)
class Running:
    """A program that was started."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """See that it still runs.

        Raises:
            Failed: it ended.
        """
        if (code := self.process.poll()) is not None:
            raise Failed(f"{self.name} ended with {code}:\n{self.told[-3000:]}")

    @property
    def told(self) -> str:
        """What it wrote."""
        return self.output.read_text(errors="replace")

    def finish(self, patience: float) -> str:
        """Wait until it ends by itself, in good order; what it wrote.

        Raises:
            Failed: it does not, in *patience* seconds.
        """
        try:
            if self.process.wait(patience):
                self.check()
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} still runs after {patience:g} s:\n{self.told[-3000:]}") from None
        return self.told


@contextmanager
def program(
    name: str,
    command: tuple[str, ...],
    directory: Path,
    settings: Mapping[str, str],
    *,
    cores: frozenset[int] = REST,
    stdin: bytes = b"",
) -> Iterator[Running]:
    """A program for the time of the block, on some cores; both its outputs in one file, which is really written."""
    output, given = (directory / f"{name}.{time.monotonic_ns()}.{suffix}" for suffix in ("out", "in"))
    given.write_bytes(stdin)
    with output.open("wb") as file, given.open("rb") as fed:
        process = subprocess.Popen(  # noqa: S603 -- our own
            command,
            stdin=fed,
            stdout=file,
            stderr=file,
            env=environment(settings),
            cwd=ROOT,
            preexec_fn=lambda: pin(cores),  # noqa: PLW1509 -- there are no threads here
            start_new_session=True,
        )
    try:
        yield Running(name, process, output)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output.unlink()
    given.unlink()


class FunctionServer:
    """Ours to ask what it has seen: see :mod:`benchmarks.functions`."""

    def __init__(self, running: Running, port: int) -> None:
        self.running = running
        self.url = f"http://127.0.0.1:{port}"
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def stats(self) -> dict[str, Any]:
        """Its counts."""
        self._connection.request("GET", "/stats")
        stats: dict[str, Any] = json.loads(self._connection.getresponse().read())
        return stats

    def wait_for(self, served: int, worker: Running) -> None:
        """Wait until *worker* has had so many invocations answered.

        Raises:
            Failed: it ended, sent what we refused, or took more than ten minutes.
        """
        wait(lambda: self.stats()["served"] >= served, 600, f"{worker.name} to have run {served:,}", worker)
        if refused := self.stats()["refused"]:
            raise Failed(f"{worker.name} sent {refused} requests that the function server refused")


@contextmanager
def functions(directory: Path, delay: float = 0.0) -> Iterator[FunctionServer]:
    """A function server with all its counts at nothing."""
    port_file = directory / "functions.port"
    port_file.unlink(missing_ok=True)
    command = (sys.executable, "-m", "benchmarks.functions", str(port_file), "--delay", str(delay))
    with program("functions", command, directory, {}) as running:
        port = wait(lambda: port_file.exists() and int(port_file.read_text()), 30, "the function server", running)
        yield FunctionServer(running, port)


@contextmanager
def contender(
    who: Contender,
    directory: Path,
    nats: NatsServer,
    gateway: str,
    *,
    cores: frozenset[int] = MEASURED,
    **settings: object,
) -> Iterator[Running]:
    """*who*, at work on the queue, its functions at *gateway*; told our other settings by name."""
    told = {
        "nats_port": nats.port,
        "nats_stream": STREAM,
        "nats_durable": DURABLE,
        "gateway_url": gateway,
        "max_inflight": 50,
        "http_host": "127.0.0.1",
        "http_port": free_port(),
        **who.settings,
        **settings,
    }
    with program(who.name, who.command, directory, {k: str(v) for k, v in told.items()}, cores=cores) as running:
        yield running


def empty_queue(nats: NatsServer, storage: str = "memory", **changes: Any) -> None:
    """Stream and consumer anew, as the worker itself makes them, but in memory, and for *changes* of the consumer's."""
    if nats.state():
        nats.api(f"STREAM.DELETE.{STREAM}")
    nats.make_stream(STREAM, storage=storage)
    consumer = {
        "durable_name": DURABLE,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "max_deliver": -1,
        "max_ack_pending": -1,
        "max_waiting": 512,
        "ack_wait": 60_000_000_000,
    } | changes
    nats.api(f"CONSUMER.DURABLE.CREATE.{STREAM}.{DURABLE}", stream_name=STREAM, config=consumer)


BODY = bytes(range(256))
_HEADERS = {
    "Accept": ["*/*"],
    "Content-Type": ["application/octet-stream"],
    "User-Agent": ["curl/8.5.0"],
    "X-Forwarded-For": ["10.42.0.17"],
    "X-Forwarded-Host": ["gateway.openfaas.example"],
}
"""What a gateway behind an ingress gets."""


def message(number: int, function: str = "echo") -> bytes:
    """An invocation with a body of 256 bytes, as OpenFaaS's gateway and our producer write it."""
    call_id = f"7d9c8f1e-0000-4000-8000-{number:012}"
    draft = compose(function, _HEADERS, queue=STREAM, namespace="openfaas-fn", new_call_id=call_id, now=time.time_ns())
    return draft.message(BODY).payload


def asked(nats: NatsServer) -> int:
    """How many requests for messages wait at the consumer."""
    waiting: int = nats.api(f"CONSUMER.INFO.{STREAM}.{DURABLE}")["num_waiting"]
    return waiting


def stored_at(nats: NatsServer, sequence: int) -> float:
    """When the message of that number was stored (s since the epoch)."""
    stored: str = nats.api(f"STREAM.MSG.GET.{STREAM}", seq=sequence)["message"]["time"]
    return datetime.fromisoformat(stored[:26].rstrip("Z")).replace(tzinfo=UTC).timestamp()


def answers(port: int, path: str) -> bool:
    """Whether what listens at *port* of this machine answers with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def fill(nats: NatsServer, count: int, functions: int = 1) -> None:
    """Store *count* invocations, of so many functions in turn, on the bare subject, which is OpenFaaS's."""
    for start in range(0, count, _BATCH):
        numbers = range(start, min(start + _BATCH, count))
        nats.publish_many((STREAM, message(number, f"echo-{number % functions}"), {}) for number in numbers)


def wait(look: Callable[[], Any], patience: float, what: str, *running: Running) -> Any:
    """Look until there is something, and return it.

    Raises:
        Failed: not within *patience* seconds, or one of *running* ended.
    """
    deadline = time.monotonic() + patience
    while not (found := look()):
        for each in running:
            each.check()
        if time.monotonic() > deadline:
            raise Failed(f"waited {patience:g} s for {what}")
        time.sleep(_LOOK)
    return found


@dataclass(frozen=True, slots=True)
class Sample:
    """Where things stand."""

    at: float
    served: int
    worker: float
    functions: float
    """CPU (s), and that of the worker and the broker."""
    broker: float
    running: int


@dataclass(frozen=True, slots=True)
class Span:
    """What a run took between two samples."""

    messages: int
    rate: float
    """Messages a second."""
    cpu: float
    """The worker's CPU a message (s)."""
    functions: float
    """The function server's CPU a message (s)."""
    broker: float
    running: int
    """Invocations at the function server when it ended."""


def between(first: Sample, last: Sample) -> Span:
    """What happened from the first sample to the last."""
    count = last.served - first.served
    return Span(
        count,
        count / (last.at - first.at),
        (last.worker - first.worker) / count,
        (last.functions - first.functions) / count,
        (last.broker - first.broker) / count,
        last.running,
    )


def work_off(
    who: Contender,
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
    """Let *who* work off a full queue, and tell what *count* messages took once *warm* were done.

    The queue is filled before the clock starts, and is not empty when it stops.
    """
    margin = max(1000, 2 * inflight)
    empty_queue(nats)
    fill(nats, warm + count + margin)
    with (
        functions(directory, delay) as server,
        contender(who, directory, nats, server.url, cores=cores, max_inflight=inflight, **settings) as worker,
    ):

        def sample_after(served: int) -> Sample:
            server.wait_for(served, worker)
            at, stats = time.monotonic(), server.stats()
            return Sample(
                at, stats["served"], cpu(worker.pid), cpu(server.running.pid), cpu(nats.pid), stats["running"]
            )

        return between(sample_after(warm), sample_after(warm + count))
