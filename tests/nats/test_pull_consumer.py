"""Function mode on a real server: discovery of flows, recalls of credit, and partitions."""

from __future__ import annotations

from math import inf
from pathlib import Path

import trio

from tests.chaos.proxy import Proxy
from tests.nats.coreless import CorelessWorker, ack, running_worker
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, until
from worker.config import load
from worker.events import BrokerFailure
from worker.model import Ack, CreditReturned, Delivery, FlowEnded, Notice, PendingCount, Published, StoredCount
from worker.nats.discovery import MAX_MESSAGES
from worker.nats.queue import open_queue
from worker.ports import Consumer

SETTINGS = {"scaling_mode": "function", "ack_wait": "60s"}
ECHO, SLOW = "faas-request.0.echo.ns", "faas-request.0.slow.ns"


async def receive_until(
    consumer: Consumer, *kinds: type[Notice | Delivery], flow: str = ECHO
) -> list[Notice | Delivery]:
    """Receive until each of these types was received of a flow, and return all that was received of it."""
    received: list[Notice | Delivery] = []
    with trio.fail_after(LAST_RESORT):
        while not {*kinds} <= {type(each) for each in received}:
            received += [each for each in await consumer.receive() if getattr(each, "flow", "") == flow]
    return received


async def test_discovery_stored_before_start_is_found(tmp_path: Path) -> None:
    """Each subject with messages is a flow, also the bare subject; its stored and pending messages are counted."""
    subjects = {ECHO: 3, "faas-request": 2, "faas-request.any.other.scheme.x": 1}
    with NatsServer(tmp_path) as server:
        server.make_stream()
        server.publish_many((subject, b"", {}) for subject, number in subjects.items() for _ in range(number))
        async with running_worker(server, SETTINGS, lambda *_: None, credit=1) as worker:
            await until(lambda: len(worker.deliveries) == 6, "all deliveries")
            for subject, number in subjects.items():
                assert StoredCount(subject, number) in worker.notices
                assert PendingCount(subject, number) in worker.notices
                assert [each.num_pending for each in worker.deliveries if each.flow == subject] == [
                    *reversed(range(number))
                ]


async def test_discovery_new_subject_is_notified_at_once(tmp_path: Path) -> None:
    """A worker is notified of each message when it is stored, also of the first one of a subject."""
    with NatsServer(tmp_path) as server:
        async with open_queue(load({"nats_port": str(server.port), **SETTINGS}).settings, lambda _: None) as queue:
            consumer = await queue.consume()
            await until(lambda: not queue.obstacle, "the first discovery")
            server.publish(ECHO, b"one")
            assert await receive_until(consumer, StoredCount) == [StoredCount(ECHO, 1)]
            server.publish(ECHO, b"two")
            assert await receive_until(consumer, Published) == [Published(ECHO)]


async def test_discovery_many_new_subjects_are_all_found(tmp_path: Path) -> None:
    """Subjects that the subscription does not receive are found by the next read of the stream."""
    with NatsServer(tmp_path) as server:
        async with running_worker(server, SETTINGS) as worker:
            await until(lambda: not worker.queue.obstacle, "the first discovery")
            subjects = [f"faas-request.0.f{number}.ns" for number in range(5 * MAX_MESSAGES)]
            server.publish_many((subject, b"", {}) for subject in subjects)
            await until(lambda: server.state()["messages"] == 0, "all messages to be acked")
            assert sorted(each.flow for each in worker.deliveries) == sorted(subjects)


async def test_recall_credit_returns_unused_credit(tmp_path: Path) -> None:
    """A recall returns unused credit once, and then no message is delivered until credit is added again."""
    with NatsServer(tmp_path) as server:
        async with open_queue(load({"nats_port": str(server.port), **SETTINGS}).settings, lambda _: None) as queue:
            consumer = await queue.consume()
            server.publish(ECHO, b"one")
            await receive_until(consumer, StoredCount)
            consumer.add_credit(5, ECHO)
            await receive_until(consumer, Delivery)
            consumer.recall_credit(ECHO)
            assert (await receive_until(consumer, CreditReturned))[-1] == CreditReturned(ECHO, 4)
            server.publish(ECHO, b"two")
            delivered = []
            with trio.move_on_after(1.0):
                delivered = await receive_until(consumer, Delivery)
            assert not delivered
            consumer.add_credit(1, ECHO)
            (delivery,) = [each for each in await receive_until(consumer, Delivery) if isinstance(each, Delivery)]
            assert delivery.payload == b"two"
            assert delivery.num_delivered == 1
            consumer.recall_credit(ECHO)
            assert await receive_until(consumer, CreditReturned) == [CreditReturned(ECHO, 0)]


async def test_recall_credit_while_messages_arrive_loses_none(tmp_path: Path) -> None:
    """For each credit a message is delivered or the credit is returned, never both."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with open_queue(load({"nats_port": str(server.port), **SETTINGS}).settings, lambda _: None) as queue:
            consumer = await queue.consume()
            server.publish(ECHO, b"")
            await receive_until(consumer, StoredCount)
            delivered = credit = returned = 0
            for _ in range(50):
                consumer.add_credit(10, ECHO)
                credit += 10
                server.publish_many((ECHO, b"", {}) for _ in range(6))
                await trio.sleep(0.002)
                consumer.recall_credit(ECHO)
                for each in await receive_until(consumer, CreditReturned):
                    if isinstance(each, Delivery):
                        assert each.num_delivered == 1
                        queue.settle(each, Ack(), before=inf)
                        delivered += 1
                    elif isinstance(each, CreditReturned):
                        returned += each.count
            assert delivered + returned == credit
            with trio.fail_after(LAST_RESORT):
                await queue.wait_settled()
            names = server.api("CONSUMER.NAMES.faas-request")["consumers"]
            assert server.api(f"CONSUMER.INFO.faas-request.{names[0]}")["num_ack_pending"] == 0


async def test_recall_credit_connection_lost_returns_credit(tmp_path: Path) -> None:
    """Credit is also returned when the connection is lost before the round trip is complete."""
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            proxy = Proxy(server.port)
            await nursery.start(proxy.serve)
            settings = load({"nats_port": str(proxy.port), "ack_wait": "12s", "scaling_mode": "function"}).settings
            async with open_queue(settings, lambda _: None) as queue:
                consumer = await queue.consume()
                server.publish(ECHO, b"one")
                await receive_until(consumer, StoredCount)
                consumer.add_credit(5, ECHO)
                await receive_until(consumer, Delivery)
                proxy.stall()
                consumer.recall_credit(ECHO)
                await trio.sleep(0.5)
                server.stop()
                proxy.resume()
                assert (await receive_until(consumer, CreditReturned))[-1] == CreditReturned(ECHO, 4)
            nursery.cancel_scope.cancel()


async def test_pull_consumer_deleted_ends_and_recreates_flow(tmp_path: Path) -> None:
    """A flow whose consumer is deleted ends; if messages are stored, the flow starts again and delivers them."""
    with NatsServer(tmp_path) as server:
        server.make_stream()

        def act(worker: CorelessWorker, delivery: Delivery) -> None:
            if len(worker.deliveries) > 1:
                ack(worker, delivery)

        async with running_worker(server, SETTINGS, act) as worker:
            server.publish(ECHO, b"one")
            await until(lambda: len(worker.deliveries) == 1, "the first delivery")
            (name,) = server.api("CONSUMER.NAMES.faas-request")["consumers"]
            server.api(f"CONSUMER.DELETE.faas-request.{name}")
            await until(lambda: server.state()["messages"] == 0, "the redelivery to be acked")
            assert [each.num_delivered for each in worker.deliveries] == [1, 1]
            assert FlowEnded(ECHO) in worker.notices


async def test_pull_stream_recreated_has_flows_again(tmp_path: Path) -> None:
    """After the stream was recreated, a new message starts its flow again."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, SETTINGS) as worker:
            server.publish(ECHO, b"one")
            await until(lambda: len(worker.deliveries) == 1, "the first delivery")
            server.api("STREAM.DELETE.faas-request")
            await until(lambda: bool(server.state()), "a new stream")
            server.publish(ECHO, b"two")
            await until(
                lambda: server.state().get("messages") == 0 and len(worker.deliveries) == 2, "the next delivery"
            )


async def test_pull_server_restarted_requests_again(tmp_path: Path) -> None:
    """The credit of each flow is requested again after the server restarts."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, SETTINGS) as worker:
            server.publish_many((subject, b"", {}) for subject in (ECHO, SLOW))
            await until(lambda: len(worker.deliveries) == 2, "both deliveries")
            await trio.to_thread.run_sync(server.restart)
            server.publish_many((subject, b"", {}) for subject in (ECHO, SLOW) for _ in range(6))
            await until(lambda: server.state()["messages"] == 0, "all messages to be acked")
            assert len(worker.deliveries) == 14


async def test_discovery_partitions_divide_functions(tmp_path: Path) -> None:
    """Workers of different partitions receive different functions, and together all functions."""
    subjects = [f"faas-request.{part}.f{number}.ns" for part in range(3) for number in range(4)]
    subjects += ["faas-request", *(f"faas-request.odd{number}" for number in range(8))]
    for mode in ("function", "static"):
        with NatsServer(tmp_path / mode) as server:
            server.make_stream()
            server.publish_many((subject, b"", {}) for subject in subjects)
            partition_0, partition_1 = (
                {"scaling_mode": mode, "queue_partitions": "2", "filter_partition": part} for part in ("0", "1")
            )
            async with (
                running_worker(server, partition_0) as first,
                running_worker(server, partition_1) as second,
            ):
                await until(lambda: server.state()["messages"] == 0, "all messages to be acked")
                server.publish_many((subject, b"", {}) for subject in subjects)
                await until(lambda: server.state()["messages"] == 0, "all messages to be acked again")
            one, other = ({each.subject for each in worker.deliveries} for worker in (first, second))
            assert not one & other
            assert one | other == {*subjects}
            assert len(first.deliveries) + len(second.deliveries) == 2 * len(subjects)
            assert {subject for subject in subjects if ".0." in subject or ".2." in subject} < one
            assert "faas-request" in one


async def test_discovery_server_default_limit_is_raised(tmp_path: Path) -> None:
    """More than 1,000 functions have consumers, because the worker raises the default limit of nats-server 2.15."""
    with NatsServer(tmp_path, config="") as server:
        server.make_stream()
        subjects = [f"faas-request.0.f{number}.ns" for number in range(1010)]
        server.publish_many((subject, b"", {}) for subject in subjects)
        async with running_worker(server, SETTINGS | {"consumer_inactive_threshold": "1h"}, credit=1) as worker:
            await until(lambda: server.state()["messages"] == 0, "all messages to be acked")
            assert len(worker.deliveries) == len(subjects)


async def test_discovery_consumer_limit_gives_functions_turns(tmp_path: Path) -> None:
    """With an operator's limit of consumers, a function gets one when another function has no more messages."""
    with NatsServer(tmp_path) as server:
        server.make_stream(max_consumers=3)
        server.publish_many((f"faas-request.0.f{number}.ns", b"", {}) for number in range(6))
        async with running_worker(server, SETTINGS | {"consumer_inactive_threshold": "1h"}, credit=1) as worker:
            await until(lambda: server.state()["messages"] == 0, "all messages to be acked")
            assert len(worker.deliveries) == 6
            assert server.api("STREAM.INFO.faas-request")["config"]["max_consumers"] == 3


PERMISSIONS = """authorization { users: [
    { user: admin, password: admin }
    { user: worker, password: worker, permissions: {
        publish: ["$JS.API.>", "$JS.ACK.>", "_INBOX.>"], subscribe: ["_INBOX.>"]
    } }
] }"""


async def test_discovery_no_permission_reads_every_two_seconds(tmp_path: Path) -> None:
    """Without permission to subscribe to the queue's subjects, functions are found by a read every two seconds."""
    with NatsServer(tmp_path, config=PERMISSIONS, connect={"user": "admin", "pass": "admin"}) as server:
        server.make_stream()
        user = {"nats_user": "worker", "nats_password": "worker"}
        async with running_worker(server, SETTINGS | user) as worker:
            await until(lambda: not worker.queue.obstacle, "the first discovery")
            for number in range(3):
                server.publish(f"faas-request.0.f{number}.ns", b"")
                await until(lambda: server.state()["messages"] == 0, "the message to be acked")
            assert len(worker.deliveries) == 3
            errors = [event.error for event in worker.events if isinstance(event, BrokerFailure)]
            assert any("permissions" in error for error in errors), errors
