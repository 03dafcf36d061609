"""Max-min fair shares: which flow gets the next free slot.

The slots of a worker are divided among the flows with demand by *max-min fairness*, by weight. No flow has less than an
equal part while another has more and could yield. A flow that needs less than its part leaves the rest to the others; a
flow that is alone has all of it. Each decision uses the numbers of its moment: a flow that had much while it was alone
owes nothing, and no flow waits longer than until the next invocation ends.

A slot is *running*, given as *credit* (a message was requested for it and has not arrived) or free. Free slots go

1. to flows with demand, those that have pending messages or may have some. First to a flow below its minimum, then to
   flows a whole slot or more below their part, the one furthest below first. What is left of the parts, the fractions,
   goes in turn to the flow that has used least slot time by weight. That is start-time fair queueing (Goyal, Vin and
   Cheng 1997), charged in slot seconds when an invocation ends. With more flows than slots there is nothing else.
2. where no flow has demand, to *prefetch*: flows without known pending messages get credit, evenly, so that the next
   message finds a request there already. A reserve is kept for flows that have none.

Prefetched credit, and credit whose messages did not arrive, is *recalled* as soon as a flow has demand and no slot is
free.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from math import inf

from ..model import SHARED
from .flow import PATIENCE, DemandQueue, Flow, SharedFlow
from .flow_times import FlowTimes

QUIET = 0.05
LONGEST_QUIET = 1.0
"""Seconds without credit for a flow whose stored messages did not arrive, doubling each time. They run on another
worker, or wait for their next attempt, and only the server knows when that is due."""
TOKEN_CHECK = 1.0
"""Seconds between two looks at a flow that needs tokens, because unused tokens expire."""
RESERVE = 8
"""With more than one flow, one in so many slots is never prefetched."""


@dataclass(slots=True)
class Decision:
    """Credit to give and to recall."""

    credits: dict[Flow, int] = field(default_factory=dict)
    recalls: list[Flow] = field(default_factory=list)
    new_limits: list[Flow] = field(default_factory=list)
    """The flows whose limiter allows another number of invocations than at the last decision."""
    decide_at: float = inf
    """Time of the next decision without an event."""


NOTHING = Decision()


class Shares:
    """The slots of one worker. *make_flow* creates a flow's numbers by its name, for all but the shared flow."""

    def __init__(self, slots: int, make_flow: Callable[[str], Flow] = Flow) -> None:
        self.slots = self.free = slots
        self._make_flow = make_flow
        self._paused: Collection[str] = ()
        self._flows: dict[str, Flow] = {}
        self._active: dict[Flow, None] = {}
        """Flows with stored messages or with credit."""
        self._alone: SharedFlow | None = None
        """The shared flow while no other flow is active, which is static mode: it gets every slot."""
        self._changed: dict[Flow, None] = {}
        """Flows to look at: a decision costs time for these alone."""
        self._credited: dict[Flow, None] = {}
        """Flows with credit."""
        self._demand = DemandQueue()
        self._times = FlowTimes()
        self._token_flows: dict[Flow, None] = {}
        """Flows that need tokens and have changed."""
        self._surplus: list[Flow] = []
        """For each message that arrived without credit, its flow: the queue counts it against later credit."""

    @property
    def flows(self) -> Collection[Flow]:
        return self._flows.values()

    def flow(self, name: str) -> Flow:
        """Return the flow of that name; create it if it is not known."""
        if (flow := self._flows.get(name)) is None:
            flow = self._flows[name] = SharedFlow() if name == SHARED else self._make_flow(name)
            flow.paused = flow.function in self._paused
            flow.usage = self._demand.virtual_time
        return flow

    # What happened.

    def add_shared(self) -> None:
        """Note that the queue is consumed as one flow."""
        self._open(SHARED).stored = inf

    def set_stored(self, name: str, messages: int) -> None:
        """Note how many messages of a flow are stored."""
        if messages or name in self._flows:
            self._open(name).stored = messages

    def set_pending(self, name: str, messages: float) -> None:
        """Note how many messages of a flow are pending."""
        flow = self._open(name)
        flow.pending = messages
        flow.stored = max(flow.stored, messages)

    def add_published(self, name: str) -> None:
        """Note that one more message of a flow is pending."""
        flow = self._open(name)
        flow.pending += 1
        flow.stored += 1
        flow.silent_until = -inf

    def has_room(self, flow: Flow) -> bool:
        """Return whether a message of the flow that arrives now has a slot."""
        return self.free > 0 or flow.credit > 0

    def start(self, flow: Flow, num_pending: float, now: float) -> None:
        """Give a slot, which there must be, to a message that arrived with *num_pending* behind it."""
        self.note_arrival(flow, num_pending, now)
        self.free -= 1
        flow.running += 1

    def note_arrival(self, flow: Flow, num_pending: float, now: float) -> None:
        """Note that a message arrived, with *num_pending* behind it, whether it starts or not."""
        flow.pending = num_pending
        flow.credited_at = now
        flow.silence = 0.0
        if flow.credit:
            self._reduce_credit(flow, 1)
        elif flow.exists:
            self._surplus.append(flow)
            self._changed[flow] = None

    def finish(self, flow: Flow, seconds: float, *, final: bool, redelivery_at: float | None = None) -> None:
        """Free the slot that a message had for so many *seconds*.

        *final*: it has left the stream. *redelivery_at*: when it is pending again, if it was given back.
        """
        flow.running -= 1
        if final and flow.stored:
            flow.stored -= 1
        flow.usage += seconds / flow.weight
        self.free += 1
        self._changed[flow] = None
        if not (flow.exists or flow.held):
            self._forget(flow)
        # Nothing counts what is pending for a shared flow, so it needs no hint either.
        if redelivery_at is not None and flow.name != SHARED:
            self._times.add_redelivery(flow, redelivery_at)

    def take_back(self, name: str, messages: int, now: float) -> None:
        """Take back credit that the queue returned."""
        flow = self.flow(name)
        flow.recalling = False
        self._changed[flow] = None
        if back := min(messages, flow.credit):
            self._reduce_credit(flow, back)
            flow.pending = 0
            flow.silence = min(max(2 * flow.silence, QUIET), LONGEST_QUIET)
            flow.silent_until = now + flow.silence

    def remove(self, name: str) -> None:
        """Note that a flow has ended: nothing of it is stored, and its credit brings nothing."""
        flow = self.flow(name)
        self._reduce_credit(flow, flow.credit)
        flow.pending = flow.stored = 0
        flow.exists = flow.recalling = False
        if not flow.running:
            self._forget(flow)

    def set_paused(self, functions: Collection[str]) -> None:
        """Pause these functions, by label, and resume all others."""
        self._paused = functions
        for flow in self._flows.values():
            flow.paused = flow.function in functions
            self._changed[flow] = None

    def mark_changed(self, flow: Flow) -> None:
        """Have the next decision look at a flow of which something was set."""
        self._changed[flow] = None

    def take_changed_limited(self) -> list[Flow]:
        """Return the flows that need tokens and have changed since the last call."""
        if not self._token_flows:
            return []
        taken, self._token_flows = list(self._token_flows), {}
        return taken

    def desired(self, flow: Flow) -> int:
        """Return how many more messages of a flow could start soon if it had tokens."""
        if not flow.exists:
            return 0
        # Their slots are free, have credit already, or become the flow's as part of its share.
        part = self.slots * flow.weight // sum(each.weight for each in self._active) if self._active else self.slots
        soon = max(self.free, part - flow.held, 1 - flow.held)
        more = max(0, min(flow.pending_demand(inf), soon))
        return int(max(0, min(flow.credit + more, flow.limit_without_tokens - flow.running)))

    # What to do.

    def decide(self, now: float) -> Decision:
        """Give all free slots, and recall credit that is needed elsewhere."""
        if self._alone and not self._times.checks:
            return self._give_all(self._alone, now)
        decision = Decision()
        if self._surplus:
            self._restore_surplus(decision)
        self._look_at_changed(decision, now)
        while self.free and (first := self._demand.first(self.free)):
            self._grant(first, decision, now)
        if self._demand.flows:
            self._recall(decision, now)
        elif self.free:
            self._prefetch(decision, now)
        decision.decide_at = min(decision.decide_at, self._times.next_at())
        return decision

    def _give_all(self, flow: Flow, now: float) -> Decision:
        # The path of every message in static mode: usually a slot was filled, and there is nothing to decide.
        if not (self.free or self._surplus):
            return NOTHING
        decision = Decision()
        self._restore_surplus(decision)
        if self.free:
            self._give_credit(flow, self.free, decision, now)
        return decision

    def _restore_surplus(self, decision: Decision) -> None:
        for flow in self._surplus:
            decision.credits[flow] = decision.credits.get(flow, 0) + 1
        self._surplus.clear()

    def _look_at_changed(self, decision: Decision, now: float) -> None:
        self._changed |= dict.fromkeys(self._times.take_due(now))
        for flow in self._changed:
            if flow.limiter:
                if flow.limiter.due <= now:
                    flow.limiter.tick(now)
                if flow.limiter.limit != flow.last_limit:
                    flow.last_limit = flow.limiter.limit
                    decision.new_limits.append(flow)
            self._look(flow, now)
            if flow.credit and flow.held > flow.limit and not flow.recalling:
                # Its limit fell, or it was paused: what arrived for this credit could not start.
                self._call_back(flow, decision, now)
        self._changed.clear()

    def _look(self, flow: Flow, now: float) -> None:
        """Update where the flow stands: active or not, with demand or not, and when to look again."""
        if flow in self._active and not (flow.exists and (flow.stored or flow.pending or flow.credit)):
            del self._active[flow]
            self._find_alone()
        if had_demand := flow.entry is not None:
            self._demand.remove(flow)
        if flow.demand(now) >= 1:
            if not (had_demand or flow.held):
                # Time without demand earns no claim on slots: its usage begins where the others stand.
                flow.usage = max(flow.usage, self._demand.virtual_time)
            self._demand.add(flow)
        self._plan_check(flow, now)

    def _plan_check(self, flow: Flow, now: float) -> None:
        check_at = inf
        if not flow.credit and flow.stored > flow.running and flow.silent_until > now:
            check_at = flow.silent_until
        if flow.limiter and flow in self._active:
            check_at = min(check_at, flow.limiter.due)
        if flow.needs_tokens:
            self._token_flows[flow] = None
            if flow in self._active:
                check_at = min(check_at, now + TOKEN_CHECK)
        self._times.set_check(flow, check_at)

    def _grant(self, flow: Flow, decision: Decision, now: float) -> None:
        # One at a time, because each changes the order; but a flow that is alone gets all at once.
        more = int(min(self.free, flow.demand(now))) if self._demand.flows == 1 else 1
        self._demand.note_grant(flow)
        self._give_credit(flow, more, decision, now)
        self._look(flow, now)

    def _prefetch(self, decision: Decision, now: float) -> None:
        """Give credit evenly: all free slots but the reserve, or all where a single flow is active."""
        spare: int = self.free - (self.slots // RESERVE if len(self._active) > 1 else 0)
        able = [flow for flow in self._active if flow.held < flow.limit and not flow.recalling] if spare > 0 else []
        while spare > 0 and able:
            least = min(flow.credit for flow in able)
            lowest = sorted((flow for flow in able if flow.credit == least), key=lambda flow: -flow.last_grant)[:spare]
            for flow in lowest:
                self._give_credit(flow, 1, decision, now)
                self._look(flow, now)
            spare -= len(lowest)
            able = [flow for flow in able if flow.held < flow.limit]

    def _recall(self, decision: Decision, now: float) -> None:
        """Recall idle credit, the most first, until each flow with demand can have a slot."""
        needed = self._demand.flows - sum(flow.credit for flow in self._credited if flow.recalling)
        if needed > 0:
            idle = ((flow.idle_credit(now), number, flow) for number, flow in enumerate(self._credited))
            for most, _, flow in sorted((each for each in idle if each[0] > 0), reverse=True):
                if needed <= 0:
                    break
                needed -= int(most)
                self._call_back(flow, decision, now)
        # Other credit becomes idle when its messages do not arrive in time: decide again then.
        patience = (flow.credited_at + PATIENCE for flow in self._credited if not flow.recalling)
        decision.decide_at = min((decision.decide_at, *(at for at in patience if at > now)))

    def _call_back(self, flow: Flow, decision: Decision, now: float) -> None:
        flow.recalling = True
        decision.recalls.append(flow)
        self._look(flow, now)

    def _give_credit(self, flow: Flow, more: int, decision: Decision, now: float) -> None:
        if not flow.credit:
            flow.credited_at = now
            self._credited[flow] = None
        flow.credit += more
        self.free -= more
        decision.credits[flow] = decision.credits.get(flow, 0) + more

    def _reduce_credit(self, flow: Flow, messages: int) -> None:
        flow.credit -= messages
        self.free += messages
        if not flow.credit:
            self._credited.pop(flow, None)
        self._changed[flow] = None

    def _open(self, name: str) -> Flow:
        flow = self.flow(name)
        if not flow.exists:
            flow.exists, flow.silence, flow.silent_until = True, 0.0, -inf
        if flow not in self._active:
            self._active[flow] = None
            self._find_alone()
        self._changed[flow] = None
        return flow

    def _forget(self, flow: Flow) -> None:
        self._look(flow, 0.0)
        self._changed.pop(flow, None)
        del self._flows[flow.name]

    def _find_alone(self) -> None:
        only = next(iter(self._active)) if len(self._active) == 1 else None
        self._alone = only if isinstance(only, SharedFlow) else None
