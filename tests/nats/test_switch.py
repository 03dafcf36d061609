"""From one scaling mode to the other, on a real server, with a stream full of work."""

from __future__ import annotations

from collections import Counter
from functools import partial
from math import inf
from pathlib import Path

from tests.nats.hand import Hand, acknowledge, at_work
from tests.servers import NatsServer, until
from worker.model import Ack, Delivery, Nak

FUNCTIONS = [f"faas-request.0.f{number}.ns" for number in range(4)]
STATIC = {"scaling_mode": "static", "ack_wait": "3s"}
FUNCTION = {"scaling_mode": "function", "ack_wait": "3s"}


def publish(server: NatsServer, each: int) -> None:
    server.publish_many((subject, b"%d" % number, {}) for number in range(each) for subject in FUNCTIONS)


def keep_some(hand: Hand, delivery: Delivery) -> None:
    """The first is done, the second goes back for five seconds, the others run."""
    if len(hand.came) == 1:
        acknowledge(hand, delivery)
    elif len(hand.came) == 2:
        hand.queue.settle(delivery, Nak(5.0), before=inf)
    else:
        hand.held[delivery.id] = delivery


def release(hand: Hand) -> None:
    """What runs is done."""
    for delivery in hand.held.values():
        hand.queue.settle(delivery, Ack(), before=inf)
    hand.held.clear()


def consumers(server: NatsServer) -> dict[str, dict[str, str]]:
    """The metadata of each."""
    listed = server.api("CONSUMER.LIST.faas-request")["consumers"] or []
    return {each["name"]: each["config"].get("metadata", {}) for each in listed}


async def switch(tmp_path: Path, before: dict[str, str], after: dict[str, str]) -> None:
    with NatsServer(tmp_path) as server:
        server.make_stream()
        publish(server, 10)
        async with at_work(server, keep_some, **before) as old:
            await until(lambda: len(old.came) >= 6, "some work to run")
            await old.stop()
            async with at_work(server, **after) as new:
                running = len(old.held)
                await until(lambda: len({each.id for each in new.came}) >= 40 - 2 - running, "what waited")
                seen = Counter(each.id for each in [*old.came, *new.came])
                release(old)
                await until(lambda: len(new.came) + 1 + running >= 40, "what was given back")
                await until(lambda: server.state()["messages"] == 0, "all to be over")
                await until(
                    lambda: not any(each.get("queue-worker.mode") == "retired" for each in consumers(server).values()),
                    "what is retired to be gone",
                )
        counts = Counter(each.id for each in [*old.came, *new.came])
        given_back = old.came[1]
        assert len(counts) == 40
        again = {identity for identity, count in counts.items() if count > 1}
        assert given_back.id in again
        unstarted = {each.id for each in new.came if each.count > 1}
        assert again <= unstarted, (seen, again)


async def test_static_to_function(tmp_path: Path) -> None:
    """Nothing is lost, nothing runs twice, and what is between two attempts keeps its count and its wait."""
    await switch(tmp_path, STATIC, FUNCTION)


async def test_function_to_static(tmp_path: Path) -> None:
    """The same, the other way."""
    await switch(tmp_path, FUNCTION, STATIC)
