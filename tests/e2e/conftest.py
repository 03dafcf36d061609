"""Fixtures of the end-to-end tests, which block: the programs under test and the function server run beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.e2e.case import SETTINGS, SHORT_TIMEOUTS, Case, Shared
from tests.e2e.stack import Queue, StartWorker, Worker
from tests.functions import Functions
from tests.servers import NatsServer

_numbers = count(1)


@pytest.fixture(scope="session")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start a server for all tests that do not stop it; each has a queue of its own there."""
    with NatsServer(tmp_path_factory.mktemp("shared-nats")) as server:
        yield server


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """Start a server for one test, which may stop, pause and kill it."""
    with NatsServer(tmp_path) as server:
        yield server


@pytest.fixture
def queue(nats: NatsServer) -> Queue:
    """Return the queue of one test; its stream does not exist yet."""
    return Queue(nats, f"queue-{next(_numbers)}")


@pytest.fixture
def functions() -> Iterator[Functions]:
    """Start the function server of one test."""
    with Functions() as server:
        yield server
        assert not server.protocol_errors, server.protocol_errors


@pytest.fixture
def receiver() -> Iterator[Functions]:
    """Start a receiver for the callbacks of one test."""
    with Functions() as server:
        yield server
        assert not server.protocol_errors, server.protocol_errors


@pytest.fixture
def start(queue: Queue, functions: Functions, tmp_path: Path) -> Iterator[StartWorker]:
    """Return a function that starts a ready worker on the test's queue and functions; settings by keyword."""
    with ExitStack() as stack:

        def begin(**settings: object) -> Worker:
            worker = stack.enter_context(Worker(queue, functions, tmp_path=tmp_path, **settings))
            worker.wait_ready()
            return worker

        yield begin


@pytest.fixture(scope="session")
def shared(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Start one worker for all tests without special settings."""
    with _shared_worker(Queue(nats, "shared"), tmp_path_factory.mktemp("shared"), SETTINGS) as shared:
        yield shared


@pytest.fixture(scope="session")
def shared_short_timeouts(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    """Start one worker with short timeouts, for all tests about timeouts."""
    with _shared_worker(
        Queue(nats, "short-timeouts"), tmp_path_factory.mktemp("short-timeouts"), SHORT_TIMEOUTS
    ) as shared:
        yield shared


@contextmanager
def _shared_worker(queue: Queue, directory: Path, settings: Mapping[str, object]) -> Iterator[Shared]:
    with (
        Functions() as functions,
        Functions() as receiver,
        Worker(queue, functions, tmp_path=directory, **settings) as worker,
    ):
        worker.wait_ready()
        yield Shared(queue, functions, receiver, worker)
        worker.terminate()
        assert worker.wait() == 0
        assert worker.logged("bug") == []
        assert functions.protocol_errors + receiver.protocol_errors == []


@pytest.fixture
def case(shared: Shared) -> Iterator[Case]:
    """Create a case, and purge its messages afterwards, so that no other test receives them."""
    with _case(shared) as case:
        yield case


@pytest.fixture
def timeout_case(shared_short_timeouts: Shared) -> Iterator[Case]:
    """Create a case on the worker with short timeouts."""
    with _case(shared_short_timeouts) as case:
        yield case


@contextmanager
def _case(shared: Shared) -> Iterator[Case]:
    assert shared.worker.process.poll() is None, shared.worker.output[-2_000:]
    yield Case(shared)
    if not shared.queue.empty():
        shared.queue.nats.api(f"STREAM.PURGE.{shared.queue.name}")
