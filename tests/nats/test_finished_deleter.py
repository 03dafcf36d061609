"""What ends through a retired consumer is taken off the stream: that, and nothing else."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import nats.errors
import pytest
import trio_asyncio
from nats.aio.msg import Msg
from trio_asyncio import aio_as_trio

from tests.patience import LAST_RESORT
from worker.config import load
from worker.model import Delivery
from worker.nats.connection import Connection
from worker.nats.finished_deleter import FinishedDeleter, RetiredConsumers
from worker.ports import BrokerUnavailableError

STORED = 1_795_608_000_123_456_789
"""The same as the server's, in nanoseconds."""


class Server:
    """Notes what it is asked to delete, and may not answer at first."""

    def __init__(self, deaf: int = 0, *, cut: bool = False) -> None:
        self.deaf, self.cut = deaf, cut
        self.stored = "2026-11-25T12:00:00.123456789Z"
        """When what it has was stored."""
        self.deleted: list[int] = []
        self.said: list[bytes] = []
        self.client = SimpleNamespace(publish=self._publish)

    async def ask(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        if self.deaf:
            self.deaf -= 1
            raise BrokerUnavailableError("no answer")
        if subject == "STREAM.MSG.GET.faas-request":
            return {"message": {"seq": body["seq"], "time": self.stored}}
        assert subject == "STREAM.MSG.DELETE.faas-request"
        self.deleted.append(body["seq"])
        return {"success": True}

    async def _publish(self, _: str, told: bytes) -> None:
        if self.cut:
            raise nats.errors.OutboundBufferLimitError
        self.said.append(told)


def delivery(sequence: int, consumer: str) -> Delivery:
    token = f"0 $JS.ACK.faas-request.{consumer}.1.{sequence}.{sequence}.0.0"
    return Delivery((sequence, STORED), token, 1, 0.0, "faas-request", b"")


def sweep_on(server: Server) -> tuple[FinishedDeleter, RetiredConsumers]:
    consumers = RetiredConsumers()
    return FinishedDeleter(cast(Connection, server), load({}).settings, consumers), consumers


def end(consumers: RetiredConsumers, sequence: int, consumer: str) -> None:
    ended = delivery(sequence, consumer)
    consumers.settled(ended, ended.token.partition(" ")[2])


async def swept(sweep: FinishedDeleter) -> None:
    """Let it delete all that is to be deleted."""
    running = asyncio.ensure_future(sweep.run())
    async with asyncio.timeout(LAST_RESORT):
        await sweep.done()
    running.cancel()


def test_only_what_a_retired_consumer_had() -> None:
    """What ends through another consumer is the server's to take off."""

    async def play() -> list[int]:
        server = Server()
        sweep, consumers = sweep_on(server)
        assert not consumers.names, "without a retired consumer it costs nothing"
        sweep.know({"old"})
        end(consumers, 7, "old")
        end(consumers, 8, "new")
        await swept(sweep)
        sweep.know(set())
        return server.deleted

    assert trio_asyncio.run(aio_as_trio(play)) == [7]


def test_until_the_server_answers() -> None:
    """A question without an answer is asked again."""

    async def play() -> list[int]:
        server = Server(deaf=2)
        sweep, consumers = sweep_on(server)
        sweep.know({"old"})
        end(consumers, 7, "old")
        await swept(sweep)
        return server.deleted

    assert trio_asyncio.run(aio_as_trio(play)) == [7]


def test_another_message_of_that_number_stays() -> None:
    """Where a question had no answer, the stream may have been made anew meanwhile."""

    async def play() -> list[int]:
        server = Server(deaf=1)
        server.stored = "2026-11-25T12:00:00.123556Z"
        sweep, consumers = sweep_on(server)
        sweep.know({"old"})
        end(consumers, 7, "old")
        await swept(sweep)
        return server.deleted

    assert trio_asyncio.run(aio_as_trio(play)) == []


def announced(*names: str) -> Msg:
    return Msg(cast(Any, None), data="\n".join(names).encode())


def test_what_ended_before_we_saw_that_its_consumer_is_retired() -> None:
    """Once its retirement was announced: when we look, others may have deleted it already, since it keeps nothing."""

    async def play() -> list[int]:
        server = Server()
        sweep, consumers = sweep_on(server)
        sweep._on_announced(announced("old", "older"))
        end(consumers, 7, "old")
        sweep.know(set())
        end(consumers, 8, "new")
        end(consumers, 9, "older")
        await swept(sweep)
        return server.deleted

    assert trio_asyncio.run(aio_as_trio(play)) == [7, 9]


def test_one_made_anew_is_not_retired() -> None:
    """What ends through a consumer of the name of one that was retired, and is gone, costs nothing more."""

    async def play() -> list[int]:
        server = Server()
        sweep, consumers = sweep_on(server)
        sweep._on_announced(announced("old"))
        sweep.know({"old"})
        end(consumers, 7, "old")
        sweep.know(set())
        assert not consumers.names
        await swept(sweep)
        return server.deleted

    assert trio_asyncio.run(aio_as_trio(play)) == [7]


def test_a_thousand_names_are_announced() -> None:
    """Whoever is told deletes what ends through any of them."""

    async def play() -> tuple[list[int], list[int]]:
        server, other = Server(), Server()
        (ours, _), (theirs, consumers) = sweep_on(server), sweep_on(other)
        await ours.announce(f"faas-workers-{number}" for number in range(2_500))
        for told in server.said:
            theirs._on_announced(Msg(cast(Any, None), data=told))
        end(consumers, 1, "faas-workers-2499")
        await swept(theirs)
        return other.deleted, [*map(len, server.said)]

    deleted, sizes = trio_asyncio.run(aio_as_trio(play))
    assert deleted == [1]
    assert max(sizes) < 100_000


def test_what_cannot_be_announced() -> None:
    """Is told to whoever wanted to retire consumers, who tries it all again."""

    async def play() -> None:
        sweep, _ = sweep_on(Server(cut=True))
        with pytest.raises(BrokerUnavailableError):
            await sweep.announce(["old"])

    trio_asyncio.run(aio_as_trio(play))
