"""The metric about the log itself, of a worker process and of the parent of several."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from .log_writer import LogWriter


class LogMetrics(Collector):
    """The number of lines that *writer* has dropped."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def collect(self) -> Iterator[Metric]:
        """See :class:`prometheus_client.registry.Collector`."""
        yield CounterMetricFamily(
            "queue_worker_log_lines_dropped", "Log lines that standard output did not accept", self._writer.dropped
        )
