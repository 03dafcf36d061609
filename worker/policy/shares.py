"""Who may have the next free slot.

The worker's slots are divided among the flows that have work, by *max-min fairness*: nobody has less than an equal part
(by weight) while somebody has more and could yield; who needs less than its part leaves the rest to the others; a flow
alone has all of it. It is decided anew whenever a slot is free, from the numbers of that moment, so a flow that had
much because it was alone owes nothing, and nobody waits longer than until the next invocation ends.

A slot is *running*, *asked* (wanted of the queue, not come yet) or free. Free ones go

1. to hungry flows, those of which messages are known to wait, or may: first whoever is below its minimum, then whoever
   is a whole slot below its part, the one furthest below first; and what is left of the parts, the fractions, goes in
   turn, to whoever has used least slot time by weight. That is start-time fair queueing (Goyal, Vin and Cheng 1997),
   charged in slot seconds when they are over. Where there are more flows than slots, it is all there is.
2. where nobody is hungry, they are *lent*: wanted of flows that have nothing waiting, evenly, so that what comes next
   finds a request there already. But for a reserve, for what comes to flows that have none.

What is lent, or was asked in vain, is recalled as soon as someone is hungry and nothing is free.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count
from math import inf

from .flow import PATIENCE, Flow

QUIET = 0.05
LONGEST_QUIET = 1.0
"""Seconds until a flow whose stored messages did not come is asked again, doubling each time: they run elsewhere, or
wait for their next attempt, and when that is due is known to the server only."""
MOST_RETURNS = 10_000
"""Messages between two attempts of which it is known when they are due. Of more, it is guessed."""
TOKEN_CHECK = 1.0
"""Seconds between two looks at a flow that starts by tokens, which grow old."""
RESERVE = 8
"""With more than one flow, one in so many slots is never lent."""


@dataclass(slots=True)
class Decision:
    """What to tell the queue."""

    credits: dict[Flow, int] = field(default_factory=dict)
    recalls: list[Flow] = field(default_factory=list)
    decide_at: float = inf
    """When to decide anew, though nothing has happened."""


NOTHING = Decision()


class Shares:
    """The slots of one worker.

    Args:
        slots: how many.
        make: makes the books of a new flow, by its name, with all that is known of it.
    """

    def __init__(self, slots: int, make_flow: Callable[[str], Flow] = Flow) -> None:
        self.slots = self.free = slots
        self.virtual_time = 0.0
        """How much slot time by weight the hungry have had: what a flow that becomes hungry begins with."""
        self._make = make_flow
        self._paused: Collection[str] = ()
        self._flows: dict[str, Flow] = {}
        self._active: dict[Flow, None] = {}
        """Flows of which something is stored or asked for, as far as is known."""
        self._changed: dict[Flow, None] = {}
        """What must be looked at: the cost of a decision is theirs alone."""
        self._asking: dict[Flow, None] = {}
        """Flows of which something is asked."""
        self._lines: dict[tuple[int, int], list[tuple[int, float, int, int, Flow]]] = {}
        """The hungry by weight and minimum; in each line those who hold least first, then who has used least."""
        self._number = self._weights = self._held = 0
        """Sums over the hungry: of ones, of weights, and of what they hold."""
        self._wakes: list[tuple[float, int, Flow]] = []
        self._numbers = count(1)
        self._returns: list[tuple[float, int, Flow]] = []
        """When messages that were given back will wait again."""
        self._limited: dict[Flow, None] = {}
        """Limited ones that were looked at."""
        self._owed: list[Flow] = []
        """For each message that was more than was asked for, its flow: what the queue thinks it has given too much."""

    @property
    def flows(self) -> Collection[Flow]:
        """All that are known."""
        return self._flows.values()

    def flow(self, name: str) -> Flow:
        """A flow's books."""
        if (flow := self._flows.get(name)) is None:
            flow = self._flows[name] = self._make(name)
            flow.paused = flow.function in self._paused
            flow.usage = self.virtual_time
        return flow

    # What happens.

    def set_stored(self, name: str, messages: float) -> None:
        """So many of a flow are stored."""
        if messages or name in self._flows:
            flow = self._opened(name)
            flow.stored = messages
            self._changed[flow] = None

    def set_pending(self, name: str, messages: float) -> None:
        """So many of a flow wait."""
        flow = self._opened(name)
        flow.pending = messages
        flow.stored = max(flow.stored, messages)
        self._changed[flow] = None

    def add_published(self, name: str) -> None:
        """One more of a flow waits."""
        flow = self._opened(name)
        flow.pending += 1
        flow.stored += 1
        flow.silent_until = -inf
        self._changed[flow] = None

    def has_room(self, name: str) -> bool:
        """Whether a message that comes now can be run."""
        return self.free > 0 or self.flow(name).credit > 0

    def start(self, name: str, behind: float, now: float) -> Flow:
        """A message came, and *behind* it so many wait. It runs now, in a slot that was free for it."""
        flow = self.flow(name)
        self._came(flow, behind, now)
        self.free -= 1
        flow.running += 1
        return flow

    def reject(self, name: str, behind: float, now: float) -> None:
        """A message came that is not to be run."""
        self._came(self.flow(name), behind, now)

    def finish(self, flow: Flow, took: float, *, final: bool) -> None:
        """One that ran is over, after so many seconds; *final*: and is stored no more."""
        flow.running -= 1
        if final and flow.stored:
            flow.stored -= 1
        flow.usage += took / flow.weight
        self.free += 1
        self._changed[flow] = None
        if not (flow.exists or flow.held):
            self._forget(flow)

    def expect_redelivery(self, flow: Flow, due: float) -> None:
        """One that ran here was given back, and comes again then."""
        if flow.pending != inf and len(self._returns) < MOST_RETURNS:
            heapq.heappush(self._returns, (due, next(self._numbers), flow))

    def take_back(self, name: str, messages: int, now: float) -> None:
        """What was asked for in vain."""
        flow = self.flow(name)
        flow.recalling = False
        self._changed[flow] = None
        if back := min(messages, flow.credit):
            self._unask(flow, back)
            if flow.pending != inf:
                flow.pending = 0
            flow.silence = min(max(2 * flow.silence, QUIET), LONGEST_QUIET)
            flow.silent_until = now + flow.silence

    def remove(self, name: str) -> None:
        """Nothing of a flow is stored, or can be asked for."""
        flow = self.flow(name)
        self._unask(flow, flow.credit)
        flow.pending = flow.stored = 0
        flow.exists = flow.recalling = False
        if not flow.running:
            self._forget(flow)

    def set_paused(self, functions: Collection[str]) -> None:
        """These are paused, and no others."""
        self._paused = functions
        for flow in self._flows.values():
            flow.paused = flow.function in functions
            self._changed[flow] = None

    def mark_changed(self, flow: Flow) -> None:
        """Something was set about it from outside."""
        self._changed[flow] = None

    def _forget(self, flow: Flow) -> None:
        self._look(flow, 0.0)
        self._changed.pop(flow, None)
        del self._flows[flow.name]

    def _opened(self, name: str) -> Flow:
        flow = self.flow(name)
        if not flow.exists:
            flow.exists, flow.silence, flow.silent_until = True, 0.0, -inf
        self._active[flow] = None
        return flow

    def _came(self, flow: Flow, behind: float, now: float) -> None:
        if flow.pending != inf:
            flow.pending = behind
        flow.credited_at = now
        flow.silence = 0.0
        if flow.credit:
            self._unask(flow, 1)
        elif flow.exists:
            self._owed.append(flow)
            self._changed[flow] = None

    def _unask(self, flow: Flow, messages: int) -> None:
        flow.credit -= messages
        self.free += messages
        if not flow.credit:
            self._asking.pop(flow, None)
        self._changed[flow] = None

    def take_changed_limited(self) -> list[Flow]:
        """The flows that start by tokens, and of which something has changed since this was asked last."""
        if not self._limited:
            return []
        taken, self._limited = list(self._limited), {}
        return taken

    def desired(self, flow: Flow) -> int:
        """How many more of a flow could run soon, if there were tokens: what is free, or becomes its part."""
        if not flow.exists:
            return 0
        part = self.slots * flow.weight // sum(each.weight for each in self._active) if self._active else self.slots
        soon = max(self.free, part - flow.held, 1 - flow.held)
        more = max(0, min(flow.pending_demand(inf), soon))
        return int(max(0, min(flow.credit + more, flow.limit_without_tokens - flow.running)))

    # What follows from it.

    def decide(self, now: float) -> Decision:
        """Give away what is free, and see what must come back."""
        if not (self.free or self._owed or self._wakes) and self._is_all_shared():
            return NOTHING
        decision = Decision()
        for flow in self._owed:
            decision.credits[flow] = decision.credits.get(flow, 0) + 1
        self._owed.clear()
        if self.free and self._is_all_shared() and not self._wakes:
            self._ask(next(iter(self._active)), self.free, decision, now)
            return decision
        self._look_at_changed(decision, now)
        while self.free and (first := self._first()):
            self._grant(first, decision, now)
        if self._weights:
            self._recall(decision, now)
        elif self.free:
            self._prefetch(decision, now)
        while self._wakes and self._wakes[0][2].check_at != self._wakes[0][0]:
            heapq.heappop(self._wakes)
        decision.decide_at = min(
            decision.decide_at, *(line[0][0] for line in (self._wakes, self._returns) if line), inf
        )
        return decision

    def _is_all_shared(self) -> bool:
        """Whether one flow is all there is, and nobody counts what waits of it: static mode."""
        return len(self._active) == 1 and next(iter(self._active)).pending == inf

    def _look_at_changed(self, decision: Decision, now: float) -> None:
        while self._wakes and self._wakes[0][0] <= now:
            at, _, flow = heapq.heappop(self._wakes)
            if flow.check_at == at:
                flow.check_at = inf
                self._changed[flow] = None
        while self._returns and self._returns[0][0] <= now:
            _, _, flow = heapq.heappop(self._returns)
            if flow.exists:
                flow.pending += 1
                flow.silent_until = -inf
                self._changed[flow] = None
        for flow in self._changed:
            if flow.limiter and flow.limiter.due <= now:
                flow.limiter.tick(now)
            self._look(flow, now)
            if flow.credit and flow.held > flow.limit and not flow.recalling:
                self._call_back(flow, decision)
        self._changed.clear()

    def _look(self, flow: Flow, now: float) -> None:
        """Put it where it belongs."""
        if not (flow.exists and (flow.stored or flow.pending or flow.credit)):
            self._active.pop(flow, None)
        was = flow.demand_key
        if flow.demand_key:
            self._number -= 1
            self._weights -= flow.demand_key[0]
            self._held -= flow.demand_key[1]
            flow.demand_key = None
            flow.ticket = 0
        if flow.demand(now) >= 1:
            if not (was or flow.held):
                flow.usage = max(flow.usage, self.virtual_time)
            self._stand_in_line(flow)
        wake = inf if flow.credit or flow.stored <= flow.running or flow.silent_until <= now else flow.silent_until
        if flow.limiter and flow in self._active:
            wake = min(wake, flow.limiter.due)
        if flow.needs_tokens:
            self._limited[flow] = None
            if flow in self._active:
                wake = min(wake, now + TOKEN_CHECK)
        if wake != flow.check_at:
            flow.check_at = wake
            if wake < inf:
                heapq.heappush(self._wakes, (wake, next(self._numbers), flow))

    def _stand_in_line(self, flow: Flow) -> None:
        flow.demand_key = flow.weight, flow.held
        self._number += 1
        self._weights += flow.weight
        self._held += flow.held
        flow.ticket = next(self._numbers)
        line = self._lines.setdefault((flow.weight, flow.min_slots), [])
        heapq.heappush(line, (flow.held, flow.usage, flow.last_grant, flow.ticket, flow))

    def _first(self) -> Flow | None:
        """Whose turn it is. In a line, who is first of one is before all others of it; so the firsts are compared."""
        best, chosen = None, None
        # What the hungry hold and what is free is theirs to divide.
        part = (self.free + self._held) / (self._weights or 1)
        for key, line in [*self._lines.items()]:
            while line and line[0][4].ticket != line[0][3]:
                heapq.heappop(line)
            if not line:
                del self._lines[key]
                continue
            rank = self._rank(line[0][4], part)
            if best is None or rank < best:
                best, chosen = rank, line[0][4]
        return chosen

    def _rank(self, flow: Flow, part: float) -> tuple[int, float, float, int]:
        """The lowest is served first. *part*: slots for each unit of weight."""
        held, due = flow.held, part * flow.weight
        if held < flow.min_slots:
            return (0, held / flow.min_slots, 0.0, flow.last_grant)
        if held + 1 <= due:
            return (1, held / flow.weight, 0.0, flow.last_grant)
        return (2 if held < due else 3, flow.usage, held / flow.weight, flow.last_grant)

    def _grant(self, flow: Flow, decision: Decision, now: float) -> None:
        alone = self._weights == flow.weight
        more = int(min(self.free, flow.demand(now))) if alone else 1
        self.virtual_time = max(self.virtual_time, flow.usage)
        flow.last_grant = next(self._numbers)
        self._ask(flow, more, decision, now)
        self._look(flow, now)

    def _prefetch(self, decision: Decision, now: float) -> None:
        """Evenly, all but the reserve; where a single flow is active, all."""
        spare: int = self.free - (self.slots // RESERVE if len(self._active) > 1 else 0)
        able = [flow for flow in self._active if flow.held < flow.limit and not flow.recalling] if spare > 0 else []
        while spare > 0 and able:
            least = min(flow.credit for flow in able)
            lowest = sorted((flow for flow in able if flow.credit == least), key=lambda flow: -flow.last_grant)[:spare]
            for flow in lowest:
                self._ask(flow, 1, decision, now)
                self._look(flow, now)
            spare -= len(lowest)
            able = [flow for flow in able if flow.held < flow.limit]

    def _recall(self, decision: Decision, now: float) -> None:
        """What is idle, the most first, until each of the hungry can have one."""
        needed = self._number
        coming = sum(flow.credit for flow in self._asking if flow.recalling)
        idle = sorted(((flow.idle_credit(now), number) for number, flow in enumerate(self._asking)), reverse=True)
        flows = list(self._asking)
        for most, number in idle:
            if coming >= needed or most <= 0:
                break
            coming += int(most)
            self._call_back(flows[number], decision)
        patience = (flow.credited_at + PATIENCE for flow in self._asking if not flow.recalling)
        decision.decide_at = min((decision.decide_at, *(at for at in patience if at > now)))

    def _call_back(self, flow: Flow, decision: Decision) -> None:
        flow.recalling = True
        decision.recalls.append(flow)
        self._look(flow, 0.0)

    def _ask(self, flow: Flow, more: int, decision: Decision, now: float) -> None:
        if not flow.credit:
            flow.credited_at = now
            self._asking[flow] = None
        flow.credit += more
        self.free -= more
        decision.credits[flow] = decision.credits.get(flow, 0) + more
