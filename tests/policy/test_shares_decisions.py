"""The decisions of Shares, one event at a time, with exact numbers."""

from __future__ import annotations

from math import inf

import pytest

from worker.model import SHARED
from worker.policy import flow_times
from worker.policy.flow import PATIENCE, Flow
from worker.policy.limiter import Limiter
from worker.policy.shares import LONGEST_QUIET, QUIET, TOKEN_CHECK, Shares


def credits_at(shares: Shares, now: float) -> dict[str, int]:
    """Decide, and return the credit given to each flow."""
    return {flow.name: more for flow, more in shares.decide(now).credits.items()}


def recalls_at(shares: Shares, now: float) -> list[str]:
    """Decide, and return the flows whose credit is recalled."""
    return [flow.name for flow in shares.decide(now).recalls]


def busy(slots: int, *names: str, now: float = 0.0) -> Shares:
    """Return shares whose slots all run invocations of these flows, evenly, with no other messages."""
    shares = Shares(slots)
    for name in names:
        shares.set_pending(name, slots // len(names))
    shares.decide(now)
    for name in names:
        for _ in range(slots // len(names)):
            shares.start(shares.flow(name), 0, now)
    shares.decide(now)
    assert shares.free == 0
    return shares


def running_one_each(slots: int, *names: str) -> Shares:
    """Return shares where each of these flows runs its only message, before the first decision."""
    shares = Shares(slots)
    for name in names:
        shares.set_stored(name, 1)
        shares.start(shares.flow(name), 0, 0.0)
    shares._surplus.clear()
    return shares


# The numbers of a flow


def test_set_stored_creates_no_flow_without_messages() -> None:
    """A flow of which nothing is stored is not created, and one that is known has no stored messages any more."""
    shares = Shares(4)
    shares.set_stored("a", 0)
    assert [*shares.flows] == []
    shares.set_stored("a", 3)
    (flow,) = shares.flows
    assert (flow.name, flow.exists, flow.stored, flow.pending) == ("a", True, 3, 0)
    shares.set_stored("a", 0)
    assert (flow.exists, flow.stored) == (True, 0)


def test_set_pending_messages_are_stored_too() -> None:
    """Pending messages are stored ones, and others may be stored besides."""
    shares = Shares(4)
    shares.set_pending("a", 3)
    flow = shares.flow("a")
    assert (flow.pending, flow.stored) == (3, 3)
    shares.set_stored("a", 7)
    shares.set_pending("a", 2)
    assert (flow.pending, flow.stored) == (2, 7)


def test_has_room_with_a_free_slot_or_credit() -> None:
    """A message has a slot if one is free, or if its flow has credit."""
    shares = Shares(2)
    one, other = shares.flow("a"), shares.flow("b")
    shares.start(one, 0, 0.0)
    assert shares.has_room(other)
    shares.set_pending("b", 1)
    assert credits_at(shares, 0.0) == {"b": 1}
    assert (shares.free, shares.has_room(one), shares.has_room(other)) == (0, False, True)


def test_start_uses_credit_before_a_free_slot() -> None:
    """A message takes the slot of its flow's credit, and only without credit a free one."""
    shares = Shares(3)
    shares.set_pending("a", 2)
    flow = shares.flow("a")
    flow.cap = 2
    assert credits_at(shares, 0.0) == {"a": 2}
    flow.silence = 0.4
    shares.start(flow, 1, 5.0)
    assert (flow.credit, flow.running, flow.pending, shares.free) == (1, 1, 1, 1)
    assert (flow.credited_at, flow.silence) == (5.0, 0.0)
    shares.start(flow, 0, 6.0)
    shares.start(flow, 0, 7.0)
    assert (flow.credit, flow.running, flow.pending, shares.free) == (0, 3, 0, 0)


def test_note_arrival_without_credit_gives_the_queue_one_more() -> None:
    """The queue counts a message that came without credit against later credit, so it gets one more for each."""
    shares = busy(4, "a", "b")
    flow = shares.flow("a")
    for _ in range(2):
        shares.note_arrival(flow, 0, 1.0)
    assert credits_at(shares, 1.0) == {"a": 2}
    assert (flow.credit, shares.free) == (0, 0)
    assert credits_at(shares, 1.0) == {}


def test_note_arrival_of_a_flow_that_has_ended_gives_nothing() -> None:
    """A message of a flow that has ended is counted by no queue."""
    shares = Shares(4)
    flow = shares.flow("a")
    shares.note_arrival(flow, 0, 0.0)
    assert credits_at(shares, 0.0) == {}


@pytest.mark.parametrize(("final", "stored", "left"), [(True, 3, 2), (False, 3, 3), (True, 0, 0)])
def test_finish_frees_the_slot_and_charges_its_time(*, final: bool, stored: int, left: int) -> None:
    """The end of an invocation frees its slot, charges its seconds by weight, and counts a message that has left."""
    shares = busy(2, "a")
    flow = shares.flow("a")
    flow.stored, flow.weight, flow.usage = stored, 4, 10.0
    shares.finish(flow, 6.0, final=final)
    assert (flow.stored, flow.usage, flow.running, shares.free) == (left, 11.5, 1, 1)
    assert shares.flow("a") is flow


def test_finish_forgets_a_flow_that_has_ended() -> None:
    """A flow that has ended is forgotten when its last invocation ends."""
    shares = busy(2, "a")
    flow = shares.flow("a")
    shares.remove("a")
    shares.finish(flow, 1.0, final=True)
    assert [*shares.flows] == [flow]
    shares.finish(flow, 1.0, final=True)
    assert [*shares.flows] == []
    assert credits_at(shares, 1.0) == {}
    assert shares.free == 2


def test_finish_of_a_forgotten_flow_reports_no_limit() -> None:
    """No decision looks at a flow that was forgotten, so its limit is not reported."""
    shares = Shares(2, lambda name: Flow(name, name, limiter=Limiter(8)))
    shares.set_pending("a", 1)
    shares.decide(0.0)
    flow = shares.flow("a")
    shares.start(flow, 0, 0.0)
    shares.decide(0.0)
    shares.remove("a")
    assert flow.limiter
    flow.limiter.limit = 5
    shares.finish(flow, 1.0, final=True)
    assert shares.decide(1.0).new_limits == []


def test_remove_frees_the_credit_and_forgets_the_flow() -> None:
    """The credit of a flow that ends is free for others at once, and a flow of that name begins again without it."""
    shares = Shares(4)
    shares.set_pending("a", 4)
    shares.decide(0.0)
    flow = shares.flow("a")
    flow.recalling = True
    shares.remove("a")
    assert (shares.free, flow.credit, flow.exists, flow.pending, flow.stored) == (4, 0, False, 0, 0)
    assert not flow.recalling
    assert [*shares.flows] == []
    shares.set_pending("b", 4)
    assert credits_at(shares, 0.0) == {"b": 4}
    assert shares.flow("a") is not flow


def test_flow_that_begins_again_has_no_silence() -> None:
    """A flow that ended and begins while its last invocation runs has no silence from before."""
    shares = busy(2, "a")
    flow = shares.flow("a")
    shares.remove("a")
    flow.silence, flow.silent_until = 0.8, 99.0
    shares.set_stored("a", 5)
    assert (flow.exists, flow.silence, flow.silent_until) == (True, 0.0, -inf)
    flow.silence, flow.silent_until = 0.8, 99.0
    shares.set_stored("a", 6)
    assert (flow.silence, flow.silent_until) == (0.8, 99.0)


def test_flow_that_begins_late_has_no_claim_from_before() -> None:
    """The usage of a new flow begins where the flow that was last served stands."""
    shares = Shares(1)
    shares.set_pending("a", 9)
    shares.flow("a").usage = 7.0
    shares.decide(0.0)
    assert shares.flow("b").usage == 7.0


@pytest.mark.parametrize(("running", "usage"), [(0, 7.0), (1, 2.0)])
def test_flow_idle_for_a_time_has_no_claim_from_then(running: int, usage: float) -> None:
    """A flow that had neither slot nor demand gets no turns for that time; one that runs keeps its usage."""
    shares = Shares(2)
    shares.set_pending("a", 9)
    shares.flow("a").usage = 7.0
    flow = shares.flow("b")
    flow.usage = 2.0
    shares.free -= running
    flow.running = running
    shares.decide(0.0)
    shares.set_pending("b", 9)
    shares.decide(0.0)
    assert flow.usage == usage


# Silence


def test_take_back_doubles_the_silence() -> None:
    """After credit whose messages did not arrive a flow gets none for 0.05 s, doubling to 1 s."""
    shares = Shares(1)
    shares.set_stored("a", 5)
    shares.set_pending("b", 5)
    flow, now, silences = shares.flow("a"), 8.0, []
    flow.last_grant = -1
    for _ in range(7):
        flow.credit, shares.free = 1, 0
        shares.take_back("a", 1, now)
        silences.append(flow.silence)
        assert flow.silent_until == now + flow.silence
    assert silences == [QUIET, 2 * QUIET, 4 * QUIET, 8 * QUIET, 16 * QUIET, LONGEST_QUIET, LONGEST_QUIET]
    assert (QUIET, LONGEST_QUIET) == (0.05, 1.0)


def test_take_back_of_nothing_ends_the_recall_alone() -> None:
    """A recall that found all messages on their way ends, and is no reason for silence."""
    shares = Shares(4)
    shares.set_pending("a", 4)
    shares.decide(0.0)
    flow = shares.flow("a")
    flow.recalling = True
    shares.take_back("a", 0, 1.0)
    assert (flow.recalling, flow.credit, flow.pending, flow.silence, flow.silent_until) == (False, 4, 4, 0.0, -inf)
    assert shares.free == 0


def test_take_back_of_more_than_there_is_frees_what_there_is() -> None:
    """Credit that has turned into messages is not free a second time, and then nothing is pending."""
    shares = Shares(4)
    shares.set_pending("a", 4)
    shares.decide(0.0)
    flow = shares.flow("a")
    shares.start(flow, 3, 0.0)
    shares.take_back("a", 4, 1.0)
    assert (shares.free, flow.credit, flow.running, flow.pending) == (3, 0, 1, 0)


def test_decide_after_silence_tries_one_message() -> None:
    """A silent flow is looked at when its silence is over; then one message is requested, if a slot is free."""
    shares = busy(2, "b")
    shares.set_stored("a", 5)
    shares.flow("a").silent_until = 3.0
    assert shares.decide(1.0).decide_at == 3.0
    decision = shares.decide(3.0)
    assert (decision.credits, decision.decide_at) == ({}, inf)
    shares.finish(shares.flow("b"), 1.0, final=True)
    assert credits_at(shares, 4.0) == {"a": 1}


def test_decide_plans_nothing_for_a_silent_flow_that_runs_all() -> None:
    """The end of a silence is no reason to decide where all stored messages run on this worker."""
    shares = busy(2, "a")
    shares.flow("a").silent_until = 3.0
    shares.mark_changed(shares.flow("a"))
    assert shares.decide(1.0).decide_at == inf


# Redeliveries


def test_finish_with_redelivery_is_pending_when_due() -> None:
    """A message that was given back is pending again at its time, also in a silence."""
    shares = busy(1, "a")
    flow = shares.flow("a")
    flow.cap = 1
    shares.finish(flow, 1.0, final=False, redelivery_at=5.0)
    flow.silent_until = 99.0
    flow.pending = 0
    shares.set_pending("b", 9)
    shares.flow("b").cap = 0
    assert shares.decide(4.0).decide_at == 5.0
    assert flow.pending == 0
    shares.decide(5.0)
    assert (flow.pending, flow.silent_until, flow.credit) == (1, -inf, 1)


def test_finish_with_redelivery_of_a_flow_that_ends_is_ignored() -> None:
    """A redelivery of a flow that has ended by then is not pending, and later ones of other flows are."""
    shares = busy(2, "a", "b")
    one, other = shares.flow("a"), shares.flow("b")
    shares.finish(one, 1.0, final=False, redelivery_at=5.0)
    shares.finish(other, 1.0, final=False, redelivery_at=5.0)
    shares.remove("a")
    shares.decide(5.0)
    assert (one.pending, other.pending) == (0, 1)


@pytest.mark.parametrize("name", [SHARED, "a"])
def test_finish_with_redelivery_decides_again_where_pending_counts(name: str) -> None:
    """The shared flow needs no time of a redelivery, because its pending messages are not counted."""
    shares = Shares(1)
    if name == SHARED:
        shares.add_shared()
    else:
        shares.set_pending(name, 1)
    shares.decide(0.0)
    flow = shares.flow(name)
    shares.start(flow, 0, 0.0)
    shares.finish(flow, 1.0, final=False, redelivery_at=5.0)
    assert shares.decide(1.0).decide_at == (inf if name == SHARED else 5.0)


def test_finish_remembers_a_bounded_number_of_redeliveries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The times of so many redeliveries are remembered, and no more."""
    assert flow_times.MOST_RETURNS == 10_000
    monkeypatch.setattr(flow_times, "MOST_RETURNS", 2)
    shares = busy(3, "a")
    flow = shares.flow("a")
    for _ in range(3):
        shares.finish(flow, 1.0, final=False, redelivery_at=5.0)
    flow.cap = 0
    shares.decide(5.0)
    assert flow.pending == 2


# Static mode


def test_decide_shared_flow_gets_every_slot() -> None:
    """In static mode the shared flow gets all slots, and each again as soon as it is free."""
    shares = Shares(4)
    shares.add_shared()
    decision = shares.decide(0.0)
    assert {flow.name: more for flow, more in decision.credits.items()} == {SHARED: 4}
    assert (decision.recalls, decision.decide_at) == ([], inf)
    flow = shares.flow(SHARED)
    assert flow.credited_at == 0.0
    shares.start(flow, 0, 1.0)
    assert credits_at(shares, 1.0) == {}
    shares.finish(flow, 1.0, final=True)
    assert credits_at(shares, 2.0) == {SHARED: 1}
    assert (flow.credit, shares.free) == (4, 0)


def test_decide_shared_flow_gets_what_the_queue_counts_against_it() -> None:
    """A message without credit gives the shared flow one more, with free slots and without."""
    shares = Shares(1)
    shares.add_shared()
    shares.decide(0.0)
    flow = shares.flow(SHARED)
    shares.start(flow, 0, 0.0)
    shares.note_arrival(flow, 0, 0.0)
    assert credits_at(shares, 0.0) == {SHARED: 1}
    shares.note_arrival(flow, 0, 0.0)
    shares.finish(flow, 1.0, final=True)
    assert credits_at(shares, 1.0) == {SHARED: 2}
    assert flow.credit == 1


def test_decide_shared_flow_beside_another_gets_its_share() -> None:
    """While another flow is active too, the shared flow does not get every slot."""
    shares = Shares(4)
    shares.add_shared()
    shares.set_pending("a", 9)
    assert credits_at(shares, 0.0) == {SHARED: 2, "a": 2}
    for _ in range(2):
        shares.start(shares.flow("a"), 0, 0.0)
        shares.finish(shares.flow("a"), 1.0, final=True)
    shares.remove("a")
    assert credits_at(shares, 0.0) == {SHARED: 2}


# Grants


def test_decide_flow_alone_gets_what_it_can_use() -> None:
    """A flow that alone has demand gets all that it can use at once; the rest is prefetch."""
    shares = Shares(8)
    shares.set_pending("a", 3)
    shares.flow("a").cap = 3
    decision = shares.decide(1.0)
    flow = shares.flow("a")
    assert decision.credits == {flow: 3}
    assert (shares.free, flow.credited_at, flow.last_grant) == (5, 1.0, 1)


def test_decide_two_flows_get_slots_in_turn() -> None:
    """With several flows, slots are given one at a time, so that the last goes to the one that was served earlier."""
    shares = Shares(5)
    shares.set_pending("a", 9)
    shares.set_pending("b", 9)
    assert credits_at(shares, 0.0) == {"a": 3, "b": 2}


def test_decide_without_change_gives_nothing() -> None:
    """A decision without an event since the last one gives and recalls nothing."""
    shares = Shares(2)
    shares.set_pending("a", 9)
    shares.set_pending("b", 9)
    shares.decide(0.0)
    decision = shares.decide(0.0)
    assert (decision.credits, decision.recalls, decision.new_limits) == ({}, [], [])


# Prefetch


def test_decide_prefetch_of_one_flow_takes_all_free_slots() -> None:
    """A flow that is active alone gets credit for all free slots, without known messages."""
    shares = Shares(16)
    shares.set_stored("a", 0)
    assert credits_at(shares, 0.0) == {}
    shares.set_stored("a", 1)
    assert credits_at(shares, 0.0) == {"a": 16}


def test_decide_prefetch_of_two_flows_is_even_with_a_reserve() -> None:
    """With two active flows, an eighth of the slots stays free, and what is left is divided evenly."""
    shares = running_one_each(17, "a", "b")
    assert shares.free == 15
    assert credits_at(shares, 3.0) == {"a": 7, "b": 6}
    assert [flow.credited_at for flow in shares.flows] == [3.0, 3.0]
    assert shares.free == 2
    assert credits_at(shares, 0.0) == {}


def test_decide_prefetch_takes_the_last_slot() -> None:
    """A single free slot is prefetched too."""
    shares = running_one_each(2, "a")
    assert credits_at(shares, 0.0) == {"a": 1}


def test_decide_prefetch_fills_up_the_flow_with_less() -> None:
    """A flow with less credit gets more until both have equally much."""
    shares = running_one_each(16, "a")
    shares.flow("a").cap = 4
    assert credits_at(shares, 0.0) == {"a": 3}
    shares.set_stored("b", 1)
    shares.start(shares.flow("b"), 0, 0.0)
    shares._surplus.clear()
    shares.flow("a").cap = inf
    assert credits_at(shares, 0.0) == {"a": 3, "b": 6}


def test_decide_prefetch_leaves_out_flows_at_their_limit() -> None:
    """No credit is prefetched above a flow's limit, or during its recall; others get it instead."""
    shares = running_one_each(16, "a", "b", "c")
    shares.flow("a").cap = 3
    shares.flow("b").recalling = True
    assert credits_at(shares, 0.0) == {"a": 2, "c": 9}


def test_decide_prefetch_remainder_goes_to_the_newest() -> None:
    """Where credit cannot be even, the flows that were served last have one more."""
    shares = running_one_each(12, "a", "b", "c")
    shares.flow("b").last_grant = 5
    shares.flow("c").last_grant = 3
    assert credits_at(shares, 0.0) == {"b": 3, "c": 3, "a": 2}


# Recalls


def test_decide_recalls_the_most_idle_credit_first() -> None:
    """For a flow with demand and no free slot, the flow with the most idle credit is recalled, and no other.

    The other credit may be needed too when its messages have not arrived in time, so decide again then.
    """
    shares = Shares(8)
    for name in ("a", "b"):
        shares.set_pending(name, 4)
    shares.decide(0.0)
    shares.start(shares.flow("a"), 0, 0.0)
    shares.flow("a").pending = shares.flow("b").pending = 0
    shares.set_pending("c", 1)
    decision = shares.decide(0.01)
    assert (decision.recalls, decision.decide_at) == ([shares.flow("b")], PATIENCE)
    assert shares.flow("b").recalling
    assert recalls_at(shares, 0.01) == []
    shares.take_back("b", 4, 0.02)
    assert "c" in credits_at(shares, 0.02)


def test_decide_recalls_what_is_left_of_credit() -> None:
    """Credit is recalled also after some of its messages have arrived, and is no reason to decide when it is used."""
    shares = Shares(2)
    shares.set_pending("a", 2)
    shares.decide(0.0)
    shares.start(shares.flow("a"), 0, 0.0)
    shares.set_stored("a", 1)
    shares.set_pending("b", 1)
    assert recalls_at(shares, 0.0) == ["a"]
    shares.take_back("a", 0, 0.0)
    shares.start(shares.flow("a"), 0, 0.01)
    shares.set_stored("a", 2)
    decision = shares.decide(0.02)
    assert (decision.recalls, decision.decide_at) == ([], inf)


def test_decide_recalls_for_each_flow_with_demand() -> None:
    """Credit is recalled until each flow with demand can have a slot, counting what is being recalled."""
    shares = Shares(3)
    for name in ("a", "b", "c"):
        shares.set_pending(name, 1)
    shares.decide(0.0)
    for name in ("a", "b", "c"):
        shares.flow(name).pending = shares.flow(name).stored = 0
    shares.set_pending("d", 5)
    shares.set_pending("e", 5)
    assert len(recalls_at(shares, 0.01)) == 2
    shares.set_pending("d", 6)
    assert recalls_at(shares, 0.01) == []
    shares.set_pending("f", 5)
    assert len(recalls_at(shares, 0.02)) == 1


@pytest.mark.parametrize("now", [1.0, 7.95, 8.0, 1234.567])
def test_decide_recalls_no_credit_that_has_messages(now: float) -> None:
    """Credit whose messages are pending is recalled only when they have not arrived in time: decide again then."""
    shares = Shares(2)
    shares.set_pending("a", 2)
    shares.decide(now)
    shares.set_pending("b", 2)
    decision = shares.decide(now)
    assert (decision.recalls, decision.decide_at) == ([], now + PATIENCE)
    decision = shares.decide(now + PATIENCE)
    assert ([flow.name for flow in decision.recalls], decision.decide_at) == (["a"], inf)


def test_decide_leaves_late_credit_that_no_flow_needs() -> None:
    """Credit that is not needed is no reason to decide again, although its messages did not arrive in time."""
    shares = Shares(4)
    for name in ("a", "b"):
        shares.set_pending(name, 2)
    shares.decide(1.0)
    shares.set_pending("c", 1)
    shares.decide(1.0)
    decision = shares.decide(1.0 + PATIENCE)
    assert (len(decision.recalls), decision.decide_at) == (1, inf)


def test_decide_recalls_credit_above_a_fallen_limit() -> None:
    """Credit above a limit that fell is recalled once, because what arrives for it could not start."""
    shares = Shares(8)
    shares.set_pending("a", 8)
    shares.decide(0.0)
    flow = shares.flow("a")
    flow.cap = 8
    shares.mark_changed(flow)
    assert recalls_at(shares, 0.0) == []
    flow.cap = 7
    shares.mark_changed(flow)
    assert recalls_at(shares, 0.0) == ["a"]
    shares.mark_changed(flow)
    assert recalls_at(shares, 0.0) == []


# Limits and tokens


def test_decide_new_limit_is_returned_once() -> None:
    """A flow whose limiter allows another number is returned once for each change; nothing else changes it."""
    shares = Shares(8, lambda name: Flow(name, name, limiter=Limiter(8)))
    shares.set_pending("a", 9)
    flow = shares.flow("a")
    assert shares.decide(0.0).new_limits == [flow]
    assert flow.last_limit == 1
    shares.mark_changed(flow)
    assert shares.decide(0.0).new_limits == []
    assert flow.limiter
    flow.limiter.limit = 3
    shares.mark_changed(flow)
    assert shares.decide(0.0).new_limits == [flow]
    assert flow.last_limit == 3


def test_decide_limiter_is_asked_when_due() -> None:
    """The limit of a flow rises when its limiter is due, and the decision before that names the time."""
    shares = Shares(8, lambda name: Flow(name, name, limiter=Limiter(8)))
    shares.set_pending("a", 9)
    shares.decide(0.0)
    flow = shares.flow("a")
    shares.start(flow, 8, 0.0)
    assert flow.limiter
    flow.limiter.started(0.0)
    due = flow.limiter.due
    assert 0.0 < due < inf
    assert shares.decide(0.0).decide_at == due
    shares.mark_changed(flow)
    before = shares.decide(due / 2)
    assert (before.new_limits, before.decide_at) == ([], due)
    decision = shares.decide(due)
    assert decision.new_limits == [flow]
    assert decision.credits == {flow: flow.limiter.limit - 1}


def test_decide_flow_with_tokens_is_looked_at_each_second() -> None:
    """A flow that needs tokens is returned with its changes, once, and each second while it is active."""
    shares = Shares(8)
    shares.set_pending("a", 9)
    assert shares.take_changed_limited() == []
    flow = shares.flow("a")
    flow.needs_tokens, flow.cap = True, 0
    assert shares.decide(5.0).decide_at == 5.0 + TOKEN_CHECK
    assert shares.take_changed_limited() == [flow]
    assert shares.take_changed_limited() == []
    shares.decide(5.5)
    assert shares.take_changed_limited() == []
    assert shares.decide(5.0 + TOKEN_CHECK).decide_at == 5.0 + 2 * TOKEN_CHECK
    assert shares.take_changed_limited() == [flow]
    flow.pending = flow.stored = 0
    shares.mark_changed(flow)
    assert shares.decide(9.0).decide_at == inf
    assert shares.take_changed_limited() == [flow]


@pytest.mark.parametrize("paused", [False, True])
def test_decide_gives_credit_for_tokens_and_looks_again(*, paused: bool) -> None:
    """A flow with tokens gets credit for them, by demand or prefetch, and is looked at a second later, also paused."""
    shares = Shares(4)
    for name, running in (("a", 0), ("b", 1)):
        shares.set_pending(name, 1)
        flow = shares.flow(name)
        flow.needs_tokens, flow.cap, flow.running, flow.pending = True, 2, running, 1 - running
    assert credits_at(shares, 5.0) == {"a": 2, "b": 1}
    shares.set_paused({""} if paused else ())
    decision = shares.decide(6.0)
    assert (len(decision.recalls), decision.decide_at) == (2 * paused, 6.0 + TOKEN_CHECK)


def test_decide_recall_of_a_flow_with_tokens_looks_again() -> None:
    """A flow with tokens whose idle credit is recalled for another one is looked at a second later."""
    shares = Shares(2)
    shares.set_stored("a", 1)
    shares.flow("a").needs_tokens = True
    shares.decide(5.0)
    shares.set_pending("b", 1)
    decision = shares.decide(6.0)
    assert (decision.recalls, decision.decide_at) == ([shares.flow("a")], 6.0 + TOKEN_CHECK)


def test_decide_flow_with_pending_messages_is_active() -> None:
    """A flow whose messages are pending is active also where the count of its stored messages is behind."""
    shares = Shares(4)
    shares.set_pending("a", 3)
    flow = shares.flow("a")
    flow.needs_tokens, flow.cap, flow.stored = True, 0, 0
    assert shares.decide(5.0).decide_at == 5.0 + TOKEN_CHECK


def test_set_paused_looks_at_every_flow() -> None:
    """Flows of paused functions are recalled, others are not, and a later list replaces the earlier one."""
    shares = Shares(8, lambda name: Flow(name, f"{name}.fn"))
    shares.set_pending("a", 4)
    shares.set_pending("b", 4)
    shares.decide(0.0)
    shares.set_paused({"a.fn"})
    assert (shares.flow("a").paused, shares.flow("b").paused) == (True, False)
    assert recalls_at(shares, 0.0) == ["a"]
    shares.set_paused({"b.fn"})
    assert (shares.flow("a").paused, shares.flow("b").paused) == (False, True)
    assert recalls_at(shares, 0.0) == ["b"]
    assert shares.flow("c").paused is False


def test_desired_counts_credit_and_what_else_could_start() -> None:
    """A flow desires tokens for its credit, and for pending messages beyond it that could start."""
    shares = Shares(10)
    shares.set_pending("a", 6)
    flow = shares.flow("a")
    flow.cap = 2
    shares.decide(0.0)
    assert flow.credit == 2
    assert shares.desired(flow) == 6
    flow.pending = 0
    assert shares.desired(flow) == 2


def test_desired_in_a_silence_is_one_for_a_message_that_is_due_again() -> None:
    """A flow desires a token for a message that may be due again, although no credit is given in its silence."""
    shares = Shares(10)
    shares.set_stored("a", 1)
    shares.flow("a").silent_until = 99.0
    assert shares.desired(shares.flow("a")) == 1


def test_desired_of_a_flow_without_messages_is_none() -> None:
    """A flow that the queue has, and of which nothing is stored, desires no tokens, also where no flow is active."""
    shares = Shares(10)
    shares.set_stored("a", 1)
    shares.set_stored("a", 0)
    shares.decide(0.0)
    assert shares.desired(shares.flow("a")) == 0
