"""The books of one flow: what it holds, what it waits for, and what it may have."""

from __future__ import annotations

from math import inf
from typing import Protocol

PATIENCE = 0.05
"""Seconds that messages known to wait may take to come. Later, others have them: what was asked for counts as lent."""


class Limit(Protocol):
    """How many of a flow may be in flight, learned from what comes of them: :class:`worker.policy.limiter.Limiter`."""

    limit: int
    due: float
    """When :meth:`tick` may change it."""

    def tick(self, now: float) -> None: ...
    def started(self, now: float) -> None: ...
    def ended(self, began: float, now: float, status: int | None) -> float | None: ...


class Flow:
    """The books of one flow. Others may set *weight*, *cap*, *paused* and *least*, and then must let it be decided.

    Args:
        name: as the queue has it.
        function: whose it is, ``name.namespace``; empty where it is not one function's.
        learned: its learned limit, if it has one.
        least: slots that it has before others have more than theirs.
    """

    __slots__ = (
        "cap",
        "check_at",
        "credit",
        "credited_at",
        "demand_key",
        "exists",
        "function",
        "last_grant",
        "limiter",
        "min_slots",
        "name",
        "needs_tokens",
        "paused",
        "pending",
        "recalling",
        "running",
        "silence",
        "silent_until",
        "stored",
        "ticket",
        "usage",
        "weight",
    )

    def __init__(self, name: str, function: str = "", limiter: Limit | None = None, min_slots: int = 0) -> None:
        self.name = name
        self.function = function
        self.limiter = limiter
        self.min_slots = min_slots
        self.weight = 1
        self.cap: float = inf
        """Most slots that it may hold, whatever is learned."""
        self.paused = False
        self.needs_tokens = False
        """Whether it starts by tokens, for as many as its cap says."""
        self.exists = False
        """Whether the queue has it."""
        self.running = 0
        self.credit = 0
        self.pending: float = 0
        """Messages known to wait, those asked for included."""
        self.stored: float = 0
        """Messages stored when that was last told: waiting, running anywhere, or between two attempts."""
        self.recalling = False
        """What is asked is on its way back."""
        self.credited_at = -inf
        self.silence = 0.0
        self.silent_until = -inf
        self.usage = 0.0
        """Slot seconds by weight, on the scale of :attr:`Shares.pace`."""
        self.last_grant = 0
        """When a slot was last granted, in turns."""
        self.demand_key: tuple[int, int] | None = None
        """Its weight and what it held when it was last counted among the hungry; None: it is not."""
        self.ticket = 0
        """The number of its valid place in line."""
        self.check_at = inf
        """When it is to be looked at again, though nothing has happened to it."""

    @property
    def limit(self) -> float:
        """Most slots that it may hold."""
        return min(self.cap, self.limit_without_tokens)

    @property
    def limit_without_tokens(self) -> float:
        """The same, but for tokens."""
        if self.paused:
            return 0
        return inf if self.limiter is None else self.limiter.limit

    @property
    def held(self) -> int:
        """Slots that nobody else can have."""
        return self.running + self.credit

    def demand(self, now: float) -> float:
        """How many more slots it could use at once, as far as is known."""
        return min(self.pending_demand(now), self.limit - self.held) if self.exists and not self.recalling else 0

    def pending_demand(self, now: float) -> float:
        """How many more there may be for it."""
        more = self.pending - self.credit
        if more < 1 and not self.credit and self.stored > self.running and now >= self.silent_until:
            return 1
        return more

    def idle_credit(self, now: float) -> float:
        """How many of the asked nobody will miss."""
        if self.recalling:
            return 0
        if now - self.credited_at >= PATIENCE:
            return self.credit
        return max(0, self.credit - max(self.pending, int(self.stored > self.running)))
