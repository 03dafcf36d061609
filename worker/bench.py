"""What a job needs within reach: the ports, the books, and the policies in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

import trio

from .drain import Cord, Drain
from .heartbeat import Lease, Leases
from .policy.backoff import Backoff
from .policy.ledger import Ledger
from .policy.retry import Retry
from .ports import Callbacks, Emit, Functions, Queue
from .retries import Retries


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings that the core goes by."""

    slots: int
    """Most invocations at once."""
    retry: Retry
    """Before a function's annotations."""
    callback_attempts: int
    callback_backoff: Backoff
    dead_letters: bool
    """Keep what was given up; without, it is only logged."""
    settle_within: float
    """How long (s) the end of a drain waits for the queue to confirm the last settlements."""
    namespace: str
    """Of a function named without one."""
    user_agent: str


@dataclass(frozen=True, slots=True)
class Bench:
    """One for the whole worker, shared by all its jobs."""

    queue: Queue
    functions: Functions
    callbacks: Callbacks
    emit: Emit
    leases: Leases
    ledger: Ledger
    retries: Retries
    drain: Drain
    rules: Rules
    dice: Callable[[], float]
    """Chance, in [0, 1)."""
    wall: Callable[[], float]
    """Wall-clock time (s since the epoch), for what dates are compared with; never for waiting."""

    def stoppable(self, lease: Lease) -> Stoppable:
        """A block of waiting that ends when the drain's time is up, or the lease is lost."""
        return Stoppable(self.drain.work, lease)


class Stoppable:
    """See :meth:`Bench.stoppable`. By hand: as a generator, it cost as much again as Trio's scope."""

    __slots__ = ("_cord", "_lease", "_scope")

    def __init__(self, cord: Cord, lease: Lease) -> None:
        self._cord, self._lease = cord, lease
        self._scope = trio.CancelScope()

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._cord.hold(self._scope)
        self._lease.scope = self._scope
        if self._lease.lost:
            self._scope.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._cord.release(self._scope)
        return self._scope.__exit__(kind, error, trace)
