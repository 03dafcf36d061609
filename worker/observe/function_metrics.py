"""Metrics of each function, counted in plain numbers and written as text in slices.

prometheus_client's own counters take a lock at each step, and a message takes five steps, which cost a tenth of its
CPU. Only Trio's thread counts here, so nothing needs a lock. The library also takes 0.4 ms to write the forty series of
one function: 2,000 functions would stop the event loop for most of a second. Here they take a tenth of that, and a
slice is a millisecond.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeVar

T = TypeVar("T")

MAX_FUNCTIONS = 2_000
"""Functions with series of their own. Each has about forty series, so a scrape has some ten megabytes."""
OTHER = "other"
SLICE = 50
"""Functions whose series of one metric are written without a pause: a millisecond."""
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

    def text(self, name: str, labels: str) -> str:
        """Return the series. Each of Prometheus' buckets includes all lower ones; there are none if all are empty."""
        cumulative = list(accumulate(self._counts))
        if not (total := cumulative[-1]):
            return ""
        bounds = [*map(float, self._bounds), "+Inf"]
        series = f"{name}_bucket{{{labels},le="
        buckets = [f'{series}"{bound}"}} {count}.0\n' for bound, count in zip(bounds, cumulative, strict=True)]
        return f"{''.join(buckets)}{name}_count{{{labels}}} {total}.0\n{name}_sum{{{labels}}} {self._sum!r}\n"


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


class FunctionFamily(NamedTuple):
    """A metric with series for each function. *write* returns them as text, from name, labels and numbers."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...]
    write: Callable[[str, str, FunctionCounts], str]


_BY_FUNCTION = ("queue_name", "function_name")
PENDING = FunctionFamily(
    "queue_worker_pending_messages", "gauge", "Messages in the stream, waiting or running", _BY_FUNCTION, lambda *_: ""
)
FAMILIES = (
    FunctionFamily(
        "queue_worker_function_invocation_inflight",
        "gauge",
        "Invocations that this worker runs",
        _BY_FUNCTION,
        lambda name, labels, counts: _one(name, labels, counts.inflight),
    ),
    FunctionFamily(
        "queue_worker_concurrency_limit",
        "gauge",
        "Concurrent invocations that the limiter allows",
        _BY_FUNCTION,
        lambda name, labels, counts: "" if counts.limit is None else _one(name, labels, counts.limit),
    ),
    FunctionFamily(
        "queue_worker_invocations_total",
        "counter",
        "Invocations ended, by status",
        (*_BY_FUNCTION, "code"),
        lambda name, labels, counts: "".join(
            _one(name, f'{labels},code="{code}"', count) for code, count in counts.by_status.items()
        ),
    ),
    FunctionFamily(
        "queue_worker_invocation_duration_seconds",
        "histogram",
        "Duration of invocations",
        _BY_FUNCTION,
        lambda name, labels, counts: counts.duration.text(name, labels),
    ),
    FunctionFamily(
        "queue_worker_queue_wait_seconds",
        "histogram",
        "From being stored to the start of the first attempt",
        _BY_FUNCTION,
        lambda name, labels, counts: counts.queue_wait.text(name, labels),
    ),
    FunctionFamily(
        "queue_worker_retries_total",
        "counter",
        "Attempts that are retried",
        _BY_FUNCTION,
        lambda name, labels, counts: _one(name, labels, counts.retries) if counts.retries else "",
    ),
)


class FunctionMetrics:
    """The numbers of all functions.

    Names are foreign input, so beyond :data:`MAX_FUNCTIONS` a new function counts as ``other``.
    """

    def __init__(self, queue: str) -> None:
        self._queue = escape(queue)
        self._counts: dict[str, FunctionCounts] = {}
        self._labels: set[str] = set()
        self.pending: dict[str, int] = {}
        """Messages in the stream, by function."""

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

    def slices(self) -> Iterator[str]:
        """Yield all series in Prometheus' text format, in pieces between which the numbers may change."""
        yield _header(PENDING)
        for part in _parts(list(self.pending.items())):
            yield "".join(_one(PENDING.name, self._series(function), count) for function, count in part)
        functions = [(self._series(function), counts) for function, counts in self._counts.items()]
        for family in FAMILIES:
            name, write = family.name, family.write
            yield _header(family)
            for piece in _parts(functions):
                yield "".join([write(name, labels, counts) for labels, counts in piece])

    def _series(self, function: str) -> str:
        return f'queue_name="{self._queue}",function_name="{escape(function)}"'


def escape(value: str) -> str:
    """Return a label's value as Prometheus' text format has it."""
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _parts(items: Sequence[T]) -> Iterable[Sequence[T]]:
    return (items[start : start + SLICE] for start in range(0, len(items), SLICE))


def _header(family: FunctionFamily) -> str:
    return f"# HELP {family.name} {family.help}\n# TYPE {family.name} {family.kind}\n"


def _one(name: str, labels: str, value: int) -> str:
    return f"{name}{{{labels}}} {value}.0\n"
