"""The faults, one function each: it causes the fault, waits, ends it, and records which workers it affected.

Each function takes the stage and returns when the fault has ended. The keys of :data:`OUTSIDE`, :data:`WAYS`,
:data:`BROKER` and :data:`CLUSTER` are the names of the faults in the report.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import trio

from tests.chaos.stage import RULES, Seat, Stage, in_thread
from tests.chaos.supply import STREAM
from tests.functions import Functions, Reply
from tests.servers import NatsServer
from tests.wire import ApiError, NoAnswer

Inject = Callable[[Stage], Awaitable[None]]

ALL_WORKERS = None
"""The workers that a fault of the broker affects."""
MOMENT = RULES.ack_wait / 4
"""Duration of a fault that makes no worker lose a lease (s)."""
LONG = RULES.ack_wait * 1.5
"""Duration of a fault that makes its workers lose all leases (s)."""
_CONNECTS = 3.0
"""Longest time until a worker has reconnected to a broker that runs (s): it tries every 0.25 s, and gives up a stuck
connection after 3 s."""
_ELECTS = 12.0
"""Longest time until a cluster has leaders again and workers pull from them (s): two elections in sequence, and 11 s
until a worker gives up a pull request that the old leader lost."""


# Workers.


async def kill_a_worker(stage: Stage) -> None:
    """Kill a worker (SIGKILL), and start another in its place."""
    async with stage.workers_in_use:
        seat = stage.rng.choice(stage.seats)
        with stage.fault("worker killed", frozenset({seat.name}), fatal=True):
            seat.worker.kill()
            await stage.wait_for_end(seat)
        await stage.start_worker(seat)


async def restart_all(stage: Stage) -> None:
    """Update the workers one by one: stop each (SIGTERM), and replace it when it has ended."""
    async with stage.workers_in_use:
        for seat in stage.seats:
            with stage.fault("worker stopped (rolling update)", frozenset({seat.name}), fatal=True):
                stage.terminate(seat)
                await stage.wait_for_end(seat)
            await stage.start_worker(seat)


async def stop_a_worker_twice(stage: Stage) -> None:
    """Stop a worker (SIGTERM), and send the signal again a moment later."""
    async with stage.workers_in_use:
        seat = stage.rng.choice(stage.seats)
        with stage.fault("worker stopped by two signals", frozenset({seat.name}), fatal=True):
            stage.terminate(seat)
            await trio.sleep(stage.rng.random())
            stage.terminate(seat)
            await stage.wait_for_end(seat)
        await stage.start_worker(seat)


async def freeze_a_worker(stage: Stage) -> None:
    """Freeze a worker (SIGSTOP) for longer than its leases last, then let it continue (SIGCONT)."""
    async with stage.workers_in_use:
        seat = stage.rng.choice(stage.seats)
        with stage.fault("worker frozen past its leases", frozenset({seat.name}), lingers=_CONNECTS, delays=True):
            seat.worker.process.send_signal(signal.SIGSTOP)
            await trio.sleep(LONG)
            seat.worker.process.send_signal(signal.SIGCONT)


async def kill_the_producer(stage: Stage) -> None:
    """Kill the producer (SIGKILL), and start another in its place."""
    with stage.fault("producer killed"):
        stage.producer.kill()
        stage.producer.process.wait()
    stage.open_producer()


# Ways to the broker.


def _on_a_way(kind: str, harm: Callable[[Seat], None], seconds: float) -> Inject:
    async def fault(stage: Stage) -> None:
        seat = stage.rng.choice(stage.seats)
        with stage.fault(kind, frozenset({seat.name}), lingers=_CONNECTS, delays=harm in (_slow, _still)):
            harm(seat)
            await trio.sleep(seconds)
            for way in seat.ways:
                way.heal()

    return fault


def _cut(seat: Seat) -> None:
    for way in seat.ways:
        way.cut()


def _close(seat: Seat) -> None:
    for way in seat.ways:
        way.closed = True
        way.cut()


def _tear(seat: Seat) -> None:
    for way in seat.ways:
        way.tear()


def _slow(seat: Seat) -> None:
    for way in seat.ways:
        way.latency = 0.15


def _still(seat: Seat) -> None:
    for way in seat.ways:
        way.stand_still()


def _deaf(seat: Seat) -> None:
    for way in seat.ways:
        way.swallows_up = True


def _mute(seat: Seat) -> None:
    for way in seat.ways:
        way.swallows_down = True


# The broker.


async def _down(stage: Stage, kind: str, nodes: Sequence[NatsServer], end: Callable[[NatsServer], None]) -> None:
    """Stop nodes by *end*, wait, and start them again."""
    alone = len(stage.nodes) == 1
    with stage.fault(kind, ALL_WORKERS, lingers=_CONNECTS if alone else _ELECTS, forgets=alone):
        for node in nodes:
            await in_thread(partial(end, node))
        await trio.sleep(stage.rng.choice([0.0, MOMENT, LONG]))
        for node in nodes:
            await in_thread(node.start)
        await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))


async def kill_a_node(stage: Stage) -> None:
    """Kill a node (SIGKILL), in a cluster any of them."""
    async with stage.broker_in_use:
        await _down(stage, "broker killed", [stage.rng.choice(stage.nodes)], NatsServer.kill)


async def stop_a_node(stage: Stage) -> None:
    """Stop a node (SIGTERM), in a cluster any of them."""
    async with stage.broker_in_use:
        await _down(stage, "broker stopped", [stage.rng.choice(stage.nodes)], NatsServer.stop)


async def freeze_a_node(stage: Stage) -> None:
    """Freeze a node (SIGSTOP) for longer than the leases last, in a cluster the leader."""
    async with stage.broker_in_use:
        node = await _leader(stage)
        lingers = _CONNECTS if len(stage.nodes) == 1 else _ELECTS
        with stage.fault("broker frozen past all leases", ALL_WORKERS, lingers=lingers, delays=True):
            node.pause()
            await trio.sleep(LONG)
            node.resume()
            await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))


async def lead_a_node_out(stage: Stage) -> None:
    """Stop a node in lame duck mode, as nats-server's chart does: it asks clients to leave, then disconnects them."""
    async with stage.broker_in_use:
        await _down(stage, "broker leaves (lame duck)", [stage.rng.choice(stage.nodes)], NatsServer.leave)


async def kill_the_leader(stage: Stage) -> None:
    """Kill the node that leads the consumer (SIGKILL)."""
    async with stage.broker_in_use:
        await _down(stage, "leader killed", [await _leader(stage)], NatsServer.kill)


async def kill_the_majority(stage: Stage) -> None:
    """Kill all nodes but one (SIGKILL), which then has no quorum."""
    async with stage.broker_in_use:
        await _down(stage, "quorum lost", stage.rng.sample(stage.nodes, len(stage.nodes) - 1), NatsServer.kill)


async def restart_each_node(stage: Stage) -> None:
    """Update the broker: stop and restart its nodes one by one."""
    async with stage.broker_in_use:
        for node in stage.nodes:
            await _down(stage, "broker stopped (rolling update)", [node], NatsServer.stop)


async def change_leaders(stage: Stage) -> None:
    """Make the leaders of the stream and of its consumer step down."""
    async with stage.broker_in_use:
        with stage.fault("leaders stepped down", ALL_WORKERS, lingers=_ELECTS):
            consumer = await in_thread(stage.any_consumer)
            for verb in (f"STREAM.LEADER.STEPDOWN.{STREAM}", f"CONSUMER.LEADER.STEPDOWN.{STREAM}.{consumer}"):
                await in_thread(partial(_try, stage, verb))
            await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))


async def delete_the_consumer(stage: Stage) -> None:
    """Delete a consumer, as an operator may; the workers recreate it."""
    async with stage.broker_in_use:
        with stage.fault("consumer deleted", ALL_WORKERS, lingers=_CONNECTS, forgets=True):
            consumer = await in_thread(stage.any_consumer)
            await in_thread(partial(_try, stage, f"CONSUMER.DELETE.{STREAM}.{consumer}"))
            await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))


async def fill_the_disk(stage: Stage) -> None:
    """Fill the disk of a node, in a cluster the leader's; then free it, and restart the node."""
    async with stage.broker_in_use:
        node = await _leader(stage)
        lingers, alone = (_CONNECTS, True) if len(stage.nodes) == 1 else (_ELECTS, False)
        with stage.fault("disk full", ALL_WORKERS, lingers=lingers, forgets=alone):
            with stage.disks[node].full():
                await trio.sleep(LONG)
            await in_thread(node.restart)
            await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))


async def _leader(stage: Stage) -> NatsServer:
    name = await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))
    return stage.broker.nodes[name]


def _try(stage: Stage, verb: str) -> None:
    for _ in range(10):
        try:
            stage.broker.api(verb)
        except (ApiError, NoAnswer):  # for example, there is no leader yet
            continue
        return


# Functions and receivers of callbacks.

GARBAGE = Reply(raw=b"\x16\x03\x01 this is not HTTP\r\n\r\n")
SHORT = Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbut it breaks off here", reset=True)
RESET = Reply(raw=b"", reset=True)
HANGS = Reply(raw=b"", stall=True)
BUSY = Reply(503, headers=(("Retry-After", "1"),))


def _of_functions(kind: str, instead: Reply, seconds: float, server: Callable[[Stage], Functions]) -> Inject:
    async def fault(stage: Stage) -> None:
        with stage.fault(kind):
            server(stage).instead = instead
            await trio.sleep(seconds)
            server(stage).instead = None

    return fault


def _functions(stage: Stage) -> Functions:
    return stage.functions


def _receiver(stage: Stage) -> Functions:
    return stage.receiver


OUTSIDE: Mapping[str, Inject] = {
    "worker killed": kill_a_worker,
    "worker stopped (rolling update)": restart_all,
    "worker stopped by two signals": stop_a_worker_twice,
    "worker frozen past its leases": freeze_a_worker,
    "producer killed": kill_the_producer,
} | {
    kind: _of_functions(kind, reply, seconds, server)
    for kind, reply, seconds, server in (
        ("functions reset", RESET, 3.0, _functions),
        ("functions hang", HANGS, 3.0, _functions),
        ("functions answer garbage", GARBAGE, 3.0, _functions),
        ("functions break off", SHORT, 3.0, _functions),
        ("functions busy", BUSY, 3.0, _functions),
        ("callbacks slow", Reply(after=1.0), 5.0, _receiver),
        ("callbacks refused", Reply(500), 3.0, _receiver),
        ("callbacks hang", HANGS, 3.0, _receiver),
        ("callbacks reset", RESET, 3.0, _receiver),
    )
}
"""The faults of workers, functions and receivers of callbacks, by name."""

WAYS: Mapping[str, Inject] = {
    kind: _on_a_way(kind, harm, seconds)
    for kind, harm, seconds in (
        ("way cut", _cut, 0.0),
        ("way closed", _close, LONG),
        ("way torn in the middle of a message", _tear, MOMENT),
        ("way slow", _slow, LONG),
        ("way still for a moment", _still, MOMENT),
        ("way still past all leases", _still, LONG),
        ("messages of a worker are dropped", _deaf, LONG),
        ("messages to a worker are dropped", _mute, LONG),
    )
}
"""The faults of connections between workers and broker, by name."""
BROKER: Mapping[str, Inject] = {
    "broker killed": kill_a_node,
    "broker stopped": stop_a_node,
    "broker leaves (lame duck)": lead_a_node_out,
    "broker frozen past all leases": freeze_a_node,
    "consumer deleted": delete_the_consumer,
    "disk full": fill_the_disk,
}
"""The faults of the broker, by name."""
CLUSTER: Mapping[str, Inject] = {
    "leader killed": kill_the_leader,
    "quorum lost": kill_the_majority,
    "broker stopped (rolling update)": restart_each_node,
    "leaders stepped down": change_leaders,
}
"""The faults that only a broker of several nodes can have, by name."""
