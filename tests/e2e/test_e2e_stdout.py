"""A standard output that is not read, closed, or full: the programs go on, and end as they would otherwise."""

from __future__ import annotations

import fcntl
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.stack import Queue, Worker
from tests.functions import Functions
from tests.gateway import Gateway
from tests.servers import Program, wait_until
from worker.dev.stack import free_port

CALLS = 2_500
"""Calls whose log lines at debug level, some 600 bytes each, are more than a writer keeps for a slow reader."""


@contextmanager
def redirected(program: Program, kind: str) -> Iterator[int]:
    """Give *program* a standard output of this *kind*; yield the end of the pipe that is not read, or -1."""
    reading = writing = -1
    if kind in ("unread", "unread in both outputs", "without a reader"):
        reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
        program.stdout_file = writing
    program.script = {"closed": 'exec "$@" >&-', "full": 'exec "$@" >/dev/full'}.get(kind, "")
    if kind == "unread in both outputs":
        program.script = 'exec "$@" 2>&1'
    with program:
        if writing >= 0:
            os.close(writing)
        if kind == "without a reader":
            os.close(reading)
            reading = -1
        yield reading
    if reading >= 0:
        os.close(reading)


def read_all(reading: int) -> str:
    with os.fdopen(os.dup(reading), "rb") as file:
        return file.read().decode()


def ready(worker: Worker) -> bool:
    try:
        return worker.get("/readyz")[0] == 200
    except OSError:
        return False


@pytest.mark.parametrize(
    ("kind", "processes"),
    [("unread", 1), ("unread", 2), ("closed", 1), ("full", 1), ("full", 2), ("without a reader", 1)],
)
def test_worker_without_a_reader_of_its_log_goes_on(
    queue: Queue, functions: Functions, tmp_path: Path, kind: str, processes: int
) -> None:
    """All messages are invoked, the port answers, dropped lines are counted, SIGTERM ends the worker with 0."""
    port = free_port()
    worker = Worker(queue, functions, tmp_path=tmp_path, http_port=port, processes=processes, debug="true")
    worker._port = port
    with redirected(worker, kind) as reading:
        wait_until(lambda: ready(worker), "the worker to be ready")
        calls = [f"call-{number}" for number in range(CALLS * processes)]
        queue.put_calls("echo", calls)
        queue.wait_empty()
        assert functions.calls() == dict.fromkeys(calls, 1)
        assert worker.get("/healthz") == (200, "ok\n")
        dropped = worker.metric("queue_worker_log_lines_dropped_total")
        assert (dropped > 0) == (kind != "closed")
        worker.terminate()
        assert worker.wait() == 0
        closed = "queue-worker: standard output is closed, so no log is written\n"
        assert worker.stderr == (closed if kind == "closed" else "")
        if reading >= 0:
            assert read_all(reading).count("\n") > 1


def test_worker_whose_log_is_read_again_reports_the_dropped_lines(
    queue: Queue, functions: Functions, tmp_path: Path
) -> None:
    """When the reader continues, one line names the number of lines that it did not get."""
    port = free_port()
    worker = Worker(queue, functions, tmp_path=tmp_path, http_port=port, debug="true")
    worker._port = port
    with redirected(worker, "unread") as reading:
        wait_until(lambda: ready(worker), "the worker to be ready")
        queue.put_calls("echo", [f"call-{number}" for number in range(CALLS)])
        queue.wait_empty()
        dropped = worker.metric("queue_worker_log_lines_dropped_total")
        with os.fdopen(os.dup(reading), "rb") as file:
            first = file.readline()
            worker.terminate()
            log = (first + file.read()).decode()
        assert worker.wait() == 0
    ((count, level),) = re.findall(r'"event":"(\d+) log lines were dropped.*?","level":"(\w+)"', log)
    assert int(count) >= dropped > 0
    assert level == "warning"
    assert '"Drained"' in log


@pytest.mark.parametrize("kind", ["unread", "closed", "full"])
def test_gateway_without_a_reader_of_its_log_goes_on(queue: Queue, tmp_path: Path, kind: str) -> None:
    """The producer answers 202, and ends with 0 after SIGTERM."""
    queue.nats.make_stream(queue.name, queue.name)
    settings = {"nats_port": queue.nats.port, "nats_stream": queue.name, "debug": "true", "log_encoding": "json"}
    gateway = Gateway(tmp_path=tmp_path, **settings)
    with redirected(gateway, kind):
        wait_until(gateway.ready, "the gateway to be ready")
        for _ in range(300):
            assert gateway.queue("echo").status == 202
        gateway.terminate()
        assert gateway.wait() == 0


NOISE = """
import atexit, logging, signal
def log(*_):
    for _ in range(10 if logging.getLogger().handlers else 0):
        logging.getLogger("nats.aio.client").error("x" * 500)
signal.signal(signal.SIGALRM, log)
signal.setitimer(signal.ITIMER_REAL, 0.5, 0.01)
atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)
"""
"""A library that logs errors on the main thread, 1,000 a second, once the imports have ended."""


@pytest.mark.parametrize("processes", [1, 2])
def test_worker_whose_libraries_log_without_end_goes_on(
    queue: Queue, functions: Functions, tmp_path: Path, processes: int
) -> None:
    """Lines of libraries do not block a worker whose standard error is not read, and their number is bounded."""
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    port = free_port()
    settings = {"http_port": port, "processes": processes, "PYTHONPATH": str(tmp_path)}
    worker = Worker(queue, functions, tmp_path=tmp_path, **settings)
    worker._port = port
    with redirected(worker, "unread in both outputs") as reading:
        wait_until(lambda: ready(worker), "the worker to be ready")
        calls = queue.put_calls("echo", [f"call-{number}" for number in range(200)])
        queue.wait_empty()
        assert functions.calls() == dict.fromkeys(calls, 1)
        assert worker.get("/healthz") == (200, "ok\n")
        worker.terminate()
        assert worker.wait() == 0
        assert '"source":"nats.aio.client"' in read_all(reading)


def test_gateway_whose_libraries_log_without_end_goes_on(queue: Queue, tmp_path: Path) -> None:
    """The same for the producer."""
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    queue.nats.make_stream(queue.name, queue.name)
    settings = {"nats_port": queue.nats.port, "nats_stream": queue.name, "PYTHONPATH": str(tmp_path)}
    gateway = Gateway(tmp_path=tmp_path, log_encoding="json", **settings)
    with redirected(gateway, "unread in both outputs") as reading:
        wait_until(gateway.ready, "the gateway to be ready")
        for _ in range(100):
            assert gateway.queue("echo").status == 202
        gateway.terminate()
        assert gateway.wait() == 0
        assert '"source":"nats.aio.client"' in read_all(reading)


def test_error_with_an_unread_standard_error_ends_the_program(tmp_path: Path) -> None:
    """A fatal error ends the program with its exit code although both outputs are a pipe that is full."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(writing, True)
    program = Program("worker", tmp_path=tmp_path, settings={"max_inflight": "none"})
    program.stdout_file = writing
    program.script = 'exec "$@" 2>&1'
    with program:
        assert program.wait() == 2
    os.close(reading)
    os.close(writing)


def test_hangup_drains_the_worker(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """SIGHUP, as a closed terminal sends it, drains as SIGTERM does."""
    with Worker(queue, functions, tmp_path=tmp_path) as worker:
        worker.wait_ready()
        worker.process.send_signal(signal.SIGHUP)
        assert worker.wait() == 0
        assert len(worker.logged("^Drained$")) == 1
