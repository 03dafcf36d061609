"""Records of a run: messages published, invocations, callbacks, dead letters, workers and faults. Values only."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Answer = Literal["final", "retry", "none"]
"""Outcome of an invocation: a final answer, an answer that is to be retried, or none, as the worker left before it."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The workers' settings that the check depends on (times in seconds)."""

    attempts: int
    first_wait: float
    longest_wait: float
    upstream_timeout: float
    ack_wait: float
    drain: float
    """Longest time from SIGTERM to the end, as documented: ``shutdown_timeout`` + 5 s."""


@dataclass(frozen=True, slots=True)
class Published:
    """A message whose storing was confirmed. All times here and below are of one clock (s)."""

    call_id: str
    function: str
    at: float
    callback: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation, as its function received it."""

    call_id: str
    worker: str
    began: float
    ended: float
    """Time of its answer, or of the moment when its worker closed the connection."""
    answer: Answer
    asks: float = 0.0
    """Seconds that the answer's Retry-After asked for."""
    whole: bool = True
    """Whether method, path and body arrived as they were published."""


@dataclass(frozen=True, slots=True)
class Post:
    """One callback, as its receiver received it."""

    call_id: str
    began: float
    ended: float
    status: str
    """Value of its X-Function-Status header."""


@dataclass(frozen=True, slots=True)
class Letter:
    """One dead letter. *call_id* is None if the message could not be decoded."""

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
    """Time of the first SIGTERM."""
    ended: float
    code: int
    """Exit code of the process; below zero, the signal that killed it."""

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, from its beginning to its end."""

    kind: str
    began: float
    ended: float
    workers: frozenset[str] | None = frozenset()
    """The workers whose connections or leases it affected; None: all that ran while it lasted or lingered."""
    lingers: float = 0.0
    """Seconds after its end in which its consequences can begin: until all workers have reconnected to leaders."""
    forgets: bool = False
    """Whether the broker loses delivery counts and waits by it."""
    fatal: bool = False
    """Whether the workers that it affected ended by it, which then is all that it explains."""
    delays: bool = False
    """Whether messages to a worker may arrive late by it."""

    def touches(self, shift: Shift) -> bool:
        """Return whether the fault affected a worker process."""
        if self.workers is None:
            return shift.began <= self.ended + self.lingers and self.began <= shift.ended
        return shift.worker in self.workers


@dataclass(frozen=True, slots=True)
class History:
    """All records of one run."""

    rules: Rules
    published: Sequence[Published]
    runs: Sequence[Run]
    posts: Sequence[Post]
    letters: Sequence[Letter]
    shifts: Sequence[Shift]
    faults: Sequence[Fault]
    undecodable: Sequence[bytes] = ()
    """Published payloads that cannot be decoded."""
    left: int = 0
    """Number of messages that the consumer had not finished when the queue should have been empty."""
    stored: int = 0
    """Number of messages that the stream held then."""
