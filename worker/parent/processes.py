"""The processes of one worker: supervised until they are stopped."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from ..policy.processes import RESTART_BACKOFF, crashes_in_a_row, must_give_up
from .control_socket import FATAL, METRICS, VARIABLE, ControlSocket
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


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The parent's exit code, and the line for standard error."""

    code: int
    reason: str = ""


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


def own_command() -> list[str]:
    """Return the command line of this process: the same interpreter, options and arguments."""
    return [sys.executable, *sys.orig_argv[1:]]


def exit_text(code: int) -> str:
    """Describe how a process ended, as the predicate of a sentence."""
    if code >= 0:
        return f"ended with exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"  # a real-time signal has no name
