"""Processes that can be stopped and go on, as by SIGSTOP and SIGCONT, inside one Trio run.

Each task that is started in a :class:`Process` belongs to it, and so do that task's children. While the process stands
still, its tasks take no step; what they are sent meanwhile (a timer that fell due, an answer, a cancellation) they get
when it goes on, all at once, as a stopped process does. Everything else in the run goes on.

Trio has no such thing, so a task's coroutine is put behind a gate as the task is spawned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import trio

_process: ContextVar[Process | None] = ContextVar("_process", default=None)


class Process:
    """Some tasks that stand still together."""

    def __init__(self) -> None:
        self.stopped = False
        self._waiting: list[tuple[trio.lowlevel.Task, Any]] = []

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Tasks started in this block belong to it."""
        token = _process.set(self)
        try:
            yield
        finally:
            _process.reset(token)

    def stop(self) -> None:
        """Let no task take a step."""
        self.stopped = True

    def go_on(self) -> None:
        """Give the tasks what they were sent meanwhile."""
        self.stopped = False
        waiting, self._waiting = self._waiting, []
        for task, sent in waiting:
            trio.lowlevel.reschedule(task, sent)

    def hold(self, sent: Any) -> Any:
        """Keep what the current task was sent; what its gate then gives to Trio's loop: a wait that nothing aborts."""
        self._waiting.append((trio.lowlevel.current_task(), sent))
        waiting = trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)  # noqa: ASYNC105 -- its gate waits
        return waiting.send(None)


class _Gate:
    """A task's coroutine, as Trio's loop sees it."""

    def __init__(self, coroutine: Any, process: Process) -> None:
        self._coroutine, self._process = coroutine, process

    def send(self, sent: Any) -> Any:
        return self._process.hold(sent) if self._process.stopped else self._coroutine.send(sent)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._coroutine, name)


class Gates(trio.abc.Instrument):
    """To be given to :func:`trio.run` where processes are to be stopped."""

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """Put the tasks of processes behind gates."""
        if process := task.context.get(_process):
            task.coro = _Gate(task.coro, process)  # type: ignore[assignment]  # as good as one
