"""Stopping in order: intake first, then the work in flight.

Draining is not cancellation. Cancelling the whole tree is how a worker crashes: nothing is settled, and the queue
redelivers. A drain cancels scopes that lie exactly around the waits that it must end. A job whose wait was cancelled
goes on to settle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

from .events import DrainExpired, DrainStarted
from .ports import Emit


class Drain:
    """The scopes that a drain cancels: *intake* around waiting for deliveries, and one around the waits of each job."""

    def __init__(self, timeout: float, emit: Emit) -> None:
        self.timeout, self._emit = timeout, emit
        self.intake = trio.CancelScope()
        self.jobs: set[trio.CancelScope] = set()
        self.started_at = 0.0
        """Time of the first stop (s, Trio's clock)."""
        self.expired_at = float("inf")
        """Time at which the jobs were cancelled."""
        self._expired = False

    def add(self, job: trio.CancelScope) -> None:
        """Cancel this scope when the drain's time has passed, or now if it has."""
        self.jobs.add(job)
        if self._expired:
            job.cancel()

    async def watch(self, stops: AsyncIterator[object]) -> None:
        """Cancel intake at the first stop, and the jobs at the second or *timeout* seconds after the first."""
        await anext(stops)
        self.started_at = trio.current_time()
        self._emit(DrainStarted(len(self.jobs), self.timeout))
        self.intake.cancel()
        reason = "shutdown_timeout"
        with trio.move_on_after(self.timeout):
            await anext(stops)
            reason = "second signal"
        self._emit(DrainExpired(len(self.jobs), reason))
        self._expired, self.expired_at = True, trio.current_time()
        for scope in self.jobs:
            scope.cancel()
