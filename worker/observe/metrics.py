"""Events as Prometheus metrics, by the names and labels that docs/operations.md lists, and is tested to.

What each message counts is in :mod:`worker.observe.function_metrics`; the rest is prometheus_client's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from .. import __version__
from .. import events as e
from ..config import Settings
from ..model import Final, Nak
from ..policy.decide import status_of
from ..policy.names import label_of
from .function_metrics import FunctionMetrics


class Metrics:
    """All series of one worker; a sink of events.

    Args:
        settings: for the ``queue_name``.
        pod: the ``kubernetes_pod_name``.
    """

    def __init__(self, settings: Settings, pod: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has it so
        self.registry = CollectorRegistry()
        self._queue, self._pod = settings.queue_name, pod
        self._tallies = FunctionMetrics(self._queue)
        self._waiting: set[str] = set()
        self._children: dict[tuple[Any, ...], Any] = {}
        self._make()
        self._rows: Mapping[type[e.Event], Callable[[Any], None]] = {
            e.InvocationStarted: self._started,
            e.InvocationEnded: self._ended,
            e.Settled: self._settled,
            e.Redelivered: lambda event: self._of(self.redeliveries, event.state).inc(),
            e.CallbackPosted: self._posted,
            e.DeadLettered: self._dead_lettered,
            e.LimitLearned: self._learned,
            e.LeasesExtended: lambda event: self.extensions.inc(event.count),
            e.LeaseExpired: lambda _: self.leases_lost.inc(),
            e.WorkCrashed: lambda _: self.crashes.inc(),
            e.Connected: self._connected,
            e.Disconnected: lambda _: self.connected.set(0),
            e.BacklogRead: self._backlog,
            e.DrainStarted: lambda _: self.draining.set(1),
        }

    def __call__(self, event: e.Event) -> None:
        """Count an event."""
        if count := self._rows.get(type(event)):
            count(event)

    def render_text(self) -> bytes:
        """All series in Prometheus' text format."""
        return generate_latest(self.registry)

    def _make(self) -> None:
        def metric(kind: Callable[..., Any], name: str, text: str, *labels: str, **more: Any) -> Any:
            return kind(f"queue_worker_{name}", text, labels, registry=self.registry, **more)

        by_function = ("queue_name", "function_name")
        by_pod = ("queue_name", "kubernetes_pod_name")
        self.pending = metric(Gauge, "pending_messages", "Messages in the stream, waiting or running", *by_function)
        self.processed = metric(Counter, "messages_processed", "Messages taken off the queue", *by_pod).labels(
            self._queue, self._pod
        )
        self.submitted = metric(
            Gauge, "messages_submitted_total", "Messages the stream has ever taken", *by_pod
        ).labels(self._queue, self._pod)
        self.registry.register(self._tallies)
        self.reconnects = metric(Counter, "nats_reconnect", "Times the connection to NATS was made again")
        self.dead_letters = metric(Counter, "dead_letters", "Messages given up", "queue_name", "kind")
        self.callbacks = metric(Counter, "callbacks", "Callbacks sent, by result", "queue_name", "result")
        self.extensions = metric(Counter, "lease_extensions", "Lease extensions sent")
        self.leases_lost = metric(Counter, "leases_lost", "Leases lost, and their invocations cancelled")
        self.redeliveries = metric(
            Counter, "redeliveries", "Deliveries of messages known here", "queue_name", "known_as"
        )
        self.crashes = metric(Counter, "crashes", "Bugs of the worker, each met by one message")
        self.connected = metric(Gauge, "nats_connected", "1 while connected to NATS")
        self.draining = metric(Gauge, "draining", "1 from the first signal on")
        metric(Info, "build", "The version that runs").info({"version": __version__})
        ProcessCollector(registry=self.registry)

    def _of(self, metric: Any, *labels: str) -> Any:
        """The child of a metric, made once."""
        key = (metric, *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(self._queue, *labels)
        return child

    def _started(self, event: e.InvocationStarted) -> None:
        tally = self._tallies.of(event.invocation.label)
        tally.inflight += 1
        if event.attempt == 1:
            tally.waited.add(event.waited)

    def _ended(self, event: e.InvocationEnded) -> None:
        tally = self._tallies.of(event.invocation.label)
        tally.inflight -= 1
        status = status_of(event.outcome)
        code = "none" if status is None else str(status)
        tally.ended[code] = tally.ended.get(code, 0) + 1
        if status is not None:
            tally.took.add(event.duration)
            if isinstance(event.verdict, Nak):
                tally.retries += 1

    def _learned(self, event: e.LimitLearned) -> None:
        self._tallies.of(event.function).limit = event.limit

    def _settled(self, event: e.Settled) -> None:
        if isinstance(event.verdict, Final):
            self.processed.inc()

    def _posted(self, event: e.CallbackPosted) -> None:
        result = "delivered" if event.delivered else "failed" if event.retry_in is None else "retried"
        self._of(self.callbacks, result).inc()

    def _dead_lettered(self, event: e.DeadLettered) -> None:
        self._of(self.dead_letters, "exhausted" if event.attempts else "undecodable").inc()

    def _connected(self, event: e.Connected) -> None:
        self.connected.set(1)
        if event.reconnected:
            self.reconnects.inc()

    def _backlog(self, event: e.BacklogRead) -> None:
        self.submitted.set(event.backlog.last_sequence)
        counts = dict.fromkeys(self._waiting, 0)
        for subject, stored in event.backlog.by_subject.items():
            function = self._tallies.name(label_of(self._queue, subject))
            counts[function] = counts.get(function, 0) + stored
        for function, stored in counts.items():
            self._of(self.pending, function).set(stored)
        self._waiting = set(counts)
