"""Function mode on a real server: what is found, what is recalled, and whose it is."""

from __future__ import annotations

from math import inf
from pathlib import Path

import trio

from tests.chaos.proxy import Proxy
from tests.nats.hand import Hand, acknowledge, at_work
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, until
from worker.config import load
from worker.events import BrokerFailure
from worker.model import Ack, CreditReturned, Delivery, FlowEnded, Notice, PendingCount, Published, StoredCount
from worker.nats.discovery import HEARD
from worker.nats.queue import open_queue
from worker.ports import Consumer

SETTINGS = {"scaling_mode": "function", "ack_wait": "60s"}
ECHO, SLOW = "faas-request.0.echo.ns", "faas-request.0.slow.ns"


async def told(consumer: Consumer, *wanted: type[Notice | Delivery], flow: str = ECHO) -> list[Notice | Delivery]:
    """Return all that is received of a flow until each of these types was."""
    seen: list[Notice | Delivery] = []
    with trio.fail_after(LAST_RESORT):
        while not {*wanted} <= {type(each) for each in seen}:
            seen += [each for each in await consumer.receive() if getattr(each, "flow", "") == flow]
    return seen


async def test_discovery_stored_before_start_is_found(tmp_path: Path) -> None:
    """Each subject is a flow, the bare one too, whatever its tokens; its stored and pending messages are counted."""
    subjects = {ECHO: 3, "faas-request": 2, "faas-request.any.other.scheme.x": 1}
    with NatsServer(tmp_path) as server:
        server.make_stream()
        server.publish_many((subject, b"", {}) for subject, number in subjects.items() for _ in range(number))
        async with at_work(server, SETTINGS, lambda *_: None, each=1) as hand:
            await until(lambda: len(hand.came) == 6, "all to come")
            for subject, number in subjects.items():
                assert StoredCount(subject, number) in hand.told
                assert PendingCount(subject, number) in hand.told
                assert [each.num_pending for each in hand.came if each.flow == subject] == [*reversed(range(number))]


async def test_discovery_new_subject_is_notified_at_once(tmp_path: Path) -> None:
    """The first message of a subject is notified when it is stored, not at the next look; so is the next."""
    with NatsServer(tmp_path) as server:
        async with open_queue(load({"nats_port": str(server.port), **SETTINGS}).settings, lambda _: None) as queue:
            consumer = await queue.consume()
            await until(lambda: queue.ready, "the first look")
            server.publish(ECHO, b"one")
            assert await told(consumer, StoredCount) == [StoredCount(ECHO, 1)]
            server.publish(ECHO, b"two")
            assert await told(consumer, Published) == [Published(ECHO)]


async def test_discovery_many_new_subjects_are_all_found(tmp_path: Path) -> None:
    """Subjects beyond what one subscription receives are found by the look that follows."""
    with NatsServer(tmp_path) as server:
        async with at_work(server, SETTINGS) as hand:
            await until(lambda: hand.queue.ready, "the first look")
            subjects = [f"faas-request.0.f{number}.ns" for number in range(5 * HEARD)]
            server.publish_many((subject, b"", {}) for subject in subjects)
            await until(lambda: server.state()["messages"] == 0, "all to be done")
            assert sorted(each.flow for each in hand.came) == sorted(subjects)


async def test_recall_credit_returns_unused_credit(tmp_path: Path) -> None:
    """Credit that brought no message is returned once; then nothing arrives until there is credit again."""
    with NatsServer(tmp_path) as server:
        async with open_queue(load({"nats_port": str(server.port), **SETTINGS}).settings, lambda _: None) as queue:
            consumer = await queue.consume()
            server.publish(ECHO, b"one")
            await told(consumer, StoredCount)
            consumer.add_credit(5, ECHO)
            await told(consumer, Delivery)
            consumer.recall_credit(ECHO)
            assert (await told(consumer, CreditReturned))[-1] == CreditReturned(ECHO, 4)
            server.publish(ECHO, b"two")
            came = []
            with trio.move_on_after(1.0):
                came = await told(consumer, Delivery)
            assert not came
            consumer.add_credit(1, ECHO)
            (delivery,) = [each for each in await told(consumer, Delivery) if isinstance(each, Delivery)]
            assert delivery.payload == b"two"
            assert delivery.num_delivered == 1
            consumer.recall_credit(ECHO)
            assert await told(consumer, CreditReturned) == [CreditReturned(ECHO, 0)]


async def test_recall_credit_while_messages_arrive_loses_none(tmp_path: Path) -> None:
    """Each message that there was credit for arrives, or its credit is returned, never both."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with open_queue(load({"nats_port": str(server.port), **SETTINGS}).settings, lambda _: None) as queue:
            consumer = await queue.consume()
            server.publish(ECHO, b"")
            await told(consumer, StoredCount)
            came = wanted = returned = 0
            for _ in range(50):
                consumer.add_credit(10, ECHO)
                wanted += 10
                server.publish_many((ECHO, b"", {}) for _ in range(6))
                await trio.sleep(0.002)
                consumer.recall_credit(ECHO)
                for each in await told(consumer, CreditReturned):
                    if isinstance(each, Delivery):
                        assert each.num_delivered == 1
                        queue.settle(each, Ack(), before=inf)
                        came += 1
                    elif isinstance(each, CreditReturned):
                        returned += each.count
            assert came + returned == wanted
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
                await told(consumer, StoredCount)
                consumer.add_credit(5, ECHO)
                await told(consumer, Delivery)
                proxy.stall()
                consumer.recall_credit(ECHO)
                await trio.sleep(0.5)
                server.stop()
                proxy.resume()
                assert (await told(consumer, CreditReturned))[-1] == CreditReturned(ECHO, 4)
            nursery.cancel_scope.cancel()


async def test_pull_consumer_deleted_ends_and_recreates_flow(tmp_path: Path) -> None:
    """A flow whose consumer is deleted ends; its stored messages make it a flow again, and arrive."""
    with NatsServer(tmp_path) as server:
        server.make_stream()

        def act(hand: Hand, delivery: Delivery) -> None:
            if len(hand.came) > 1:
                acknowledge(hand, delivery)

        async with at_work(server, SETTINGS, act) as hand:
            server.publish(ECHO, b"one")
            await until(lambda: len(hand.came) == 1, "it to come")
            (name,) = server.api("CONSUMER.NAMES.faas-request")["consumers"]
            server.api(f"CONSUMER.DELETE.faas-request.{name}")
            await until(lambda: server.state()["messages"] == 0, "it to come again")
            assert [each.num_delivered for each in hand.came] == [1, 1]
            assert FlowEnded(ECHO) in hand.told


async def test_pull_stream_recreated_has_flows_again(tmp_path: Path) -> None:
    """A queue that was reset has its flows as soon as there is work again."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with at_work(server, SETTINGS) as hand:
            server.publish(ECHO, b"one")
            await until(lambda: len(hand.came) == 1, "it to come")
            server.api("STREAM.DELETE.faas-request")
            await until(lambda: bool(server.state()), "a new stream")
            server.publish(ECHO, b"two")
            await until(lambda: server.state().get("messages") == 0 and len(hand.came) == 2, "the next to come")


async def test_pull_server_restarted_requests_again(tmp_path: Path) -> None:
    """The credit of each flow is requested again after the server restarts."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with at_work(server, SETTINGS) as hand:
            server.publish_many((subject, b"", {}) for subject in (ECHO, SLOW))
            await until(lambda: len(hand.came) == 2, "both to come")
            await trio.to_thread.run_sync(server.restart)
            server.publish_many((subject, b"", {}) for subject in (ECHO, SLOW) for _ in range(6))
            await until(lambda: server.state()["messages"] == 0, "all to be done")
            assert len(hand.came) == 14


async def test_discovery_partitions_divide_functions(tmp_path: Path) -> None:
    """Workers of different partitions have the functions of their own, and together all."""
    subjects = [f"faas-request.{part}.f{number}.ns" for part in range(3) for number in range(4)]
    subjects += ["faas-request", *(f"faas-request.odd{number}" for number in range(8))]
    for mode in ("function", "static"):
        with NatsServer(tmp_path / mode) as server:
            server.make_stream()
            server.publish_many((subject, b"", {}) for subject in subjects)
            one, two = (
                {"scaling_mode": mode, "queue_partitions": "2", "filter_partition": part} for part in ("0", "1")
            )
            async with at_work(server, one) as first, at_work(server, two) as second:
                await until(lambda: server.state()["messages"] == 0, "all to be done")
                server.publish_many((subject, b"", {}) for subject in subjects)
                await until(lambda: server.state()["messages"] == 0, "all to be done again")
            ours, theirs = ({each.subject for each in hand.came} for hand in (first, second))
            assert not ours & theirs
            assert ours | theirs == {*subjects}
            assert len(first.came) + len(second.came) == 2 * len(subjects)
            assert {subject for subject in subjects if ".0." in subject or ".2." in subject} < ours
            assert "faas-request" in ours


async def test_discovery_server_default_limit_is_raised(tmp_path: Path) -> None:
    """nats-server 2.15 takes "no limit" for 1,000 consumers, so the limit is set."""
    with NatsServer(tmp_path, config="") as server:
        server.make_stream()
        subjects = [f"faas-request.0.f{number}.ns" for number in range(1010)]
        server.publish_many((subject, b"", {}) for subject in subjects)
        async with at_work(server, SETTINGS | {"consumer_inactive_threshold": "1h"}, each=1) as hand:
            await until(lambda: server.state()["messages"] == 0, "all to be done")
            assert len(hand.came) == len(subjects)


async def test_discovery_consumer_limit_gives_functions_turns(tmp_path: Path) -> None:
    """Where an operator has set a limit of consumers, functions have their turn as others run out of work."""
    with NatsServer(tmp_path) as server:
        server.make_stream(max_consumers=3)
        server.publish_many((f"faas-request.0.f{number}.ns", b"", {}) for number in range(6))
        async with at_work(server, SETTINGS | {"consumer_inactive_threshold": "1h"}, each=1) as hand:
            await until(lambda: server.state()["messages"] == 0, "all to be done")
            assert len(hand.came) == 6
            assert server.api("STREAM.INFO.faas-request")["config"]["max_consumers"] == 3


PERMISSIONS = """authorization { users: [
    { user: admin, password: admin }
    { user: worker, password: worker, permissions: {
        publish: ["$JS.API.>", "$JS.ACK.>", "_INBOX.>"], subscribe: ["_INBOX.>"]
    } }
] }"""


async def test_discovery_no_permission_looks_every_two_seconds(tmp_path: Path) -> None:
    """Where the queue's subjects may not be subscribed to, functions are found by a look every two seconds."""
    with NatsServer(tmp_path, config=PERMISSIONS, connect={"user": "admin", "pass": "admin"}) as server:
        server.make_stream()
        user = {"nats_user": "worker", "nats_password": "worker"}
        async with at_work(server, SETTINGS | user) as hand:
            await until(lambda: hand.queue.ready, "the first look")
            for number in range(3):
                server.publish(f"faas-request.0.f{number}.ns", b"")
                await until(lambda: server.state()["messages"] == 0, "it to be done")
            assert len(hand.came) == 3
            troubles = [event.error for event in hand.events if isinstance(event, BrokerFailure)]
            assert any("permissions" in error for error in troubles), troubles
