"""What was recorded of a run: published, invoked, called back, given up, and what went wrong meanwhile. Values only."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Answer = Literal["final", "retry", "none"]
"""What an invocation was answered: for good, something to be tried again, or its sender had gone before."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The workers' settings that the check goes by (s)."""

    attempts: int
    first_wait: float
    longest_wait: float
    upstream_timeout: float
    ack_wait: float
    drain: float
    """Longest time from SIGTERM to the end, as documented: ``shutdown_timeout`` + 5 s."""


@dataclass(frozen=True, slots=True)
class Published:
    """A message whose storing was confirmed. Times are of one clock (s), here and below."""

    call_id: str
    function: str
    at: float
    callback: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation, as its function saw it."""

    call_id: str
    worker: str
    began: float
    ended: float
    """When it was answered, or its sender had gone."""
    answer: Answer
    asks: float = 0.0
    """Seconds of patience that its Retry-After asked for."""
    whole: bool = True
    """Method, path and body came as they were published."""


@dataclass(frozen=True, slots=True)
class Post:
    """One callback, as its receiver saw it."""

    call_id: str
    began: float
    ended: float
    status: str
    """Its X-Function-Status."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. *call_id* is None where the message could not be understood."""

    call_id: str | None
    attempts: int
    deliveries: int
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Shift:
    """The life of one worker process."""

    worker: str
    began: float
    stopped: float | None
    """When it was first told to stop."""
    ended: float
    code: int
    """Its exit code; below zero, the signal that killed it."""

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that went wrong for a while."""

    kind: str
    began: float
    ended: float
    workers: frozenset[str] | None = frozenset()
    """Whose way to the queue, or whose leases, it touched; None: everyone's who worked while it lasted or lingered."""
    lingers: float = 0.0
    """Seconds after its end in which its consequences can begin: until all are connected, and there are leaders."""
    forgets: bool = False
    """It makes the broker forget delivery counts and waits."""
    fatal: bool = False
    """The workers that it touched ended: what they had is explained by that, and by nothing else about it."""

    delays: bool = False
    """What a worker is sent may reach it late by it."""

    def touches(self, shift: Shift) -> bool:
        """Whether it touched a worker in this life of it."""
        if self.workers is None:
            return shift.began <= self.ended + self.lingers and self.began <= shift.ended
        return shift.worker in self.workers


@dataclass(frozen=True, slots=True)
class History:
    """All that was recorded in one run."""

    rules: Rules
    published: Sequence[Published]
    runs: Sequence[Run]
    posts: Sequence[Post]
    letters: Sequence[Letter]
    shifts: Sequence[Shift]
    faults: Sequence[Fault]
    undecodable: Sequence[bytes] = ()
    """Payloads that were published and cannot be understood."""
    left: int = 0
    """Messages that the consumer had not done with when all should have ended."""
    stored: int = 0
    """Messages that the stream held then."""
