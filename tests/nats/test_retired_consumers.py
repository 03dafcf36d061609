"""Messages that end through a retired consumer are deleted from the stream, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import nats.errors
import pytest
import trio_asyncio
from nats.aio.msg import Msg
from trio_asyncio import aio_as_trio

from tests.patience import LAST_RESORT
from worker.model import Delivery
from worker.nats.connection import Connection
from worker.nats.jetstream import JetStream
from worker.nats.layout import FUNCTION, RETIRED, ConsumerSet, ConsumerState
from worker.nats.migration import Migration
from worker.nats.retired_consumers import RetiredConsumers
from worker.nats.wire import StoredMessage
from worker.ports import BrokerUnavailableError

STORED = 1_795_608_000_123_456_789
"""The server's time of storage, in nanoseconds."""


class Server:
    """Notes what it deletes and receives. The first *silent* requests have no answer."""

    def __init__(self, silent: int = 0, *, cut: bool = False) -> None:
        self.silent, self.cut = silent, cut
        self.stored = "2026-11-25T12:00:00.123456789Z"
        """The time at which its message was stored."""
        self.deleted: list[int] = []
        self.published: list[bytes] = []
        self.client = SimpleNamespace(publish=self._publish)

    async def message(self, _: str, sequence: int) -> StoredMessage:
        self._answer()
        return StoredMessage("q", sequence, self.stored)

    async def delete_message(self, _: str, sequence: int) -> None:
        self._answer()
        self.deleted.append(sequence)

    def _answer(self) -> None:
        if self.silent:
            self.silent -= 1
            raise BrokerUnavailableError("no answer")

    async def _publish(self, _: str, payload: bytes) -> None:
        if self.cut:
            raise nats.errors.OutboundBufferLimitError
        self.published.append(payload)


def delivery(sequence: int, consumer: str) -> Delivery:
    token = f"0 $JS.ACK.faas-request.{consumer}.1.{sequence}.{sequence}.0.0"
    return Delivery((sequence, STORED), token, 1, 0.0, "faas-request", b"")


class Worker:
    """A worker as far as retired consumers go."""

    def __init__(self, server: Server) -> None:
        self.retired = RetiredConsumers()
        self.migration = Migration(cast(Connection, server), "q", FUNCTION, self.retired)

    def observe(self, *retired: str) -> None:
        states = (ConsumerState(name, RETIRED, (), 0, 1, 0, 30.0) for name in retired)
        self.retired.set_consumers(ConsumerSet(retired=tuple(states)))

    def receive(self, *announced: str) -> None:
        self.migration._on_announced(Msg(cast(Any, None), data="\n".join(announced).encode()))

    def settle(self, sequence: int, consumer: str) -> None:
        if self.retired.names:  # as the outbox does
            self.retired.settled(delivery(sequence, consumer))


def play(server: Server, act: Callable[[Worker], object]) -> list[int]:
    """Let a worker act, and delete all that it is to delete; return what that is."""

    async def run() -> list[int]:
        worker = Worker(server)
        act(worker)
        running = asyncio.ensure_future(worker.retired.run(cast(JetStream, server), "q"))
        async with asyncio.timeout(LAST_RESORT):
            await worker.retired.wait_deleted()
        running.cancel()
        return server.deleted

    deleted: list[int] = trio_asyncio.run(aio_as_trio(run))
    return deleted


def test_a_message_of_a_retired_consumer_is_deleted() -> None:
    """One that ends through another consumer is deleted by the server."""

    def act(worker: Worker) -> None:
        assert not worker.retired.names, "without a retired consumer it costs nothing"
        worker.observe("old")
        worker.settle(7, "old")
        worker.settle(8, "new")

    assert play(Server(), act) == [7]


def end_one(worker: Worker) -> None:
    worker.observe("old")
    worker.settle(7, "old")


def test_a_deletion_without_an_answer_is_repeated() -> None:
    """Until the server answers."""
    assert play(Server(silent=2), end_one) == [7]


def test_another_message_of_the_sequence_stays() -> None:
    """Where a deletion had no answer, the stream may have been deleted and created again since."""
    server = Server(silent=1)
    server.stored = "2026-11-25T12:00:00.123556Z"
    assert play(server, end_one) == []


def test_a_message_of_a_replaced_stream_stays() -> None:
    """When the stream was replaced, nothing of the old one is deleted, and no announcement counts."""

    def act(worker: Worker) -> None:
        worker.receive("old")
        worker.settle(7, "old")
        worker.retired.forget()
        worker.settle(8, "old")

    assert play(Server(), act) == []


def test_an_announced_consumer_counts_as_retired() -> None:
    """When this worker looks, others may have deleted the consumer already, because it has no pending ack."""

    def act(worker: Worker) -> None:
        worker.receive("old", "older")
        worker.settle(7, "old")
        worker.observe()
        worker.settle(8, "new")
        worker.settle(9, "older")

    assert play(Server(), act) == [7, 9]


def test_a_consumer_created_again_is_not_retired() -> None:
    """What ends through a consumer with the name of one that was retired and deleted costs nothing more."""

    def act(worker: Worker) -> None:
        worker.receive("old")
        worker.observe("old")
        worker.settle(7, "old")
        worker.observe()
        assert not worker.retired.names

    assert play(Server(), act) == [7]


def test_thousands_of_names_are_announced() -> None:
    """In messages of far less than a megabyte."""
    server, names = Server(), [f"faas-workers-{number}" for number in range(2_500)]

    async def announce() -> None:
        await Worker(server).migration.announce(names)

    trio_asyncio.run(aio_as_trio(announce))
    assert max(map(len, server.published)) < 100_000

    def act(worker: Worker) -> None:
        for each in server.published:
            worker.receive(*each.decode().split("\n"))
        worker.settle(1, names[-1])

    assert play(Server(), act) == [1]


def test_an_announcement_that_cannot_be_sent_raises() -> None:
    """Then no consumer is retired, and all is tried again."""

    async def announce() -> None:
        with pytest.raises(BrokerUnavailableError):
            await Worker(Server(cut=True)).migration.announce(["old"])

    trio_asyncio.run(aio_as_trio(announce))
