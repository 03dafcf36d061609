"""Migrations between layouts, on a real server, with a stream of messages in each state."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from math import inf
from pathlib import Path
from typing import Any

import pytest
import trio
from nats.aio.msg import Msg
from trio_asyncio import aio_as_trio

from tests.nats.coreless import CorelessWorker, ack, running_worker
from tests.servers import NatsServer, until
from worker.config import load
from worker.model import Ack, Delivery, Nak
from worker.nats import pull_consumer
from worker.nats.connection import Connection
from worker.nats.queue import open_queue

FUNCTIONS = [f"faas-request.0.f{number}.ns" for number in range(4)]
STATIC = {"scaling_mode": "static", "ack_wait": "3s"}
FUNCTION = {"scaling_mode": "function", "ack_wait": "3s"}


def publish(server: NatsServer, each: int) -> None:
    server.publish_many((subject, b"%d" % number, {}) for number in range(each) for subject in FUNCTIONS)


def ack_nak_and_hold(worker: CorelessWorker, delivery: Delivery) -> None:
    """Ack the first, nak the second for five seconds, and hold the others."""
    if len(worker.deliveries) == 1:
        ack(worker, delivery)
    elif len(worker.deliveries) == 2:
        worker.queue.settle(delivery, Nak(5.0), before=inf)
    else:
        worker.held[delivery.id] = delivery


def ack_held(worker: CorelessWorker) -> None:
    """Ack the held deliveries."""
    for delivery in worker.held.values():
        worker.queue.settle(delivery, Ack(), before=inf)
    worker.held.clear()


def consumers(server: NatsServer) -> dict[str, dict[str, str]]:
    """Return the metadata of each consumer."""
    listed = server.api("CONSUMER.LIST.faas-request")["consumers"] or []
    return {each["name"]: each["config"].get("metadata", {}) for each in listed}


async def change_layout(tmp_path: Path, before: dict[str, str], after: dict[str, str]) -> None:
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 10)
        async with running_worker(server, before, ack_nak_and_hold) as old:
            await until(lambda: len(old.deliveries) >= 6, "some deliveries")
            await old.stop()
            async with running_worker(server, after) as new:
                running = len(old.held)
                await until(
                    lambda: len({each.id for each in new.deliveries}) >= 40 - 2 - running,
                    "the waiting messages to be delivered",
                )
                ack_held(old)
                await until(lambda: len(new.deliveries) + 1 + running >= 40, "the nakked message to be delivered")
                await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
                await until(
                    lambda: not any(each.get("queue-worker.mode") == "retired" for each in consumers(server).values()),
                    "the retired consumers to be deleted",
                )
        counts = Counter(each.id for each in [*old.deliveries, *new.deliveries])
        assert len(counts) == 40
        again = {each.id: each.num_delivered for each in new.deliveries if each.num_delivered > 1}
        assert {identity for identity, number in counts.items() if number > 1} == again.keys()
        assert {*again.values()} == {2}
        (nakked,) = [each for each in new.deliveries if each.id == old.deliveries[1].id]
        assert nakked.received_at > old.deliveries[1].received_at + 5.0


PARTITIONS = STATIC | {"queue_partitions": "2"}
CHANGES = {
    "static to function": (STATIC, FUNCTION),
    "function to static": (FUNCTION, STATIC),
    "static to partitions": (STATIC, PARTITIONS),
    "partitions to static": (PARTITIONS, STATIC),
    "partitions to function": (PARTITIONS, FUNCTION),
    "function to partitions": (FUNCTION, PARTITIONS),
    "partitions to others": (PARTITIONS, STATIC | {"queue_partitions": "3"}),
}


OFTEN = ("static to function", "function to static", "static to partitions")
"""The migrations of each run; the others execute the same code, and are slow tests."""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(*change, id=name, marks=() if name in OFTEN else pytest.mark.slow)
        for name, change in CHANGES.items()
    ],
)
async def test_migration_keeps_messages_counts_and_delays(
    tmp_path: Path, before: dict[str, str], after: dict[str, str]
) -> None:
    """A migration loses no message and repeats none, and a nakked message keeps its delivery count and delay."""
    await change_layout(tmp_path, before, after)


async def test_migration_to_static_ends_with_an_unfiltered_consumer(tmp_path: Path) -> None:
    """Static mode's consumer has no filter once it is the only one, and it delivers messages stored after that."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 5)
        async with running_worker(server, FUNCTION):
            await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
        async with running_worker(server, STATIC) as worker:

            def config() -> dict[str, Any]:
                found: dict[str, Any] = server.api("CONSUMER.INFO.faas-request.faas-workers")["config"]
                return found

            await until(lambda: "filter_subjects" not in config(), "the filter to be removed")
            assert [*consumers(server)] == ["faas-workers"]
            publish(server, 5)
            await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
            assert [each.num_delivered for each in worker.deliveries] == [1] * 20


class Killed(Exception):  # noqa: N818 -- an event, not an error
    """The end of a worker's process, raised in its place."""


async def kill_at(server: NatsServer, step: int, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> bool:
    """Kill a worker before its *step*-th request to JetStream; return whether its start has that many."""
    requests = count(1)
    request = Connection.request

    async def request_or_raise(self: Connection, subject: str, *args: Any, **options: Any) -> Msg:
        if subject.startswith("$JS.API.") and next(requests) == step:
            raise Killed
        return await request(self, subject, *args, **options)

    with monkeypatch.context() as patch, suppress_killed():
        patch.setattr(Connection, "request", request_or_raise)
        async with open_queue(load({"nats_port": str(server.port)} | settings).settings, lambda _: None) as queue:
            await queue.consume()
    return next(requests) > step


@contextmanager
def suppress_killed() -> Iterator[None]:
    try:
        yield
    except* Killed:
        pass


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(STATIC, FUNCTION), (FUNCTION, STATIC)], ids=["function", "static"])
async def test_migration_killed_at_each_step_is_continued(
    tmp_path: Path, before: dict[str, str], after: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a worker is killed at any step of a migration, the next one completes it without a loss or a repeat."""
    step, more = 1, True
    while more:
        with NatsServer(tmp_path / str(step)) as server:
            server.make_stream()
            publish(server, 3)
            async with running_worker(server, before, ack_nak_and_hold) as old:
                await until(lambda: len(old.deliveries) >= 6, "some deliveries")
                await old.stop()
                more = await kill_at(server, step, monkeypatch, after)
                async with running_worker(server, after) as new:
                    await until(
                        lambda: len({each.id for each in [*old.deliveries, *new.deliveries]}) == 12,
                        f"all deliveries, step {step}",
                    )
                    ack_held(old)
                    await until(lambda: server.state()["messages"] == 0, f"all messages to be settled, step {step}")
            counts = Counter(each.id for each in [*old.deliveries, *new.deliveries])
            again = {identity for identity, number in counts.items() if number > 1}
            assert again == {old.deliveries[1].id} | {each.id for each in new.deliveries if each.num_delivered > 1}
        step += 1
    assert step > 6


async def test_migration_killed_before_a_deletion_repeats_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies before it deletes an acked message of a retired consumer causes one repeat, not two."""

    def hold(worker: CorelessWorker, delivery: Delivery) -> None:
        worker.held[delivery.id] = delivery

    async def never_answer(*_: object) -> bool:
        return bool(await asyncio.Event().wait())

    monkeypatch.setattr(pull_consumer, "_POSTPONED", 2.0)
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, STATIC, hold) as old:
            publish(server, 1)
            await until(lambda: len(old.held) == 4, "all deliveries")
            await old.stop()
            async with running_worker(server, FUNCTION) as new:
                deletes = new.queue._connection.can_pause
                await until(lambda: "retired" in str(consumers(server)), "the new layout")
                publish(server, 1)
                await until(lambda: len(new.deliveries) == 4, "a delivery from each function's own consumer")
                monkeypatch.setattr(old.queue._jetstream, "delete_message", never_answer)
                ack_held(old)
                with trio.move_on_after(1) as unsettled:
                    await old.queue.wait_settled()
                assert unsettled.cancelled_caught, "settled before the message was deleted"
                await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
                await until(lambda: "retired" not in str(consumers(server)), "the retired consumers to be deleted")
        repeated = old.deliveries if deletes else []  # nats-server 2.10 deletes what a retired consumer acks
        assert Counter(each.id for each in new.deliveries) == Counter(
            {each.id for each in [*repeated, *new.deliveries]}
        )


async def test_migration_waits_for_the_last_worker_of_the_old_mode(tmp_path: Path) -> None:
    """A worker with scaling_mode=function serves static mode while another worker needs that, and migrates after it."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 5)
        async with running_worker(server, STATIC, credit=1) as old, running_worker(server, FUNCTION, credit=1) as new:
            await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
            assert {each.flow for each in [*old.deliveries, *new.deliveries]} == {""}
            assert consumers(server)["faas-workers"]["queue-worker.mode"] == "static"
            await old.stop()
            await until(lambda: "faas-workers" not in consumers(server), "the new layout")
            publish(server, 5)
            await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
            assert {each.flow for each in new.deliveries if each.flow} >= set(FUNCTIONS)
            counts = Counter(each.id for each in [*old.deliveries, *new.deliveries])
            assert len(counts) == 40
            assert not [each for each in counts if counts[each] > 1]


async def test_migration_back_waits_for_the_retired_consumer(tmp_path: Path) -> None:
    """A worker with the old mode serves the new one until the retired consumer's pending messages are settled."""

    def nak_some(worker: CorelessWorker, delivery: Delivery) -> None:
        if delivery.num_delivered == 1 and len(worker.deliveries) <= 2:
            worker.queue.settle(delivery, Nak(8.0), before=inf)
        else:
            ack(worker, delivery)

    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 3)
        async with running_worker(server, STATIC, nak_some) as first:
            await until(lambda: len(first.deliveries) >= 4, "some deliveries")
            await first.stop()
        async with running_worker(server, FUNCTION) as second:
            await until(lambda: "faas-workers-" in "".join(consumers(server)), "the new layout")
            await second.stop()
        async with running_worker(server, STATIC) as third:
            publish(server, 3)
            await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
            await until(lambda: consumers(server).keys() == {"faas-workers"}, "the first layout")
            publish(server, 1)
            await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
            assert third.deliveries[-1].flow == ""
        deliveries = [*first.deliveries, *second.deliveries, *third.deliveries]
        counts = Counter(each.id for each in deliveries)
        assert len(counts) == 28
        assert {each.id for each in deliveries if each.num_delivered > 1} == {
            each for each in counts if counts[each] > 1
        }


async def test_migration_by_several_workers_at_once(tmp_path: Path) -> None:
    """Three workers that start a migration at the same time complete it together, without a loss or a repeat."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 20)
        async with running_worker(server, STATIC, ack_nak_and_hold) as old:
            await until(lambda: len(old.deliveries) >= 6, "some deliveries")
            await old.stop()
            workers: list[CorelessWorker] = []
            async with trio.open_nursery() as nursery:

                async def work() -> None:
                    async with running_worker(server, FUNCTION) as worker:
                        workers.append(worker)
                        await trio.sleep_forever()

                for _ in range(3):
                    nursery.start_soon(work)
                running = len(old.held)

                def deliveries() -> list[Delivery]:
                    return [*old.deliveries, *(each for worker in workers for each in worker.deliveries)]

                await until(
                    lambda: len({each.id for each in deliveries()}) == 80, "the waiting messages to be delivered"
                )
                ack_held(old)
                await until(lambda: server.state()["messages"] == 0, "all messages to be settled")
                nursery.cancel_scope.cancel()
            counts = Counter(each.id for each in deliveries())
            assert {each for each in counts if counts[each] > 1} == {
                each.id for worker in workers for each in worker.deliveries if each.num_delivered > 1
            }
            assert running


@pytest.mark.parametrize("reply", ["$JS.API.STREAM.DELETE.faas-request", "$JS.API.STREAM.PURGE.faas-request"])
async def test_question_with_a_foreign_reply_subject_is_not_answered(tmp_path: Path, reply: str) -> None:
    """A program that may only ask cannot let a worker delete a stream: the empty answer would be that request."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, FUNCTION, ack_nak_and_hold) as worker:
            client = worker.queue._connection.client
            server.publish("faas-request.0.f.ns", b"kept")
            server.publish("faas-request.0.f.ns", b"kept")
            for layout in ("function", "static.1"):
                await aio_as_trio(client.publish)(f"queue-worker.faas-request.{layout}", b"", reply=reply)
            await until(lambda: len(worker.deliveries) == 2, "both deliveries")
            assert server.state()["messages"] >= 1


async def test_announced_names_are_bounded(tmp_path: Path) -> None:
    """However many names strangers announce, the worker remembers the newest, and none that no consumer can have."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, FUNCTION) as worker:
            client, subject = worker.queue._connection.client, "queue-worker.faas-request.retiring"
            await aio_as_trio(client.publish)(subject, b"\n".join((b"", b"x" * 256, b"\xff" * 300)))
            for number in range(30):
                names = (f"c{number}-{each}".encode() for each in range(10_000))
                await aio_as_trio(client.publish)(subject, b"\n".join(names))
            await aio_as_trio(worker.queue._connection.round_trip)()
            found = worker.queue._retired.names
            assert len(found) <= 20_000
            assert "c29-999" in found
            assert not any(len(name) in (0, 256, 300) for name in found)
