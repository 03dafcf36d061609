"""The brokers that a :class:`worker.ports.Queue` can stand on, and what a test may do to them.

A law of the queue is an async function of a :class:`Rig`; :func:`on_each_broker` makes a test of it for every one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from math import inf
from pathlib import Path
from typing import Protocol

import pytest
import trio
from trio.testing import MockClock

from tests.servers import NatsServer
from tests.wire import Stored
from tests.world.link import Link
from tests.world.queue import FakeQueue
from tests.world.server import STREAM, Server
from worker.config import load
from worker.nats.queue import open_queue
from worker.ports import Queue


class Rig(Protocol):
    """A broker with one queue."""

    ack_wait: float
    """Of its consumer (s)."""
    flow: str
    """By which all messages come."""

    def connect(self) -> AbstractAsyncContextManager[Queue]:
        """A worker's queue. A second one may be opened when the first has nothing more to do but to be settled."""

    async def publish(self, *payloads: bytes) -> None:
        """Store messages."""

    async def left(self) -> int:
        """How many messages are stored."""

    async def letters(self) -> list[Stored]:
        """All dead letters."""

    async def stop(self) -> None:
        """Let the broker go away; what it has confirmed is kept."""

    async def start(self) -> None:
        """Let it come back."""

    async def crash(self) -> None:
        """Kill the broker where it stands, and let it come back."""

    async def make_anew(self) -> None:
        """Delete the consumer; who uses it makes it again."""


Law = Callable[[Rig], Awaitable[None]]


class FakeRig:
    """The in-memory broker."""

    ack_wait = 30.0
    flow = ""

    def __init__(self, _: Path) -> None:
        self._server = Server(self.ack_wait)
        self._links: list[Link] = []
        self._away = False

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
        link = Link(0.001, up=not self._away)
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

    async def left(self) -> int:
        return len(self._server.messages)

    async def letters(self) -> list[Stored]:
        return [*self._server.letters.values()]

    async def stop(self) -> None:
        self._away = True
        for link in self._links:
            link.cut(inf)

    async def start(self) -> None:
        self._away = False
        for link in self._links:
            link.mend()

    async def crash(self) -> None:
        self._server.crash(down=0.1)

    async def make_anew(self) -> None:
        self._server.make_anew()


class NatsRig:
    """A nats-server, and :mod:`worker.nats`."""

    ack_wait = 1.0
    flow = ""
    mode = "static"

    def __init__(self, directory: Path) -> None:
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

    async def left(self) -> int:
        messages: int = self._server.state()["messages"]
        return messages

    async def letters(self) -> list[Stored]:
        return self._server.messages(f"{STREAM}-dead-letters")

    async def stop(self) -> None:
        await trio.to_thread.run_sync(self._server.stop)

    async def start(self) -> None:
        await trio.to_thread.run_sync(self._server.start)

    async def crash(self) -> None:
        await trio.to_thread.run_sync(self._server.kill)
        await self.start()

    async def make_anew(self) -> None:
        self._server.api(f"CONSUMER.DELETE.{STREAM}.faas-workers")


class FunctionRig(NatsRig):
    """The same, in function mode: with a consumer for the one subject that there is."""

    flow = STREAM
    mode = "function"

    async def make_anew(self) -> None:
        for name in self._server.api(f"CONSUMER.NAMES.{STREAM}")["consumers"]:
            self._server.api(f"CONSUMER.DELETE.{STREAM}.{name}")


def on_each_broker(law: Law) -> Callable[[type[FakeRig | NatsRig], Path], None]:
    """A test of *law* for each rig, named and documented as the law is."""

    @pytest.mark.parametrize("rig", [FakeRig, NatsRig, FunctionRig], ids=["fake", "nats", "functions"])
    def test(rig: type[FakeRig | NatsRig], tmp_path: Path) -> None:
        rig(tmp_path).run(law)

    test.__name__, test.__doc__ = law.__name__, law.__doc__
    return test
