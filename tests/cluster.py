"""A cluster of nats-servers, by default of three nodes, so that a stream can have three replicas.

::

    with NatsCluster(tmp_path) as cluster:
        cluster.make_stream(num_replicas=3)
        cluster.node_of(cluster.leader()).kill()

Like those of :mod:`tests.servers`, all functions here block.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self, TypeVar

from tests.servers import NatsServer, wait_until
from tests.wire import ApiError, NoResponseError
from worker.dev.stack import free_port

T = TypeVar("T")

_NODE_TIMEOUT = 5.0
"""Longest wait for one node's response (s): after it the next node is tried."""


class NatsCluster:
    """Nodes ``n1``, ``n2`` … of one cluster, on the loopback.

    Args:
        directory: the directory with one directory of files for each node.
        size: the number of nodes; a single node runs without a cluster.
    """

    def __init__(self, directory: Path, size: int = 3) -> None:
        routes = [free_port() for _ in range(size)]
        # The nodes do not advertise each other to clients, so that a test decides which addresses a client has.
        cluster = "cluster {{ name: test, listen: '127.0.0.1:{}', no_advertise: true, routes: [{}] }}"
        peers = ", ".join(f"'nats-route://127.0.0.1:{port}'" for port in routes)
        self.nodes = {
            f"n{number}": NatsServer(
                directory / f"n{number}",
                config=f"server_name: n{number}\n" + (cluster.format(port, peers) if size > 1 else ""),
                timeout=_NODE_TIMEOUT,
            )
            for number, port in enumerate(routes, 1)
        }
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as opening:
            for node in self.nodes.values():
                opening.enter_context(node)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def on_any_node(self, call: Callable[[NatsServer], T]) -> T:
        """Return the result of *call* on the first node that responds.

        Raises:
            NoResponseError: no node responds.
        """
        last = NoResponseError("no node is up")
        for node in self.nodes.values():
            if node.running:
                try:
                    return call(node)
                except NoResponseError as error:
                    last = error
        raise last

    def api(self, verb: str, **body: Any) -> dict[str, Any]:
        """Send a request to ``$JS.API.<verb>`` of each node in turn, until one responds."""
        return self.on_any_node(lambda node: node.api(verb, **body))

    def make_stream(self, name: str = "faas-request", **changes: Any) -> None:
        """Create a stream (:meth:`tests.servers.NatsServer.make_stream`) when the cluster has formed."""

        def created() -> bool:
            try:
                self.on_any_node(lambda node: node.make_stream(name, num_replicas=len(self.nodes), **changes))
            except (ApiError, NoResponseError):
                return False
            return True

        wait_until(created, "the cluster to create a stream")

    def leader(self, stream: str = "faas-request", consumer: str = "") -> str:
        """Return the name of the node that leads a stream, or one of its consumers; empty without a leader."""
        verb = f"CONSUMER.INFO.{stream}.{consumer}" if consumer else f"STREAM.INFO.{stream}"
        try:
            return str(self.api(verb).get("cluster", {"leader": "n1"}).get("leader", ""))
        except (ApiError, NoResponseError):
            return ""

    def wait_for_leader(self, stream: str = "faas-request", consumer: str = "") -> str:
        """Wait for a leader, and return its name."""
        return wait_until(lambda: self.leader(stream, consumer), f"a leader of {stream} {consumer}")
