"""The records of a run: messages published, invoked, called back and given up, and all faults. Values only."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Answer = Literal["final", "retry", "none"]
"""The answer to an invocation: a final one, one that is retried, or none, because its sender disconnected."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The workers' settings that the check uses (s)."""

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
    """The time when it was answered, or its sender disconnected."""
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
class WorkerLife:
    """The life of one worker process."""

    worker: str
    began: float
    stopped: float | None
    """The time of its first SIGTERM."""
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
    """The workers whose connection or leases it affected; None: all that ran while it lasted or lingered."""
    lingers: float = 0.0
    """Seconds after its end in which its consequences can begin: until all are connected, and there are leaders."""
    forgets: bool = False
    """Whether the broker forgets delivery counts and waits by it."""
    fatal: bool = False
    """The workers that it touched ended: what they had is explained by that, and by nothing else about it."""

    delays: bool = False
    """Whether messages may reach a worker late by it."""

    def touches(self, life: WorkerLife) -> bool:
        """Whether it touched a worker in this life of it."""
        if self.workers is None:
            return life.began <= self.ended + self.lingers and self.began <= life.ended
        return life.worker in self.workers


@dataclass(frozen=True, slots=True)
class History:
    """All that was recorded in one run."""

    rules: Rules
    published: Sequence[Published]
    runs: Sequence[Run]
    posts: Sequence[Post]
    letters: Sequence[Letter]
    lives: Sequence[WorkerLife]
    faults: Sequence[Fault]
    undecodable: Sequence[bytes] = ()
    """Payloads that were published and cannot be understood."""
    left: int = 0
    """Messages that the consumer had not done with when all should have ended."""
    stored: int = 0
    """Messages that the stream held then."""
