"""Consumers of subjects without messages are deleted, on a real server."""

from __future__ import annotations

from math import inf
from pathlib import Path
from typing import Any

import pytest

from tests.nats.coreless import CorelessWorker, running_worker
from tests.servers import NatsServer, until
from worker.model import Ack, Delivery, FlowEnded, Nak
from worker.nats.jetstream import JetStream

SUBJECT = "faas-request.0.echo.ns"
SETTINGS = {"scaling_mode": "function", "consumer_inactive_threshold": "1s", "ack_wait": "3s"}


def names(server: NatsServer) -> list[str]:
    listed: list[str] = server.api("CONSUMER.NAMES.faas-request")["consumers"] or []
    return listed


async def test_idle_consumer_is_deleted_after_the_threshold(tmp_path: Path) -> None:
    """A flow ends with its consumer after the threshold without messages, and its next message starts it again."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, SETTINGS) as worker, running_worker(server, SETTINGS) as other:
            server.publish(SUBJECT, b"one")
            await until(lambda: server.state()["messages"] == 0, "the message to be acked")
            await until(lambda: not names(server), "its consumer to be deleted")
            await until(
                lambda: FlowEnded(SUBJECT) in worker.notices and FlowEnded(SUBJECT) in other.notices,
                "both workers to be notified",
            )
            server.publish(SUBJECT, b"two")
            await until(lambda: len(worker.deliveries) + len(other.deliveries) == 2, "the next delivery")


async def test_idle_consumer_with_a_delayed_message_stays(tmp_path: Path) -> None:
    """A consumer with a message that waits for its next attempt is not deleted, so that its delivery count remains."""

    def act(worker: CorelessWorker, delivery: Delivery) -> None:
        worker.queue.settle(delivery, Nak(6.0) if delivery.num_delivered == 1 else Ack(), before=inf)

    with NatsServer(tmp_path) as server:
        server.make_stream()
        server.publish(SUBJECT, b"one")
        async with running_worker(server, SETTINGS, act) as worker:
            await until(lambda: len(worker.deliveries) == 2, "the second attempt")
            assert [each.num_delivered for each in worker.deliveries] == [1, 2]


async def test_idle_consumer_of_a_killed_worker_is_deleted(tmp_path: Path) -> None:
    """The idle consumer of a killed worker is deleted by another worker."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, SETTINGS | {"consumer_inactive_threshold": "1h"}):
            server.publish(SUBJECT, b"one")
            await until(lambda: names(server) and not server.state()["messages"], "the message to be acked")
        async with running_worker(server, SETTINGS):
            await until(lambda: not names(server), "its consumer to be deleted")


async def test_idle_consumer_with_a_message_during_its_deletion_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is stored during the deletion is delivered once, by the next consumer."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        delete = JetStream.delete_consumer
        published: list[Any] = []

        async def publish_and_delete(self: JetStream, stream: str, name: str) -> None:
            if not published:
                published.append(server.publish(SUBJECT, b"late"))
            await delete(self, stream, name)

        monkeypatch.setattr(JetStream, "delete_consumer", publish_and_delete)
        async with running_worker(server, SETTINGS) as worker, running_worker(server, SETTINGS) as other:
            server.publish(SUBJECT, b"one")
            await until(lambda: bool(published) and server.state()["messages"] == 0, "both messages to be acked")
            deliveries = [*worker.deliveries, *other.deliveries]
            assert sorted((each.payload, each.num_delivered) for each in deliveries) == [(b"late", 1), (b"one", 1)]


async def test_idle_consumer_with_a_message_before_its_deletion_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message that is stored while the consumer is paused prevents the deletion, and is delivered soon."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        pause = JetStream.pause_consumer
        published: list[Any] = []

        async def pause_and_publish(self: JetStream, stream: str, name: str, until: str) -> bool:
            paused = await pause(self, stream, name, until)
            if not published:
                published.append(server.publish(SUBJECT, b"late"))
            return paused

        monkeypatch.setattr(JetStream, "pause_consumer", pause_and_publish)
        async with running_worker(server, SETTINGS) as worker:
            server.publish(SUBJECT, b"one")
            await until(lambda: len(worker.deliveries) == 2, "both deliveries")
            await until(lambda: server.state()["messages"] == 0, "both messages to be acked")
            assert [each.num_delivered for each in worker.deliveries] == [1, 1]
            assert FlowEnded(SUBJECT) not in worker.notices
