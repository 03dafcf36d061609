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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

PATIENCE = 0.05
"""Seconds that messages known to wait may take to come. Later, others have them: what was asked for counts as lent."""
QUIET = 0.05
LONGEST_QUIET = 1.0
"""Seconds until a flow whose stored messages did not come is asked again, doubling each time: they run elsewhere, or
wait for their next attempt, and when that is due is known to the server only."""
RESERVE = 8
"""With more than one flow, one in so many slots is never lent."""


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
        learned: its learned limit, if it has one.
    """

    __slots__ = (
        "asked",
        "asked_at",
        "cap",
        "granted",
        "learned",
        "least",
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
        "weight",
    )

    def __init__(self, name: str, learned: Limit | None = None) -> None:
        self.name = name
        self.learned = learned
        self.weight = 1
        self.cap: float = inf
        """Most slots that it may hold, whatever is learned."""
        self.paused = False
        self.least = 0
        """Slots that it has before others have more than theirs."""
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

    @property
    def limit(self) -> float:
        """Most slots that it may hold."""
        if self.paused:
            return 0
        return self.cap if self.learned is None else min(self.cap, self.learned.limit)

    @property
    def held(self) -> int:
        """Slots that nobody else can have."""
        return self.running + self.asked

    def hunger(self, now: float) -> float:
        """How many more slots it could use at once, as far as is known."""
        more = self.waiting - self.asked
        if more < 1 and not self.asked and self.stored > self.running and now >= self.quiet_until:
            more = 1
        return min(more, self.limit - self.held) if self.open and not self.recalled else 0

    def idle(self, now: float) -> float:
        """How many of the asked nobody will miss."""
        if self.recalled:
            return 0
        return self.asked if now - self.asked_at >= PATIENCE else self.asked - min(self.waiting, self.asked)


@dataclass(slots=True)
class Decision:
    """What to tell the queue."""

    wants: dict[Flow, int] = field(default_factory=dict)
    recalls: list[Flow] = field(default_factory=list)
    again: float = inf
    """When to decide anew, though nothing has happened."""


class Shares:
    """The slots of one worker.

    Args:
        slots: how many.
        learned: the limit that is learned for a new flow, by its name; None: there is none.
    """

    def __init__(self, slots: int, learned: Callable[[str], Limit | None] = lambda _: None) -> None:
        self.slots = self.free = slots
        self._learned = learned
        self.pace = 0.0
        """How much slot time by weight the hungry have had: what a flow that becomes hungry begins with."""
        self._flows: dict[str, Flow] = {}
        self._active: dict[Flow, None] = {}
        """Flows of which something is stored or asked for, as far as is known: the cost is theirs alone."""
        self._turn = 0
        self._owed: list[Flow] = []
        """For each message that was more than was asked for, its flow: what the queue thinks it has given too much."""

    def of(self, name: str) -> Flow:
        """A flow's books."""
        if (flow := self._flows.get(name)) is None:
            flow = self._flows[name] = Flow(name, self._learned(name))
            flow.used = self.pace
        return flow

    # What happens.

    def stored(self, name: str, messages: float) -> None:
        """So many of a flow are stored."""
        if messages or name in self._flows:
            self._opened(name).stored = messages

    def counted(self, name: str, messages: float) -> None:
        """So many of a flow wait."""
        flow = self._opened(name)
        flow.waiting = messages
        flow.stored = max(flow.stored, messages)

    def published(self, name: str) -> None:
        """One more of a flow waits."""
        flow = self._opened(name)
        flow.waiting += 1
        flow.stored += 1
        flow.quiet_until = -inf

    def free_for(self, name: str) -> bool:
        """Whether a message that comes now can be run."""
        return self.free > 0 or self.of(name).asked > 0

    def came(self, name: str, behind: float, now: float) -> Flow:
        """A message came, and *behind* it so many wait. It runs now, in a slot that was free for it."""
        flow = self.of(name)
        self._came(flow, behind, now)
        self.free -= 1
        flow.running += 1
        return flow

    def came_in_vain(self, name: str, behind: float, now: float) -> None:
        """A message came that is not to be run."""
        self._came(self.of(name), behind, now)

    def ended(self, flow: Flow, took: float, *, final: bool) -> None:
        """One that ran is over, after so many seconds; *final*: and is stored no more."""
        flow.running -= 1
        if final and flow.stored:
            flow.stored -= 1
        flow.used += took / flow.weight
        self.free += 1
        if not (flow.open or flow.held):
            self._flows.pop(flow.name, None)

    def returned(self, name: str, count: int, now: float) -> None:
        """What was asked for in vain."""
        flow = self.of(name)
        flow.recalled = False
        count = min(count, flow.asked)
        flow.asked -= count
        self.free += count
        if count:
            if flow.waiting != inf:
                flow.waiting = 0
            flow.quiet = min(max(2 * flow.quiet, QUIET), LONGEST_QUIET)
            flow.quiet_until = now + flow.quiet

    def gone(self, name: str) -> None:
        """Nothing of a flow is stored, or can be asked for."""
        flow = self.of(name)
        self.free += flow.asked
        flow.asked, flow.waiting, flow.stored = 0, 0, 0
        flow.open = flow.recalled = False
        self._active.pop(flow, None)
        if not flow.running:
            self._flows.pop(name, None)

    def _opened(self, name: str) -> Flow:
        flow = self.of(name)
        if not flow.open:
            flow.open, flow.quiet, flow.quiet_until = True, 0.0, -inf
        self._active[flow] = None
        return flow

    def _came(self, flow: Flow, behind: float, now: float) -> None:
        if flow.waiting != inf:
            flow.waiting = behind
        flow.asked_at = now
        flow.quiet = 0.0
        if flow.asked:
            flow.asked -= 1
            self.free += 1
        elif flow.open:
            self._owed.append(flow)

    # What follows from it.

    def decide(self, now: float) -> Decision:
        """Give away what is free, and see what must come back."""
        decision = Decision()
        for flow in self._owed:
            decision.wants[flow] = decision.wants.get(flow, 0) + 1
        self._owed.clear()
        self._tick(decision, now)
        if len(self._active) == 1:  # the usual case, and all of static mode
            self._give_all(next(iter(self._active)), decision, now)
            return decision
        for flow in [flow for flow in self._active if not (flow.stored or flow.waiting or flow.asked)]:
            del self._active[flow]
        hungry = [flow for flow in self._active if flow.hunger(now) > 0]
        if hungry and self.free:
            hungry = self._grant(hungry, decision, now)
        if hungry:
            self._recall(hungry, decision, now)
        elif self.free:
            self._lend(decision, now)
        self._take_back(self._active, decision)
        quiet = (flow.quiet_until for flow in self._active if not flow.asked and flow.stored > flow.running)
        decision.again = min((decision.again, *(until for until in quiet if until > now)))
        return decision

    def _tick(self, decision: Decision, now: float) -> None:
        for flow in self._active:
            if flow.learned:
                if flow.learned.due <= now:
                    flow.learned.tick(now)
                decision.again = min(decision.again, flow.learned.due)

    def _give_all(self, flow: Flow, decision: Decision, now: float) -> None:
        more = min(self.free, flow.limit - flow.held)
        if more > 0 and not flow.recalled:
            self._ask(flow, int(more), decision, now)
        self._take_back((flow,), decision)

    def _grant(self, hungry: list[Flow], decision: Decision, now: float) -> list[Flow]:
        """One slot after the other; who is still hungry when there is none."""
        for flow in hungry:
            if not flow.held:
                flow.used = max(flow.used, self.pace)
        self.pace = max(self.pace, min(flow.used for flow in hungry))
        # What the hungry hold and what is free is theirs to divide.
        part = (self.free + sum(flow.held for flow in hungry)) / sum(flow.weight for flow in hungry)
        wishes = [flow.hunger(now) for flow in hungry]
        line = [(self._rank(flow, part), number) for number, flow in enumerate(hungry)]
        heapq.heapify(line)
        while self.free and line:
            _, number = line[0]
            flow = hungry[number]
            more = 1 if len(line) > 1 else int(min(wishes[number], self.free))
            self._ask(flow, more, decision, now)
            self._turn += 1
            flow.granted = self._turn
            wishes[number] -= more
            if wishes[number] >= 1:
                heapq.heapreplace(line, (self._rank(flow, part), number))
            else:
                heapq.heappop(line)
        return [hungry[number] for _, number in line]

    def _rank(self, flow: Flow, part: float) -> tuple[int, float, float, int]:
        """Whose turn it is: the lowest. *part*: slots for each unit of weight."""
        held, due = flow.held, part * flow.weight
        if held < flow.least:
            return (0, held / flow.least, 0.0, flow.granted)
        if held + 1 <= due:
            return (1, held / flow.weight, 0.0, flow.granted)
        return (2 if held < due else 3, flow.used, held / flow.weight, flow.granted)

    def _lend(self, decision: Decision, now: float) -> None:
        """Evenly, all but the reserve."""
        spare: int = self.free - self.slots // RESERVE
        able = [flow for flow in self._active if flow.held < flow.limit and not flow.recalled]
        while spare > 0 and able:
            least = min(flow.asked for flow in able)
            lowest = [flow for flow in able if flow.asked == least]
            for flow in sorted(lowest, key=lambda flow: -flow.granted)[:spare]:
                self._ask(flow, 1, decision, now)
                spare -= 1
            able = [flow for flow in able if flow.held < flow.limit]

    def _recall(self, hungry: list[Flow], decision: Decision, now: float) -> None:
        """What is idle, the most first, as far as it is needed."""
        needed = sum(flow.hunger(now) for flow in hungry)
        coming: float = sum(flow.asked for flow in self._active if flow.recalled)
        idle = {flow: flow.idle(now) for flow in self._active}
        for flow in sorted(idle, key=lambda flow: -idle[flow]):
            if coming >= needed or idle[flow] <= 0:
                break
            coming += idle[flow]
            self._call_back(flow, decision)
        patience = (flow.asked_at + PATIENCE for flow in self._active if flow.asked and not flow.recalled)
        decision.again = min((decision.again, *(at for at in patience if at > now)))

    def _take_back(self, flows: Iterable[Flow], decision: Decision) -> None:
        """What flows have asked for beyond their limits."""
        for flow in flows:
            if flow.asked and flow.held > flow.limit and not flow.recalled:
                self._call_back(flow, decision)

    def _call_back(self, flow: Flow, decision: Decision) -> None:
        flow.recalled = True
        decision.recalls.append(flow)

    def _ask(self, flow: Flow, more: int, decision: Decision, now: float) -> None:
        if not flow.asked:
            flow.asked_at = now
        flow.asked += more
        self.free -= more
        decision.wants[flow] = decision.wants.get(flow, 0) + more
