"""Prometheus metrics, counted from events. Names and labels are listed in docs/operations.md, which a test compares.

The series of each function are counted in plain numbers. prometheus_client's own counters take a lock at each step, and
a message takes five steps, which cost a tenth of its CPU. Only Trio's thread counts here, so nothing needs a lock, and
the library's objects are made at a scrape only. The other series are the library's own.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
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
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from .. import __version__
from .. import events as e
from ..config import Settings
from ..model import Final, Nak
from ..policy.decide import status_of
from ..policy.names import label_of
from ..policy.redirect import redirect_result

MAX_FUNCTIONS = 2_000
"""Functions with series of their own. Each has about forty series, so a scrape has some ten megabytes."""
OTHER = "other"
_DURATION_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_WAIT_BOUNDS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)


class Histogram:
    """A histogram of durations. *bounds* are the upper ends of the buckets (s); one more bucket without end follows."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def cumulative(self) -> tuple[list[tuple[str, float]], float] | None:
        """Return Prometheus' buckets, each of which includes all lower ones, and the sum; None if nothing was added."""
        bounds = [str(float(bound)) for bound in self._bounds]
        buckets = list(zip([*bounds, "+Inf"], map(float, accumulate(self._counts)), strict=True))
        return (buckets, self._sum) if buckets[-1][1] else None


class FunctionCounts:
    """The numbers of one function."""

    __slots__ = ("by_status", "duration", "inflight", "limit", "queue_wait", "retries")

    def __init__(self) -> None:
        self.inflight = self.retries = 0
        self.limit: int | None = None
        """The limiter's last limit."""
        self.by_status: dict[str, int] = {}
        """Ended invocations."""
        self.duration, self.queue_wait = Histogram(_DURATION_BOUNDS), Histogram(_WAIT_BOUNDS)


class FunctionMetrics(Collector):
    """The numbers of all functions.

    Names are foreign input, so beyond :data:`MAX_FUNCTIONS` a new function counts as ``other``.
    """

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._counts: dict[str, FunctionCounts] = {}
        self._labels: set[str] = set()

    def counts(self, function: str) -> FunctionCounts:
        """Return the numbers of a function."""
        counts = self._counts.get(function)
        if counts is None:
            label = self.label(function)
            counts = self._counts.get(label) or self._counts.setdefault(label, FunctionCounts())
        return counts

    def label(self, function: str) -> str:
        """Return the ``function_name`` under which a function is counted."""
        if function not in self._labels and len(self._labels) >= MAX_FUNCTIONS:
            return OTHER
        self._labels.add(function)
        return function

    def describe(self) -> Iterable[Metric]:
        """Return the metrics without series, for the registry's check of names."""
        return FunctionMetrics(self._queue).collect()

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""

        def family(kind: Callable[..., Any], name: str, text: str, *labels: str) -> Any:
            return kind(f"queue_worker_{name}", text, labels=("queue_name", "function_name", *labels))

        inflight = family(GaugeMetricFamily, "function_invocation_inflight", "Invocations that this worker runs")
        limit = family(GaugeMetricFamily, "concurrency_limit", "Concurrent invocations that the limiter allows")
        ended = family(CounterMetricFamily, "invocations", "Invocations ended, by status", "code")
        duration = family(HistogramMetricFamily, "invocation_duration_seconds", "Duration of invocations")
        wait = family(
            HistogramMetricFamily, "queue_wait_seconds", "From being stored to the start of the first attempt"
        )
        retries = family(CounterMetricFamily, "retries", "Attempts that are retried")
        for function, counts in self._counts.items():
            series = (self._queue, function)
            inflight.add_metric(series, counts.inflight)
            for code, count in counts.by_status.items():
                ended.add_metric((*series, code), count)
            for metric, histogram in ((duration, counts.duration), (wait, counts.queue_wait)):
                if cumulative := histogram.cumulative():
                    metric.add_metric(series, *cumulative)
            if counts.limit is not None:
                limit.add_metric(series, counts.limit)
            if counts.retries:
                retries.add_metric(series, counts.retries)
        yield from (inflight, limit, ended, duration, wait, retries)


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
        self._pending = metric(
            Gauge, "pending_messages", "Messages in the stream, waiting or running", "queue_name", "function_name"
        )
        self._with_pending: set[str] = set()
        removed, stored = "Messages removed from the queue", "Messages ever stored in the stream"
        self._processed = metric(Counter, "messages_processed", removed, *by_pod).labels(queue, pod)
        self._submitted = metric(Gauge, "messages_submitted_total", stored, *by_pod).labels(queue, pod)
        self._functions = FunctionMetrics(queue)
        self.registry.register(self._functions)
        self._reconnects = metric(Counter, "nats_reconnect", "Reconnects to NATS")
        self._dead_letters = metric(Counter, "dead_letters", "Messages given up", "queue_name", "kind")
        self._callbacks = metric(Counter, "callbacks", "Callbacks sent, by result", "queue_name", "result")
        self._redirects = metric(
            Counter, "redirects", "Redirects, followed to a clean path or not", "queue_name", "result"
        )
        self._extensions = metric(Counter, "lease_extensions", "Lease extensions sent")
        self._leases_lost = metric(Counter, "leases_lost", "Leases lost, and their invocations cancelled")
        self._redeliveries = metric(
            Counter, "redeliveries", "Deliveries of messages that this worker had before", "queue_name", "known_as"
        )
        self._crashes = metric(Counter, "crashes", "Internal errors, each in one message")
        self._connected = metric(Gauge, "nats_connected", "1 while connected to NATS")
        self._unusable = metric(Gauge, "nats_unusable", "1 while the stream or a consumer cannot be used")
        self._draining = metric(Gauge, "draining", "1 from the first signal on")
        metric(Info, "build", "The version that runs").info({"version": __version__})
        ProcessCollector(registry=self.registry)
        self._handlers: Mapping[type[e.Event], Callable[[Any], None]] = {
            e.InvocationStarted: self._on_started,
            e.InvocationEnded: self._on_ended,
            e.Settled: self._on_settled,
            e.Redelivered: lambda event: self._redeliveries.labels(queue, event.state).inc(),
            e.CallbackPosted: self._on_callback_posted,
            e.DeadLettered: self._on_dead_lettered,
            e.LimitLearned: self._on_limit_learned,
            e.LeasesExtended: lambda event: self._extensions.inc(event.count),
            e.LeaseExpired: lambda _: self._leases_lost.inc(),
            e.WorkCrashed: lambda _: self._crashes.inc(),
            e.Connected: self._on_connected,
            e.Disconnected: lambda _: self._connected.set(0),
            e.BrokerMisconfigured: lambda _: self._unusable.set(1),
            e.FaultsEnded: lambda _: self._unusable.set(0),
            e.BacklogRead: self._on_backlog_read,
            e.DrainStarted: lambda _: self._draining.set(1),
        }

    def __call__(self, event: e.Event) -> None:
        """Count an event."""
        if handler := self._handlers.get(type(event)):
            handler(event)

    def render_text(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self.registry)

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
        self._callbacks.labels(self._queue, result).inc()

    def _on_dead_lettered(self, event: e.DeadLettered) -> None:
        self._dead_letters.labels(self._queue, "exhausted" if event.letter.attempts else "undecodable").inc()

    def _on_connected(self, event: e.Connected) -> None:
        self._connected.set(1)
        if event.reconnected:
            self._reconnects.inc()

    def _on_backlog_read(self, event: e.BacklogRead) -> None:
        self._submitted.set(event.backlog.last_sequence)
        pending = dict.fromkeys(self._with_pending, 0)  # a function without messages falls to 0
        for subject, stored in event.backlog.by_subject.items():
            function = self._functions.label(label_of(self._queue, subject))
            pending[function] = pending.get(function, 0) + stored
        for function, stored in pending.items():
            self._pending.labels(self._queue, function).set(stored)
        self._with_pending = set(pending)
