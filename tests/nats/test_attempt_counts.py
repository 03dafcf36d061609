"""Workers' announcements of attempts, on a real nats-server."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest
from trio_asyncio import aio_as_trio

from tests.nats.coreless import CorelessWorker, running_worker
from tests.servers import NatsServer, until
from worker.events import BrokerFailure
from worker.model import AttemptCount, Delivery, Nak

SUBJECT = "queue-worker.faas-request.attempts"
STATIC = {"ack_wait": "60s"}


def counts(worker: CorelessWorker) -> list[AttemptCount]:
    return [each for each in worker.notices if isinstance(each, AttemptCount)]


async def test_announcement_arrives_before_the_message(tmp_path: Path) -> None:
    """Another worker receives the announcement before the message that was nakked after it, each of many times."""
    order: list[Delivery] = []

    def announce_and_nak(worker: CorelessWorker, delivery: Delivery) -> None:
        worker.queue.announce(AttemptCount(delivery.id, delivery.num_delivered, 0))
        worker.queue.settle(delivery, Nak(), before=inf)

    def hold(_: CorelessWorker, delivery: Delivery) -> None:
        order.append(delivery)

    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with (
            running_worker(server, STATIC, announce_and_nak, credit=1) as first,
            running_worker(server, STATIC, hold, credit=50) as second,
        ):
            server.publish_many(("faas-request", b"%d" % number, {}) for number in range(40))
            await until(lambda: len(order) >= 40, "all deliveries")
            known = {each.id: each for each in counts(second)}
            for each in order:
                if each.num_delivered > 1:
                    assert known[each.id].num_delivered == each.num_delivered - 1
            assert {each.num_delivered for each in order} > {1}
            await first.stop()


async def test_many_counts_take_few_messages(tmp_path: Path) -> None:
    """Counts that wait together are announced in messages of up to a thousand, and none of them is lost."""

    def announce_many(worker: CorelessWorker, delivery: Delivery) -> None:
        for number in range(2_500):
            worker.queue.announce(AttemptCount((number + 1, 7), 3, 1))
        worker.queue.settle(delivery, Nak(60.0), before=inf)

    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, STATIC, announce_many) as worker:
            before = worker.queue._connection.client.stats["out_msgs"]
            server.publish("faas-request", b"")
            await until(lambda: len(counts(worker)) == 2_500, "all counts")
            assert counts(worker)[-1] == AttemptCount((2_500, 7), 3, 1)
            assert worker.queue._connection.client.stats["out_msgs"] - before < 20


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{}",
        b"[[1,2,3]]",
        b'[[1,2,3,"4"]]',
        b"[[1,2,-3,4]]",
        b"[[1,2,3,99999999999999999999999]]",
        b"[" * 100_000,
        json.dumps([[1, 2, 3, 4]] * 1_001).encode(),
    ],
)
async def test_malformed_announcement_is_reported_and_ignored(tmp_path: Path, data: bytes) -> None:
    """An announcement that is no list of counts, or too long, is reported; the next one is read."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, STATIC) as worker:
            await aio_as_trio(worker.queue._connection.client.publish)(SUBJECT, data)
            await aio_as_trio(worker.queue._connection.client.publish)(SUBJECT, b"[[1,2,3,4]]")
            await until(lambda: bool(counts(worker)), "the next announcement")
            assert counts(worker) == [AttemptCount((1, 2), 3, 4)]
            failures = [each for each in worker.events if isinstance(each, BrokerFailure)]
            assert [each.action for each in failures] == ["reading the attempts that another worker announced"]
