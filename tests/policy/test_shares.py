"""The distribution of slots among flows: exact max-min fairness."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from heapq import heappop, heappush
from itertools import count, pairwise
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.policy.flow import PATIENCE, Flow
from worker.policy.limiter import Limiter
from worker.policy.shares import LONGEST_QUIET, RESERVE, Decision, Shares


class Broker:
    """A broker that delivers at once while it has messages, and a worker that runs what is delivered.

    Args:
        slots: Slots of the worker.
        waiting: Flow -> number of its messages.
        weights: Flow -> weight, where it is not one.
    """

    def __init__(self, slots: int, waiting: Mapping[str, float], weights: Mapping[str, int] | None = None) -> None:
        self.shares = Shares(slots)
        self.waiting: dict[str, float] = {**waiting}
        self.running: list[tuple[float, int, Flow, float]] = []
        self.order = count()
        self.served: Counter[str] = Counter()
        self.used: dict[str, float] = defaultdict(float)
        self.now = 0.0
        for name, messages in waiting.items():
            self.shares.set_pending(name, messages)
            self.shares.flow(name).weight = (weights or {}).get(name, 1)

    def work(self, seconds: Mapping[str, float], until: float) -> None:
        """Run invocations until a time; each flow's take its number of seconds."""
        self.decide(seconds)
        while self.running and self.running[0][0] <= until:
            self.now, _, flow, duration = heappop(self.running)
            self.used[flow.name] += duration
            self.shares.finish(flow, duration, final=True)
            self.decide(seconds)
        self.now = until

    def decide(self, seconds: Mapping[str, float]) -> None:
        """Carry out decisions until nothing more is recalled or delivered."""
        while True:
            decision = self.shares.decide(self.now)
            changed = False
            for flow in decision.recalls:
                self.shares.take_back(flow.name, flow.credit, self.now)
                changed = True
            for flow, more in decision.credits.items():
                for _ in range(int(min(more, self.waiting[flow.name]))):
                    self.waiting[flow.name] -= 1
                    self.shares.start(flow, self.waiting[flow.name], self.now)
                    self.served[flow.name] += 1
                    duration = seconds[flow.name]
                    heappush(self.running, (self.now + duration, next(self.order), flow, duration))
                    changed = True
            if not changed:
                return

    @property
    def held(self) -> Counter[str]:
        """Return the number of running invocations of each flow."""
        return Counter(flow.name for _, _, flow, _ in self.running)


@pytest.mark.parametrize(
    ("others", "free", "running", "weight", "pending", "expected"),
    [
        pytest.param(0, 10, 0, 1, 100, 10, id="all slots of a worker with one flow"),
        pytest.param(0, 10, 0, 1, 4, 4, id="no more than its pending messages"),
        pytest.param(1, 0, 0, 1, 100, 5, id="its half, although no slot is free"),
        pytest.param(1, 0, 2, 1, 100, 3, id="the rest of its half"),
        pytest.param(1, 0, 0, 3, 100, 7, id="its part by weight, rounded down"),
        pytest.param(1, 3, 7, 1, 100, 3, id="free slots beyond its half"),
        pytest.param(1, 0, 7, 1, 100, 0, id="nothing beyond its half without free slots"),
        pytest.param(29, 0, 0, 1, 100, 1, id="one, where its part is less than one"),
        pytest.param(29, 0, 1, 1, 100, 0, id="no second one, where its part is less than one"),
    ],
)
def test_shares_desired_is_what_could_start_with_tokens(
    *, others: int, free: int, running: int, weight: int, pending: int, expected: int
) -> None:
    """A flow desires tokens for its pending messages that have a slot now, or get one as part of its share."""
    shares = Shares(10)
    for number in range(others):
        shares.set_pending(f"other-{number}", 100)
    shares.set_pending("a", pending)
    flow = shares.flow("a")
    shares.free, flow.running, flow.weight = free, running, weight
    assert shares.desired(flow) == expected


def test_shares_desired_of_a_flow_that_may_not_start_is_none() -> None:
    """A flow desires no tokens if the queue does not have it, if it is paused, or beyond its limiter's limit."""
    shares = Shares(10)
    assert shares.desired(shares.flow("a")) == 0
    shares.set_pending("a", 100)
    flow = shares.flow("a")
    flow.limiter = Limiter(10)
    flow.limiter.limit, flow.running = 4, 1
    assert shares.desired(flow) == 3
    shares.set_paused({flow.function})
    assert shares.desired(flow) == 0


def test_shares_published_messages_are_pending() -> None:
    """Each published message is one more that a flow can run, also while the flow was silent."""
    shares = Shares(10)
    for _ in range(3):
        shares.add_published("a")
    flow = shares.flow("a")
    assert (flow.pending, flow.stored, flow.demand(0.0)) == (3, 3, 3)
    flow.silent_until = inf
    shares.add_published("a")
    assert flow.silent_until == -inf


def test_shares_flow_that_begins_while_paused_gets_nothing() -> None:
    """A flow of a paused function gets no credit, whether it exists before the pause or begins after it."""
    shares = Shares(10, lambda name: Flow(name, name))
    shares.set_pending("a", 5)
    shares.set_paused({"a", "b"})
    shares.set_pending("b", 5)
    assert shares.decide(0.0).credits == {}
    shares.set_paused(set())
    assert {flow.name: more for flow, more in shares.decide(0.0).credits.items()} == {"a": 5, "b": 5}


def test_shares_two_flows_with_backlog_are_equal() -> None:
    """Two flows with a backlog have equally many slots, also if one had all before the second appeared."""
    broker = Broker(50, {"a": inf, "b": 0})
    seconds = {"a": 1.0, "b": 1.0}
    broker.work(seconds, 10.5)
    assert broker.held == {"a": 50}
    broker.waiting["b"] = inf
    broker.shares.set_pending("b", inf)
    broker.work(seconds, 11.5)
    assert broker.held == {"a": 25, "b": 25}
    before = Counter(broker.served)
    broker.work(seconds, 111.5)
    assert broker.served - before == {"a": 2_500, "b": 2_500}


def test_shares_divide_slots_and_not_starts() -> None:
    """A flow whose invocations take a hundred times as long has as many slots as another, not more."""
    broker = Broker(10, {"slow": inf, "fast": inf})
    broker.work({"slow": 10.0, "fast": 0.1}, 95.0)
    assert broker.held == {"slow": 5, "fast": 5}
    assert broker.served["slow"] == 5 * 10
    assert 5 * 940 < broker.served["fast"] <= 5 * 951


@pytest.mark.parametrize("slots", [1, 7, 50, 200])
@pytest.mark.parametrize("flows", [2, 50])
def test_shares_jain_index_is_at_least_99_percent(slots: int, flows: int) -> None:
    """Jain's index of slot time is at least 0.99, with fewer and with more slots than flows."""
    seconds = {f"f{number}": 0.1 + number % 7 / 10 for number in range(flows)}
    broker = Broker(slots, dict.fromkeys(seconds, inf))
    broker.work(seconds, 5_000 / slots)
    used = [broker.used[name] for name in seconds]
    assert sum(used) ** 2 / (flows * sum(each**2 for each in used)) >= 0.99


def test_shares_follow_weights() -> None:
    """Slots are divided by weight, also where the shares are no whole slots."""
    for slots in (40, 5):
        broker = Broker(slots, {"a": inf, "b": inf, "c": inf}, {"a": 2, "b": 1, "c": 1})
        broker.work(dict.fromkeys("abc", 1.0), 1_000.5)
        share = {name: broker.used[name] / (slots * 1_000) for name in "abc"}
        assert share == pytest.approx({"a": 0.5, "b": 0.25, "c": 0.25}, rel=0.01)


def test_shares_heavy_flow_among_many_starves_no_other() -> None:
    """With more flows than slots, a heavy flow has more turns and the others have equally many."""
    names = ["heavy", *(f"f{number}" for number in range(50))]
    broker = Broker(5, dict.fromkeys(names, inf), {"heavy": 10})
    broker.work(dict.fromkeys(names, 1.0), 2_000.5)
    assert broker.served["heavy"] == pytest.approx(10_000 * 10 / 60, rel=0.2)
    light = [broker.served[name] for name in names[1:]]
    assert max(light) - min(light) <= 1


def test_shares_minimum_is_served_first() -> None:
    """A flow has its minimum before other flows have more than theirs."""
    broker = Broker(10, {"a": inf, "b": inf, "c": inf, "vip": inf})
    broker.shares.flow("vip").min_slots = 6
    broker.work(dict.fromkeys(["a", "b", "c", "vip"], 1.0), 5.5)
    assert broker.held["vip"] == 6
    assert sum(broker.held.values()) == 10


def test_shares_cap_is_kept() -> None:
    """A flow never holds more slots than its cap, and the other flows have the rest."""
    broker = Broker(10, {"a": inf, "b": inf})
    broker.shares.flow("a").cap = 2
    broker.work({"a": 1.0, "b": 1.0}, 5.5)
    assert broker.held == {"a": 2, "b": 8}


def test_decide_paused_flow_is_recalled_until_resumed() -> None:
    """A paused flow gets no credit and its prefetch is recalled; when resumed, it gets the same credit again."""
    shares = Shares(8)
    shares.set_stored("a", 1)
    assert {flow.name: more for flow, more in shares.decide(0.0).credits.items()} == {"a": 8}
    shares.flow("a").paused = True
    shares.mark_changed(shares.flow("a"))
    assert [flow.name for flow in shares.decide(1.0).recalls] == ["a"]
    shares.take_back("a", 8, 1.1)
    assert shares.decide(2.0).credits == {}
    shares.flow("a").paused = False
    shares.mark_changed(shares.flow("a"))
    assert {flow.name: more for flow, more in shares.decide(3.0).credits.items()} == {"a": 8}


def test_decide_prefetch_is_recalled_for_demand() -> None:
    """Prefetch is recalled for a flow that gets demand, and a reserve of slots is free for it at once."""
    shares = Shares(16)
    shares.set_stored("a", 1)
    shares.decide(0.0)
    shares.set_stored("b", 1)
    decision = shares.decide(0.1)
    assert [flow.name for flow in decision.recalls] == ["a"]
    shares.take_back("a", 16, 0.2)
    granted = {flow.name: more for flow, more in shares.decide(0.2).credits.items()}
    assert granted == {"a": 7, "b": 7}
    assert shares.free == 16 // RESERVE


def test_decide_credit_without_delivery_is_given_rarely() -> None:
    """A flow whose stored messages run in other workers gets credit more and more rarely, and delays no other."""
    shares = Shares(1)
    shares.set_pending("busy", inf)
    shares.set_stored("elsewhere", 5)
    credited_at, now = [], 0.0
    for _ in range(4_000):
        now += 0.01
        decision = shares.decide(now)
        for flow in decision.recalls:
            shares.take_back(flow.name, flow.credit, now)
        for flow, more in decision.credits.items():
            if flow.name == "elsewhere":
                credited_at.append(now)
            else:
                for _ in range(more):
                    shares.start(flow, inf, now)
                    shares.finish(flow, 0.01, final=True)
    gaps = [later - one for one, later in pairwise(credited_at)]
    assert len(gaps) > 10
    assert min(gaps[5:]) >= LONGEST_QUIET
    assert max(gaps) <= LONGEST_QUIET + 3 * PATIENCE


class AnyEvents(RuleBasedStateMachine):
    """Any events in any order: no slot is lost or given twice, and none is idle while a flow has demand."""

    names = st.sampled_from(["a", "b", "c", "d"])

    @initialize(slots=st.integers(1, 12), weights=st.lists(st.integers(1, 5), min_size=4, max_size=4))
    def begin(self, slots: int, weights: list[int]) -> None:
        self.shares, self.now = Shares(slots), 0.0
        self.weights = dict(zip("abcd", weights, strict=True))
        self.running: list[Flow] = []
        self.queue_credit: Counter[str] = Counter()
        """Flow -> credit that the queue has for it."""
        self.recalled: set[str] = set()
        self.decision = Decision()

    @rule(name=names, messages=st.integers(0, 20))
    def stored(self, name: str, messages: int) -> None:
        self.shares.set_stored(name, messages)
        if messages:
            flow = self.shares.flow(name)
            flow.weight = self.weights[name]
            self.shares.mark_changed(flow)
        self.decide()

    @rule(name=names, messages=st.integers(0, 20))
    def counted(self, name: str, messages: int) -> None:
        self.shares.set_pending(name, messages)
        self.decide()

    @rule(name=names)
    def published(self, name: str) -> None:
        self.shares.add_published(name)
        self.decide()

    @rule(name=names, num_pending=st.integers(0, 5), run=st.booleans())
    def deliver(self, name: str, num_pending: int, run: bool) -> None:
        """Deliver a message of a flow, also without credit."""
        flow = self.shares.flow(name)
        if run and self.shares.has_room(flow):
            self.shares.start(flow, num_pending, self.now)
            self.running.append(flow)
        else:
            self.shares.note_arrival(flow, num_pending, self.now)
        if self.shares.flow(name).exists:
            self.queue_credit[name] -= 1
        self.decide()

    @precondition(lambda self: self.running)
    @rule(data=st.data(), final=st.booleans())
    def finish(self, data: st.DataObject, final: bool) -> None:
        flow = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        self.shares.finish(flow, 1.0, final=final)
        self.decide()

    @precondition(lambda self: self.recalled)
    @rule()
    def return_credit(self) -> None:
        name = min(self.recalled)
        self.recalled.discard(name)
        self.shares.take_back(name, max(0, self.queue_credit.pop(name, 0)), self.now)
        self.decide()

    @rule(name=names)
    def end_flow(self, name: str) -> None:
        self.shares.remove(name)
        self.queue_credit.pop(name, None)
        self.recalled.discard(name)
        self.decide()

    @rule(name=names, cap=st.sampled_from([1, 3, inf]), min_slots=st.integers(0, 2), paused=st.booleans())
    def change_limits(self, name: str, cap: float, min_slots: int, paused: bool) -> None:
        flow = self.shares.flow(name)
        flow.cap, flow.min_slots, flow.paused = cap, min_slots, paused
        self.shares.mark_changed(flow)
        self.decide()

    @rule(seconds=st.sampled_from([0.01, 0.06, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.decide()

    def decide(self) -> None:
        before = {flow: flow.held for flow in self.shares._flows.values()}
        self.decision = self.shares.decide(self.now)
        for flow, more in self.decision.credits.items():
            assert more > 0
            assert flow.held <= max(before[flow], flow.limit)
            self.queue_credit[flow.name] += more
        for flow in self.decision.recalls:
            assert flow.name not in self.recalled
            self.recalled.add(flow.name)

    @invariant()
    def no_slot_is_lost(self) -> None:
        flows = self.shares._flows.values()
        assert self.shares.free + sum(flow.held for flow in flows) == self.shares.slots
        assert self.shares.free >= 0
        assert sum(flow.running for flow in flows) == len(self.running)

    @invariant()
    def queue_has_the_same_credit(self) -> None:
        for flow in self.shares._flows.values():
            if flow.exists:
                assert self.queue_credit[flow.name] == flow.credit

    @invariant()
    def no_slot_is_idle_beside_demand(self) -> None:
        with_demand = [flow for flow in self.shares._flows.values() if flow.demand(self.now) >= 1]
        if with_demand:
            assert not self.shares.free
            idle = [
                flow
                for flow in self.shares._flows.values()
                if flow.idle_credit(self.now) > 0 and flow not in with_demand
            ]
            assert not idle or self.recalled

    @invariant()
    def next_decision_is_in_the_future(self) -> None:
        assert self.decision.decide_at > self.now


AnyEvents.TestCase.settings = settings(stateful_step_count=40, max_examples=100)
TestAnyEvents = AnyEvents.TestCase


@given(st.integers(1, 30), st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(0, 10_000))
def test_shares_by_weight_are_exact_to_the_slot(slots: int, weights: list[int], seed: int) -> None:
    """With a backlog for all flows and any durations, each flow holds its share by weight, to the slot."""
    rng = random.Random(seed)
    names = [f"f{number}" for number in range(len(weights))]
    broker = Broker(slots, dict.fromkeys(names, inf), dict(zip(names, weights, strict=True)))
    seconds = {name: rng.choice([0.1, 0.7, 2.0]) for name in names}
    broker.work(seconds, 10.05)
    for name, weight in zip(names, weights, strict=True):
        part = slots * weight / sum(weights)
        assert part - 1 < broker.held[name] < part + 1
