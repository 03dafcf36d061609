"""The limiter: its phases, and the events that lead from one to the next."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.limiter import FIRST_REST, LONGEST_REST, Limiter, Phase


class Worker:
    """A worker with a backlog, which has as many invocations in flight as the limit allows."""

    def __init__(self, max_limit: int = 50) -> None:
        self.limiter = Limiter(max_limit)
        self.now = 0.0
        self.in_flight: list[float] = []
        self.send()

    @property
    def limit(self) -> int:
        return self.limiter.limit

    def send(self) -> None:
        """Send invocations up to the limit."""
        while len(self.in_flight) < self.limiter.limit:
            self.in_flight.append(self.now)
            self.limiter.started(self.now)

    def wait(self, seconds: float) -> None:
        """Let time pass, and tick whenever the limiter is due."""
        until = self.now + seconds
        while self.limiter.due <= until:
            self.now = max(self.now, self.limiter.due)
            self.limiter.tick(self.now)
            self.send()
        self.now = until

    def wait_due(self) -> None:
        """Let time pass until the limiter is due."""
        self.wait(self.limiter.due - self.now)

    def end(self, status: int | None, *, newest: bool = True, send: bool = True) -> float | None:
        """End the newest invocation, which is the one that is refused, or the oldest."""
        began = self.in_flight.pop(-1 if newest else 0)
        wait = self.limiter.ended(began, self.now, status)
        if send:
            self.send()
        return wait

    def refuse_in_row(self) -> list[float | None]:
        """Let two refusals follow each other at a limit that was accepted."""
        waits = []
        for _ in range(2):
            self.wait(0.005)
            waits.append(self.end(429))
        return waits

    def refuse_all(self) -> None:
        """Refuse all invocations in flight, before another one is sent."""
        self.wait(0.005)
        while self.in_flight:
            self.end(429, send=False)

    def climb_to(self, capacity: int) -> None:
        """Let the limit rise by silence above *capacity*, and refuse the invocations beyond it."""
        while self.limit <= capacity:
            self.wait_due()
        self.wait(0.005)
        for _ in range(self.limit - capacity):
            assert self.end(429) == pytest.approx(0.1)


def limits(worker: Worker, count: int) -> list[int]:
    """Return the next *count* limits, one for each proof by silence."""
    limits_so_far = []
    for _ in range(count):
        limits_so_far.append(worker.limit)
        worker.wait(0.05)
    return limits_so_far


# Each phase, by an event that leads to it.


def slow_start() -> Worker:
    worker = Worker()
    worker.wait(0.26)
    return worker


def hold() -> Worker:
    worker = Worker()
    worker.climb_to(20)
    worker.end(200, newest=False)
    worker.wait(0.1)
    return worker


def probe() -> Worker:
    worker = hold()
    worker.wait_due()
    return worker


def climb() -> Worker:
    worker = probe()
    worker.wait(0.05)
    return worker


def cut() -> Worker:
    worker = hold()
    worker.refuse_in_row()
    for _ in range(2):
        worker.end(200, newest=False)
    return worker


def rest() -> Worker:
    worker = Worker()
    worker.refuse_all()
    return worker


def silence(worker: Worker) -> None:
    worker.wait(0.051)


def probe_time(worker: Worker) -> None:
    worker.wait_due()


def rest_time(worker: Worker) -> None:
    worker.wait_due()


def answer(worker: Worker) -> None:
    """Answer an invocation that began when as many as the limit were in flight."""
    worker.wait(0.001)
    worker.end(200, newest=False)
    worker.end(200)


def answer_to_late_start(worker: Worker) -> None:
    """Answer an invocation that waited in its slot, and was sent in a rest."""
    worker.limiter.started(worker.now)
    worker.limiter.ended(worker.now, worker.now + 0.01, 200)


def refusal_of_late_start(worker: Worker) -> None:
    worker.limiter.started(worker.now)
    worker.limiter.ended(worker.now, worker.now + 0.01, 429)


def refusal(worker: Worker) -> None:
    worker.wait(0.005)
    worker.end(429)


def refusals_in_row(worker: Worker) -> None:
    worker.refuse_in_row()


def refusal_of_all(worker: Worker) -> None:
    worker.refuse_all()


def cancellation(worker: Worker) -> None:
    worker.end(None)


TRANSITIONS: list[tuple[Callable[[], Worker], Callable[[Worker], None], Phase]] = [
    (slow_start, silence, Phase.SLOW_START),
    (slow_start, answer, Phase.SLOW_START),
    (slow_start, cancellation, Phase.SLOW_START),
    (slow_start, refusal, Phase.HOLD),
    (slow_start, refusal_of_all, Phase.REST),
    (hold, silence, Phase.HOLD),
    (hold, answer, Phase.HOLD),
    (hold, cancellation, Phase.HOLD),
    (hold, refusal, Phase.HOLD),
    (hold, refusals_in_row, Phase.CUT),
    (hold, refusal_of_all, Phase.REST),
    (hold, probe_time, Phase.PROBE),
    (probe, silence, Phase.CLIMB),
    (probe, answer, Phase.CLIMB),
    (probe, cancellation, Phase.PROBE),
    (probe, refusal, Phase.HOLD),
    (probe, refusal_of_all, Phase.REST),
    (climb, silence, Phase.CLIMB),
    (climb, answer, Phase.CLIMB),
    (climb, refusal, Phase.HOLD),
    (climb, refusal_of_all, Phase.REST),
    (cut, silence, Phase.CUT),
    (cut, answer, Phase.HOLD),
    (cut, refusals_in_row, Phase.CUT),
    (cut, refusal_of_all, Phase.REST),
    (cut, probe_time, Phase.PROBE),
    (rest, refusal_of_late_start, Phase.REST),
    (rest, answer_to_late_start, Phase.HOLD),
    (rest, silence, Phase.REST),
    (rest, rest_time, Phase.HOLD),
]
"""The table in worker/policy/limiter.py: a phase, an event, and the phase after it."""


@pytest.mark.parametrize(
    ("begin", "event", "phase"),
    TRANSITIONS,
    ids=[f"{begin.__name__}-{event.__name__}" for begin, event, _ in TRANSITIONS],
)
def test_phase_event_leads_to_the_next_phase(
    begin: Callable[[], Worker], event: Callable[[Worker], None], phase: Phase
) -> None:
    """Each event leads from its phase to the one in the table."""
    worker = begin()
    assert worker.limiter.phase.name == begin.__name__.upper()
    event(worker)
    assert worker.limiter.phase is phase


# Slow start and climb.


def test_slow_start_silence_raises_the_limit_in_growing_steps() -> None:
    """Without an answer the limit rises each 50 ms: by 1, and by 1 more for each 8 that it has gained."""
    assert limits(Worker(), 14) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 19, 22]


def test_slow_start_nothing_in_flight_is_never_due() -> None:
    """A new limiter is not due before its first invocation."""
    assert Limiter(10).due == inf


def test_slow_start_answers_raise_the_limit_sooner() -> None:
    """An answer to an invocation that filled the limit proves the same as silence, also before the silence ends."""
    worker = Worker()
    for limit in (2, 3, 4):
        worker.wait(0.01)
        worker.end(200)
        assert worker.limit == limit


def test_slow_start_answer_to_earlier_invocation_proves_nothing() -> None:
    """An invocation that began before the limit was filled was not sent beside as many as the limit."""
    worker = Worker()
    worker.wait(0.05)
    worker.wait(0.01)
    worker.end(200, newest=False)
    assert worker.limit == 2


def test_limiter_at_the_maximum_never_rises() -> None:
    """The limit never exceeds the worker's slots, and is then never due."""
    worker = Worker(10)
    assert limits(worker, 10)[-1] == 10
    assert worker.limiter.due == inf


def test_hold_at_the_maximum_is_not_probed() -> None:
    """At the worker's number of slots the limit is not probed."""
    worker = Worker(1)
    worker.refuse_all()
    worker.wait_due()
    assert (worker.limit, worker.limiter.phase, worker.limiter.due) == (1, Phase.HOLD, inf)
    worker.wait(0.1)
    worker.end(200)
    assert worker.limit == 1


def test_hold_at_the_highest_compared_limit_is_not_probed() -> None:
    """At the highest limit of the last comparison of latencies, the limit is not probed."""
    worker = hold()
    worker.limiter._latency.max_limit = 20
    worker.wait(5.0)
    worker.end(200)
    assert worker.limit == 20


def test_limiter_with_unused_limit_never_rises() -> None:
    """With fewer in flight than the limit, the limit does not rise after any answer, and is never due."""
    limiter = Limiter(50)
    for n in range(3):
        limiter.started(n * 0.05)
        limiter.tick(n * 0.05 + 0.05)
    now = 1.0
    assert limiter.limit == 4
    for _ in range(100):
        assert limiter.due == inf
        limiter.ended(now - 0.5, now, 200)
        limiter.started(now)
        now += 0.5
    assert limiter.limit == 4


def test_limiter_used_for_less_than_the_silence_does_not_rise() -> None:
    """If fewer are in flight when the silence ends, it proves nothing; it begins when the limit is used again."""
    limiter = Limiter(50)
    limiter.started(0.0)
    limiter.ended(0.0, 0.01, None)
    limiter.tick(0.05)
    assert (limiter.limit, limiter.due) == (1, inf)
    limiter.started(0.06)
    assert limiter.due == pytest.approx(0.11)


def test_limiter_tick_before_due_changes_nothing() -> None:
    """A tick before the due time changes nothing, because the silence must last long enough."""
    limiter = Limiter(50)
    limiter.started(0.0)
    limiter.tick(0.049)
    assert limiter.limit == 1
    limiter.tick(0.05)
    assert limiter.limit == 2


def test_climb_after_a_probe_grows_its_steps_from_where_it_began() -> None:
    """The steps count what this climb has gained, not the whole limit."""
    worker = hold()
    worker.wait(1.9)
    assert limits(worker, 13)[1:] == [21, 22, 23, 24, 25, 26, 27, 28, 30, 32, 34, 36]


def test_climb_refused_step_falls_to_the_accepted_limit() -> None:
    """Each refusal of a step lowers the limit by one, down to the capacity, and is no attempt."""
    worker = Worker()
    while worker.limit < 22:
        worker.wait(0.05)
    worker.wait(0.005)
    assert [worker.end(429, send=False) for _ in range(3)] == [pytest.approx(0.1)] * 3
    assert worker.limit == 19
    assert worker.end(429, send=False) is None
    assert worker.limit == 19


def test_climb_refused_step_with_late_starts_keeps_the_accepted_limit() -> None:
    """Refusals beyond the size of the step do not lower the limit, though they were sent with it."""
    worker = Worker()
    while worker.limit < 22:
        worker.wait(0.05)
    for _ in range(3):
        worker.limiter.started(worker.now)
        worker.in_flight.append(worker.now)
    worker.wait(0.005)
    for _ in range(3):
        worker.end(429, send=False)
    assert worker.end(429, send=False) is None
    assert worker.limit == 19


def test_climb_with_the_usual_gain_ends_without_a_refusal() -> None:
    """A climb ends at the gain of the last two climbs, if these gained equally."""
    worker = Worker()
    worker.climb_to(5)
    for capacity in (10, 15):
        worker.climb_to(capacity)
    while worker.limit < 20:
        worker.wait_due()
    assert worker.limiter.phase is Phase.CLIMB
    worker.wait_due()
    assert (worker.limit, worker.limiter.phase) == (20, Phase.HOLD)


# Hold and probe.


def test_hold_after_refused_probes_waits_longer_each_time() -> None:
    """A probe is one more, 2 s after the refusal; each refused one makes the next wait 1.3 times as long."""
    worker = Worker()
    worker.climb_to(5)
    for seconds in (2.0, 2.6, 3.38, 4.394):
        worker.wait(seconds - 0.01)
        assert worker.limit == 5
        worker.wait(0.01)
        assert worker.limit == 6
        assert worker.end(429) == pytest.approx(0.1)
        assert worker.limit == 5


@pytest.mark.parametrize(("latency", "seconds"), [(0.4, 8.0), (0.02, 1.0), (2.0, 30.0)])
def test_hold_waits_at_most_for_400_invocations(latency: float, seconds: float) -> None:
    """The wait before a probe is at most the time of 400 invocations, at least 1 s and at most 30 s."""
    limiter = hold().limiter
    limiter._latency.usual = latency
    waits = []
    now = 10.0
    for _ in range(30):
        while limiter.phase is not Phase.PROBE:
            if limiter.due == inf:
                limiter.started(now)
            now = max(now, limiter.due)
            limiter.tick(now)
        limiter.started(now)
        limiter.ended(now, now, 429)
        waits.append(limiter._probes.next_at - now)
    assert waits[-1] == pytest.approx(min(30.0, max(1.0, 400 * latency / 21)))
    assert seconds == pytest.approx(waits[-1], rel=0.06)


def test_probe_refused_slowly_is_redelivered_later() -> None:
    """A silence is three times the duration of a 429, and a refused probe is redelivered after two silences."""
    worker = probe()
    worker.wait(0.04)
    assert worker.end(429) == pytest.approx(0.24)


def test_hold_single_refusal_is_an_attempt_and_changes_nothing() -> None:
    """At an accepted limit a single refusal changes nothing, because the function may not have been free yet."""
    worker = hold()
    worker.wait(0.005)
    assert worker.end(429) is None
    assert worker.limit == 20


# Cut.


def test_cut_takes_a_tenth_and_counts_attempts() -> None:
    """Two refusals in a row at a limit of 20 that was accepted leave 18. Both are attempts."""
    worker = hold()
    assert worker.refuse_in_row() == [None, None]
    assert worker.limit == 18
    assert worker.limiter.due == inf  # 19 are in flight, and their silence proves nothing about 18


def test_cut_repeated_takes_twice_as_much_each_time() -> None:
    """A tenth, rounded up, then two, four, eight and at most sixteen tenths, down to 1."""
    limiter = Limiter(1000)
    limiter.limit = limiter._proven = limiter._foot = 500
    limiter.phase, limiter._in_flight = Phase.HOLD, 600
    now, limits_so_far = 1.0, []
    for _ in range(5):
        for _ in range(2):
            limiter.ended(now, now, 429)
            now += 0.01
        limits_so_far.append(limiter.limit)
    assert limits_so_far == [450, 360, 216, 40, 1]


def test_cut_is_doubled_at_most_four_times() -> None:
    """The part that a cut takes off is doubled at most four times."""
    limiter = Limiter(10**6)
    limiter._in_flight = 10**6
    now, parts = 1.0, []
    for _ in range(7):
        limiter.limit = limiter._proven = 100_000
        for _ in range(2):
            limiter.ended(now, now, 429)
            now += 0.01
        parts.append(100_000 - limiter.limit)
    assert parts == [10_000, 20_000, 40_000, 80_000, 99_999, 99_999, 99_999]
    assert limiter._cuts == 4


def test_cut_after_a_proof_takes_a_tenth_again() -> None:
    """After a proof that the last cut was enough, the next cut is a tenth again."""
    worker = cut()
    answer(worker)
    worker.refuse_in_row()
    assert worker.limit == 16


def test_cut_is_followed_by_a_probe_after_two_seconds() -> None:
    """Two seconds after a cut the limit is probed, because the capacity may have returned."""
    worker = hold()
    worker.refuse_in_row()
    for _ in range(2):
        worker.end(200, newest=False)
    at = worker.now
    while worker.limit == 18:
        worker.wait(0.01)
    assert worker.now - at == pytest.approx(2.0, abs=0.011)


# Rest.


def test_rest_grows_up_to_30_seconds_and_is_no_attempt_while_it_grows() -> None:
    """Rests grow from 0.25 s by a factor of 1.3. The first refusal is an attempt, and those after a longest rest."""
    worker, rests = Worker(), []
    for _ in range(25):
        wait = worker.end(429)
        assert worker.limit == 0
        rests.append(worker.limiter.due - worker.now)
        assert wait == (pytest.approx(rests[-1]) if 1 < len(rests) <= 19 else None)
        worker.wait(rests[-1])
        assert worker.limit == 1
    assert rests == pytest.approx([min(LONGEST_REST, FIRST_REST * 1.3**n) for n in range(25)])


def test_rest_after_an_answer_is_short_again() -> None:
    """An answer shows that the function accepts invocations; silence does not, where refusals are slow."""
    worker = Worker()
    for _ in range(5):
        worker.end(429)
        worker.wait(worker.limiter.due - worker.now)
    worker.wait(0.01)
    worker.end(200)
    worker.refuse_all()
    assert worker.limiter.due - worker.now == FIRST_REST


def test_rest_after_silence_stays_long() -> None:
    """Silence does not shorten a rest: a function that refuses slowly would be invoked forever, without attempts."""
    worker = Worker()
    worker.end(429)
    worker.wait(FIRST_REST + 0.06)
    worker.refuse_all()
    assert worker.limiter.due - worker.now == pytest.approx(1.3 * FIRST_REST)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_rest_takes_two_doubtful_refusals(status: int) -> None:
    """A rest takes two doubtful refusals, because a single 503 may be the function's own failure."""
    worker = Worker()
    assert worker.end(status) is None
    assert worker.limit == 1
    worker.wait(0.01)
    assert worker.end(status) == FIRST_REST
    assert worker.limit == 0


def test_rest_answered_late_never_lasts_forever() -> None:
    """Invocations that waited in their slots start during a rest. Whatever they return, the limit rises again."""
    limiter = Limiter(3)
    limiter.started(0.0)
    assert limiter.ended(0.0, 0.25, 429) is None
    limiter.started(0.26)
    limiter.started(0.27)
    limiter.ended(0.26, 0.33, 200)
    assert limiter.limit == 1
    limiter.started(0.73)
    limiter.started(1.03)
    limiter.ended(0.27, 1.04, 429)
    limiter.ended(1.03, 1.34, 429)
    limiter.ended(0.73, 1.35, 200)
    assert limiter.limit > 0 or limiter.due < inf


def test_rest_refusal_of_an_invocation_sent_in_it_ends_the_next_probe() -> None:
    """A refusal of an invocation that was sent in the rest ends the next probe, because 2 invocations are too many."""
    worker = rest()
    worker.limiter.started(0.2)
    worker.wait_due()
    worker.wait_due()
    assert (worker.limit, worker.limiter.phase) == (2, Phase.PROBE)
    assert worker.limiter.ended(0.2, worker.now, 429) is not None
    assert worker.limit == 1


def test_rest_refusals_of_invocations_sent_before_do_not_prolong_it() -> None:
    """Refusals of invocations that were sent before a rest do not change the end of the rest."""
    worker = rest()
    due = worker.limiter.due
    refusal_of_late_start(worker)
    assert worker.limiter.due == due


# Refusals that are no evidence.


@pytest.mark.parametrize("status", [502, 503, 504])
def test_limiter_doubtful_statuses_between_answers_change_nothing(status: int) -> None:
    """A failure of the function's own is an attempt, and the limit stays where the next invocation is accepted."""
    worker = hold()
    for _ in range(50):
        worker.wait(0.01)
        assert worker.end(status) is None
        worker.wait(0.02)
        assert worker.end(200) is None
        assert worker.limit >= 20


def test_limiter_ignores_cancelled_invocations() -> None:
    """Cancelled invocations change nothing, because the worker ended them and not the function."""
    worker = Worker()
    worker.climb_to(5)
    for _ in range(20):
        assert worker.end(None) is None
    assert worker.limit == 5


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("others", [0, 1, 19])
def test_limiter_counts_refusals_of_an_always_refused_message(status: int, others: int) -> None:
    """Nearly all refusals of one message are attempts, also beside accepted messages and on an unused limit."""
    limiter, now = Limiter(50), 0.0
    for n in range(20):
        limiter.started(now := n * 0.05)
        limiter.tick(now + 0.05)
    for _ in range(19):
        limiter.ended(0.0, now, 200)
    counted = 0
    for _ in range(500):
        now += 40.0
        limiter.tick(now)
        for _ in range(others):
            limiter.started(now)
        limiter.started(now + 0.001)
        counted += limiter.ended(now + 0.001, now + 0.005, status) is None
        for _ in range(others):
            limiter.ended(now, now + 0.1, 200)
    assert counted >= 400


# Latency.


def test_latency_twice_as_high_cuts_the_limit_in_proportion() -> None:
    """An answer that is 2.4 times as slow as usual leaves 1.5 / 2.4 of the limit, after it was measured twice."""
    worker = Worker(20)
    worker.wait(2.0)
    for latency, limit in ((0.1, 20), (0.24, 20), (0.24, 13)):
        for _ in range(20):
            worker.now += 0.3
            worker.limiter.ended(worker.now - latency, worker.now, 200)
            worker.limiter.started(worker.now)
        assert worker.limit == limit
    assert worker.limiter.phase is Phase.CUT


def test_latency_above_the_tolerance_stops_the_climb() -> None:
    """While latency is 1.6 times as high as usual, the limit does not rise; it rises when latency is usual again."""
    worker = Worker(500)
    for _ in range(12):
        worker.wait(0.01)
        worker.end(200)
    limit = worker.limit
    worker.limiter._latency.slow = True
    worker.wait(1.0)
    assert worker.limit == limit
    worker.limiter._latency.slow = False
    worker.wait(0.01)
    worker.end(200)
    worker.wait(0.1)
    assert worker.limit > limit


def test_latency_of_earlier_invocations_is_ignored_after_a_comparison() -> None:
    """An invocation that began at another limit does not show the latency at this one."""
    limiter = Limiter(10)
    limiter._latency.since = 5.0
    for _ in range(30):
        limiter.started(4.9)
        limiter.ended(4.9, 6.0, 200)
    assert limiter._latency.usual == 0.0
    for _ in range(10):
        limiter.started(5.0)
        limiter.ended(5.0, 6.0, 200)
    assert limiter._latency.usual == 1.0


# Any sequence.

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["start", "tick", "end"]),
        st.sampled_from([200, 404, 500, 429, 429, 503, 502, 504, None]),
        st.floats(0, 3),
        st.integers(0, 100),
    ),
    max_size=200,
)


@given(st.integers(1, 60), STEPS)
def test_limiter_after_any_events_keeps_its_bounds(
    max_limit: int, steps: list[tuple[str, int | None, float, int]]
) -> None:
    """The limit is within 0 and its maximum, and 0 only in a rest. An unused limit does not rise. Waits are short."""
    limiter, now, in_flight = Limiter(max_limit), 0.0, list[float]()
    used = False
    for event, status, seconds, number in steps:
        now += seconds
        before = limiter.limit
        if event == "start" and len(in_flight) < limiter.limit:
            in_flight.append(now)
            limiter.started(now)
        elif event == "tick":
            limiter.tick(now)
            assert limiter.due > now
        elif event == "end" and in_flight:
            wait = limiter.ended(in_flight.pop(number % len(in_flight)), now, status)
            assert wait is None or (status in (429, 502, 503, 504) and 0 < wait <= LONGEST_REST)
        assert 0 <= limiter.limit <= max_limit
        assert (limiter.limit == 0) is (limiter.phase is Phase.REST)
        if limiter.phase is Phase.REST:
            assert now < limiter.due <= now + LONGEST_REST or event != "tick"
            assert limiter.due < inf
        if limiter.limit > before > 0:
            assert used
        used = len(in_flight) >= limiter.limit or (used and limiter.limit == before)
