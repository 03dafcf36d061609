"""What is counted of each function, in plain numbers.

prometheus_client's own counters take a lock at each step, and a message takes five steps: all of them together cost a
tenth of a message. Only Trio's thread counts here, so nothing needs a lock, and the library is asked at a scrape only.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

MAX_FUNCTIONS = 2_000
"""Functions that have series of their own: each has about forty, so some ten megabytes at a scrape."""
OTHER = "other"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_WAITS = (0.01, 0.05, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 14400)


def _number(bound: float) -> str:
    return floatToGoString(bound)  # type: ignore[no-untyped-call,no-any-return]  # the library has it so


class Histogram:
    """A histogram.

    Args:
        bounds: the upper end of each bucket (s); one more, without end, follows.
    """

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        """One more, that took so long."""
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def told(self) -> tuple[list[tuple[str, float]], float] | None:
        """Buckets as Prometheus has them, each with all below it, and the sum; None where there is nothing yet."""
        bounds = [_number(bound) for bound in (*self._bounds, float("inf"))]
        counted = list(zip(bounds, map(float, accumulate(self._counts)), strict=True))
        return (counted, self._sum) if counted[-1][1] else None


class FunctionCounts:
    """The numbers of one function."""

    __slots__ = ("ended", "inflight", "limit", "retries", "took", "waited")

    def __init__(self) -> None:
        self.inflight = self.retries = 0
        self.limit: int | None = None
        """What was learned last."""
        self.ended: dict[str, int] = {}
        """How many, by status."""
        self.took, self.waited = Histogram(_SECONDS), Histogram(_WAITS)


class FunctionMetrics(Collector):
    """Those of all functions. Names are foreign input, so past :data:`MAX_FUNCTIONS` a new one counts as ``other``."""

    def __init__(self, queue: str) -> None:
        self._queue = queue
        self._tallies: dict[str, FunctionCounts] = {}
        self._names: set[str] = set()

    def of(self, function: str) -> FunctionCounts:
        """The numbers of a function."""
        tally = self._tallies.get(function)
        if tally is None:
            name = self.name(function)
            tally = self._tallies.get(name) or self._tallies.setdefault(name, FunctionCounts())
        return tally

    def name(self, function: str) -> str:
        """What the function counts as."""
        if function not in self._names:
            if len(self._names) >= MAX_FUNCTIONS:
                return OTHER
            self._names.add(function)
        return function

    def describe(self) -> Iterable[Metric]:
        """The same, for the registry's check of names."""
        return FunctionMetrics(self._queue).collect()

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        labels = ("queue_name", "function_name")
        name = "queue_worker_{}".format
        inflight = GaugeMetricFamily(name("function_invocation_inflight"), "Invocations running here", labels=labels)
        ended = CounterMetricFamily(name("invocations"), "Invocations ended, by status", labels=(*labels, "code"))
        took = HistogramMetricFamily(name("invocation_duration_seconds"), "How long invocations took", labels=labels)
        waited = HistogramMetricFamily(
            name("queue_wait_seconds"), "From being stored to the start of the first attempt", labels=labels
        )
        retries = CounterMetricFamily(name("retries"), "Attempts given back to be made again", labels=labels)
        limit = GaugeMetricFamily(name("concurrency_limit"), "Invocations at once, as learned here", labels=labels)
        for function, tally in self._tallies.items():
            of = (self._queue, function)
            inflight.add_metric(of, tally.inflight)
            for code, count in tally.ended.items():
                ended.add_metric((*of, code), count)
            for family, times in ((took, tally.took), (waited, tally.waited)):
                if told := times.told():
                    family.add_metric(of, *told)
            if tally.limit is not None:
                limit.add_metric(of, tally.limit)
            if tally.retries:
                retries.add_metric(of, tally.retries)
        yield from (inflight, limit, ended, took, waited, retries)
