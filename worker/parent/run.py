"""The parent: its tree of tasks, and what it shows of all processes."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
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
"""Seconds for a process to answer: far above what it takes, and below the ten of Prometheus and the five of our
manifest's probes."""
START_TIMEOUT = 30.0
"""Seconds in which a process that has never answered counts as one that is still starting: that takes one or two."""


async def run(
    settings: Settings, command: Sequence[str], environment: Mapping[str, str], stops: Sequence[signal.Signals]
) -> ExitStatus:
    """Keep ``settings.processes`` of *command* going until told to stop; how that ended.

    Args:
        settings: how many, how long a drain takes, and where metrics and health are served.
        command: program and arguments of each.
        environment: its variables, all of them.
        stops: the signals that say stop.

    Raises:
        OSError: the port is taken. (In a group, as nurseries raise.)
    """
    log = structlog.get_logger()

    def tell(level: str, message: str, **fields: Any) -> None:
        with suppress(OSError):  # a full disk or a closed pipe behind standard output must not stop the others
            getattr(log, level)(message, **fields)

    processes = Processes(command, environment, many=settings.processes, timeout=settings.shutdown_timeout, tell=tell)
    with trio.open_signal_receiver(*stops) as told, trio.open_signal_receiver(signal.SIGCHLD) as deaths:
        async with trio.open_nursery() as beside:
            beside.start_soon(processes.heed, told)
            beside.start_soon(_reap, processes, deaths)
            serve = partial(serve_observers, settings.http_host, settings.http_port, MergedStatus(processes))
            tell("info", "Serving metrics and health", address=await beside.start(serve))
            await processes.supervise()
            tell("info", "All processes have ended")
            beside.cancel_scope.cancel()
    return processes.exit_status


async def _reap(processes: Processes, deaths: AsyncIterator[int]) -> None:
    async for _ in deaths:
        processes.reap()


class MergedStatus:
    """All processes as one; see :class:`worker.observe.status.WorkerStatus`."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._registry = parent_registry(processes)

    async def metrics(self) -> str:
        """The metrics of all, merged. Of one that does not answer in time, the last that it said."""
        await self._query(METRICS)
        said = [place.control.answers for place in self._processes.running if place.control]
        texts = [each[METRICS] for each in said if METRICS in each]
        own = generate_latest(self._registry).decode()
        return self._processes.merge.text([*texts, own], missing=len(self._processes.slots) - len(texts))

    async def not_alive(self) -> str | None:
        """That one does not answer: then all have to go, since only the container can be started anew."""
        silent = [place for place in await self._query(READY) if not _is_starting(place)]
        return _listed(silent, "does not answer")

    async def not_ready(self) -> str | None:
        """That one is not: what is rolled out is all of them."""
        if self._processes.stopping.is_set():
            return "draining"
        if missing := [place for place in self._processes.slots if not place.process]:
            return _listed(missing, "does not run")
        if silent := await self._query(READY):
            return _listed(silent, "does not answer")
        for place in self._processes.running:
            if place.control and (reason := place.control.answers.get(READY, "")):
                return f"process {place.number}: {reason}"
        return None

    async def _query(self, question: bytes) -> list[ChildSlot]:
        """Ask all that run, at once; those that did not answer in time."""
        silent: list[ChildSlot] = []

        async def ask(place: ChildSlot) -> None:
            asked = place.process
            if place.control and not await place.control.query(question, ANSWER_TIMEOUT) and place.process is asked:
                silent.append(place)

        async with trio.open_nursery() as nursery:
            for place in self._processes.running:
                nursery.start_soon(ask, place)
        return sorted(silent, key=lambda place: place.number)


class ParentCollector(Collector):
    """The parent's own series."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes

    def collect(self) -> Iterable[Metric]:
        """As they are now."""
        running, restarts = len(self._processes.running), self._processes.restarts
        yield GaugeMetricFamily("queue_worker_processes", "Processes that run", running)
        yield CounterMetricFamily("queue_worker_process_restarts", "Times a process was started again", restarts)


def parent_registry(processes: Processes) -> CollectorRegistry:
    """These, and what the parent itself takes of the machine."""
    registry = CollectorRegistry()
    registry.register(ParentCollector(processes))
    ProcessCollector(registry=registry)
    return registry


def _is_starting(place: ChildSlot) -> bool:
    answered = place.control is not None and READY in place.control.answers
    return not answered and trio.current_time() - place.started_at < START_TIMEOUT


def _listed(places: Sequence[ChildSlot], what: str) -> str | None:
    return ", ".join(f"process {place.number} {what}" for place in places) or None
