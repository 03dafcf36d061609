"""The services that all jobs of a worker share, and the settings of the core."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .drain import Drain
from .heartbeat import Leases
from .policy.flow import Flow
from .policy.ledger import Ledger
from .policy.retry import Backoff, Retry
from .ports import Callbacks, Emit, Functions, Queue, Quotas
from .timers import Timers


@dataclass(frozen=True, slots=True)
class CoreConfig:
    """The settings of the core."""

    slots: int
    """Most invocations at once."""
    retry: Retry
    """The retry policy for functions without annotations."""
    callback_attempts: int
    callback_backoff: Backoff
    dead_letters: bool
    """Whether messages that are given up are stored; if not, they are only logged."""
    settle_within: float
    """Seconds that the end of a drain waits until the queue has confirmed the last settlements."""
    namespace: str
    """The namespace of a function that is named without one."""
    user_agent: str
    make_flow: Callable[[str], Flow] = Flow
    """Creates the numbers of a flow by its name."""


@dataclass(frozen=True, slots=True)
class Services:
    """The services of one worker, shared by all its jobs."""

    queue: Queue
    quotas: Quotas
    functions: Functions
    callbacks: Callbacks
    emit: Emit
    leases: Leases
    ledger: Ledger
    timers: Timers
    drain: Drain
    config: CoreConfig
    rng: Callable[[], float]
    """Random numbers in [0, 1)."""
    utc_now: Callable[[], float]
    """Wall-clock time (s since the epoch), for comparison with dates only: waits use Trio's clock."""
