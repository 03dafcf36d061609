"""One flow's numbers: what it holds, what is pending for it, and how much it may hold."""

from __future__ import annotations

from math import inf
from typing import Protocol

from ..model import SHARED

PATIENCE = 0.05
"""Seconds in which messages that are pending usually arrive. Credit that is older is idle: others got the messages."""


class Limit(Protocol):
    """A learned limit of invocations in flight: :class:`worker.policy.limiter.Limiter`."""

    limit: int
    due: float
    """When :meth:`tick` may change the limit."""

    def tick(self, now: float) -> None: ...
    def started(self, now: float) -> None: ...
    def ended(self, began: float, now: float, status: int | None) -> float | None: ...


class Flow:
    """The numbers of one flow.

    Other modules may set *weight*, *cap*, *paused* and *min_slots*, followed by :meth:`Shares.mark_changed`.

    Args:
        name: the flow's name at the queue.
        function: label ``name.namespace`` of the function that all its messages invoke, or empty.
        limiter: the learned limit, if there is one.
        min_slots: slots that this flow gets before others get more than their minimum.
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
        """Most slots that its tokens allow."""
        self.paused = False
        self.needs_tokens = False
        """Whether each of its invocations starts with a token."""
        self.exists = False
        """Whether the queue has this flow now."""
        self.running = 0
        """Slots that run an invocation."""
        self.credit = 0
        """Slots that are kept free for messages that were requested and have not arrived."""
        self.credited_at = -inf
        """When the first of the credit was given, or a message last arrived."""
        self.recalling = False
        """Whether the credit was recalled and has not returned yet."""
        self.pending: float = 0
        """Messages that the queue has never delivered, as last counted; the requested ones are among them."""
        self.stored: float = 0
        """Messages in the stream, as last counted: pending, running on any worker, or waiting for another attempt."""
        self.silence = 0.0
        """Seconds for which no credit is given after requested messages did not arrive; doubles each time."""
        self.silent_until = -inf
        self.usage = 0.0
        """Slot seconds by weight, on the scale of :attr:`DemandQueue.virtual_time`."""
        self.last_grant = 0
        """Number of the last grant of a slot to this flow, among all grants."""
        self.demand_key: tuple[int, int] | None = None
        """Its weight and held slots when it last entered the queue of flows with demand; None while it is not there."""
        self.ticket = 0
        """Number of its valid entry in that queue."""
        self.check_at = inf
        """When to look at this flow again, although nothing has happened to it."""

    @property
    def limit(self) -> float:
        """Most slots that it may hold."""
        return min(self.cap, self.limit_without_tokens)

    @property
    def limit_without_tokens(self) -> float:
        """Most slots that it may hold if there are tokens enough."""
        if self.paused:
            return 0
        return inf if self.limiter is None else self.limiter.limit

    @property
    def held(self) -> int:
        """Slots that no other flow can have."""
        return self.running + self.credit

    def demand(self, now: float) -> float:
        """Return how many more slots it could use at once, as far as this worker knows."""
        return min(self.pending_demand(now), self.limit - self.held) if self.exists and not self.recalling else 0

    def pending_demand(self, now: float) -> float:
        """Return how many more messages may be there for it, whatever its limit."""
        more = self.pending - self.credit
        if more < 1 and not self.credit and self.stored > self.running and now >= self.silent_until:
            # Stored but not pending: a message may be due for its next attempt, and one request finds that out.
            return 1
        return more

    def idle_credit(self, now: float) -> float:
        """Return how much of the credit can be recalled without keeping a message from a free slot."""
        if self.recalling:
            return 0
        if now - self.credited_at >= PATIENCE:
            return self.credit
        return max(0, self.credit - max(self.pending, int(self.stored > self.running)))


class SharedFlow(Flow):
    """The whole queue as one flow, as all workers share one consumer in static mode.

    Nothing counts its pending messages, so it always has demand.
    """

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(SHARED)

    def pending_demand(self, now: float) -> float:  # noqa: ARG002 -- as its base has it
        """Return infinity: the next message may arrive at any time."""
        return inf

    def idle_credit(self, now: float) -> float:
        """Return the credit if no message arrived for :data:`PATIENCE`."""
        return self.credit if not self.recalling and now - self.credited_at >= PATIENCE else 0
