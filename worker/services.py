"""The services and settings that all jobs of one worker share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .drain import Drain
from .heartbeat import Leases
from .policy.callback_schedule import CallbackSchedule
from .policy.flow import Flow
from .policy.ledger import Ledger
from .policy.receivers import Receivers
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
    """Tries of a callback in memory, before it is given up; it needs no more where it can be stored."""
    callback_backoff: Backoff
    """Waits between those tries."""
    callback_durable: bool
    """Whether a callback that fails is stored, and retried from there."""
    callback_max_age: float
    """Seconds for which a stored callback is retried."""
    callback_retry: Backoff
    """Waits between the tries of a stored callback."""
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
    receivers: Receivers
    schedule: CallbackSchedule
    timers: Timers
    drain: Drain
    config: CoreConfig
    rng: Callable[[], float]
    """Random numbers in [0, 1)."""
    utc_now: Callable[[], float]
    """Wall-clock time (s since the epoch), for comparison with dates only: waits use Trio's clock."""
