"""The faults, one function each, which causes the fault, waits, ends it, and records the affected workers.

Each function gets the system under test, and returns when the fault has ended. The names are those of the report.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import trio

from tests.chaos.publisher import STREAM
from tests.chaos.system import RULES, SystemUnderTest, WorkerHost, in_thread
from tests.functions import Functions, Reply
from tests.servers import NatsServer
from tests.wire import ApiError, NoResponseError

FaultFunction = Callable[[SystemUnderTest], Awaitable[None]]

ALL_WORKERS = None
"""The workers that a fault of the broker affects."""
BRIEF = RULES.ack_wait / 4
"""Duration of a fault by which no worker loses a lease (s)."""
LONG = RULES.ack_wait * 1.5
"""Duration of a fault by which its workers lose all leases (s)."""
_RECONNECT_TIME = 3.0
"""Longest time until a worker has reconnected to a broker that runs (s): it tries every 0.25 s, and gives up a stuck
connection after 3 s."""
_ELECTION_TIME = 12.0
"""Longest time until a cluster has leaders again and workers pull from them (s): two elections in sequence, and 11 s
until a worker gives up a pull request that the old leader lost."""


# Workers.


async def kill_a_worker(system: SystemUnderTest) -> None:
    """Kill a worker (SIGKILL), and start another in its place."""
    async with system.workers_in_use:
        host = system.rng.choice(system.hosts)
        with system.fault("worker killed", frozenset({host.name}), ends_workers=True):
            host.worker.kill()
            await system.wait_ended(host)
        await system.start_worker(host)


async def restart_all(system: SystemUnderTest) -> None:
    """Do a rolling update: terminate each worker, and replace it when it has ended."""
    async with system.workers_in_use:
        for host in system.hosts:
            with system.fault("worker stopped (rolling update)", frozenset({host.name}), ends_workers=True):
                system.terminate(host)
                await system.wait_ended(host)
            await system.start_worker(host)


async def stop_a_worker_twice(system: SystemUnderTest) -> None:
    """Stop a worker (SIGTERM), and send the signal again a moment later."""
    async with system.workers_in_use:
        host = system.rng.choice(system.hosts)
        with system.fault("worker stopped by two signals", frozenset({host.name}), ends_workers=True):
            system.terminate(host)
            await trio.sleep(system.rng.random())
            system.terminate(host)
            await system.wait_ended(host)
        await system.start_worker(host)


async def freeze_a_worker(system: SystemUnderTest) -> None:
    """Freeze a worker (SIGSTOP) for longer than its leases last, then let it continue (SIGCONT)."""
    async with system.workers_in_use:
        host = system.rng.choice(system.hosts)
        with system.fault(
            "worker frozen past its leases", frozenset({host.name}), recovery_time=_RECONNECT_TIME, delays_messages=True
        ):
            host.worker.process.send_signal(signal.SIGSTOP)
            await trio.sleep(LONG)
            host.worker.process.send_signal(signal.SIGCONT)


async def kill_the_producer(system: SystemUnderTest) -> None:
    """Kill the producer (SIGKILL), and start another in its place."""
    with system.fault("producer killed"):
        system.producer.kill()
        system.producer.process.wait()
    system.start_producer()


# Connections to the broker.


def _on_connections(kind: str, inject: Callable[[WorkerHost], None], seconds: float) -> FaultFunction:
    async def fault(system: SystemUnderTest) -> None:
        host = system.rng.choice(system.hosts)
        with system.fault(
            kind,
            frozenset({host.name}),
            recovery_time=_RECONNECT_TIME,
            delays_messages=inject in (_add_latency, _stall),
        ):
            inject(host)
            await trio.sleep(seconds)
            for proxy in host.proxies:
                proxy.heal()

    return fault


def _cut(host: WorkerHost) -> None:
    for proxy in host.proxies:
        proxy.cut()


def _close(host: WorkerHost) -> None:
    for proxy in host.proxies:
        proxy.closed = True
        proxy.cut()


def _cut_in_block(host: WorkerHost) -> None:
    for proxy in host.proxies:
        proxy.cut_in_block()


def _add_latency(host: WorkerHost) -> None:
    for proxy in host.proxies:
        proxy.latency = 0.15


def _stall(host: WorkerHost) -> None:
    for proxy in host.proxies:
        proxy.stall()


def _drop_to_server(host: WorkerHost) -> None:
    for proxy in host.proxies:
        proxy.drops_to_server = True


def _drop_from_server(host: WorkerHost) -> None:
    for proxy in host.proxies:
        proxy.drops_from_server = True


# The broker.


async def _restart_nodes(
    system: SystemUnderTest, kind: str, nodes: Sequence[NatsServer], end: Callable[[NatsServer], None]
) -> None:
    """Stop nodes by *end*, wait, and start them again."""
    alone = len(system.nodes) == 1
    with system.fault(
        kind, ALL_WORKERS, recovery_time=_RECONNECT_TIME if alone else _ELECTION_TIME, loses_counts=alone
    ):
        for node in nodes:
            await in_thread(partial(end, node))
        await trio.sleep(system.rng.choice([0.0, BRIEF, LONG]))
        for node in nodes:
            await in_thread(node.start)
        await in_thread(lambda: system.broker.wait_for_leader(STREAM, system.consumer))


async def kill_a_node(system: SystemUnderTest) -> None:
    """Kill a node (SIGKILL), in a cluster any of them."""
    async with system.broker_in_use:
        await _restart_nodes(system, "broker killed", [system.rng.choice(system.nodes)], NatsServer.kill)


async def stop_a_node(system: SystemUnderTest) -> None:
    """Stop a node (SIGTERM), in a cluster any of them."""
    async with system.broker_in_use:
        await _restart_nodes(system, "broker stopped", [system.rng.choice(system.nodes)], NatsServer.stop)


async def freeze_a_node(system: SystemUnderTest) -> None:
    """Freeze a node (SIGSTOP) for longer than the leases last, in a cluster the leader."""
    async with system.broker_in_use:
        node = await _leader(system)
        recovery_time = _RECONNECT_TIME if len(system.nodes) == 1 else _ELECTION_TIME
        with system.fault(
            "broker frozen past all leases", ALL_WORKERS, recovery_time=recovery_time, delays_messages=True
        ):
            node.pause()
            await trio.sleep(LONG)
            node.resume()
            await in_thread(lambda: system.broker.wait_for_leader(STREAM, system.consumer))


async def end_a_node_as_lame_duck(system: SystemUnderTest) -> None:
    """End a node in lame duck mode, as nats-server's chart does: it asks clients to leave, then disconnects them."""
    async with system.broker_in_use:
        await _restart_nodes(
            system, "broker leaves (lame duck)", [system.rng.choice(system.nodes)], NatsServer.shut_down_lame_duck
        )


async def kill_the_leader(system: SystemUnderTest) -> None:
    """Kill the node that leads the consumer (SIGKILL)."""
    async with system.broker_in_use:
        await _restart_nodes(system, "leader killed", [await _leader(system)], NatsServer.kill)


async def kill_the_majority(system: SystemUnderTest) -> None:
    """Kill all nodes but one (SIGKILL), which then has no quorum."""
    async with system.broker_in_use:
        await _restart_nodes(
            system, "quorum lost", system.rng.sample(system.nodes, len(system.nodes) - 1), NatsServer.kill
        )


async def restart_each_node(system: SystemUnderTest) -> None:
    """Do a rolling update of the broker."""
    async with system.broker_in_use:
        for node in system.nodes:
            await _restart_nodes(system, "broker stopped (rolling update)", [node], NatsServer.stop)


async def change_leaders(system: SystemUnderTest) -> None:
    """Let the leaders of the stream and of its consumer step down."""
    async with system.broker_in_use:
        with system.fault("leaders stepped down", ALL_WORKERS, recovery_time=_ELECTION_TIME):
            consumer = await in_thread(system.any_consumer)
            for verb in (f"STREAM.LEADER.STEPDOWN.{STREAM}", f"CONSUMER.LEADER.STEPDOWN.{STREAM}.{consumer}"):
                await in_thread(partial(_request, system, verb))
            await in_thread(lambda: system.broker.wait_for_leader(STREAM, system.consumer))


async def delete_the_consumer(system: SystemUnderTest) -> None:
    """Delete a consumer, as an operator may; the workers recreate it."""
    async with system.broker_in_use:
        with system.fault("consumer deleted", ALL_WORKERS, recovery_time=_RECONNECT_TIME, loses_counts=True):
            consumer = await in_thread(system.any_consumer)
            await in_thread(partial(_request, system, f"CONSUMER.DELETE.{STREAM}.{consumer}"))
            await in_thread(lambda: system.broker.wait_for_leader(STREAM, system.consumer))


async def fill_the_disk(system: SystemUnderTest) -> None:
    """Fill the disk of a node (of a cluster, the leader's); then make room again, and restart it."""
    async with system.broker_in_use:
        node = await _leader(system)
        recovery_time, alone = (_RECONNECT_TIME, True) if len(system.nodes) == 1 else (_ELECTION_TIME, False)
        with system.fault("disk full", ALL_WORKERS, recovery_time=recovery_time, loses_counts=alone):
            with system.disks[node].full():
                await trio.sleep(LONG)
            await in_thread(node.restart)
            await in_thread(lambda: system.broker.wait_for_leader(STREAM, system.consumer))


async def _leader(system: SystemUnderTest) -> NatsServer:
    name = await in_thread(lambda: system.broker.wait_for_leader(STREAM, system.consumer))
    return system.broker.nodes[name]


def _request(system: SystemUnderTest, verb: str) -> None:
    for _ in range(10):
        try:
            system.broker.api(verb)
        except (ApiError, NoResponseError):  # perhaps no leader yet
            continue
        return


# Functions and receivers of callbacks.

GARBAGE = Reply(raw=b"\x16\x03\x01 this is not HTTP\r\n\r\n")
TRUNCATED = Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbut it breaks off here", reset=True)
RESET = Reply(raw=b"", reset=True)
HANGS = Reply(raw=b"", stall=True)
BUSY = Reply(503, headers=(("Retry-After", "1"),))


def _replace_responses(
    kind: str, override: Reply, seconds: float, server: Callable[[SystemUnderTest], Functions]
) -> FaultFunction:
    async def fault(system: SystemUnderTest) -> None:
        with system.fault(kind):
            server(system).override = override
            await trio.sleep(seconds)
            server(system).override = None

    return fault


def _functions(system: SystemUnderTest) -> Functions:
    return system.functions


def _receiver(system: SystemUnderTest) -> Functions:
    return system.receiver


WORKERS_AND_FUNCTIONS: Mapping[str, FaultFunction] = {
    "worker killed": kill_a_worker,
    "worker stopped (rolling update)": restart_all,
    "worker stopped by two signals": stop_a_worker_twice,
    "worker frozen past its leases": freeze_a_worker,
    "producer killed": kill_the_producer,
} | {
    kind: _replace_responses(kind, reply, seconds, server)
    for kind, reply, seconds, server in (
        ("functions reset", RESET, 3.0, _functions),
        ("functions hang", HANGS, 3.0, _functions),
        ("functions answer garbage", GARBAGE, 3.0, _functions),
        ("functions break off", TRUNCATED, 3.0, _functions),
        ("functions busy", BUSY, 3.0, _functions),
        ("callbacks slow", Reply(after=1.0), 5.0, _receiver),
        ("callbacks refused", Reply(500), 3.0, _receiver),
        ("callbacks hang", HANGS, 3.0, _receiver),
        ("callbacks reset", RESET, 3.0, _receiver),
    )
}
"""Faults of workers, functions and receivers."""

CONNECTIONS: Mapping[str, FaultFunction] = {
    kind: _on_connections(kind, inject, seconds)
    for kind, inject, seconds in (
        ("connection cut", _cut, 0.0),
        ("connections refused", _close, LONG),
        ("connection cut in the middle of a message", _cut_in_block, BRIEF),
        ("connection slow", _add_latency, LONG),
        ("connection stalled for a moment", _stall, BRIEF),
        ("connection stalled past all leases", _stall, LONG),
        ("messages of a worker are dropped", _drop_to_server, LONG),
        ("messages to a worker are dropped", _drop_from_server, LONG),
    )
}
"""The faults of connections between workers and broker, by name."""
BROKER: Mapping[str, FaultFunction] = {
    "broker killed": kill_a_node,
    "broker stopped": stop_a_node,
    "broker leaves (lame duck)": end_a_node_as_lame_duck,
    "broker frozen past all leases": freeze_a_node,
    "consumer deleted": delete_the_consumer,
    "disk full": fill_the_disk,
}
"""The faults of the broker, by name."""
CLUSTER: Mapping[str, FaultFunction] = {
    "leader killed": kill_the_leader,
    "quorum lost": kill_the_majority,
    "broker stopped (rolling update)": restart_each_node,
    "leaders stepped down": change_leaders,
}
"""The faults that only a broker of several nodes can have, by name."""
