"""The brokers behind a :class:`worker.ports.Queue`, and the operations of tests on them.

A law of the queue is an async function of a :class:`Rig`; :func:`on_each_broker` makes a test of it for each broker.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Protocol

import pytest
import trio
from trio.testing import MockClock

from tests.servers import NatsServer, until
from tests.wire import StoredMessage
from tests.world.link import Link
from tests.world.queue import FakeQueue
from tests.world.server import STREAM, Server
from worker.config import load
from worker.nats.queue import open_queue
from worker.ports import Queue


class Rig(Protocol):
    """A broker with one queue."""

    ack_wait: float
    """Ack wait of its consumer (s)."""
    short_wait: float
    """Seconds, usually longer than an immediate event takes: a law waits so long to see that none occurs."""
    max_delay: float
    """Greatest delay of an event (s): infinite in real time."""
    flow: str
    """The flow of all messages."""

    def connect(self) -> AbstractAsyncContextManager[Queue]:
        """Open a worker's queue. A second one may be opened when the first only settles."""

    async def publish(self, *payloads: bytes) -> None:
        """Store messages."""

    async def num_stored(self) -> int:
        """Count the stored messages."""

    async def wait_delivered(self, count: int) -> None:
        """Wait until the broker has sent *count* deliveries."""

    async def dead_letters(self) -> list[StoredMessage]:
        """Return all dead letters."""

    async def num_callbacks(self) -> int:
        """Count the stored callbacks."""

    async def stop(self) -> None:
        """Stop the broker; it keeps all that it has confirmed."""

    async def start(self) -> None:
        """Start the broker again."""

    async def crash(self) -> None:
        """Kill the broker, and start it again."""

    async def recreate_consumer(self) -> None:
        """Delete the consumer; the queue that uses it recreates it."""


Law = Callable[[Rig], Awaitable[None]]


class FakeRig:
    """The in-memory broker."""

    short_wait = 10.0
    max_delay = 0.0
    flow = ""

    def __init__(self, _: Path, ack_wait: float) -> None:
        self.ack_wait = max(30.0, ack_wait)
        self._server = Server(self.ack_wait)
        self._links: list[Link] = []
        self._down = False

    def run(self, law: Law) -> None:
        """Run *law* on a virtual clock."""
        trio.run(self._main, law, clock=MockClock(autojump_threshold=0))

    async def _main(self, law: Law) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._server.run)
            await law(self)
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Queue]:
        link = Link(0.001, up=not self._down)
        queue = FakeQueue(self._server, link, lambda _: None)
        self._links.append(link)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            nursery.start_soon(queue.run)
            yield queue
            link.cut(inf)
            nursery.cancel_scope.cancel()

    async def publish(self, *payloads: bytes) -> None:
        for payload in payloads:
            self._server.publish(payload)

    async def num_stored(self) -> int:
        return len(self._server.messages)

    async def wait_delivered(self, count: int) -> None:  # noqa: ARG002 -- the link takes a millisecond
        await trio.sleep(self.short_wait)

    async def dead_letters(self) -> list[StoredMessage]:
        return [*self._server.dead_letters.values()]

    async def num_callbacks(self) -> int:
        return self._server.num_callbacks()

    async def stop(self) -> None:
        self._down = True
        for link in self._links:
            link.cut(inf)

    async def start(self) -> None:
        self._down = False
        for link in self._links:
            link.restore()

    async def crash(self) -> None:
        self._server.crash(down=0.1)

    async def recreate_consumer(self) -> None:
        self._server.recreate_consumers()


class NatsRig:
    """A nats-server, and :mod:`worker.nats`."""

    short_wait = 0.3
    max_delay = inf
    flow = ""
    mode = "static"

    def __init__(self, directory: Path, ack_wait: float) -> None:
        self.ack_wait = ack_wait
        self._server = NatsServer(directory)
        self._started = False

    def run(self, law: Law) -> None:
        """Run *law* in real time."""
        with self._server:
            self._server.make_stream()
            trio.run(law, self)

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Queue]:
        environment = {"nats_port": str(self._server.port), "ack_wait": f"{self.ack_wait:g}s"}
        settings = load(environment | {"scaling_mode": self.mode}).settings
        async with open_queue(settings, lambda _: None) as queue:
            yield queue

    async def publish(self, *payloads: bytes) -> None:
        self._server.publish_many((STREAM, payload, {}) for payload in payloads)

    async def wait_delivered(self, count: int) -> None:
        (name,) = self._server.api(f"CONSUMER.NAMES.{STREAM}")["consumers"]
        info = partial(self._server.api, f"CONSUMER.INFO.{STREAM}.{name}")
        await until(lambda: info()["delivered"]["consumer_seq"] == count, f"{count} deliveries")

    async def num_stored(self) -> int:
        messages: int = self._server.state()["messages"]
        return messages

    async def dead_letters(self) -> list[StoredMessage]:
        return self._server.messages(f"{STREAM}-dead-letters")

    async def num_callbacks(self) -> int:
        messages: int = self._server.state(f"{STREAM}-callbacks")["messages"]
        return messages

    async def stop(self) -> None:
        await trio.to_thread.run_sync(self._server.stop)

    async def start(self) -> None:
        await trio.to_thread.run_sync(self._server.start)

    async def crash(self) -> None:
        await trio.to_thread.run_sync(self._server.kill)
        await self.start()

    async def recreate_consumer(self) -> None:
        self._server.api(f"CONSUMER.DELETE.{STREAM}.faas-workers")


class FunctionRig(NatsRig):
    """A NatsRig in function mode, with a consumer for its only subject."""

    flow = STREAM
    mode = "function"

    async def recreate_consumer(self) -> None:
        for name in self._server.api(f"CONSUMER.NAMES.{STREAM}")["consumers"]:
            self._server.api(f"CONSUMER.DELETE.{STREAM}.{name}")


Test = Callable[[type[FakeRig | NatsRig], Path], None]
LONG, SHORT = 60.0, 3.0
"""Ack waits of real consumers (s). A law can see the end of a short lease; no long one ends on a slow machine."""


def on_each_broker(law: Law) -> Test:
    """Make a test of *law* for each rig, with its name and docstring, and leases that end in no test."""
    return _test(law, LONG)


def on_each_broker_with_short_leases(law: Law) -> Test:
    """Make a test of a law about the end of leases, or their extension."""
    return _test(law, SHORT)


def _test(law: Law, ack_wait: float) -> Test:
    @pytest.mark.parametrize("rig", [FakeRig, NatsRig, FunctionRig], ids=["fake", "nats", "functions"])
    def test(rig: type[FakeRig | NatsRig], tmp_path: Path) -> None:
        rig(tmp_path, ack_wait).run(law)

    test.__name__, test.__doc__ = law.__name__, law.__doc__
    return test
