"""Metrics of each function, counted in plain numbers.

prometheus_client's own counters take a lock at each step, and a message takes five steps, which cost a tenth of its
CPU. Only Trio's thread counts here, so nothing needs a lock, and the library's objects are made at a scrape only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

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
        if function not in self._labels:
            if len(self._labels) >= MAX_FUNCTIONS:
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
