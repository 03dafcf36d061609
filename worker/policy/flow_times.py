"""The times at which :class:`~worker.policy.shares.Shares` looks at flows without an event."""

from __future__ import annotations

import heapq
from itertools import count
from math import inf

from .flow import Flow

MOST_RETURNS = 10_000
"""Redeliveries whose time is remembered. Those beyond are found by requests after a silence."""


class FlowTimes:
    """For each flow the time of its next check, and the times of its redeliveries."""

    def __init__(self) -> None:
        self.checks: list[tuple[float, int, Flow]] = []
        """Heap: when to look at flows again. An entry counts if its time is the flow's *check_at*."""
        self._redeliveries: list[tuple[float, int, Flow]] = []
        """Heap: when messages that this worker gave back are pending again."""
        self._numbers = count()

    def set_check(self, flow: Flow, at: float) -> None:
        """Plan the flow's next check for that time, in place of an earlier plan; infinite: plan none."""
        if at != flow.check_at:
            flow.check_at = at
            if at < inf:
                heapq.heappush(self.checks, (at, next(self._numbers), flow))

    def add_redelivery(self, flow: Flow, at: float) -> None:
        """Note that a message of the flow is pending again at that time, if not too many are noted."""
        if len(self._redeliveries) < MOST_RETURNS:
            heapq.heappush(self._redeliveries, (at, next(self._numbers), flow))

    def take_due(self, now: float) -> list[Flow]:
        """Return the flows to look at now, and count the messages that are pending again."""
        due = []
        while self.checks and self.checks[0][0] <= now:
            at, _, flow = heapq.heappop(self.checks)
            if flow.check_at == at:
                flow.check_at = inf
                due.append(flow)
        while self._redeliveries and self._redeliveries[0][0] <= now:
            _, _, flow = heapq.heappop(self._redeliveries)
            if flow.exists:
                flow.pending += 1
                flow.silent_until = -inf
                due.append(flow)
        return due

    def next_at(self) -> float:
        """Return the earliest of all times; infinite without any."""
        while self.checks and self.checks[0][2].check_at != self.checks[0][0]:
            heapq.heappop(self.checks)
        return min((heap[0][0] for heap in (self.checks, self._redeliveries) if heap), default=inf)
