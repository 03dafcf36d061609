"""Stopping in order: intake first, then the work in flight.

Draining is not cancellation. Cancelling the whole tree is how we crash: nothing is said, and the queue redelivers. A
drain pulls two cords, each a set of cancel scopes laid exactly around the waits that it must end; past its cord, a
job goes on to settle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio

from .events import DrainExpired, DrainStarted
from .ports import Emit


class CancelGroup:
    """Cancel scopes that are pulled together, and stay pulled."""

    def __init__(self) -> None:
        self._scopes: set[trio.CancelScope] = set()
        self.cancelled = False

    def __len__(self) -> int:
        return len(self._scopes)

    def cancel(self) -> None:
        """Cancel what is held now and what will be."""
        self.cancelled = True
        for scope in self._scopes:
            scope.cancel()

    def add(self, scope: trio.CancelScope) -> None:
        """Cancel it with the others, from now on."""
        self._scopes.add(scope)
        if self.cancelled:
            scope.cancel()

    def discard(self, scope: trio.CancelScope) -> None:
        """Let it be."""
        self._scopes.discard(scope)

    @contextmanager
    def scope(self) -> Iterator[trio.CancelScope]:
        """Run the block in a scope that this cord cancels."""
        with trio.CancelScope() as scope:
            self.add(scope)
            try:
                yield scope
            finally:
                self.discard(scope)


class Drain:
    """Two cords: *intake* around waiting for deliveries, *work* around each invocation and what follows it."""

    def __init__(self, timeout: float, emit: Emit) -> None:
        self.timeout = timeout
        self.intake = CancelGroup()
        self.work = CancelGroup()
        self.started_at = 0.0
        """When the first stop came."""
        self._emit = emit

    async def watch(self, stops: AsyncIterator[object]) -> None:
        """The first stop ends intake; the second, or *timeout* seconds, ends the work."""
        await anext(stops)
        self.started_at = trio.current_time()
        self._emit(DrainStarted(len(self.work), self.timeout))
        self.intake.cancel()
        why = "shutdown_timeout"
        with trio.move_on_after(self.timeout):
            await anext(stops)
            why = "second signal"
        self._emit(DrainExpired(len(self.work), why))
        self.work.cancel()
