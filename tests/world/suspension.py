"""Processes that can be suspended and continued, as by SIGSTOP and SIGCONT, inside one Trio run.

Each task that is started in a :class:`Process` belongs to it, and so do that task's children. While the process is
suspended, its tasks take no step. They get timers, answers and cancellations of that time when the process continues,
all at once, as a real process does. All other tasks in the run continue.

Trio has no such feature, so a task's coroutine is wrapped in a gate when the task is spawned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import trio

_process: ContextVar[Process | None] = ContextVar("_process", default=None)


class Process:
    """Tasks that are suspended together."""

    def __init__(self) -> None:
        self.stopped = False
        self._waiting: list[tuple[trio.lowlevel.Task, Any]] = []

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Add the tasks that are started in this block to the process."""
        token = _process.set(self)
        try:
            yield
        finally:
            _process.reset(token)

    def stop(self) -> None:
        """Suspend the tasks."""
        self.stopped = True

    def resume(self) -> None:
        """Continue the tasks with the values that they were sent while they were suspended."""
        self.stopped = False
        waiting, self._waiting = self._waiting, []
        for task, sent in waiting:
            trio.lowlevel.reschedule(task, sent)

    def hold(self, sent: Any) -> Any:
        """Keep the value that the current task was sent, and return a wait that cannot be aborted, for Trio's loop."""
        self._waiting.append((trio.lowlevel.current_task(), sent))
        waiting = trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)  # noqa: ASYNC105 -- its gate waits
        return waiting.send(None)


class _Gate:
    """Wrapper of a task's coroutine, for Trio's loop."""

    def __init__(self, coroutine: Any, process: Process) -> None:
        self._coroutine, self._process = coroutine, process

    def send(self, sent: Any) -> Any:
        return self._process.hold(sent) if self._process.stopped else self._coroutine.send(sent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)


class Gates(trio.abc.Instrument):
    """Instrument for a :func:`trio.run` whose processes are suspended."""

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Wrap the coroutines of tasks that belong to processes in gates."""
        if process := task.context.get(_process):
            task.coro = _Gate(task.coro, process)  # type: ignore[assignment]  # it has a coroutine's methods
