"""Prometheus metrics, counted from events. Names and labels are listed in docs/operations.md, which a test compares.

The series of each function are counted by :mod:`worker.observe.function_metrics`, the others by prometheus_client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
from ..model import Final, Nak, Refused
from ..policy.decide import status_of
from ..policy.names import label_of
from ..policy.redirect import redirect_result
from ..settings import Settings
from .function_metrics import FunctionMetrics


class Metrics:
    """All series of one worker process; a sink of events."""

    def __init__(self, settings: Settings, pod: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here
        self.registry = CollectorRegistry()

        def metric(kind: Callable[..., Any], name: str, text: str, *labels: str) -> Any:
            return kind(f"queue_worker_{name}", text, labels, registry=self.registry)

        self._queue = queue = settings.queue_name
        by_pod = ("queue_name", "kubernetes_pod_name")
        # This is the order of the table in docs/operations.md.
        removed, stored = "Messages removed from the queue", "Messages ever stored in the stream"
        self._processed = metric(Counter, "messages_processed", removed, *by_pod).labels(queue, pod)
        self._submitted = metric(Gauge, "messages_submitted_total", stored, *by_pod).labels(queue, pod)
        self._functions = FunctionMetrics(queue)
        self._reconnects = metric(Counter, "nats_reconnect", "Reconnects to NATS")
        self._dead_letters = metric(Counter, "dead_letters", "Messages given up", "queue_name", "kind")
        self._callbacks = metric(Counter, "callbacks", "Callbacks sent, by result", "queue_name", "result")
        self._keys_unusable = metric(Gauge, "callback_keys_unusable", "1 while the file of signing keys cannot be used")
        self._callbacks_stored = metric(
            Counter, "callbacks_kept", "Callbacks that failed, by whether they were stored", "queue_name", "result"
        )
        self._stored_callbacks = metric(
            Gauge, "stored_callbacks", "Callbacks in the stream, of all workers", "queue_name"
        )
        self._oldest_callback = metric(Gauge, "stored_callbacks_oldest_seconds", "Age of the oldest one", "queue_name")
        self._redirects = metric(
            Counter, "redirects", "Redirects, followed to a clean path or not", "queue_name", "result"
        )
        self._extensions = metric(Counter, "lease_extensions", "Lease extensions sent")
        self._leases_lost = metric(Counter, "leases_lost", "Leases lost, and their invocations cancelled")
        self._redeliveries = metric(
            Counter, "redeliveries", "Deliveries of messages that this worker had before", "queue_name", "known_as"
        )
        self._swept = metric(Counter, "bodies_swept", "Large bodies deleted to which no message referred")
        self._crashes = metric(Counter, "crashes", "Internal errors, each in one message")
        self._connected = metric(Gauge, "nats_connected", "1 while connected to NATS")
        self._unusable = metric(Gauge, "nats_unusable", "1 while the stream or a consumer cannot be used")
        self._draining = metric(Gauge, "draining", "1 from the first signal on")
        metric(Info, "build", "The version that runs").info({"version": __version__})
        self._result_bytes = metric(Gauge, "result_bytes", "Bytes of results that are kept for callbacks")
        self._results_waiting = metric(Gauge, "results_waiting", "Results that wait for memory: max_results_bytes")
        ProcessCollector(registry=self.registry)
        self._handlers: Mapping[type[e.Event], Callable[[Any], None]] = {
            e.InvocationStarted: self._on_started,
            e.InvocationEnded: self._on_ended,
            e.Settled: self._on_settled,
            e.Redelivered: lambda event: self._redeliveries.labels(queue, event.state).inc(),
            e.CallbackPosted: self._on_callback_posted,
            e.CallbackKeysLoaded: lambda _: self._keys_unusable.set(0),
            e.CallbackKeysRejected: lambda _: self._keys_unusable.set(1),
            e.CallbackStored: lambda _: self._callbacks_stored.labels(queue, "stored").inc(),
            e.CallbackNotStored: lambda _: self._callbacks_stored.labels(queue, "not stored").inc(),
            e.CallbackDiscarded: lambda _: self._callbacks_stored.labels(queue, "lost").inc(),
            e.StoredCallbacksRead: self._on_stored_callbacks_read,
            e.DeadLettered: self._on_dead_lettered,
            e.LimitLearned: self._on_limit_learned,
            e.LeasesExtended: lambda event: self._extensions.inc(event.count),
            e.LeaseExpired: lambda _: self._leases_lost.inc(),
            e.WorkCrashed: lambda _: self._crashes.inc(),
            e.Connected: self._on_connected,
            e.Disconnected: lambda _: self._connected.set(0),
            e.BrokerMisconfigured: lambda _: self._unusable.set(1),
            e.FaultsEnded: lambda _: self._unusable.set(0),
            e.LeftoversDeleted: lambda event: self._swept.inc(event.count),
            e.BacklogRead: self._on_backlog_read,
            e.DrainStarted: lambda _: self._draining.set(1),
        }

    def __call__(self, event: e.Event) -> None:
        """Count an event."""
        if handler := self._handlers.get(type(event)):
            handler(event)

    def watch_results(self, held: Callable[[], float], waiting: Callable[[], float]) -> None:
        """Show at each scrape how many bytes of results are held, and how many results wait for memory."""
        self._result_bytes.set_function(held)
        self._results_waiting.set_function(waiting)

    def slices(self) -> Iterator[str]:
        """Yield all series in Prometheus' text format, in pieces of a millisecond's work at most."""
        yield from self._functions.slices()
        yield generate_latest(self.registry).decode()

    def _on_started(self, event: e.InvocationStarted) -> None:
        counts = self._functions.counts(event.invocation.label)
        counts.inflight += 1
        if event.attempt == 1:  # between attempts the wait is the backoff
            counts.queue_wait.add(event.waited)

    def _on_ended(self, event: e.InvocationEnded) -> None:
        counts = self._functions.counts(event.invocation.label)
        counts.inflight -= 1
        status = status_of(event.outcome)
        code = "none" if status is None else str(status)
        counts.by_status[code] = counts.by_status.get(code, 0) + 1
        if result := redirect_result(event.outcome):
            self._redirects.labels(self._queue, result).inc()
        if status is not None:
            counts.duration.add(event.duration)
            if isinstance(event.verdict, Nak):
                counts.retries += 1

    def _on_limit_learned(self, event: e.LimitLearned) -> None:
        self._functions.counts(event.function).limit = event.limit

    def _on_settled(self, event: e.Settled) -> None:
        if isinstance(event.verdict, Final):
            self._processed.inc()

    def _on_callback_posted(self, event: e.CallbackPosted) -> None:
        result = "delivered" if event.delivered else "failed" if event.retry_in is None else "retried"
        if isinstance(event.result, Refused):
            result = "refused"
        self._callbacks.labels(self._queue, result).inc()

    def _on_dead_lettered(self, event: e.DeadLettered) -> None:
        kind = event.letter.kind or ("exhausted" if event.letter.attempts else "undecodable")
        self._dead_letters.labels(self._queue, kind).inc()

    def _on_stored_callbacks_read(self, event: e.StoredCallbacksRead) -> None:
        self._stored_callbacks.labels(self._queue).set(event.messages)
        self._oldest_callback.labels(self._queue).set(event.oldest)

    def _on_connected(self, event: e.Connected) -> None:
        self._connected.set(1)
        if event.reconnected:
            self._reconnects.inc()

    def _on_backlog_read(self, event: e.BacklogRead) -> None:
        self._submitted.set(event.backlog.last_sequence)
        pending = dict.fromkeys(self._functions.pending, 0)  # a function without messages falls to 0
        for subject, stored in event.backlog.by_subject.items():
            function = self._functions.label(label_of(self._queue, subject))
            pending[function] = pending.get(function, 0) + stored
        self._functions.pending = pending
