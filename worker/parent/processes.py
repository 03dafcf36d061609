"""The parent: its tree of tasks, the supervision of its processes, and their metrics and health."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog
import trio
from prometheus_client import CollectorRegistry, Metric, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from ..observe.log_metrics import LogMetrics
from ..observe.log_writer import LogWriter
from ..observe.server import serve_observers
from ..policy.processes import RESTART_BACKOFF, crashes_in_a_row, must_give_up
from ..settings import Settings
from . import exit_text
from .control_socket import FATAL, METRICS, READY, VARIABLE, ControlSocket
from .merge import Merge

KILL_AFTER_DRAIN = 4.5
"""Seconds between the end of the drain's timeout and SIGKILL: 3 for the last confirmations, 1 for closing connections.
So the parent ends within the 5 s after which Kubernetes would kill it too."""
FAST_DRAIN = 2.0
"""Most seconds that a process needs to give its work back after the second signal."""
_LAST_READ = 1.0
"""Seconds to read the last messages of a process that has ended."""
BAD_SETTINGS = 2
_CLEAN_EXITS = (0, -signal.SIGTERM)
"""Exit codes of a stopped process; the second where it had no handler yet, and so no work."""
ANSWER_TIMEOUT = 2.0
"""Seconds for a process to answer: less than the ten of Prometheus and the five of the manifest's probes."""
START_TIMEOUT = 30.0
"""Seconds in which a process that has never answered counts as starting. A start takes one or two."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The parent's exit code, and the line for standard error."""

    code: int
    reason: str = ""


async def run(settings: Settings, stop_signals: Sequence[signal.Signals], writer: LogWriter) -> ExitStatus:
    """Run this program in several processes until a stop signal; raise OSError, in a group, where the port is taken."""
    logger = structlog.get_logger()

    def log(level: str, message: str, **fields: Any) -> None:
        getattr(logger, level)(message, **fields)

    count, timeout = settings.processes, settings.shutdown_timeout
    processes = Processes(own_command(), os.environ, count=count, timeout=timeout, log=log)
    with trio.open_signal_receiver(*stop_signals) as stops, trio.open_signal_receiver(signal.SIGCHLD) as child_ends:
        async with trio.open_nursery() as beside:
            beside.start_soon(_on_each, stops, processes.stop)
            beside.start_soon(_on_each, child_ends, processes.reap)
            status = MergedStatus(processes)
            status.registry.register(LogMetrics(writer))
            serve = partial(serve_observers, settings.http_host, settings.http_port, status)
            log("info", "Serving metrics and health", address=await beside.start(serve))
            exit_status = await processes.supervise()
            log("info", "All processes have ended")
            beside.cancel_scope.cancel()
    return exit_status


async def _on_each(signals: AsyncIterator[int], action: Callable[[], None]) -> None:
    async for _ in signals:
        action()


def own_command() -> list[str]:
    """Return the command line of this process: the same interpreter, options and arguments."""
    return [sys.executable, *sys.orig_argv[1:]]


@dataclass(slots=True, eq=False)
class Child:
    """A process that runs."""

    number: int
    process: trio.Process
    control: ControlSocket
    started_at: float


class Processes:
    """*count* processes of *command*, started again when they crash.

    *timeout* is the longest drain (s); *log* is called with level, message and fields of a log line.
    """

    def __init__(
        self, command: list[str], environment: Mapping[str, str], *, count: int, timeout: float, log: Callable[..., Any]
    ) -> None:
        self._command, self._environment = command, environment
        self._timeout, self._log = timeout, log
        self.numbers = range(1, count + 1)
        self.running: dict[int, Child] = {}
        """The processes that run, by number; a process is started again with the same one."""
        self._crashes = dict.fromkeys(self.numbers, 0)
        """Crashes in a row, by number."""
        self.merge = Merge()
        self.restarts = 0
        self.stopping = trio.Event()
        self.exit_status = ExitStatus(0)
        self._kill_scope = trio.CancelScope()
        self._starting = 0

    async def supervise(self) -> ExitStatus:
        """Run the processes until they are stopped and have ended; kill those that exceed their time."""
        with self._kill_scope:
            async with trio.open_nursery() as nursery:
                for number in self.numbers:
                    nursery.start_soon(self._supervise, number)
        if self._kill_scope.cancelled_caught:
            self._stop_with(ExitStatus(1))
        return self.exit_status

    def stop(self) -> None:
        """Drain all processes; called again, have them give their work back at once."""
        now = trio.current_time()
        if self.stopping.is_set():
            self._kill_scope.deadline = min(self._kill_scope.deadline, now + FAST_DRAIN + KILL_AFTER_DRAIN)
        else:
            self._log("info", "Draining all processes", running=len(self.running), timeout=self._timeout)
            self.stopping.set()
            self._kill_scope.deadline = now + max(self._timeout, FAST_DRAIN) + KILL_AFTER_DRAIN
        for child in self.running.values():
            child.process.terminate()

    def reap(self) -> None:
        """Reap orphans: as process 1 of a container, the parent inherits the children of others."""
        own = {child.process.pid for child in self.running.values()}
        while not self._starting:  # a process that is being started is not among the running ones yet
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in own:
                return
            os.waitpid(ended.si_pid, 0)

    async def _supervise(self, number: int) -> None:
        while not self.stopping.is_set():
            began = trio.current_time()
            code, fatal = await self._run_process(number)
            self.reap()
            self._judge(number, trio.current_time() - began, code, fatal)
            if self.stopping.is_set():
                return
            crashes = self._crashes[number]
            wait = RESTART_BACKOFF.delay(crashes, draw=random.random())  # noqa: S311 -- jitter, no secret
            fields = {"process": number, "how": exit_text(code), "crashes": crashes, "again_in": round(wait, 3)}
            self._log("error", "A process ended; starting it again", **fields)
            with trio.move_on_after(wait):
                await self.stopping.wait()
            self.restarts += not self.stopping.is_set()

    async def _run_process(self, number: int) -> tuple[int, str | None]:
        """Start a process and wait until it ends; return its exit code, and the fatal error that it sent."""
        try:
            child = await self._start(number)
        except OSError as error:  # too little memory, or too many processes: treated as a crash, and tried again
            self._log("error", "A process cannot be started", process=number, error=str(error))
            return 1, None
        self.running[number] = child
        process, answers = child.process, child.control.answers
        if self.stopping.is_set():  # the signal arrived while the process was being started
            process.terminate()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(child.control.receive)
                await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + _LAST_READ
        finally:
            if process.returncode is None and self._kill_scope.cancel_called:
                self._log("error", "A process did not end in time, and is killed", process=number)
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            del self.running[number]
            self.merge.add_ended(answers.get(METRICS, ""))
        return process.returncode or 0, answers.get(FATAL)

    async def _start(self, number: int) -> Child:
        began = trio.current_time()
        parent_end, child_end = socket.socketpair()
        self._starting += 1
        try:
            with child_end:
                process = await trio.lowlevel.open_process(
                    self._command,
                    env={**self._environment, VARIABLE: f"{number}/{len(self.numbers)}/{child_end.fileno()}"},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[child_end.fileno()],
                    process_group=0,  # so that Ctrl-C reaches only the parent, and counts once
                )
        except BaseException:
            parent_end.close()
            raise
        finally:
            self._starting -= 1
        return Child(number, process, ControlSocket(parent_end), began)

    def _judge(self, number: int, lifetime: float, code: int, fatal: str | None) -> None:
        """Count a crash, and stop all processes where none can work; while they stop, check the exit code."""
        if self.stopping.is_set():
            if code not in _CLEAN_EXITS and fatal is None:
                self._log("error", "A process did not end in order", process=number, how=exit_text(code))
                self._stop_with(ExitStatus(1))
            return
        self._crashes[number] = crashes_in_a_row(self._crashes[number], lifetime)
        if fatal is not None or code == BAD_SETTINGS:
            self._stop_with(ExitStatus(code or 1, fatal or ""))
        elif must_give_up(self._crashes.values(), len(self.running)):
            self._stop_with(ExitStatus(1, f"every process crashes, again and again; the last {exit_text(code)}"))

    def _stop_with(self, status: ExitStatus) -> None:
        """Stop all processes; the first failure is the parent's exit status."""
        self.exit_status = self.exit_status if self.exit_status.code else status
        if not self.stopping.is_set():
            self.stop()


class MergedStatus(Collector):
    """All processes as one worker (:class:`worker.observe.WorkerStatus`); collects the parent's own series."""

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
        merge, missing = self._processes.merge, len(self._processes.numbers) - len(texts)
        # In a thread, because with 2,000 functions it takes as long as the parent has to answer a probe.
        return await trio.to_thread.run_sync(merge.merged, [*texts, own, merge.ended], missing)

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
