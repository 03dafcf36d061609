"""From one scaling mode to the other, on a real server, with a stream full of work."""

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

from tests.nats.hand import Hand, acknowledge, at_work
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


def keep_some(hand: Hand, delivery: Delivery) -> None:
    """Ack the first, nak the second for five seconds, and hold the others."""
    if len(hand.came) == 1:
        acknowledge(hand, delivery)
    elif len(hand.came) == 2:
        hand.queue.settle(delivery, Nak(5.0), before=inf)
    else:
        hand.held[delivery.id] = delivery


def release(hand: Hand) -> None:
    """Ack what is held."""
    for delivery in hand.held.values():
        hand.queue.settle(delivery, Ack(), before=inf)
    hand.held.clear()


def consumers(server: NatsServer) -> dict[str, dict[str, str]]:
    """Return the metadata of each consumer."""
    listed = server.api("CONSUMER.LIST.faas-request")["consumers"] or []
    return {each["name"]: each["config"].get("metadata", {}) for each in listed}


async def switch(tmp_path: Path, before: dict[str, str], after: dict[str, str]) -> None:
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 10)
        async with at_work(server, before, keep_some) as old:
            await until(lambda: len(old.came) >= 6, "some work to run")
            await old.stop()
            async with at_work(server, after) as new:
                running = len(old.held)
                await until(lambda: len({each.id for each in new.came}) >= 40 - 2 - running, "what waited")
                release(old)
                await until(lambda: len(new.came) + 1 + running >= 40, "what was given back")
                await until(lambda: server.state()["messages"] == 0, "all to be over")
                await until(
                    lambda: not any(each.get("queue-worker.mode") == "retired" for each in consumers(server).values()),
                    "what is retired to be gone",
                )
        counts = Counter(each.id for each in [*old.came, *new.came])
        assert len(counts) == 40
        again = {each.id: each.num_delivered for each in new.came if each.num_delivered > 1}
        assert {identity for identity, number in counts.items() if number > 1} == again.keys()
        assert {*again.values()} == {2}
        (given_back,) = [each for each in new.came if each.id == old.came[1].id]
        assert given_back.received_at > old.came[1].received_at + 5.0


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
"""The changes of each run; the others take the same ways, and belong to the slow tests."""


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
    """No message is lost, none runs twice, and what waits for its next attempt keeps count and delay."""
    await switch(tmp_path, before, after)


async def test_migration_to_static_ends_with_an_unfiltered_consumer(tmp_path: Path) -> None:
    """Static mode's consumer has no filter once it is the only one, and takes what is stored then."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 5)
        async with at_work(server, FUNCTION):
            await until(lambda: server.state()["messages"] == 0, "all to be over")
        async with at_work(server, STATIC) as hand:

            def config() -> dict[str, Any]:
                found: dict[str, Any] = server.api("CONSUMER.INFO.faas-request.faas-workers")["config"]
                return found

            await until(lambda: "filter_subjects" not in config(), "it to be alone")
            assert [*consumers(server)] == ["faas-workers"]
            publish(server, 5)
            await until(lambda: server.state()["messages"] == 0, "all to be over")
            assert [each.num_delivered for each in hand.came] == [1] * 20


class Killed(Exception):  # noqa: N818 -- an event, not an error
    """The end of a worker's process."""


async def dies_at(server: NatsServer, step: int, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str]) -> bool:
    """Kill a worker before its *step*-th request to JetStream; return whether its start has that many."""
    asked = count(1)
    request = Connection.request

    async def request_or_die(self: Connection, subject: str, *args: Any, **options: Any) -> Msg:
        if subject.startswith("$JS.API.") and next(asked) == step:
            raise Killed
        return await request(self, subject, *args, **options)

    with monkeypatch.context() as patch, suppress_killed():
        patch.setattr(Connection, "request", request_or_die)
        async with open_queue(load({"nats_port": str(server.port)} | settings).settings, lambda _: None) as queue:
            await queue.consume()
    return next(asked) > step


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
    """Wherever the worker that changes the mode is killed, the next one continues: none is lost, none runs twice."""
    step, more = 1, True
    while more:
        with NatsServer(tmp_path / str(step)) as server:
            server.make_stream()
            publish(server, 3)
            async with at_work(server, before, keep_some) as old:
                await until(lambda: len(old.came) >= 6, "some work to run")
                await old.stop()
                more = await dies_at(server, step, monkeypatch, after)
                async with at_work(server, after) as new:
                    await until(lambda: len({each.id for each in [*old.came, *new.came]}) == 12, f"all to come, {step}")
                    release(old)
                    await until(lambda: server.state()["messages"] == 0, f"all to be over, {step}")
            counts = Counter(each.id for each in [*old.came, *new.came])
            again = {identity for identity, number in counts.items() if number > 1}
            assert again == {old.came[1].id} | {each.id for each in new.came if each.num_delivered > 1}
        step += 1
    assert step > 6


async def test_migration_killed_before_a_deletion_repeats_the_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An acked message of a retired consumer runs a second time where its worker died at once, and no third time."""

    def hold(hand: Hand, delivery: Delivery) -> None:
        hand.held[delivery.id] = delivery

    async def die(*_: object) -> bool:
        return bool(await asyncio.Event().wait())

    monkeypatch.setattr(pull_consumer, "_POSTPONED", 2.0)
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with at_work(server, STATIC, hold) as old:
            publish(server, 1)
            await until(lambda: len(old.held) == 4, "all to run")
            await old.stop()
            async with at_work(server, FUNCTION) as new:
                await until(lambda: "retired" in str(consumers(server)), "the other mode")
                publish(server, 1)
                await until(lambda: len(new.came) == 4, "each function to have its own consumer")
                monkeypatch.setattr(old.queue._jetstream, "delete_message", die)
                release(old)
                with trio.move_on_after(1) as unsettled:
                    await old.queue.wait_settled()
                assert unsettled.cancelled_caught, "settled, though nothing is deleted"
                await until(lambda: server.state()["messages"] == 0, "all to be over")
                await until(lambda: "retired" not in str(consumers(server)), "what is retired to be gone")
        assert Counter(each.id for each in new.came) == Counter({each.id for each in [*old.came, *new.came]})


async def test_migration_waits_for_the_last_worker_of_the_old_mode(tmp_path: Path) -> None:
    """While a worker that wants static mode is alive, one that wants function mode serves that; then it changes it."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 5)
        async with at_work(server, STATIC, each=1) as old, at_work(server, FUNCTION, each=1) as new:
            await until(lambda: server.state()["messages"] == 0, "all to be over")
            assert {each.flow for each in [*old.came, *new.came]} == {""}
            assert consumers(server)["faas-workers"]["queue-worker.mode"] == "static"
            await old.stop()
            await until(lambda: "faas-workers" not in consumers(server), "the other mode")
            publish(server, 5)
            await until(lambda: server.state()["messages"] == 0, "all to be over")
            assert {each.flow for each in new.came if each.flow} >= set(FUNCTIONS)
            counts = Counter(each.id for each in [*old.came, *new.came])
            assert len(counts) == 40
            assert not [each for each in counts if counts[each] > 1]


async def test_migration_back_waits_for_the_retired_consumer(tmp_path: Path) -> None:
    """A worker that wants the old mode while its consumer holds messages serves function mode until these end."""

    def give_back(hand: Hand, delivery: Delivery) -> None:
        if delivery.num_delivered == 1 and len(hand.came) <= 2:
            hand.queue.settle(delivery, Nak(8.0), before=inf)
        else:
            acknowledge(hand, delivery)

    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 3)
        async with at_work(server, STATIC, give_back) as first:
            await until(lambda: len(first.came) >= 4, "some work to be done")
            await first.stop()
        async with at_work(server, FUNCTION) as second:
            await until(lambda: "faas-workers-" in "".join(consumers(server)), "the other mode")
            await second.stop()
        async with at_work(server, STATIC) as third:
            publish(server, 3)
            await until(lambda: server.state()["messages"] == 0, "all to be over")
            await until(lambda: consumers(server).keys() == {"faas-workers"}, "the first mode")
            publish(server, 1)
            await until(lambda: server.state()["messages"] == 0, "all to be over")
            assert third.came[-1].flow == ""
        came = [*first.came, *second.came, *third.came]
        counts = Counter(each.id for each in came)
        assert len(counts) == 28
        assert {each.id for each in came if each.num_delivered > 1} == {each for each in counts if counts[each] > 1}


async def test_migration_by_several_workers_at_once(tmp_path: Path) -> None:
    """Three workers that find the other mode change it together."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 20)
        async with at_work(server, STATIC, keep_some) as old:
            await until(lambda: len(old.came) >= 6, "some work to run")
            await old.stop()
            hands: list[Hand] = []
            async with trio.open_nursery() as nursery:

                async def work() -> None:
                    async with at_work(server, FUNCTION) as hand:
                        hands.append(hand)
                        await trio.sleep_forever()

                for _ in range(3):
                    nursery.start_soon(work)
                running = len(old.held)

                def came() -> list[Delivery]:
                    return [*old.came, *(each for hand in hands for each in hand.came)]

                await until(lambda: len({each.id for each in came()}) == 80, "what waited")
                release(old)
                await until(lambda: server.state()["messages"] == 0, "all to be over")
                nursery.cancel_scope.cancel()
            counts = Counter(each.id for each in came())
            assert {each for each in counts if counts[each] > 1} == {
                each.id for hand in hands for each in hand.came if each.num_delivered > 1
            }
            assert running
