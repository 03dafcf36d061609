"""The times at which flows are looked at without an event."""

from __future__ import annotations

from math import inf

from worker.policy.flow import Flow
from worker.policy.flow_times import FlowTimes


def test_flow_times_empty_has_no_next_time() -> None:
    """Without a plan no flow is ever due."""
    times = FlowTimes()
    assert (times.next_at(), times.take_due(1e9)) == (inf, [])


def test_set_check_later_plan_replaces_the_earlier() -> None:
    """A flow is due at the last planned time alone, once, whether that is later or earlier than the one before."""
    times, one, other = FlowTimes(), Flow("a"), Flow("b")
    times.set_check(one, 5.0)
    times.set_check(one, 7.0)
    times.set_check(other, 9.0)
    times.set_check(other, 8.0)
    assert times.take_due(5.0) == []
    assert times.next_at() == 7.0
    assert times.take_due(7.5) == [one]
    assert (one.check_at, times.next_at()) == (inf, 8.0)
    assert times.take_due(9.5) == [other]
    assert (times.take_due(9.5), times.next_at()) == ([], inf)


def test_set_check_without_time_cancels_the_plan() -> None:
    """A flow without a time is not due, and plans nothing; the same time twice is one plan."""
    times, flow = FlowTimes(), Flow("a")
    times.set_check(flow, 5.0)
    times.set_check(flow, inf)
    assert times.next_at() == inf
    assert (times.checks, times.take_due(5.0)) == ([], [])
    times.set_check(flow, 6.0)
    times.set_check(flow, 6.0)
    assert len(times.checks) == 1
    assert times.take_due(6.0) == [flow]


def test_take_due_returns_flows_in_the_order_of_their_times() -> None:
    """Flows that are due at the same time are returned in the order in which they were planned."""
    times = FlowTimes()
    flows = [Flow(name) for name in "abc"]
    for flow, at in zip(flows, (2.0, 1.0, 2.0), strict=True):
        times.set_check(flow, at)
    assert times.take_due(2.0) == [flows[1], flows[0], flows[2]]


def test_add_redelivery_message_is_pending_at_its_time() -> None:
    """At its time each message is one more that is pending, and ends the silence of its flow."""
    times, flow = FlowTimes(), Flow("a", exists=True, pending=3, silent_until=99.0)
    times.add_redelivery(flow, 5.0)
    times.add_redelivery(flow, 5.0)
    times.add_redelivery(flow, 6.0)
    times.set_check(flow, 5.5)
    assert times.next_at() == 5.0
    assert (times.take_due(4.9), flow.pending) == ([], 3)
    assert times.take_due(5.0) == [flow, flow]
    assert (flow.pending, flow.silent_until, times.next_at()) == (5, -inf, 5.5)
    assert times.take_due(6.0) == [flow, flow]
    assert (flow.pending, times.next_at()) == (6, inf)


def test_add_redelivery_of_an_ended_flow_is_ignored() -> None:
    """A message of a flow that has ended by then is not pending."""
    times, flow = FlowTimes(), Flow("a", silent_until=99.0)
    times.add_redelivery(flow, 5.0)
    assert times.take_due(5.0) == []
    assert (flow.pending, flow.silent_until) == (0, 99.0)
