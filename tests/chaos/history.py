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
    """The time when it was answered, or its sender disconnected."""
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
class WorkerLife:
    """The life of one worker process."""

    worker: str
    began: float
    stopped: float | None
    """The time of its first SIGTERM."""
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
    """The workers whose connection or leases it affected; None: all that ran while it lasted or lingered."""
    lingers: float = 0.0
    """Seconds after its end in which its consequences can begin: until all workers have reconnected to leaders."""
    forgets: bool = False
    """Whether the broker forgets delivery counts and waits by it."""
    fatal: bool = False
    """Whether the workers that it affected ended by it; then it explains only the messages that they left."""

    delays: bool = False
    """Whether messages may reach a worker late by it."""

    def touches(self, life: WorkerLife) -> bool:
        """Return whether the fault affected a worker process."""
        if self.workers is None:
            return life.began <= self.ended + self.lingers and self.began <= life.ended
        return life.worker in self.workers


@dataclass(frozen=True, slots=True)
class History:
    """All records of one run."""

    rules: Rules
    published: Sequence[Published]
    runs: Sequence[Run]
    posts: Sequence[Post]
    letters: Sequence[Letter]
    lives: Sequence[WorkerLife]
    faults: Sequence[Fault]
    undecodable: Sequence[bytes] = ()
    """Published payloads that cannot be decoded."""
    left: int = 0
    """Number of messages that the consumer had not finished when the queue should have been empty."""
    stored: int = 0
    """Number of messages that the stream held then."""
