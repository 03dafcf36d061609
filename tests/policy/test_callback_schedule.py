"""The schedule of stored callbacks: when each is sent, postponed or given up."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.policy.callback_schedule import (
    LONGEST_ASKED,
    MAX_PER_RECEIVER,
    PLACES,
    CallbackSchedule,
    Expire,
    Post,
    Postpone,
)
from worker.policy.retry import Backoff

DAY = 86_400.0


def decide(
    schedule: CallbackSchedule, receiver: str = "http://a", now: float = 0.0, deliveries: int = 1, **other: float
) -> Post | Postpone | Expire:
    """Decide about a callback that is young and due."""
    usual = {"age": 0.0, "due_in": 0.0, "draw": 0.5}
    return schedule.decide(receiver, deliveries=deliveries, now=now, **(usual | other))


def new() -> CallbackSchedule:
    """Return a schedule without jitter: waits of 1, 2, 4, …, 600 s."""
    return CallbackSchedule(Backoff(1.0, 600.0), DAY)


def fail(schedule: CallbackSchedule, receiver: str, now: float, asked: float = 0.0) -> None:
    """Let a callback that is in flight fail at once."""
    schedule.end(receiver)
    schedule.failed(receiver, began=now, now=now, asked=asked, draw=0.5)


def test_schedule_sends_so_many_to_one_receiver() -> None:
    """A receiver gets MAX_PER_RECEIVER at once; one more waits by the number of its deliveries, up to the longest."""
    schedule = new()
    assert [decide(schedule) for _ in range(MAX_PER_RECEIVER)] == [Post()] * MAX_PER_RECEIVER
    assert [decide(schedule, deliveries=each) for each in (1, 2, 5, 99)] == [
        Postpone(1.0),
        Postpone(2.0),
        Postpone(16.0),
        Postpone(600.0),
    ]
    schedule.end("http://a")
    assert decide(schedule) == Post()


def test_schedule_keeps_places_for_receivers_without_any() -> None:
    """When PLACES are taken, only receivers with nothing in flight get one; at twice as many, none does."""
    schedule = new()
    for number in range(PLACES):
        assert decide(schedule, f"http://{number // 10}") == Post()
    assert decide(schedule, "http://0") == Postpone(1.0)
    for number in range(PLACES):
        assert decide(schedule, f"http://other-{number}") == Post()
    assert decide(schedule, "http://last") == Postpone(1.0)
    assert schedule.in_flight == 2 * PLACES


def test_receiver_that_fails_rests_for_longer_each_time() -> None:
    """After each failure a receiver rests for twice as long; then one callback after the other probes it."""
    schedule, now = new(), 0.0
    for rest in (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 600.0, 600.0):
        assert decide(schedule, now=now) == Post()
        fail(schedule, "http://a", now)
        assert decide(schedule, now=now) == Postpone(rest)
        assert decide(schedule, now=now + rest - 0.5) != Post()
        now += rest
    assert decide(schedule, now=now) == Post()
    assert decide(schedule, now=now) == Postpone(1.0)  # the probe is in flight
    assert decide(schedule, "http://b", now=now) == Post()


def test_receiver_that_answers_again_takes_more_with_each_answer() -> None:
    """After a success a receiver rests no more, and takes one more at once."""
    schedule = new()
    for now in (0.0, 10.0, 20.0, 30.0, 40.0):
        assert decide(schedule, now=now) == Post()
        fail(schedule, "http://a", now)
    assert decide(schedule, now=100.0) == Post()
    schedule.end("http://a")
    schedule.succeeded("http://a")
    assert [decide(schedule, now=100.0) for _ in range(3)] == [Post(), Post(), Postpone(1.0)]


def test_failures_of_tries_in_flight_together_count_once() -> None:
    """Ten tries that fail together are one failure."""
    schedule = new()
    for _ in range(10):
        decide(schedule)
    for now in (10.0, 10.1, 10.2):
        schedule.end("http://a")
        schedule.failed("http://a", began=0.0, now=now, asked=0.0, draw=0.5)
    assert decide(schedule, now=10.5) == Postpone(1.0)
    assert decide(schedule, now=11.0) == Post()


def test_receiver_rests_as_long_as_it_asks_for() -> None:
    """A receiver that asked for a wait rests so long, at most LONGEST_ASKED."""
    schedule = new()
    decide(schedule)
    fail(schedule, "http://a", 0.0, asked=90.0)
    assert decide(schedule, now=30.0) == Postpone(60.0)
    assert decide(schedule, now=90.0) == Post()
    fail(schedule, "http://a", 90.0, asked=float("inf"))
    assert decide(schedule, now=90.0) == Postpone(LONGEST_ASKED)


def test_callback_expires_at_its_age() -> None:
    """A callback is given up once it is so old, whatever its receiver does, and no wait is longer than that."""
    schedule = new()
    assert decide(schedule, age=DAY) == Expire()
    assert decide(schedule, age=DAY - 5, due_in=60.0) == Postpone(5.0)
    assert schedule.wait_after(9, age=DAY - 5, asked=60.0, draw=0.5) == 5.0
    assert schedule.wait_after(9, age=0.0, asked=60.0, draw=0.5) == 256.0
    assert schedule.wait_after(1, age=0.0, asked=60.0, draw=0.5) == 60.0


def test_callback_before_its_time_waits_for_it() -> None:
    """A callback is postponed until its time, which a clock may miss by a twentieth of a second."""
    schedule = new()
    assert decide(schedule, due_in=7.0) == Postpone(7.0)
    assert decide(schedule, due_in=0.05) == Post()


@given(st.lists(st.tuples(st.integers(0, 30), st.booleans(), st.floats(0, 700)), max_size=200))
def test_schedule_forgets_what_has_ended(tries: list[tuple[int, bool, float]]) -> None:
    """Whatever receivers answer, nothing stays in flight, and a receiver that has recovered is forgotten."""
    schedule, now = new(), 0.0
    for number, succeeds, pause in tries:
        receiver = f"http://{number}"
        if decide(schedule, receiver, now=now) == Post():
            if succeeds:
                schedule.end(receiver)
                schedule.succeeded(receiver)
            else:
                fail(schedule, receiver, now)
        now += pause
    assert schedule.in_flight == 0
    for receiver in [*schedule._receivers]:
        for _ in range(MAX_PER_RECEIVER):
            schedule.succeeded(receiver)
    assert not schedule._receivers
