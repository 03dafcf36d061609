"""Stopping in order: intake first, then the work in flight.

Draining is not cancellation. Cancelling the whole tree is how a worker crashes: nothing is settled, and the queue
redelivers. A drain cancels two groups, each of cancel scopes that lie exactly around the waits that it must end. A job
whose wait was cancelled goes on to settle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio

from .events import DrainExpired, DrainStarted
from .ports import Emit


class CancelGroup:
    """Cancel scopes that are cancelled together, and stay so: a scope that is added later is cancelled at once."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self.cancelled = False

    def __len__(self) -> int:
        return len(self._scopes)

    def cancel(self) -> None:
        """Cancel all scopes."""
        self.cancelled = True
        for scope in self._scopes:
            scope.cancel()

    def add(self, scope: trio.CancelScope) -> None:
        """Cancel this scope with the others."""
        self._scopes.add(scope)
        if self.cancelled:
            scope.cancel()

    def discard(self, scope: trio.CancelScope) -> None:
        """Take a scope out of the group."""
        self._scopes.discard(scope)

    @contextmanager
    def scope(self) -> Iterator[trio.CancelScope]:
        """Run the block in a scope of this group."""
        with trio.CancelScope() as scope:
            self.add(scope)
            try:
                yield scope
            finally:
                self.discard(scope)


class Drain:
    """Two groups: *intake* around waiting for deliveries, *work* around each invocation and what follows it."""

    def __init__(self, timeout: float, emit: Emit) -> None:
        self.timeout = timeout
        self.intake = CancelGroup()
        self.work = CancelGroup()
        self.started_at = 0.0
        """Time of the first stop (s, Trio's clock)."""
        self._emit = emit

    async def watch(self, stops: AsyncIterator[object]) -> None:
        """Cancel intake at the first stop, and the work at the second or *timeout* seconds after the first."""
        await anext(stops)
        self.started_at = trio.current_time()
        self._emit(DrainStarted(len(self.work), self.timeout))
        self.intake.cancel()
        reason = "shutdown_timeout"
        with trio.move_on_after(self.timeout):
            await anext(stops)
            reason = "second signal"
        self._emit(DrainExpired(len(self.work), reason))
        self.work.cancel()
