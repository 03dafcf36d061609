"""Memory of producer and worker for a body of 100 MB: the peak, less what they use after a small one."""

from __future__ import annotations

import http.client
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import cast

from worker.dev.stack import free_port

from ..contenders import OURS
from ..model import Figure, Line, Samples, Session
from ..programs import RunFailedError, answers, program, wait
from ..queue import STREAM, empty_queue
from ..stage import start_contender
from ..statistics import Spread

_SIZE, _PART = 100_000_000, 100_000
_PEAK = "peak for a body of 100 MB (MB)"


def measure(session: Session) -> Samples:
    """Measure the growth (MB) of producer and worker."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in range(session.pairs):
        found = _run(session)
        for program_name, grown in found.items():
            samples[_PEAK][program_name].append(grown / 1e6)
        session.log(f"{run + 1}/{session.pairs} " + ", ".join(f"{name}: {n / 1e6:.1f} MB" for name, n in found.items()))
    return samples


def _run(session: Session) -> dict[str, int]:
    empty_queue(session.nats, storage="file")
    port = free_port()
    settings = {"nats_port": session.nats.port, "nats_stream": STREAM, "listen_host": "127.0.0.1", "listen_port": port}
    environment = {name: str(value) for name, value in settings.items()}
    command = (sys.executable, "-m", "worker.cli", "gateway")
    with (
        _function() as served,
        program("gateway", command, session.directory, environment) as producer,
        start_contender(OURS, session.directory, session.nats, served.url) as worker,
    ):
        wait(partial(answers, port, "/readyz"), 30, "the gateway", producer)
        _post(port, _PART)
        wait(lambda: served.sizes == [_PART], 60, "the small body", worker)
        before = {name: _peak(pid) for name, pid in (("producer", producer.pid), ("worker", worker.pid))}
        _post(port, _SIZE)
        wait(lambda: served.sizes == [_PART, _SIZE], 120, "the large body", worker)
        return {"producer": _peak(producer.pid) - before["producer"], "worker": _peak(worker.pid) - before["worker"]}


class _Function(ThreadingHTTPServer):
    """A function that reads its body and keeps nothing: the benchmarks' function server would keep all of it."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.sizes: list[int] = []


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        size = rest = int(self.headers["Content-Length"])
        while rest and (part := self.rfile.read(min(rest, _PART))):
            rest -= len(part)
        cast("_Function", self.server).sizes.append(size - rest)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the library's name
        """Write nothing."""


@contextmanager
def _function() -> Iterator[_Function]:
    with _Function() as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def _post(port: int, size: int) -> None:
    """Queue a call with a body of so many bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    parts: Iterator[bytes] = iter([b"x" * _PART] * (size // _PART))
    connection.request("POST", "/async-function/echo", parts, {"Content-Length": str(size)})
    if (status := connection.getresponse().status) != 202:
        raise RunFailedError(f"a body of {size:,} bytes was answered with {status}")
    connection.close()


def _peak(pid: int) -> int:
    """Return the most memory (bytes) that a process has had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if not found:
        raise RunFailedError("the kernel does not report the peak of a process")
    return int(found[1]) * 1024


def assess(samples: Samples) -> Sequence[Line]:
    """Compare each program with the goal."""
    return [
        Line(f"memory for a body of 100 MB: {name}", "at most 30 MB more", f"{grown} MB", grown.median <= 30)
        for name, grown in ((name, Spread.of(each)) for name, each in samples[_PEAK].items())
    ]


FIGURE = Figure("bodies", "Memory for large bodies", measure, assess)
