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
        "asked",
        "asked_at",
        "cap",
        "demand_key",
        "entry",
        "function",
        "granted",
        "learned",
        "limited",
        "min_slots",
        "name",
        "open",
        "paused",
        "quiet",
        "quiet_until",
        "recalled",
        "running",
        "stored",
        "used",
        "waiting",
        "wake",
        "weight",
    )

    def __init__(self, name: str, function: str = "", learned: Limit | None = None, least: int = 0) -> None:
        self.name = name
        self.function = function
        self.learned = learned
        self.min_slots = least
        self.weight = 1
        self.cap: float = inf
        """Most slots that it may hold, whatever is learned."""
        self.paused = False
        self.limited = False
        """Whether it starts by tokens, for as many as its cap says."""
        self.open = False
        """Whether the queue has it."""
        self.running = 0
        self.asked = 0
        self.waiting: float = 0
        """Messages known to wait, those asked for included."""
        self.stored: float = 0
        """Messages stored when that was last told: waiting, running anywhere, or between two attempts."""
        self.recalled = False
        """What is asked is on its way back."""
        self.asked_at = -inf
        self.quiet = 0.0
        self.quiet_until = -inf
        self.used = 0.0
        """Slot seconds by weight, on the scale of :attr:`Shares.pace`."""
        self.granted = 0
        """When a slot was last granted, in turns."""
        self.demand_key: tuple[int, int] | None = None
        """Its weight and what it held when it was last counted among the hungry; None: it is not."""
        self.entry = 0
        """The number of its valid place in line."""
        self.wake = inf
        """When it is to be looked at again, though nothing has happened to it."""

    @property
    def limit(self) -> float:
        """Most slots that it may hold."""
        return min(self.cap, self.own_limit)

    @property
    def own_limit(self) -> float:
        """The same, but for tokens."""
        if self.paused:
            return 0
        return inf if self.learned is None else self.learned.limit

    @property
    def held(self) -> int:
        """Slots that nobody else can have."""
        return self.running + self.asked

    def demand(self, now: float) -> float:
        """How many more slots it could use at once, as far as is known."""
        return min(self.known_demand(now), self.limit - self.held) if self.open and not self.recalled else 0

    def known_demand(self, now: float) -> float:
        """How many more there may be for it."""
        more = self.waiting - self.asked
        if more < 1 and not self.asked and self.stored > self.running and now >= self.quiet_until:
            return 1
        return more

    def idle(self, now: float) -> float:
        """How many of the asked nobody will miss."""
        if self.recalled:
            return 0
        if now - self.asked_at >= PATIENCE:
            return self.asked
        return max(0, self.asked - max(self.waiting, int(self.stored > self.running)))
