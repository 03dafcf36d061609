"""The parent: its tree of tasks, and the metrics and health of all its processes."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import structlog
import trio
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ..config import Settings
from ..observe.server import serve_observers
from .control_socket import METRICS, READY
from .processes import Child, ExitStatus, Processes, own_command

ANSWER_TIMEOUT = 2.0
"""Seconds for a process to answer: far more than it needs, and less than the ten of Prometheus and the five of the
manifest's probes."""
START_TIMEOUT = 30.0
"""Seconds in which a process that has never answered counts as starting. A start takes one or two."""


async def run(settings: Settings, stop_signals: Sequence[signal.Signals]) -> ExitStatus:
    """Run ``settings.processes`` processes of this program until a stop signal; a second one shortens the drain.

    Raises OSError, in a group, where the port is taken.
    """
    logger = structlog.get_logger()

    def log(level: str, message: str, **fields: Any) -> None:
        with suppress(OSError):  # the processes must go on when standard output is a full disk or a closed pipe
            getattr(logger, level)(message, **fields)

    processes = Processes(
        own_command(), os.environ, count=settings.processes, timeout=settings.shutdown_timeout, log=log
    )
    with trio.open_signal_receiver(*stop_signals) as stops, trio.open_signal_receiver(signal.SIGCHLD) as child_ends:
        async with trio.open_nursery() as beside:
            beside.start_soon(_on_each, stops, processes.stop)
            beside.start_soon(_on_each, child_ends, processes.reap)
            serve = partial(serve_observers, settings.http_host, settings.http_port, MergedStatus(processes))
            log("info", "Serving metrics and health", address=await beside.start(serve))
            status = await processes.supervise()
            log("info", "All processes have ended")
            beside.cancel_scope.cancel()
    return status


async def _on_each(signals: AsyncIterator[int], action: Callable[[], None]) -> None:
    async for _ in signals:
        action()


class MergedStatus(Collector):
    """All processes as one worker (:class:`worker.observe.status.WorkerStatus`); collects the parent's own series."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.registry = CollectorRegistry()
        self.registry.register(self)
        ProcessCollector(registry=self.registry)

    def collect(self) -> Iterable[Metric]:
        """Yield the current values of the parent's own series."""
        running, restarts = len(self._processes.running), self._processes.restarts
        yield GaugeMetricFamily("queue_worker_processes", "Processes that run", running)
        yield CounterMetricFamily("queue_worker_process_restarts", "Times a process was started again", restarts)

    async def metrics(self) -> str:
        """Merge the metrics of all processes; a process that does not answer in time counts with its last answer."""
        await self._query(METRICS)
        answers = [child.control.answers for _, child in sorted(self._processes.running.items())]
        texts = [each[METRICS] for each in answers if METRICS in each]
        own = generate_latest(self.registry).decode()
        return self._processes.merge.text([*texts, own], missing=len(self._processes.numbers) - len(texts))

    async def not_alive(self) -> str | None:
        """Name the processes that do not answer: Kubernetes can restart only the container with all of them."""
        silent = [child.number for child in await self._query(READY) if not _is_starting(child)]
        return _listed(silent, "does not answer")

    async def not_ready(self) -> str | None:
        """Name a process that is not ready: a rollout replaces all of them together."""
        if self._processes.stopping.is_set():
            return "draining"
        running = self._processes.running
        if missing := [number for number in self._processes.numbers if number not in running]:
            return _listed(missing, "does not run")
        if silent := await self._query(READY):
            return _listed([child.number for child in silent], "does not answer")
        reasons = ((number, child.control.answers.get(READY)) for number, child in sorted(running.items()))
        return next((f"process {number}: {reason}" for number, reason in reasons if reason), None)

    async def _query(self, question: bytes) -> list[Child]:
        """Query all running processes concurrently; return those that did not answer in time, and still run."""
        running = self._processes.running
        silent: list[Child] = []

        async def query(child: Child) -> None:
            answered = await child.control.query(question, ANSWER_TIMEOUT)
            if not answered and running.get(child.number) is child:
                silent.append(child)

        async with trio.open_nursery() as nursery:
            for child in running.values():
                nursery.start_soon(query, child)
        return sorted(silent, key=lambda child: child.number)


def _is_starting(child: Child) -> bool:
    return READY not in child.control.answers and trio.current_time() - child.started_at < START_TIMEOUT


def _listed(numbers: Sequence[int], problem: str) -> str | None:
    return ", ".join(f"process {number} {problem}" for number in numbers) or None
