"""The tokens of one limited function at one worker: how many to want, when one may start, what to give back.

The worker's part of :mod:`worker.policy.quota`. An invocation starts only with a token of each kind by which its
function is limited. A cap's token is with it until it has ended, and then free for the next one here. A rate's is used
up with its last use, and is then given back to come again a window later. What is here and not needed is given back at
once: while it lies here nobody else can have it.

A rate's tokens are wanted for as many as have their cap's. In the other order workers would keep from each other what
each is missing.

Tokens are whatever the caller calls one; nothing here looks into them.
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
    """A token to be given back, to come again after *delay* (s), and not after *before*."""

    token: T
    delay: float = 0.0
    before: float = inf
    """Infinite where the token's lease tells it: a cap's."""


@dataclass(slots=True)
class _Credit(Generic[T]):
    """A rate's token."""

    token: T
    uses: int
    came: float
    used: float | None = None
    """When it was last used."""


class FunctionTokens(Generic[T]):
    """One function's.

    Args:
        quota: what is agreed on for it; may be set anew at any time.
    """

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.in_use = 0
        """Tokens of the cap that invocations hold."""
        self.requested = {CAP: 0, RATE: 0}
        """Wanted, and not come yet."""
        self.free: deque[T] = deque()
        """Tokens of the cap that no invocation holds."""
        self._credits: deque[_Credit[T]] = deque()

    def room(self, now: float) -> float:
        """How many invocations may start now."""
        caps = len(self.free) if self.quota.max_inflight is not None else inf
        starts = self._starts(now) if self.quota.rate else inf
        return min(caps, starts)

    def request(self, desired: int, now: float) -> dict[str, int]:
        """How many more tokens of each kind to want, so that *wish* invocations can start; they count as wanted."""
        more: dict[str, int] = {}
        if self.quota.max_inflight is not None:
            more[CAP] = min(desired, self.quota.max_inflight - self.in_use) - len(self.free) - self.requested[CAP]
        if self.quota.rate:
            needed = -(-max(0, self._able(desired) - self._starts(now)) // uses_per_token(self.quota.rate))
            more[RATE] = min(needed, token_count(self.quota, RATE)) - self.requested[RATE]
        more = {kind: count for kind, count in more.items() if count > 0}
        for kind, count in more.items():
            self.requested[kind] += count
        return more

    def add(self, kind: str, token: T, uses: int, now: float) -> None:
        """A token came that is worth so many uses."""
        self.requested[kind] = max(0, self.requested[kind] - 1)
        if kind == CAP:
            self.free.append(token)
        else:
            self._credits.append(_Credit(token, uses, now))

    def take_back(self, kind: str, count: int) -> None:
        """So many that were wanted will not come."""
        self.requested[kind] = max(0, self.requested[kind] - count)

    def start(self, now: float) -> tuple[T | None, TokenReturn[T] | None]:
        """An invocation starts, for which there must be room: the token that it holds, and one that it has used up."""
        spent = self._use(now) if self.quota.rate else None
        if self.quota.max_inflight is None:
            return None, spent
        self.in_use += 1
        return self.free.popleft(), spent

    def release(self, token: T) -> None:
        """An invocation that held a token is over; the token is free."""
        self.in_use -= 1
        self.free.append(token)

    def remove(self, token: T, *, held: bool) -> None:
        """A token's lease is lost: nobody has it here. *held*: an invocation did."""
        if held:
            self.in_use -= 1
        else:
            self.free.remove(token)

    def take_spare(self, desired: int, now: float) -> list[TokenReturn[T]]:
        """What is to be given back where *wish* invocations would start if they could: what is more, or too old."""
        keep = max(0, desired) if self.quota.max_inflight is not None else 0
        given = [TokenReturn(self.free.pop()) for _ in range(len(self.free) - keep)]
        desired = self._able(desired)
        starts, kept = 0, deque[_Credit[T]]()
        for credit in self._credits:
            if self.quota.rate and starts < desired and now < credit.came + USABLE and credit.uses:
                kept.append(credit)
                starts += credit.uses
            else:
                given.append(self._given(credit, now))
        self._credits = kept
        return given

    def _able(self, wish: int) -> int:
        """How many of so many could start if it went by the cap alone."""
        return wish if self.quota.max_inflight is None else min(wish, len(self.free))

    def _starts(self, now: float) -> int:
        return sum(credit.uses for credit in self._credits if now < credit.came + USABLE)

    def _use(self, now: float) -> TokenReturn[T] | None:
        credit = next(credit for credit in self._credits if now < credit.came + USABLE and credit.uses)
        credit.uses, credit.used = credit.uses - 1, now
        if credit.uses:
            return None
        self._credits.remove(credit)
        return self._given(credit, now)

    def _given(self, credit: _Credit[T], now: float) -> TokenReturn[T]:
        window = self.quota.rate.window if self.quota.rate else 0.0
        delay = 0.0 if credit.used is None else max(0.0, credit.used + window - now)
        return TokenReturn(credit.token, delay, credit.came + USABLE + window)
