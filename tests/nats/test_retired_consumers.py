"""Deletion of messages that were settled through a retired consumer."""

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
    """A server that records deletions and publications. The first *silent* requests have no answer."""

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
    """The parts of a worker that handle retired consumers."""

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


def deleted_by(server: Server, act: Callable[[Worker], object]) -> list[int]:
    """Let a worker act, wait for its deletions, and return their sequences."""

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


def test_deleter_message_of_a_retired_consumer_is_deleted() -> None:
    """The worker deletes a message that is settled through a retired consumer, and no other message."""

    def act(worker: Worker) -> None:
        assert not worker.retired.names, "no consumer is retired yet"
        worker.observe("old")
        worker.settle(7, "old")
        worker.settle(8, "new")

    assert deleted_by(Server(), act) == [7]


def settle_one(worker: Worker) -> None:
    worker.observe("old")
    worker.settle(7, "old")


def test_deletion_without_an_answer_is_repeated() -> None:
    """A deletion is repeated until the server answers."""
    assert deleted_by(Server(silent=2), settle_one) == [7]


def test_deletion_repeated_keeps_another_message_of_the_sequence() -> None:
    """A repeated deletion keeps a message of another time of storage, because the stream may have been recreated."""
    server = Server(silent=1)
    server.stored = "2026-11-25T12:00:00.123556Z"
    assert deleted_by(server, settle_one) == []


def test_deleter_message_of_a_replaced_stream_is_kept() -> None:
    """After the stream was replaced, the worker deletes no message of it and drops earlier announcements."""

    def act(worker: Worker) -> None:
        worker.receive("old")
        worker.settle(7, "old")
        worker.retired.forget()
        worker.settle(8, "old")

    assert deleted_by(Server(), act) == []


def test_announced_consumer_counts_as_retired() -> None:
    """An announcement is enough, because another worker may delete the retired consumer before this one reads it."""

    def act(worker: Worker) -> None:
        worker.receive("old", "older")
        worker.settle(7, "old")
        worker.observe()
        worker.settle(8, "new")
        worker.settle(9, "older")

    assert deleted_by(Server(), act) == [7, 9]


def test_consumer_created_again_is_not_retired() -> None:
    """A consumer with the name of a deleted retired one is not retired, so its messages are not deleted twice."""

    def act(worker: Worker) -> None:
        worker.receive("old")
        worker.observe("old")
        worker.settle(7, "old")
        worker.observe()
        assert not worker.retired.names

    assert deleted_by(Server(), act) == [7]


def test_announcement_of_thousands_of_names_is_split() -> None:
    """Thousands of names are announced in messages of less than 100 kB each."""
    server, names = Server(), [f"faas-workers-{number}" for number in range(2_500)]

    async def announce() -> None:
        await Worker(server).migration.announce(names)

    trio_asyncio.run(aio_as_trio(announce))
    assert max(map(len, server.published)) < 100_000

    def act(worker: Worker) -> None:
        for each in server.published:
            worker.receive(*each.decode().split("\n"))
        worker.settle(1, names[-1])

    assert deleted_by(Server(), act) == [1]


def test_announcement_that_cannot_be_sent_raises() -> None:
    """A failed announcement raises, so that no consumer is retired."""

    async def announce() -> None:
        with pytest.raises(BrokerUnavailableError):
            await Worker(Server(cut=True)).migration.announce(["old"])

    trio_asyncio.run(aio_as_trio(announce))
