"""The number of messages of a queue and its functions, between two readings of the stream.

An estimate never counts less than there is of this producer's messages. It adds to the last reading what this producer
has stored since the reading was sent, and what it is just storing. What workers finish counts with the next reading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, inf

from .freshness import Step, step

FRESH, USABLE = 0.25, 2.0
"""Ages of a reading (s): there are at most four a second; above :data:`USABLE` a call waits for a new one."""
_PAUSES = 4
"""A reading that takes long is followed by a pause of so many times its duration: a fifth of the time is for them."""
_FAILED = 5.0
"""Seconds after a failed reading in which no call waits for one."""
_NO_RATE, _NO_DRAIN, _LONGEST = 5, 30, 60
"""Seconds of Retry-After: with an unknown rate, with a queue that nothing leaves, and at most."""


@dataclass(slots=True)
class Estimate:
    """The messages of a queue, or of one function."""

    counted: int = 0
    """Messages in the last reading."""
    stored: int = 0
    """Messages that this producer has stored since the last reading was sent."""
    stored_since: int = 0
    """Messages that it has stored since the reading was sent that is under way."""
    open: int = 0
    """Messages that it is storing."""

    @property
    def total(self) -> int:
        return self.counted + self.stored + self.open

    def end(self, *, stored: bool) -> None:
        """Note that storing one has ended."""
        self.open -= 1
        self.stored += stored
        self.stored_since += stored

    def read(self, count: int) -> None:
        """Replace the count by that of the reading that was under way."""
        self.counted, self.stored = count, self.stored_since


@dataclass(frozen=True, slots=True)
class Full:
    """The reason to reject a call."""

    limit: str
    """The setting."""
    count: int
    retry_after: int
    """Seconds."""


class QueueCounts:
    """The counts of one queue with limits, of which None is none. All times are of one monotonic clock (s)."""

    def __init__(self, max_queued: int | None, max_queued_per_function: int | None) -> None:
        self._max_queued, self._max_per_function = max_queued, max_queued_per_function
        self._all = Estimate()
        self._functions: dict[str, Estimate] = {}
        """By subject, those of functions with calls since the last reading."""
        self._subjects: Mapping[str, int] = {}
        """The counts of the last reading."""
        self._sent_at = self._read_at = -inf
        """The times when the reading that is under way, and the last one, were sent."""
        self._failed_at = -inf
        self._fresh = FRESH
        self._last_seq = 0
        self._drain: float | None = None
        """Messages that leave the queue in a second; None if that is not known."""

    @property
    def _usable(self) -> float:
        """The age (s) up to which the last reading is used."""
        return max(USABLE, 2 * self._fresh)

    def step(self, now: float) -> Step:
        """Return the step before a decision."""
        chosen = step(now - self._read_at, self._fresh, self._usable)
        if now - self._failed_at < _FAILED:
            return Step.USE if now - self._failed_at < FRESH else Step.REFRESH
        return chosen

    def full(self, subject: str, now: float) -> Full | None:
        """Return why a call on *subject* is rejected, or None; without a reading that can be used it is not."""
        if now - self._read_at > self._usable:
            return None
        if self._max_queued is not None and (count := self._all.total) >= self._max_queued:
            return Full("max_queued", count, self._retry_after(count - self._max_queued + 1))
        if self._max_per_function is not None:
            estimate = self._functions.get(subject)
            count = estimate.total if estimate else self._subjects.get(subject, 0)
            if count >= self._max_per_function:
                return Full("max_queued_per_function", count, self._retry_after(count - self._max_per_function + 1))
        return None

    def begin(self, subject: str) -> None:
        """Count a message that is being stored."""
        self._all.open += 1
        if self._max_per_function is not None:
            if (estimate := self._functions.get(subject)) is None:
                estimate = self._functions[subject] = Estimate(self._subjects.get(subject, 0))
            estimate.open += 1

    def end(self, subject: str, *, stored: bool) -> None:
        """Note that storing it has ended. One that may be stored counts as stored."""
        self._all.end(stored=stored)
        if estimate := self._functions.get(subject):
            estimate.end(stored=stored)

    def begin_reading(self, now: float) -> None:
        """Note that a reading is sent."""
        self._sent_at = now
        for estimate in (self._all, *self._functions.values()):
            estimate.stored_since = 0

    def read(self, now: float, messages: int, last_seq: int, subjects: Mapping[str, int]) -> None:
        """Use the answer to the reading: the stream's messages, its last sequence, and its messages by subject."""
        if (seconds := self._sent_at - self._read_at) < inf and last_seq >= self._last_seq and seconds > 0:
            left = self._all.counted + last_seq - self._last_seq - messages
            self._drain = max(0, left) / seconds
        self._last_seq, self._read_at = last_seq, self._sent_at
        self._failed_at, self._fresh = -inf, max(FRESH, _PAUSES * (now - self._sent_at))
        self._subjects = subjects
        self._all.read(messages)
        for subject, estimate in [*self._functions.items()]:
            estimate.read(subjects.get(subject, 0))
            if not estimate.stored and not estimate.open:
                del self._functions[subject]

    def fail_reading(self, now: float) -> None:
        """Note that the reading has no answer. Callers' names must not fill the memory where none has one."""
        self._failed_at = now
        if now - self._read_at > self._usable:
            self._subjects = {}
            self._functions = {subject: each for subject, each in self._functions.items() if each.open}

    def _retry_after(self, too_many: int) -> int:
        """Return the seconds until *too_many* messages have left the queue, as it goes now."""
        if self._drain is None:
            return _NO_RATE
        if self._drain <= 0:
            return _NO_DRAIN
        return max(1, min(_LONGEST, ceil(too_many / self._drain)))
