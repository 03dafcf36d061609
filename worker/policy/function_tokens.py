"""The tokens of one function at one worker: how many to request, when an invocation may start, which to return.

This is the worker's part of :mod:`worker.policy.quota`. An invocation starts only with a token of each kind that its
function has. When it has ended, this worker's next invocation may use its cap's token. The worker returns tokens that
it does not need at once, because no other worker can have them. It requests a rate's tokens only for invocations that
have their cap's token. In the other order two workers could each hold the token that the other one is missing.

The type of a token is the caller's choice.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from ..model import Quota
from .quota import CAP, RATE, USABLE, token_count, uses_per_token

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TokenReturn(Generic[T]):
    """A token to give back, to be redelivered after *delay* (s), and not after *before*."""

    token: T
    delay: float = 0.0
    before: float = inf
    """Time on the worker's clock. Infinite for a cap's token, whose lease has the time."""


@dataclass(slots=True)
class _RateToken(Generic[T]):
    token: T
    uses: int
    received_at: float
    used_at: float | None = None
    """Time of the last use."""

    def is_usable(self, now: float) -> bool:
        return now < self.received_at + USABLE and self.uses > 0


class FunctionTokens(Generic[T]):
    """The tokens of one function. *quota* is the agreed quota; it may be replaced at any time."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.in_use = 0
        """The cap's tokens that invocations hold."""
        self.requested = {CAP: 0, RATE: 0}
        """Tokens of each kind that were requested and have not arrived."""
        self.free: deque[T] = deque()
        """The cap's tokens that no invocation holds."""
        self._rate_tokens: deque[_RateToken[T]] = deque()

    def room(self, now: float) -> float:
        """Return the number of invocations that may start now."""
        caps = len(self.free) if self.quota.max_inflight is not None else inf
        return min(caps, self._starts(now) if self.quota.rate else inf)

    def request(self, desired: int, now: float) -> dict[str, int]:
        """Request tokens for *desired* invocations: count the missing ones as requested, and return them by kind."""
        more: dict[str, int] = {}
        if self.quota.max_inflight is not None:
            more[CAP] = min(desired, self.quota.max_inflight - self.in_use) - len(self.free) - self.requested[CAP]
        if self.quota.rate:
            missing = max(0, self._allowed_by_cap(desired) - self._starts(now))
            needed = -(-missing // uses_per_token(self.quota.rate))
            more[RATE] = min(needed, token_count(self.quota, RATE)) - self.requested[RATE]
        more = {kind: count for kind, count in more.items() if count > 0}
        for kind, count in more.items():
            self.requested[kind] += count
        return more

    def add(self, kind: str, token: T, uses: int, now: float) -> None:
        """Add a token that was received *now* and is worth *uses*."""
        self.take_back(kind, 1)
        if kind == CAP:
            self.free.append(token)
        else:
            self._rate_tokens.append(_RateToken(token, uses, now))

    def take_back(self, kind: str, count: int) -> None:
        """Note that *count* tokens are no longer requested."""
        self.requested[kind] = max(0, self.requested[kind] - count)

    def start(self, now: float) -> tuple[T | None, TokenReturn[T] | None]:
        """Start an invocation, for which there must be room; return its cap's token and a used-up rate's token."""
        used_up = self._use(now) if self.quota.rate else None
        if self.quota.max_inflight is None:
            return None, used_up
        self.in_use += 1
        return self.free.popleft(), used_up

    def release(self, token: T) -> None:
        """Free the token of an invocation that has ended."""
        self.in_use -= 1
        self.free.append(token)

    def remove(self, token: T, *, held: bool) -> None:
        """Remove a cap's token; *held* is whether an invocation holds it."""
        if held:
            self.in_use -= 1
        else:
            self.free.remove(token)

    def take_spare(self, desired: int, now: float) -> list[TokenReturn[T]]:
        """Remove and return the tokens above what *desired* invocations need to start, and those that are too old."""
        keep = max(0, desired) if self.quota.max_inflight is not None else 0
        spare = [TokenReturn(self.free.pop()) for _ in range(len(self.free) - keep)]
        desired = self._allowed_by_cap(desired)
        starts, kept = 0, deque[_RateToken[T]]()
        for each in self._rate_tokens:
            if self.quota.rate and starts < desired and each.is_usable(now):
                kept.append(each)
                starts += each.uses
            else:
                spare.append(self._return(each, now))
        self._rate_tokens = kept
        return spare

    def _allowed_by_cap(self, desired: int) -> int:
        return desired if self.quota.max_inflight is None else min(desired, len(self.free))

    def _starts(self, now: float) -> int:
        return sum(each.uses for each in self._rate_tokens if each.is_usable(now))

    def _use(self, now: float) -> TokenReturn[T] | None:
        token = next(each for each in self._rate_tokens if each.is_usable(now))
        token.uses, token.used_at = token.uses - 1, now
        if token.uses:
            return None
        self._rate_tokens.remove(token)
        return self._return(token, now)

    def _return(self, token: _RateToken[T], now: float) -> TokenReturn[T]:
        window = self.quota.rate.window if self.quota.rate else 0.0
        delay = 0.0 if token.used_at is None else max(0.0, token.used_at + window - now)
        return TokenReturn(token.token, delay, token.received_at + USABLE + window)
