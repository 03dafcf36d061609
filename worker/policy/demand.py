"""The order in which flows with demand get free slots."""

from __future__ import annotations

import heapq
from itertools import count

from .flow import Flow


class DemandQueue:
    """Flows with demand: those that could use another slot at once.

    Flows of equal weight and equal minimum stand in one *line*, sorted by the slots that they hold. The head of a line
    goes before all others of it, so only the heads are compared: the cost does not grow with the flows.
    """

    def __init__(self) -> None:
        self.virtual_time = 0.0
        """The highest usage of a flow that got a slot: where the usage of a flow begins that had no demand before."""
        self.weights = self.flows = 0
        """Sum of the weights of all flows with demand; how many they are."""
        self._held = 0
        self._lines: dict[tuple[int, int], list[tuple[int, float, int, int, Flow]]] = {}
        self._tickets, self._grants = count(1), count(1)

    def add(self, flow: Flow) -> None:
        """Add a flow, by the slots that it holds now."""
        flow.demand_key = flow.weight, flow.held
        self.flows += 1
        self.weights += flow.weight
        self._held += flow.held
        flow.ticket = next(self._tickets)
        line = self._lines.setdefault((flow.weight, flow.min_slots), [])
        heapq.heappush(line, (flow.held, flow.usage, flow.last_grant, flow.ticket, flow))

    def remove(self, flow: Flow) -> None:
        """Remove a flow, if it is there. Its entry in the heap stays, and is skipped later."""
        if not flow.demand_key:
            return
        weight, held = flow.demand_key
        self.flows -= 1
        self.weights -= weight
        self._held -= held
        flow.demand_key = None
        flow.ticket = 0

    def first(self, free: int) -> Flow | None:
        """Return the flow that gets the next of the *free* slots."""
        # What these flows hold, and what is free, is theirs to divide.
        part = (free + self._held) / (self.weights or 1)
        best, chosen = None, None
        for key, line in [*self._lines.items()]:
            while line and line[0][4].ticket != line[0][3]:
                heapq.heappop(line)
            if not line:
                del self._lines[key]
                continue
            rank = _rank(line[0][4], part)
            if best is None or rank < best:
                best, chosen = rank, line[0][4]
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
