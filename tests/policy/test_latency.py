"""The latency tracker: the usual latency, and the cut of the limit when a function becomes slow."""

from __future__ import annotations

from math import inf

import pytest

from worker.policy.latency import LatencyTracker


def add(tracker: LatencyTracker, latency: float, count: int, *, limit: int = 1, in_flight: int = 1) -> list[float]:
    """Add as many answers, one a second, and return the parts to cut that are not 0."""
    parts = (tracker.add(latency, 100.0 + n, limit, in_flight) for n in range(count))
    return [part for part in parts if part]


def usual(latency: float = 1.0) -> LatencyTracker:
    """Return a tracker after its first comparison of latencies."""
    tracker = LatencyTracker()
    add(tracker, latency, 10)
    return tracker


def test_latency_nothing_measured_does_not_restrict_the_limit_below_200() -> None:
    """Before the first answer the limit may rise to 200."""
    tracker = LatencyTracker()
    assert (tracker.usual, tracker.slow, tracker.max_limit, tracker.since) == (0.0, False, 200, -inf)


def test_latency_first_ten_answers_are_the_usual_latency() -> None:
    """The first comparison takes ten answers, the next ones twenty."""
    tracker = LatencyTracker()
    assert add(tracker, 1.0, 9) == []
    assert tracker.usual == 0.0
    add(tracker, 3.0, 1)
    assert tracker.usual == pytest.approx(1.2)
    add(tracker, 1.4, 19)
    assert tracker.usual == pytest.approx(1.2)
    add(tracker, 1.4, 1)
    assert tracker.usual == pytest.approx(1.3)  # the second comparison moves it by half of the difference


def test_latency_as_many_answers_as_the_limit_are_compared() -> None:
    """A comparison takes as many answers as the limit, because earlier invocations may have begun at another limit."""
    tracker = LatencyTracker()
    add(tracker, 1.0, 29, limit=30)
    assert (tracker.usual, tracker.max_limit) == (1.0, 200)
    add(tracker, 1.0, 1, limit=30)
    assert tracker.max_limit == 65


@pytest.mark.parametrize(("limit", "max_limit"), [(1, 7), (10, 25), (100, 205)])
def test_latency_compared_at_a_limit_allows_twice_that_and_five(limit: int, max_limit: int) -> None:
    """The limit may not rise further before latencies are compared again."""
    tracker = LatencyTracker()
    add(tracker, 1.0, max(10, limit), limit=limit)
    assert tracker.max_limit == max_limit


@pytest.mark.parametrize(("latency", "slow"), [(1.0, False), (1.5, False), (1.51, True), (2.0, True)])
def test_latency_above_1_5_times_the_usual_is_slow(latency: float, slow: bool) -> None:
    """The limit must not rise then, but is not cut at twice the usual latency or less."""
    tracker = usual()
    assert add(tracker, latency, 20) == []
    assert tracker.slow is slow
    assert add(tracker, 1.0, 20) == []
    assert not tracker.slow


def test_latency_slow_is_in_proportion_to_the_usual_one() -> None:
    """Where 4 s are usual, 5 s are not slow."""
    tracker = usual(4.0)
    add(tracker, 5.0, 20)
    assert not tracker.slow


def test_latency_of_twice_the_usual_leads_to_no_cut() -> None:
    """A latency of exactly twice the usual one leads to no cut, however often it is measured."""
    tracker = usual()
    assert add(tracker, 2.0, 20) == []
    assert tracker.usual > 1.0


def test_latency_high_in_the_first_comparison_leads_to_no_cut() -> None:
    """The limit rose while it was measured, and latency may have risen with it."""
    tracker = LatencyTracker()
    add(tracker, 1.0, 10, limit=30)
    assert add(tracker, 10.0, 20, limit=30, in_flight=30) == []
    assert tracker.usual == 1.0


def test_latency_slow_is_known_before_as_many_answers_as_the_limit() -> None:
    """After 20 slow answers the limit stops rising, although a cut takes as many answers as the limit."""
    tracker = usual()
    add(tracker, 1.6, 19, limit=100)
    assert not tracker.slow
    add(tracker, 1.6, 1, limit=100)
    assert tracker.slow


def test_latency_usual_moves_down_faster_than_up() -> None:
    """After many comparisons by a sixteenth of the difference down, and by a thirty-second up."""
    tracker = usual()
    for _ in range(40):
        add(tracker, 1.0, 20)
    add(tracker, 1.32, 20)
    assert tracker.usual == pytest.approx(1.01)
    add(tracker, 1.01 - 0.16, 20)
    assert tracker.usual == pytest.approx(1.0)


def test_latency_above_twice_the_usual_is_measured_again_before_a_cut() -> None:
    """The first measurement may be of the time in which the limit rose. Earlier invocations do not count then."""
    tracker = usual()
    assert add(tracker, 2.01, 20) == []
    assert tracker.since == 119.0
    assert add(tracker, 2.01, 20) == [pytest.approx(1 - 1.5 / 2.01)]
    assert tracker.usual == 1.0


@pytest.mark.parametrize(("latency", "part"), [(2.4, 0.375), (3.0, 0.5), (10.0, 0.5)])
def test_latency_cut_is_in_proportion_and_half_at_most(latency: float, part: float) -> None:
    """A cut leaves 1.5 times the usual latency by the recent one, if that is more than half."""
    tracker = usual()
    add(tracker, latency, 20)
    assert add(tracker, latency, 20) == [pytest.approx(part)]


@pytest.mark.parametrize(("in_flight", "parts"), [(9, []), (10, [0.5])])
def test_latency_of_an_unused_limit_leads_to_no_cut(in_flight: int, parts: list[float]) -> None:
    """With less than half of the limit in flight, the load of this worker is not the cause."""
    tracker = usual()
    for _ in range(2):
        cuts = add(tracker, 4.0, 20, limit=20, in_flight=in_flight)
    assert cuts == parts


def test_latency_with_a_limit_of_zero_leads_to_no_cut() -> None:
    """With a limit of zero, as in a rest, nothing is cut."""
    tracker = usual()
    add(tracker, 4.0, 20)
    assert add(tracker, 4.0, 20, limit=0, in_flight=0) == []


def test_latency_that_a_cut_lowered_may_be_cut_again() -> None:
    """If a cut lowered the latency and it is still above twice the usual one, the limit is cut again."""
    tracker = usual()
    add(tracker, 8.0, 20)
    assert add(tracker, 8.0, 20) == [0.5]
    assert add(tracker, 4.0, 20) == [0.5]
    assert add(tracker, 3.0, 20) == [0.5]
    assert tracker.usual == 1.0


@pytest.mark.parametrize(("after", "expected"), [(3.2, 1.0), (3.21, 3.21)])
def test_latency_that_a_cut_did_not_lower_is_usual(after: float, expected: float) -> None:
    """If a cut leaves more than 0.8 of the latency, load is not the cause, and this latency becomes the usual one."""
    tracker = usual()
    add(tracker, 4.0, 20)
    assert add(tracker, 4.0, 20) == [0.5]
    assert bool(add(tracker, after, 20)) is (expected == 1.0)
    assert tracker.usual == pytest.approx(expected)


def test_latency_that_became_usual_is_measured_twice_before_the_next_cut() -> None:
    """A new usual latency begins without a cut, and so does a return to the old one."""
    tracker = usual()
    for _ in range(3):
        add(tracker, 4.0, 20)
    assert tracker.usual == pytest.approx(4.0)
    assert add(tracker, 9.0, 20) == []
    assert add(tracker, 9.0, 20) == [pytest.approx(1 / 3)]
    assert add(tracker, 4.0, 20) == []
    assert add(tracker, 9.0, 20) == []
