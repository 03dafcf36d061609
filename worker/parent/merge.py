"""The metrics of several processes as those of one worker: Prometheus texts in, one text out. No I/O, no clock.

Counters and histograms are added up; a gauge is merged by its meaning. All processes use the same library, so the text
before a line's last space identifies the series, and nothing else of it is parsed: half a microsecond per line.

The law: no counter ever decreases. Prometheus takes a decrease for a restart of the whole, and adds the whole sum
again. So the counts of an ended process stay, even where only an old text of it exists. Nor does the rounding of a sum
lower a value that was shown before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

COUNTER_TYPES = frozenset({"counter", "histogram", "summary"})
"""Types of metrics that only grow."""
GAUGE_MERGES: dict[str, Callable[[Iterable[float]], float]] = {
    "queue_worker_pending_messages": max,  # all processes read it from the stream, so they differ by its age only
    "queue_worker_messages_submitted_total": max,  # the same
    "queue_worker_function_invocation_inflight": sum,
    "queue_worker_nats_connected": min,  # each process has a connection; the worker is connected when all are
    "queue_worker_nats_unusable": max,
    "queue_worker_concurrency_limit": sum,
    "queue_worker_draining": max,
    "queue_worker_build_info": max,
    "queue_worker_result_bytes": sum,
    "queue_worker_results_waiting": sum,
    "queue_worker_stored_callbacks": max,  # each process reads it from the stream
    "queue_worker_stored_callbacks_oldest_seconds": max,
    "queue_worker_callback_keys_unusable": max,
    "queue_worker_processes": max,  # the parent's own
    "process_virtual_memory_bytes": sum,
    "process_resident_memory_bytes": sum,
    "process_open_fds": sum,
    "process_max_fds": sum,  # each process has a limit of its own, so the used share keeps its meaning
    "process_start_time_seconds": min,
}
"""The merge function of each gauge."""


@dataclass(slots=True)
class Family:
    """A metric: its HELP and TYPE lines, and each series with all its values."""

    name: str
    header: list[str]
    kind: str = "untyped"
    series: dict[str, list[float]] = field(default_factory=dict)


def parse(texts: Iterable[str]) -> list[Family]:
    """Return all values of each series of each metric, in the order of the texts."""
    families: dict[str, Family] = {}
    for text in texts:
        family = Family("", [])
        for line in text.split("\n"):  # not splitlines(): a label may contain other line ends of Unicode
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                family = families.setdefault(name, Family(name, [line]))
            elif line.startswith("# TYPE "):
                family.kind = line.rpartition(" ")[2]
                family.header[1:] = [line]
            elif line:
                series, _, value = line.rpartition(" ")
                family.series.setdefault(series, []).append(float(value))
    return list(families.values())


def _format(families: Iterable[Family], value: Callable[[Family, str], float]) -> str:
    """Write *families* as one text, with the merged *value* of each series."""
    lines: list[str] = []
    for family in families:
        lines += family.header
        lines += [f"{series} {value(family, series)!r}" for series in family.series]
    return "".join(f"{line}\n" for line in lines)


class Merge:
    """The merged metrics of running and ended processes."""

    def __init__(self) -> None:
        self.ended = ""
        """The counts of all ended processes."""
        self._shown: dict[str, float] = {}
        """The counts of the last text."""

    def add_ended(self, text: str) -> None:
        """Keep the counts of an ended process, from its last *text*."""
        counters = [family for family in parse([self.ended, text]) if family.kind in COUNTER_TYPES]
        self.ended = _format(counters, lambda family, series: sum(family.series[series]))

    def text(self, texts: Iterable[str], *, missing: int = 0) -> str:
        """Merge the last text of each running process; *missing* counts those that do not run or have no text."""
        return self.merged([*texts, self.ended], missing)

    def merged(self, texts: Sequence[str], missing: int) -> str:
        """Merge *texts*, with :attr:`ended` of the same moment: otherwise an ended process could count twice.

        This takes long, so a thread may do it, while :meth:`add_ended` is called; but not two at once.
        """

        def value(family: Family, series: str) -> float:
            if family.kind in COUNTER_TYPES:
                self._shown[series] = max(sum(family.series[series]), self._shown.get(series, 0.0))
                return self._shown[series]
            if missing and family.name == "queue_worker_nats_connected":
                return 0.0
            return float(GAUGE_MERGES.get(family.name, sum)(family.series[series]))

        return _format(parse(texts), value)
