"""Consumers of subjects without messages are deleted, on a real server."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import pytest

from tests.nats.hand import Hand, at_work
from tests.servers import NatsServer, until
from worker.model import Ack, Delivery, FlowEnded, Nak
from worker.nats.jetstream import JetStream

SUBJECT = "faas-request.0.echo.ns"
SETTINGS = {"scaling_mode": "function", "consumer_inactive_threshold": "1s", "ack_wait": "3s"}


def names(server: NatsServer) -> list[str]:
    listed: list[str] = server.api("CONSUMER.NAMES.faas-request")["consumers"] or []
    return listed


async def test_idle_consumer_is_deleted_after_the_threshold(tmp_path: Path) -> None:
    """A subject without messages for the threshold ends with its consumer, and is found again with a message."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with at_work(server, SETTINGS) as hand, at_work(server, SETTINGS) as other:
            server.publish(SUBJECT, b"one")
            await until(lambda: server.state()["messages"] == 0, "it to be done")
            await until(lambda: not names(server), "its consumer to go")
            await until(lambda: FlowEnded(SUBJECT) in hand.told and FlowEnded(SUBJECT) in other.told, "both to know")
            server.publish(SUBJECT, b"two")
            await until(lambda: len(hand.came) + len(other.came) == 2, "the next to come")


async def test_idle_consumer_with_a_parked_message_stays(tmp_path: Path) -> None:
    """A message that waits for its next attempt keeps the consumer, and so its delivery count."""

    def act(hand: Hand, delivery: Delivery) -> None:
        hand.queue.settle(delivery, Nak(6.0) if delivery.num_delivered == 1 else Ack(), before=inf)

    with NatsServer(tmp_path) as server:
        server.make_stream()
        server.publish(SUBJECT, b"one")
        async with at_work(server, SETTINGS, act) as hand:
            await until(lambda: len(hand.came) == 2, "the second attempt")
            assert [each.num_delivered for each in hand.came] == [1, 2]


async def test_idle_consumer_of_a_killed_worker_is_deleted(tmp_path: Path) -> None:
    """A consumer that a killed worker left behind is deleted by another one."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with at_work(server, SETTINGS | {"consumer_inactive_threshold": "1h"}):
            server.publish(SUBJECT, b"one")
            await until(lambda: names(server) and not server.state()["messages"], "it to be done")
        async with at_work(server, SETTINGS):
            await until(lambda: not names(server), "its consumer to go")


async def test_idle_consumer_with_a_message_during_its_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is stored during the deletion is delivered once, by the next consumer."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        delete = JetStream.delete_consumer
        late: list[Any] = []

        async def publish_and_delete(self: JetStream, stream: str, name: str) -> None:
            if not late:
                late.append(server.publish(SUBJECT, b"late"))
            await delete(self, stream, name)

        monkeypatch.setattr(JetStream, "delete_consumer", publish_and_delete)
        async with at_work(server, SETTINGS) as hand, at_work(server, SETTINGS) as other:
            server.publish(SUBJECT, b"one")
            await until(lambda: bool(late) and server.state()["messages"] == 0, "both to be done")
            came = [*hand.came, *other.came]
            assert sorted((each.payload, each.num_delivered) for each in came) == [(b"late", 1), (b"one", 1)]


async def test_idle_consumer_with_a_message_before_its_deletion_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is stored while the consumer is paused keeps it, and is delivered soon."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        pause = JetStream.pause_consumer
        late: list[Any] = []

        async def pause_and_publish(self: JetStream, stream: str, name: str, until: str) -> bool:
            paused = await pause(self, stream, name, until)
            if not late:
                late.append(server.publish(SUBJECT, b"late"))
            return paused

        monkeypatch.setattr(JetStream, "pause_consumer", pause_and_publish)
        async with at_work(server, SETTINGS) as hand:
            server.publish(SUBJECT, b"one")
            await until(lambda: len(hand.came) == 2, "both to come")
            await until(lambda: server.state()["messages"] == 0, "both to be done")
            assert [each.num_delivered for each in hand.came] == [1, 1]
            assert FlowEnded(SUBJECT) not in hand.told
