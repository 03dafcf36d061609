"""The metrics of several processes as those of one worker: Prometheus texts in, one text out. No I/O, no clock.

Counters and histograms are added up; a gauge is merged by what it means. Processes write their texts with the same
library in the same version, so what stands before a line's last space is the series, to the letter, and nothing
needs to be taken apart: half a microsecond a line.

The law is that nothing that counts ever falls. Prometheus takes a fall for a restart of the whole, and adds the whole
sum once more; so what a process had counted stays when it is gone, also where all that is known of it is old, and the
rounding of a sum cannot take away what was shown before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

COUNTER_TYPES = frozenset({"counter", "histogram", "summary"})
"""Types whose series only grow."""
GAUGE_MERGES: dict[str, Callable[[Iterable[float]], float]] = {
    "queue_worker_pending_messages": max,  # all read it from the stream, so they differ by its age only
    "queue_worker_messages_submitted_total": max,  # the same
    "queue_worker_function_invocation_inflight": sum,
    "queue_worker_nats_connected": min,  # each has a connection; the worker is connected when all are
    "queue_worker_concurrency_limit": sum,
    "queue_worker_draining": max,
    "queue_worker_build_info": max,
    "queue_worker_processes": max,  # the parent's own
    "process_virtual_memory_bytes": sum,
    "process_resident_memory_bytes": sum,
    "process_open_fds": sum,
    "process_max_fds": sum,  # a limit for each: so the share that is used stays what it means
    "process_start_time_seconds": min,
}
"""How each gauge is merged."""
ZERO_WHEN_MISSING = frozenset({"queue_worker_nats_connected"})
"""Gauges that are 0 where a process is missing."""


@dataclass(slots=True)
class Family:
    """A metric: its HELP and TYPE lines, and each series with all its values."""

    name: str
    header: list[str]
    kind: str = "untyped"
    series: dict[str, list[float]] = field(default_factory=dict)


Value = Callable[[Family, str], float]
"""What is shown of a series of a metric."""


def parse(texts: Iterable[str]) -> list[Family]:
    """All values of each series of each metric, in the order in which they came."""
    families: dict[str, Family] = {}
    for text in texts:
        family = Family("", [])
        for line in text.split("\n"):  # not splitlines(): a label may hold what Unicode takes for an end of line
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


def format_families(families: Iterable[Family], value: Value) -> str:
    """The text of *families*."""
    lines: list[str] = []
    for family in families:
        lines += family.header
        lines += [f"{series} {value(family, series)!r}" for series in family.series]
    return "".join(f"{line}\n" for line in lines)


def total(family: Family, series: str) -> float:
    """The sum of its values."""
    return sum(family.series[series])


class Merge:
    """What is shown of processes that come and go."""

    def __init__(self) -> None:
        self._ended: list[str] = []
        self._shown: dict[str, float] = {}
        """The counts that were shown last."""

    def add_ended(self, text: str) -> None:
        """A process is no more, and *text* was the last that it said: what it counted stays."""
        families = parse([*self._ended, text])
        self._ended = [format_families((family for family in families if family.kind in COUNTER_TYPES), total)]

    def text(self, texts: Sequence[str], *, missing: int = 0) -> str:
        """One text for all.

        Args:
            texts: the last that each process said that runs.
            missing: how many there should be besides.
        """

        def value(family: Family, series: str) -> float:
            if family.kind in COUNTER_TYPES:
                self._shown[series] = max(total(family, series), self._shown.get(series, 0.0))
                return self._shown[series]
            if missing and family.name in ZERO_WHEN_MISSING:
                return 0.0
            merged: float = GAUGE_MERGES.get(family.name, sum)(family.series[series])
            return merged

        return format_families(parse([*texts, *self._ended]), value)
