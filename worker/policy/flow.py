"""The numbers of one flow, and the order in which flows with demand get free slots."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count
from math import inf

from ..model import SHARED
from .limiter import Limiter

PATIENCE = 0.05
"""Seconds in which pending messages usually arrive. Older credit is idle: other workers received the messages."""
DemandEntry = tuple[int, float, int, int, int, "Flow"]
"""A flow in :class:`DemandQueue`: its slots, usage and last grant when it was added, a number, its weight, itself."""


@dataclass(slots=True, eq=False)
class Flow:
    """The numbers of one flow. Others set *weight*, *cap*, *paused*, *min_slots*, then call Shares.mark_changed."""

    name: str
    """The flow's name at the queue."""
    function: str = ""
    """Label ``name.namespace`` of the function that all its messages invoke, or empty."""
    limiter: Limiter | None = None
    last_limit: int = 0
    """The limiter's limit, as the last decision had it."""
    min_slots: int = 0
    """Slots that this flow gets before others get more than their minimum."""
    weight: int = 1
    cap: float = inf
    """Most slots that its tokens allow."""
    paused: bool = False
    needs_tokens: bool = False
    """Whether each of its invocations starts with a token."""
    exists: bool = False
    """Whether the queue has this flow now."""
    running: int = 0
    """Slots that run an invocation."""
    credit: int = 0
    """Slots that are kept free for messages that were requested and have not arrived."""
    credited_at: float = -inf
    """Time at which the first of the credit was given, or a message last arrived."""
    recalling: bool = False
    """Whether the credit was recalled and has not returned yet."""
    pending: float = 0
    """Messages that the queue has never delivered, as last counted, including the requested ones."""
    stored: float = 0
    """Messages in the stream, as last counted: pending, running on any worker, or waiting for another attempt."""
    silence: float = 0.0
    """Seconds for which no credit is given after requested messages did not arrive; doubles each time."""
    silent_until: float = -inf
    usage: float = 0.0
    """Slot seconds by weight, on the scale of :attr:`DemandQueue.virtual_time`."""
    last_grant: int = 0
    """Number of the last grant of a slot to this flow, among all grants."""
    entry: DemandEntry | None = None
    """Its entry in the queue of flows with demand; None while it has none."""
    check_at: float = inf
    """Time at which to look at this flow again without an event."""

    @property
    def limit(self) -> float:
        """Most slots that the flow may hold."""
        return min(self.cap, self.limit_without_tokens)

    @property
    def limit_without_tokens(self) -> float:
        """Most slots that the flow may hold if it has enough tokens."""
        if self.paused:
            return 0
        return inf if self.limiter is None else self.limiter.limit

    @property
    def held(self) -> int:
        """Slots that no other flow can have."""
        return self.running + self.credit

    def demand(self, now: float) -> float:
        """Return the number of further slots that the flow could use at once, by this worker's counts."""
        return min(self.pending_demand(now), self.limit - self.held) if self.exists and not self.recalling else 0

    def pending_demand(self, now: float) -> float:
        """Return the number of further messages that may be pending, ignoring the limit."""
        more = self.pending - self.credit
        if more < 1 and not self.credit and self.stored > self.running and now >= self.silent_until:
            # Stored but not pending: a message may be due for its next attempt, and one request finds that out.
            return 1
        return more

    def idle_credit(self, now: float) -> float:
        """Return the credit that can be recalled without keeping a message from a free slot."""
        if self.recalling:
            return 0
        if now >= self.credited_at + PATIENCE:  # the time at which Shares decides again, to the last bit
            return self.credit
        return max(0, min(self.credit - int(self.stored > self.running), -self.pending_demand(now)))


class SharedFlow(Flow):
    """The whole queue as one flow, in static mode. Its pending messages are not counted, so it always has demand."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(SHARED)

    def pending_demand(self, now: float) -> float:  # noqa: ARG002 -- as its base has it
        """Return infinity: the next message may arrive at any time."""
        return inf


class DemandQueue:
    """Flows with demand: those that could use another slot at once.

    Flows of equal weight and equal minimum stand in one *line*, sorted by the slots that they hold. The head of a line
    goes before all others of it, so only the heads are compared: the cost does not grow with the flows.
    """

    def __init__(self) -> None:
        self.virtual_time = 0.0
        """The highest usage of a flow that got a slot: where the usage of a flow begins that had no demand before."""
        self.flows = 0
        """The number of flows with demand."""
        self._weights = self._held = 0  # sums over these flows
        self._lines: dict[tuple[int, int], list[DemandEntry]] = {}
        self._entries, self._grants = count(), count(1)

    def add(self, flow: Flow) -> None:
        """Add a flow, by the slots that it holds now."""
        self.flows += 1
        self._weights += flow.weight
        self._held += flow.held
        flow.entry = flow.held, flow.usage, flow.last_grant, next(self._entries), flow.weight, flow
        heapq.heappush(self._lines.setdefault((flow.weight, flow.min_slots), []), flow.entry)

    def remove(self, flow: Flow) -> None:
        """Remove a flow, if it is there. Its entry stays in the heap, and is skipped later."""
        if flow.entry:
            held, _, _, _, weight, _ = flow.entry
            self.flows -= 1
            self._weights -= weight
            self._held -= held
            flow.entry = None

    def first(self, free: int) -> Flow | None:
        """Return the flow that gets the next of the *free* slots."""
        # What these flows hold, and what is free, is theirs to divide.
        part = (free + self._held) / (self._weights or 1)
        best, chosen = None, None
        for key, line in [*self._lines.items()]:
            while line and line[0][-1].entry is not line[0]:
                heapq.heappop(line)
            if not line:
                del self._lines[key]
                continue
            head = line[0][-1]
            rank = _rank(head, part)
            if best is None or rank < best:
                best, chosen = rank, head
        return chosen

    def note_grant(self, flow: Flow) -> None:
        """Note that the flow gets a slot now."""
        self.virtual_time = max(self.virtual_time, flow.usage)
        flow.last_grant = next(self._grants)


def _rank(flow: Flow, part: float) -> tuple[int, float, float, int]:
    """Return the sort key of a flow: the lowest gets the slot. *part*: slots that are due for each unit of weight."""
    held, due = flow.held, part * flow.weight
    if held < flow.min_slots:
        return (0, held / flow.min_slots, 0.0, flow.last_grant)
    if held + 1 <= due:
        # A whole slot below its part: the flow that is furthest below goes first.
        return (1, held / flow.weight, 0.0, flow.last_grant)
    # Only fractions of a slot are due. They go in turn, by the slot time that each flow has had for its weight.
    return (2 if held < due else 3, flow.usage, held / flow.weight, flow.last_grant)
