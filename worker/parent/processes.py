"""The processes of one worker: kept going until told to stop, then ended."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import trio

from ..policy.processes import RESTART_BACKOFF, crashes_in_a_row, must_give_up
from .control_socket import FATAL, METRICS, VARIABLE, ControlSocket
from .merge import Merge

KILL_AFTER_DRAIN = 4.5
"""Seconds past its timeout that a drain has: 3 for the last confirmations and about 1 for closing connections. What
then still runs is killed, so that all is over within 5, when Kubernetes would kill the parent as well."""
FAST_DRAIN = 2.0
"""Seconds that giving work back takes at most, after the second signal."""
_LAST_READ = 1.0
"""Seconds for what a process has said before it ended to be read."""
BAD_SETTINGS = 2
_CLEAN_EXITS = (0, -signal.SIGTERM)
"""Exit codes of a process that was told to stop; the second where it had no handler yet, and so nothing to do."""

Log = Callable[..., Any]
"""Told level, message and fields of a log line."""


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """How it ended: the exit code, and what is to be said on standard error."""

    code: int
    reason: str = ""


@dataclass(slots=True, eq=False)
class ChildSlot:
    """One of the processes, whichever runs in its place now."""

    number: int
    crashes: int = 0
    """In a row."""
    process: trio.Process | None = None
    """None before, between and after."""
    control: ControlSocket | None = None
    started_at: float = 0.0


class Processes:
    """So many processes of *command*, and what becomes of them.

    Args:
        command: program and arguments.
        environment: its variables, all of them.
        many: how many.
        timeout: how long (s) a drain waits for running invocations.
        tell: told what happens.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, many: int, timeout: float, tell: Log
    ) -> None:
        self._command, self._environment = command, environment
        self._timeout, self._log = timeout, tell
        self.slots = [ChildSlot(number) for number in range(1, many + 1)]
        self.merge = Merge()
        self.restarts = 0
        self.stopping = trio.Event()
        self.exit_status = ExitStatus(0)
        self._kill_scope = trio.CancelScope()
        self._starting = 0

    @property
    def running(self) -> list[ChildSlot]:
        """Those that run now."""
        return [place for place in self.slots if place.process]

    async def supervise(self) -> None:
        """Keep them going until told to stop and all have ended; what overstays is killed. Then see *ended*."""
        with self._kill_scope:
            async with trio.open_nursery() as nursery:
                for place in self.slots:
                    nursery.start_soon(self._supervise_slot, place)
        if self._kill_scope.cancelled_caught:
            self._stop_with(ExitStatus(1))

    async def heed(self, stops: AsyncIterator[int]) -> None:
        """Pass on each signal: the first drains, the second hurries."""
        async for _ in stops:
            self.stop()

    def stop(self) -> None:
        """Have all end; once more, have them hurry."""
        now = trio.current_time()
        if self.stopping.is_set():
            self._kill_scope.deadline = min(self._kill_scope.deadline, now + FAST_DRAIN + KILL_AFTER_DRAIN)
        else:
            self._log("info", "Draining all processes", running=len(self.running), timeout=self._timeout)
            self.stopping.set()
            self._kill_scope.deadline = now + max(self._timeout, FAST_DRAIN) + KILL_AFTER_DRAIN
        for place in self.running:
            _terminate(place.process)

    def reap(self) -> None:
        """Take leave of processes that are not ours but became our children: we may be process 1 of a container."""
        ours = {place.process.pid for place in self.slots if place.process}
        while not self._starting:  # a process that is being started is not in the list yet
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None or ended.si_pid in ours:
                return
            os.waitpid(ended.si_pid, 0)

    async def _supervise_slot(self, place: ChildSlot) -> None:
        while not self.stopping.is_set():
            code = await self._run_process(place)
            self.reap()
            if self._is_final(place, code):
                return
            wait = RESTART_BACKOFF.delay(place.crashes, draw=random.random())  # noqa: S311 -- jitter, no secret
            fields = {"process": place.number, "how": _how(code), "crashes": place.crashes, "again_in": round(wait, 3)}
            self._log("error", "A process ended; starting it again", **fields)
            with trio.move_on_after(wait):
                await self.stopping.wait()
            self.restarts += not self.stopping.is_set()

    async def _run_process(self, place: ChildSlot) -> int:
        """One life of a process, from its start to its end; its exit code."""
        place.started_at = trio.current_time()
        try:
            process, place.control = await self._start(place)
        except OSError as error:  # no memory, or too many processes: that may pass
            self._log("error", "A process cannot be started", process=place.number, error=str(error))
            place.control = None
            return 1
        place.process = process
        if self.stopping.is_set():  # it was told to stop while it was being started
            _terminate(process)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(place.control.receive)
                await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + _LAST_READ
        finally:
            if process.returncode is None and self._kill_scope.cancel_called:
                self._log("error", "A process did not end in time, and is killed", process=place.number)
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()
            place.process = None
            self.merge.add_ended(place.control.answers.get(METRICS, ""))
        return process.returncode or 0

    async def _start(self, place: ChildSlot) -> tuple[trio.Process, ControlSocket]:
        ours, theirs = socket.socketpair()
        self._starting += 1
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    list(self._command),
                    env={**self._environment, VARIABLE: f"{place.number}/{len(self.slots)}/{theirs.fileno()}"},
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    process_group=0,  # Ctrl-C reaches only us, so that it counts once
                )
        except BaseException:
            ours.close()
            raise
        finally:
            self._starting -= 1
        return process, ControlSocket(ours)

    def _is_final(self, place: ChildSlot, code: int) -> bool:
        """Whether there is nothing to be started again; ends all where a process cannot work."""
        fatal = place.control.answers.get(FATAL) if place.control else None
        if self.stopping.is_set():
            if code not in _CLEAN_EXITS and fatal is None:
                self._log("error", "A process did not end in order", process=place.number, how=_how(code))
                self._stop_with(ExitStatus(1))
            return True
        place.crashes = crashes_in_a_row(place.crashes, trio.current_time() - place.started_at)
        if fatal is not None or code == BAD_SETTINGS:
            self._stop_with(ExitStatus(code or 1, fatal or ""))
        elif must_give_up([each.crashes for each in self.slots], len(self.running)):
            self._stop_with(ExitStatus(1, f"every process crashes, again and again; the last {_how(code)}"))
        else:
            return False
        return True

    def _stop_with(self, ended: ExitStatus) -> None:
        """For a reason of our own; the first counts."""
        self.exit_status = self.exit_status if self.exit_status.code else ended
        if not self.stopping.is_set():
            self.stop()


def own_command() -> list[str]:
    """What this process was started with: the same interpreter, options and arguments."""
    return [sys.executable, *sys.orig_argv[1:]]


def _terminate(process: trio.Process | None) -> None:
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError):
            process.terminate()


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # one that has no name, such as a real-time signal
        return f"was killed by signal {-code}"
