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
class PublishedMessage:
    """A message that was confirmed as stored. All times here and below are of one clock (s)."""

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
    retry_after: float = 0.0
    """Seconds in the response's Retry-After."""
    intact: bool = True
    """Whether method, path and body arrived as they were published."""


@dataclass(frozen=True, slots=True)
class ReceivedCallback:
    """One callback, as its receiver received it."""

    call_id: str
    began: float
    ended: float
    status: str
    """Value of its X-Function-Status header."""
    accepted: bool = True
    """Whether its receiver answered with 200."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
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
    """The workers whose connection or leases it affected; None: all that ran during it or its recovery time."""
    recovery_time: float = 0.0
    """Seconds after its end in which its consequences can begin: until all workers have reconnected to leaders."""
    loses_counts: bool = False
    """Whether the broker loses delivery counts and delays by it."""
    ends_workers: bool = False
    """Whether the affected workers ended by it; then it explains only the messages that they had not settled."""

    delays_messages: bool = False
    """Whether messages may reach a worker late by it."""

    def affects(self, life: WorkerLife) -> bool:
        """Return whether the fault affected a worker process."""
        if self.workers is None:
            return life.began <= self.ended + self.recovery_time and self.began <= life.ended
        return life.worker in self.workers


@dataclass(frozen=True, slots=True)
class History:
    """All records of one run."""

    rules: Rules
    published: Sequence[PublishedMessage]
    runs: Sequence[Run]
    callbacks: Sequence[ReceivedCallback]
    dead_letters: Sequence[DeadLetter]
    lives: Sequence[WorkerLife]
    faults: Sequence[Fault]
    undecodable: Sequence[bytes] = ()
    """Published payloads that cannot be decoded."""
    num_unfinished: int = 0
    """Number of messages that the consumer had not finished when the queue should have been empty."""
    num_stored: int = 0
    """Number of messages that the stream held then."""
