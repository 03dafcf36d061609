"""The demand of one flow, and the order in which flows with demand get free slots."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from worker.policy.flow import PATIENCE, DemandQueue, Flow, SharedFlow
from worker.policy.limiter import Limiter


def make_flow(**numbers: Any) -> Flow:
    """Return a flow that the queue has."""
    return Flow("a", **{"exists": True, **numbers})


def make_limiter(limit: int) -> Limiter:
    limiter = Limiter(100)
    limiter.limit = limit
    return limiter


@pytest.mark.parametrize(
    ("numbers", "demand"),
    [
        pytest.param({"pending": 5}, 5, id="all pending messages"),
        pytest.param({"pending": 5, "credit": 2}, 3, id="less what is requested already"),
        pytest.param({"pending": 5, "running": 3}, 5, id="running messages are not pending"),
        pytest.param({"pending": 5, "cap": 4, "running": 1, "credit": 1}, 2, id="its cap"),
        pytest.param({"pending": 5, "limiter": make_limiter(3), "running": 2}, 1, id="its limiter"),
        pytest.param({"pending": 5, "limiter": make_limiter(3), "cap": 2}, 2, id="the lower of both"),
        pytest.param({"pending": 5, "paused": True}, 0, id="none while it is paused"),
        pytest.param({"pending": 5, "exists": False}, 0, id="none where the queue does not have it"),
        pytest.param({"pending": 5, "credit": 1, "recalling": True}, 0, id="none during a recall"),
        pytest.param({"stored": 3, "running": 2}, 1, id="one, to find a message that is due again"),
        pytest.param({"stored": 2, "running": 2}, 0, id="none where all stored messages run here"),
        pytest.param({"stored": 3, "running": 2, "credit": 1}, -1, id="no second one to find it"),
        pytest.param({"stored": 3, "silent_until": 8.0}, 1, id="one after its silence"),
        pytest.param({"stored": 3, "silent_until": 8.5}, 0, id="none in its silence"),
        pytest.param({"stored": 3, "pending": 2, "silent_until": 8.5}, 2, id="pending messages in its silence"),
    ],
)
def test_flow_demand_is_what_could_start_at_once(numbers: dict[str, Any], demand: float) -> None:
    """A flow demands slots for messages that may be pending and are not requested, up to its limit."""
    assert make_flow(**numbers).demand(8.0) == demand


@pytest.mark.parametrize(
    ("numbers", "idle"),
    [
        pytest.param({"credit": 5, "pending": 2, "stored": 2}, 3, id="above its pending messages"),
        pytest.param({"credit": 5, "pending": 9, "stored": 9}, 0, id="none with more pending messages"),
        pytest.param({"credit": 5, "stored": 1}, 4, id="one stays for a message that is due again"),
        pytest.param({"credit": 5, "stored": 1, "running": 1}, 5, id="none stays where all stored messages run here"),
        pytest.param({"stored": 1}, 0, id="none without credit"),
        pytest.param({"credit": 5, "recalling": True}, 0, id="none during a recall"),
        pytest.param({"credit": 5, "pending": 9, "stored": 9, "credited_at": 0.0}, 5, id="all in the end"),
        pytest.param({"credit": 5, "credited_at": 0.0, "recalling": True}, 0, id="none twice"),
    ],
)
def test_flow_idle_credit_is_what_brings_no_message(numbers: dict[str, Any], idle: float) -> None:
    """Credit is idle above the pending messages, and all of it once messages have not arrived in time."""
    assert make_flow(**{"credited_at": PATIENCE, **numbers}).idle_credit(PATIENCE) == idle


def test_shared_flow_always_has_demand() -> None:
    """The shared flow has demand for any number of slots, because its pending messages are not counted."""
    flow = SharedFlow()
    assert (flow.name, flow.pending_demand(0.0)) == ("", inf)
    flow.exists, flow.credit = True, 5
    assert flow.demand(0.0) == inf


def first(free: int, *flows: Flow) -> str | None:
    """Return the name of the flow that gets the next slot; the flows get demand in this order."""
    queue = DemandQueue()
    for flow in flows:
        queue.add(flow)
    chosen = queue.first(free)
    return chosen.name if chosen else None


def test_demand_queue_minimum_goes_before_parts() -> None:
    """A flow below its minimum goes first, whatever it holds and has used; at its minimum it has no such claim."""
    other = Flow("other")
    assert first(9, other, Flow("b", min_slots=3, running=2, usage=100.0)) == "b"
    assert first(9, other, Flow("b", min_slots=2, running=2)) == "other"


def test_demand_queue_minimums_fill_evenly() -> None:
    """Of flows below their minimums the one with the smallest part of it goes first, then the one served earlier."""
    assert first(9, Flow("b", min_slots=3, running=2), Flow("a", min_slots=8, running=4)) == "a"
    one, other = Flow("b", min_slots=2, running=1, last_grant=2), Flow("a", min_slots=4, running=2, last_grant=1)
    assert first(9, one, other) == "a"


def test_demand_queue_flow_furthest_below_its_part_goes_first() -> None:
    """Of flows a whole slot below their parts the one with the least for its weight goes first.

    Their parts are 8/3 for each unit of weight.
    """
    assert first(6, Flow("b", running=1), Flow("a", weight=2, running=1, usage=100.0)) == "a"
    one, other = Flow("b", running=1, last_grant=2), Flow("a", weight=2, running=2, last_grant=1)
    assert first(6, one, other) == "a"
    assert first(6, Flow("b", running=1, usage=2.0), Flow("a", running=1, usage=1.0)) == "a"


def test_demand_queue_whole_slot_goes_before_fractions() -> None:
    """A flow exactly one slot below its part goes before one that is half a slot below it, whatever it has used.

    Two slots are free and four are held, so 3/2 are due for each unit of weight: 3 to a, and 3/2 to b and c.
    """
    low = Flow("a", weight=2, running=2, usage=100.0, last_grant=9)
    assert first(2, Flow("b", running=1), low, Flow("c", running=1)) == "a"


def test_demand_queue_fraction_goes_before_a_full_part() -> None:
    """A flow a fraction below its part goes before one that has all of it and has used less.

    One slot is free and five are held, so 3/2 are due for each unit of weight: 3 to a, and 3/2 to b and c.
    """
    full = Flow("a", weight=2, running=3)
    assert first(1, full, Flow("b", running=1, usage=200.0), Flow("c", running=1, usage=100.0)) == "c"


def test_demand_queue_fractions_go_to_the_least_usage() -> None:
    """Fractions go to the flow with the least usage, then to the one that holds least for its weight.

    One slot is free and two are held, so 3/5 are due for each unit of weight: 6/5 to b, and 9/5 to a.
    """
    assert first(1, Flow("b", weight=2, running=1, usage=2.0), Flow("a", weight=3, running=1, usage=1.0)) == "a"
    assert first(1, Flow("b", weight=2, running=1, usage=1.0), Flow("a", weight=3, running=1, usage=2.0)) == "b"
    assert first(1, Flow("b", weight=2, running=1), Flow("a", weight=3, running=1)) == "a"


def test_demand_queue_equal_flows_go_in_turn() -> None:
    """Of flows with equal numbers in different lines the one that was served earlier goes first."""
    one, other = Flow("b", weight=3, last_grant=2), Flow("a", weight=2, last_grant=1)
    assert first(0, one, other) == "a"


def test_demand_queue_counts_credit_as_held() -> None:
    """Credit counts as much as running invocations."""
    assert first(8, Flow("b", credit=2), Flow("a", running=1)) == "a"


def test_demand_queue_after_remove_is_as_if_never_added() -> None:
    """A flow without demand has no part: the others divide what they hold and what is free."""
    queue, gone = DemandQueue(), Flow("gone", weight=5, running=9)
    low = Flow("a", weight=2, running=2, usage=100.0, last_grant=9)
    queue.add(gone)
    for flow in (Flow("b", running=1), low, Flow("c", running=1)):
        queue.add(flow)
    assert queue.flows == 4
    queue.remove(gone)
    queue.remove(gone)
    assert (queue.flows, gone.entry) == (3, None)
    assert queue.first(2) is low
    queue.remove(low)
    assert (queue.flows, queue.first(2) is low) == (2, False)


def test_demand_queue_flow_added_again_has_its_new_place() -> None:
    """A flow that was added again stands where its present numbers put it."""
    queue, one, other = DemandQueue(), Flow("a"), Flow("b", running=1)
    queue.add(one)
    queue.add(other)
    assert queue.first(8) is one
    queue.remove(one)
    one.running = 2
    queue.add(one)
    assert (queue.flows, queue.first(8)) == (2, other)


def test_demand_queue_empty_has_no_first_flow() -> None:
    """Without demand no flow gets a slot, even after there was one."""
    queue, flow = DemandQueue(), Flow("a")
    assert queue.first(3) is None
    queue.add(flow)
    queue.remove(flow)
    assert (queue.first(3), queue.flows) == (None, 0)


def test_demand_queue_virtual_time_is_the_highest_usage_served() -> None:
    """The virtual time is the highest usage of a flow that got a slot, and grants are numbered in order."""
    queue, one, other = DemandQueue(), Flow("a", usage=5.0), Flow("b", usage=3.0)
    queue.note_grant(one)
    queue.note_grant(other)
    assert queue.virtual_time == 5.0
    assert 0 < one.last_grant < other.last_grant
