"""The parent: its tree of tasks, and the metrics and health of all its processes."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
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
from .processes import ChildSlot, ExitStatus, Processes

ANSWER_TIMEOUT = 2.0
"""Seconds for a process to answer: far more than it needs, and less than the ten of Prometheus and the five of the
manifest's probes."""
START_TIMEOUT = 30.0
"""Seconds in which a process that has never answered counts as starting. A start takes one or two."""


async def run(
    settings: Settings, command: Sequence[str], environment: Mapping[str, str], stop_signals: Sequence[signal.Signals]
) -> ExitStatus:
    """Run ``settings.processes`` processes of *command* until a stop signal; a second one shortens the drain.

    Raises:
        OSError: the port is taken. (In a group, as nurseries raise.)
    """
    logger = structlog.get_logger()

    def log(level: str, message: str, **fields: Any) -> None:
        with suppress(OSError):  # the processes must go on when standard output is a full disk or a closed pipe
            getattr(logger, level)(message, **fields)

    processes = Processes(command, environment, count=settings.processes, timeout=settings.shutdown_timeout, log=log)
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


class MergedStatus:
    """All processes as one worker; see :class:`worker.observe.WorkerStatus`."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._registry = parent_registry(processes)

    async def metrics(self) -> str:
        """Merge the metrics of all processes; a process that does not answer in time counts with its last answer."""
        await self._query(METRICS)
        answers = [slot.control.answers for slot in self._processes.running if slot.control]
        texts = [each[METRICS] for each in answers if METRICS in each]
        own = generate_latest(self._registry).decode()
        return self._processes.merge.text([*texts, own], missing=len(self._processes.slots) - len(texts))

    async def not_alive(self) -> str | None:
        """Name the processes that do not answer: Kubernetes can restart only the container with all of them."""
        return _listed([slot for slot in await self._query(READY) if not _is_starting(slot)], "does not answer")

    async def not_ready(self) -> str | None:
        """Name a process that is not ready: a rollout replaces all of them together."""
        if self._processes.stopping.is_set():
            return "draining"
        if missing := [slot for slot in self._processes.slots if not slot.process]:
            return _listed(missing, "does not run")
        if silent := await self._query(READY):
            return _listed(silent, "does not answer")
        for slot in self._processes.running:
            if slot.control and (reason := slot.control.answers.get(READY, "")):
                return f"process {slot.number}: {reason}"
        return None

    async def _query(self, question: bytes) -> list[ChildSlot]:
        """Query all running processes concurrently; return the slots of those that did not answer in time."""
        silent: list[ChildSlot] = []

        async def query(slot: ChildSlot) -> None:
            process = slot.process
            if slot.control and not await slot.control.query(question, ANSWER_TIMEOUT) and slot.process is process:
                silent.append(slot)

        async with trio.open_nursery() as nursery:
            for slot in self._processes.running:
                nursery.start_soon(query, slot)
        return sorted(silent, key=lambda slot: slot.number)


class ParentCollector(Collector):
    """The parent's own series."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        """Yield the current values."""
        running, restarts = len(self._processes.running), self._processes.restarts
        yield GaugeMetricFamily("queue_worker_processes", "Processes that run", running)
        yield CounterMetricFamily("queue_worker_process_restarts", "Times a process was started again", restarts)


def parent_registry(processes: Processes) -> CollectorRegistry:
    """Return a registry of the parent's series and of its own memory, CPU and files."""
    registry = CollectorRegistry()
    registry.register(ParentCollector(processes))
    ProcessCollector(registry=registry)
    return registry


def _is_starting(slot: ChildSlot) -> bool:
    answered = slot.control is not None and READY in slot.control.answers
    return not answered and trio.current_time() - slot.started_at < START_TIMEOUT


def _listed(slots: Sequence[ChildSlot], problem: str) -> str | None:
    return ", ".join(f"process {slot.number} {problem}" for slot in slots) or None
