"""The wait before the next attempt."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Jitter(StrEnum):
    """The random part of a wait, named as OpenFaaS documents its ``backoff`` setting."""

    EXPONENTIAL = "exponential"
    """No random part."""
    FULL = "full"
    """0-100 % of the wait."""
    EQUAL = "equal"
    """50-100 % of the wait."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubling waits (s), from *first_wait* to at most *max_wait*."""

    first_wait: float = 10.0
    max_wait: float = 120.0
    jitter: Jitter = Jitter.EXPONENTIAL

    def ceiling(self, attempt: int) -> float:
        """Return the wait (s) after failed attempt number *attempt* (from 1), before jitter."""
        # 2.0**64 seconds is past any cap; the bound keeps the power finite at attempt 10**6.
        return float(min(self.max_wait, self.first_wait * 2.0 ** min(attempt - 1, 64)))

    def delay(self, attempt: int, *, draw: float) -> float:
        """Return the wait (s) after jitter; *draw* is a random number in [0, 1)."""
        ceiling = self.ceiling(attempt)
        match self.jitter:
            case Jitter.EXPONENTIAL:
                return ceiling
            case Jitter.FULL:
                return ceiling * draw
            case Jitter.EQUAL:
                return ceiling * (1 + draw) / 2
