"""The faults, one function each: it causes the fault, waits, ends it, and records the workers that it affected.

Each takes the stage and returns when all is well again. The names in :data:`FAULTS` are those of the report.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import trio

from tests.chaos.stage import RULES, Stage, WorkerSlot, in_thread
from tests.chaos.supply import STREAM
from tests.functions import Functions, Reply
from tests.servers import NatsServer
from tests.wire import ApiError, NoAnswer

Does = Callable[[Stage], Awaitable[None]]

EVERYONE = None
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
        slot = stage.rng.choice(stage.slots)
        with stage.fault("worker killed", frozenset({slot.name}), fatal=True):
            slot.worker.kill()
            await stage.wait_ended(slot)
        await stage.start_worker(slot)


async def restart_all(stage: Stage) -> None:
    """Do a rolling update: terminate each worker, and replace it when it has ended."""
    async with stage.workers_in_use:
        for slot in stage.slots:
            with stage.fault("worker stopped (rolling update)", frozenset({slot.name}), fatal=True):
                stage.terminate(slot)
                await stage.wait_ended(slot)
            await stage.start_worker(slot)


async def stop_a_worker_twice(stage: Stage) -> None:
    """Stop a worker (SIGTERM), and send the signal again a moment later."""
    async with stage.workers_in_use:
        slot = stage.rng.choice(stage.slots)
        with stage.fault("worker stopped by two signals", frozenset({slot.name}), fatal=True):
            stage.terminate(slot)
            await trio.sleep(stage.rng.random())
            stage.terminate(slot)
            await stage.wait_ended(slot)
        await stage.start_worker(slot)


async def freeze_a_worker(stage: Stage) -> None:
    """Freeze a worker (SIGSTOP) for longer than its leases last, then let it continue (SIGCONT)."""
    async with stage.workers_in_use:
        slot = stage.rng.choice(stage.slots)
        with stage.fault("worker frozen past its leases", frozenset({slot.name}), lingers=_CONNECTS, delays=True):
            slot.worker.process.send_signal(signal.SIGSTOP)
            await trio.sleep(LONG)
            slot.worker.process.send_signal(signal.SIGCONT)


async def kill_the_producer(stage: Stage) -> None:
    """Kill the producer (SIGKILL), and start another in its place."""
    with stage.fault("producer killed"):
        stage.producer.kill()
        stage.producer.process.wait()
    stage.open_producer()


# Ways to the broker.


def _on_a_way(kind: str, harm: Callable[[WorkerSlot], None], seconds: float) -> Does:
    async def fault(stage: Stage) -> None:
        slot = stage.rng.choice(stage.slots)
        with stage.fault(kind, frozenset({slot.name}), lingers=_CONNECTS, delays=harm in (_slow, _still)):
            harm(slot)
            await trio.sleep(seconds)
            for way in slot.ways:
                way.heal()

    return fault


def _cut(slot: WorkerSlot) -> None:
    for way in slot.ways:
        way.cut()


def _close(slot: WorkerSlot) -> None:
    for way in slot.ways:
        way.closed = True
        way.cut()


def _tear(slot: WorkerSlot) -> None:
    for way in slot.ways:
        way.tear()


def _slow(slot: WorkerSlot) -> None:
    for way in slot.ways:
        way.latency = 0.15


def _still(slot: WorkerSlot) -> None:
    for way in slot.ways:
        way.stand_still()


def _deaf(slot: WorkerSlot) -> None:
    for way in slot.ways:
        way.swallows_up = True


def _mute(slot: WorkerSlot) -> None:
    for way in slot.ways:
        way.swallows_down = True


# The broker.


async def _down(stage: Stage, kind: str, nodes: Sequence[NatsServer], end: Callable[[NatsServer], None]) -> None:
    """Stop nodes by *end*, wait, and start them again."""
    alone = len(stage.nodes) == 1
    with stage.fault(kind, EVERYONE, lingers=_CONNECTS if alone else _ELECTS, forgets=alone):
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
        with stage.fault("broker frozen past all leases", EVERYONE, lingers=lingers, delays=True):
            node.pause()
            await trio.sleep(LONG)
            node.resume()
            await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))


async def lead_a_node_out(stage: Stage) -> None:
    """End a node in lame duck mode, as nats-server's chart does: it asks clients to leave, then disconnects them."""
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
    """Do a rolling update of the broker."""
    async with stage.broker_in_use:
        for node in stage.nodes:
            await _down(stage, "broker stopped (rolling update)", [node], NatsServer.stop)


async def change_leaders(stage: Stage) -> None:
    """Let the leaders of the stream and of its consumer step down."""
    async with stage.broker_in_use:
        with stage.fault("leaders stepped down", EVERYONE, lingers=_ELECTS):
            consumer = await in_thread(stage.any_consumer)
            for verb in (f"STREAM.LEADER.STEPDOWN.{STREAM}", f"CONSUMER.LEADER.STEPDOWN.{STREAM}.{consumer}"):
                await in_thread(partial(_try, stage, verb))
            await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))


async def delete_the_consumer(stage: Stage) -> None:
    """Delete a consumer, as an operator may; the workers recreate it."""
    async with stage.broker_in_use:
        with stage.fault("consumer deleted", EVERYONE, lingers=_CONNECTS, forgets=True):
            consumer = await in_thread(stage.any_consumer)
            await in_thread(partial(_try, stage, f"CONSUMER.DELETE.{STREAM}.{consumer}"))
            await in_thread(lambda: stage.broker.wait_for_leader(STREAM, stage.consumer))


async def fill_the_disk(stage: Stage) -> None:
    """Fill the disk of a node (of a cluster, the leader's); then make room again, and restart it."""
    async with stage.broker_in_use:
        node = await _leader(stage)
        lingers, alone = (_CONNECTS, True) if len(stage.nodes) == 1 else (_ELECTS, False)
        with stage.fault("disk full", EVERYONE, lingers=lingers, forgets=alone):
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
        except (ApiError, NoAnswer):  # perhaps no leader yet
            continue
        return


# Functions and receivers of callbacks.

GARBAGE = Reply(raw=b"\x16\x03\x01 this is not HTTP\r\n\r\n")
SHORT = Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbut it breaks off here", reset=True)
RESET = Reply(raw=b"", reset=True)
HANGS = Reply(raw=b"", stall=True)
BUSY = Reply(503, headers=(("Retry-After", "1"),))


def _of_functions(kind: str, instead: Reply, seconds: float, server: Callable[[Stage], Functions]) -> Does:
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


OUTSIDE: Mapping[str, Does] = {
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
"""Faults of workers, functions and receivers."""

WAYS: Mapping[str, Does] = {
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
BROKER: Mapping[str, Does] = {
    "broker killed": kill_a_node,
    "broker stopped": stop_a_node,
    "broker leaves (lame duck)": lead_a_node_out,
    "broker frozen past all leases": freeze_a_node,
    "consumer deleted": delete_the_consumer,
    "disk full": fill_the_disk,
}
"""The faults of the broker, by name."""
CLUSTER: Mapping[str, Does] = {
    "leader killed": kill_the_leader,
    "quorum lost": kill_the_majority,
    "broker stopped (rolling update)": restart_each_node,
    "leaders stepped down": change_leaders,
}
"""The faults that only a broker of several nodes can have, by name."""
