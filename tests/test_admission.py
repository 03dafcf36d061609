"""The quotas of flows: whether another invocation may start. There is no broker: the fake records the ports' calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from worker.admission import Admission
from worker.heartbeat import Leases
from worker.model import NO_ANNOTATIONS, Delivery, Quota, Rate
from worker.policy.flow import Flow
from worker.policy.limiter import Limiter
from worker.policy.quota import CAP, RATE, token_flow
from worker.policy.retry import IgnoredAnnotation
from worker.policy.shares import Shares

A = token_flow(CAP, "a.fn")


class Rig:
    """An admission with its shares, and a fake of queue, quotas and consumer that confirms extensions at once."""

    def __init__(self, slots: int = 4) -> None:
        self.quotas: dict[str, Quota] = {}
        """The agreed quota of each function."""
        self.proposed: list[tuple[str, Quota, int]] = []
        self.credit: Counter[str] = Counter()
        self.given_back: list[str] = []
        """Number of each token that was given back."""
        self.decided = 0
        parts: Any = self
        self.parts = parts
        self.leases = Leases(parts, lambda _: None)
        self.leases.set_ack_wait(60.0)
        self.shares = Shares(slots, self._make_flow)
        self.admission = Admission(parts, parts, self.leases, self.shares, self._decide)

    def _make_flow(self, name: str) -> Flow:
        flow = Flow(name, f"{name}.fn")
        self.admission.add_flow(flow)
        return flow

    def _decide(self) -> None:
        self.decided += 1

    def agreed(self, function: str) -> Quota | None:
        return self.quotas.get(function)

    def propose(self, function: str, quota: Quota, stored: int) -> None:
        self.proposed.append((function, quota, stored))

    def extend(self, _: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        assert before > trio.current_time()
        confirmed()

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        assert delay <= before
        self.given_back.append(token.subject.rpartition(".")[2])

    def add_credit(self, count: int, flow: str) -> None:
        self.credit[flow] += count

    def add_tokens(self, *numbers: int, kind: str = CAP) -> None:
        """Deliver tokens of function a."""
        for number in numbers:
            subject = f"QUOTAS.q.{kind}.a.fn.{number}"
            token = Delivery(
                (number + 1, 7), f"t{number}", 1, trio.current_time(), subject, b"", token_flow(kind, "a.fn")
            )
            self.admission.tokens.receive(token)

    def balance(self) -> dict[str, int]:
        """Decide and balance, as intake does, and return what was requested."""
        before = self.credit.copy()
        self.shares.decide(trio.current_time())
        self.admission.balance(self.parts)
        return {**(self.credit - before)}


async def test_add_flow_applies_the_agreed_quota(autojump_clock: MockClock) -> None:
    """A new flow starts nothing without tokens if its function has an agreed cap; others are not limited."""
    assert autojump_clock
    rig = Rig()
    rig.quotas["a.fn"] = Quota(max_inflight=2)
    rig.shares.set_pending("a", 5)
    limited, free = rig.shares.flow("a"), rig.shares.flow("b")
    assert (limited.needs_tokens, limited.cap, rig.admission.may_start(limited)) == (True, 0, False)
    assert (free.needs_tokens, free.cap, rig.admission.may_start(free)) == (False, inf, True)
    assert rig.balance() == {A: 2}


async def test_add_flow_of_no_function_has_no_quota(autojump_clock: MockClock) -> None:
    """A flow whose messages invoke any function, as the shared one, has no quota."""
    assert autojump_clock
    rig = Rig()
    rig.quotas[""] = Quota(max_inflight=2)
    flow = Flow("")
    rig.admission.add_flow(flow)
    assert (flow.needs_tokens, flow.cap) == (False, inf)


async def test_set_quota_limits_the_flows_of_its_function(autojump_clock: MockClock) -> None:
    """A quota limits the flows of its function from now on, running invocations included, until it is lifted."""
    assert autojump_clock
    rig = Rig()
    limited, free = rig.shares.flow("a"), rig.shares.flow("b")
    rig.shares.start(limited, 0, 0.0)
    rig.admission.set_quota("a.fn", Quota(max_inflight=2))
    assert (limited.needs_tokens, limited.cap, free.needs_tokens, free.cap) == (True, 1, False, inf)
    assert rig.decided == 1
    rig.admission.set_quota("a.fn", Quota())
    assert (limited.needs_tokens, limited.cap, rig.decided) == (False, inf, 2)


async def test_set_quota_has_the_next_decision_look_at_the_flow(autojump_clock: MockClock) -> None:
    """Credit above a new cap is recalled by the next decision."""
    assert autojump_clock
    rig = Rig()
    rig.shares.set_pending("a", 2)
    rig.shares.decide(0.0)
    rig.admission.set_quota("a.fn", Quota(max_inflight=2))
    assert rig.shares.decide(0.0).recalls == [rig.shares.flow("a")]


async def test_new_token_raises_the_cap_and_decides(autojump_clock: MockClock) -> None:
    """Each token that arrives allows its function's flow one more slot, and has the worker decide."""
    assert autojump_clock
    rig = Rig()
    rig.quotas["a.fn"] = Quota(max_inflight=3)
    rig.shares.set_pending("a", 5)
    flow = rig.shares.flow("a")
    rig.balance()
    rig.add_tokens(0)
    assert (flow.cap, rig.decided, rig.admission.may_start(flow)) == (1, 1, True)
    rig.add_tokens(1)
    assert (flow.cap, rig.decided) == (2, 2)
    assert rig.shares.decide(0.0).credits == {flow: 2}


async def test_invocation_holds_its_token_until_it_ends(autojump_clock: MockClock) -> None:
    """An invocation holds a token, which its end frees for the next one; without a quota it holds none."""
    assert autojump_clock
    rig = Rig()
    rig.quotas["a.fn"] = Quota(max_inflight=1)
    rig.shares.set_pending("a", 5)
    flow, free = rig.shares.flow("a"), rig.shares.flow("b")
    rig.add_tokens(0)
    rig.shares.start(flow, 4, 0.0)
    held = rig.admission.start(flow)
    assert held
    scope = trio.CancelScope()
    held.guard(scope)
    assert (rig.admission.may_start(flow), rig.admission.start(free)) == (False, None)
    rig.balance()
    assert flow.cap == 1
    rig.shares.finish(flow, 1.0, final=True)
    rig.admission.finish(flow, held)
    assert (rig.admission.may_start(flow), flow.cap) == (True, 1)
    held.mark_lost()
    assert not scope.cancel_called, "a token is guarded after its invocation"
    assert rig.given_back == []


async def test_finish_of_a_rate_lowers_the_cap_to_its_tokens(autojump_clock: MockClock) -> None:
    """The end of an invocation of a rated function frees no token, so the flow may hold one slot less."""
    assert autojump_clock
    rig = Rig()
    rig.quotas["a.fn"] = Quota(rate=Rate(2, 60.0))
    rig.shares.set_pending("a", 5)
    flow = rig.shares.flow("a")
    rig.add_tokens(0, 1, kind=RATE)
    assert flow.cap == 2
    rig.shares.start(flow, 4, 0.0)
    assert rig.admission.start(flow) is None
    rig.shares.finish(flow, 1.0, final=True)
    rig.admission.finish(flow, None)
    assert (flow.cap, rig.given_back) == (1, ["0"])


async def test_observe_without_quota_proposes_nothing(autojump_clock: MockClock) -> None:
    """Messages without annotations propose nothing for a function that never had a quota."""
    assert autojump_clock
    rig = Rig()
    flow = rig.shares.flow("a")
    flow.weight = 7
    assert rig.admission.observe(flow, {}, 5) == ()
    assert (rig.proposed, flow.weight) == ([], 7)


async def test_observe_uses_the_weight_and_proposes_the_quota(autojump_clock: MockClock) -> None:
    """The weight in a message applies here at once, and its quota is proposed; invalid annotations are returned."""
    assert autojump_clock
    rig = Rig()
    flow = rig.shares.flow("a")
    annotations = {"com.openfaas.queue.weight": "3", "com.openfaas.queue.max_inflight": "none"}
    ignored = rig.admission.observe(flow, annotations, 5)
    accepted = "not a whole number from 1 to 100000"
    assert ignored == (IgnoredAnnotation("com.openfaas.queue.max_inflight", "none", accepted),)
    assert (rig.proposed, flow.weight) == ([("a.fn", Quota(3), 5)], 3)


async def test_observe_without_annotations_lifts_an_agreed_quota(autojump_clock: MockClock) -> None:
    """A newer message without annotations proposes that its function has no quota any more."""
    assert autojump_clock
    rig = Rig()
    rig.quotas["a.fn"] = Quota(3, 2)
    flow = rig.shares.flow("a")
    assert rig.admission.observe(flow, {}, 9) == ()
    assert (rig.proposed, flow.weight) == ([("a.fn", Quota(), 9)], 1)


async def test_observe_of_a_message_that_has_no_annotations_keeps_the_quota(autojump_clock: MockClock) -> None:
    """A message whose producer did not know the annotations changes neither quota nor weight."""
    assert autojump_clock
    rig = Rig()
    rig.quotas["a.fn"] = Quota(3, 2)
    flow = rig.shares.flow("a")
    flow.weight = 3
    assert rig.admission.observe(flow, NO_ANNOTATIONS, 9) == ()
    assert (rig.proposed, flow.weight) == ([], 3)


async def test_limit_changed_has_the_next_decision_look_at_the_flow(autojump_clock: MockClock) -> None:
    """A flow whose learned limit changed is looked at by a decision at once."""
    assert autojump_clock
    rig = Rig()
    rig.shares.set_pending("a", 9)
    flow = rig.shares.flow("a")
    rig.shares.decide(0.0)
    flow.limiter = Limiter(4)
    rig.admission.limit_changed(flow)
    assert rig.decided == 1
    assert rig.shares.decide(0.0).new_limits == [flow]


async def test_balance_requests_tokens_for_all_flows_of_the_function(autojump_clock: MockClock) -> None:
    """Tokens are requested for the messages of all flows of a function, once, and a flow's cap follows its tokens."""
    assert autojump_clock
    rig = Rig(slots=9)
    rig.quotas["a.fn"] = Quota(max_inflight=9)
    rig.shares.set_pending("a", 2)
    other = rig.shares.flow("b")
    other.function = "a.fn"
    rig.shares.set_pending("b", 1)
    rig.admission.set_quota("a.fn", Quota(max_inflight=9))
    assert rig.balance() == {A: 3}
    assert rig.balance() == {}


async def test_tokens_without_a_slot_are_given_back_after_a_second(autojump_clock: MockClock) -> None:
    """Tokens that no slot is free for are given back after a second, and requested again at the next look."""
    rig = Rig(slots=2)
    rig.shares.set_pending("busy", 1)
    for _ in range(2):
        rig.shares.start(rig.shares.flow("busy"), 0, 0.0)
    rig.quotas["a.fn"] = Quota(max_inflight=1)
    rig.shares.set_pending("a", 5)
    flow = rig.shares.flow("a")
    autojump_clock.jump(7.0)
    assert rig.balance() == {A: 1}
    rig.add_tokens(0)
    flow.recalling = True  # so that it gets no credit
    for seconds, given_back, cap in ((0.5, [], 1), (0.5, ["0"], 0)):
        autojump_clock.jump(seconds)
        rig.shares.mark_changed(flow)
        assert rig.balance() == {}
        assert (rig.given_back, flow.cap) == (given_back, cap)
    assert rig.balance() == {A: 1}


async def test_tokens_are_kept_for_each_function_by_its_own_time(autojump_clock: MockClock) -> None:
    """A function that has just had a slot keeps its tokens, whatever another one had."""
    rig = Rig(slots=1)
    for name in ("a", "b"):
        rig.quotas[f"{name}.fn"] = Quota(max_inflight=2)
        rig.shares.set_pending(name, 5)
    rig.add_tokens(0)
    rig.shares.free = 0
    for name in ("a", "b"):
        rig.shares.flow(name).recalling = True  # so that they get no credit
    rig.balance()
    autojump_clock.jump(0.5)
    assert rig.admission.start(rig.shares.flow("a"))
    rig.add_tokens(1)
    autojump_clock.jump(0.5)
    rig.balance()
    assert rig.given_back == []


@pytest.mark.parametrize("why", ["free slot", "credit", "start"])
async def test_tokens_that_can_be_used_are_kept(autojump_clock: MockClock, why: str) -> None:
    """Tokens are kept while a slot is free and for a second more, also with credit, and after the flow had a slot."""
    rig = Rig(slots=2)
    rig.quotas["a.fn"] = Quota(max_inflight=2)
    rig.shares.set_pending("a", 5)
    flow = rig.shares.flow("a")
    rig.balance()
    rig.add_tokens(0, 1)
    flow.recalling = True  # so that it gets no credit
    rig.shares.free = 1 if why == "free slot" else 0
    flow.credit = 1 if why == "credit" else 0
    autojump_clock.jump(10.0)
    if why == "free slot":
        rig.balance()
        rig.shares.free = 0
        autojump_clock.jump(0.5)
    if why == "start":
        flow.running = 1
        assert rig.admission.start(flow)
        autojump_clock.jump(0.5)
    rig.shares.mark_changed(flow)
    rig.balance()
    assert rig.given_back == []


async def test_stop_gives_back_all_tokens(autojump_clock: MockClock) -> None:
    """After the stop no token is kept: free ones are given back, later ones on arrival, others with their end."""
    assert autojump_clock
    rig = Rig()
    rig.quotas["a.fn"] = Quota(max_inflight=4)
    rig.shares.set_pending("a", 5)
    flow = rig.shares.flow("a")
    rig.add_tokens(0, 1)
    held = rig.admission.start(flow)
    assert rig.given_back == []
    rig.admission.stop()
    assert rig.given_back == ["1"]
    rig.add_tokens(2)
    assert rig.given_back == ["1", "2"]
    rig.admission.finish(flow, held)
    assert rig.given_back == ["1", "2", "0"]
