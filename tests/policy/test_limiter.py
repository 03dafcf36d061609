from __future__ import annotations

from math import inf
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fairness import report
from benchmarks.fairness.functions import Function, fixed, noisy, shared
from benchmarks.fairness.runs import RUNS, published
from benchmarks.fairness.simulation import Result, Simulation, oracle, ours
from worker.policy.limiter import FIRST_REST, LONGEST_REST, Limiter

# By hand.


class Hand:
    """A worker with backlog: keeps as many in flight as the limit allows, and ends them as it is told."""

    def __init__(self, most: int = 50) -> None:
        self.limiter = Limiter(most)
        self.now = 0.0
        self.began: list[float] = []
        self.fill()

    def fill(self) -> None:
        while len(self.began) < self.limiter.limit:
            self.began.append(self.now)
            self.limiter.started(self.now)

    def later(self, seconds: float) -> None:
        """Time passes; what is due then happens."""
        until = self.now + seconds
        while self.limiter.due <= until:
            self.now = max(self.now, self.limiter.due)
            self.limiter.tick(self.now)
            self.fill()
        self.now = until

    def end(self, status: int | None, *, newest: bool = True) -> float | None:
        """One ends: the newest, as what is refused does, or the oldest."""
        began = self.began.pop(-1 if newest else 0)
        wait = self.limiter.ended(began, self.now, status)
        self.fill()
        return wait

    def climb_to(self, limit: int) -> None:
        """Nothing is refused until one more than *limit* is in flight; that one is."""
        while self.limiter.limit <= limit:
            self.later(0.05)
        self.later(0.005)
        for _ in range(self.limiter.limit - limit):
            assert self.end(429) == pytest.approx(0.1)


def test_silence_is_proof() -> None:
    """What is not refused within 50 ms was taken: with no answer at all the limit rises by one each 50 ms, from 1."""
    hand = Hand()
    for limit in range(1, 9):
        assert hand.limiter.limit == limit
        hand.later(0.05)
    assert hand.limiter.limit == 10


def test_answer_is_proof() -> None:
    """So is an answer to what filled the limit, however soon; one to what began before says nothing."""
    hand = Hand()
    hand.later(0.01)
    hand.end(200)
    assert hand.limiter.limit == 2
    hand.later(0.01)
    hand.end(200)
    assert hand.limiter.limit == 3


def test_stays_at_what_was_taken() -> None:
    """What was sent to find out and is refused lowers the limit by itself, goes back at once, and was no attempt."""
    hand = Hand()
    hand.climb_to(5)
    assert hand.limiter.limit == 5
    hand.later(1.9)
    assert hand.limiter.limit == 5


def test_probes_ever_later() -> None:
    """One more is sent after 2 s; if that is refused, after 2.6 s, then 3.38 s."""
    hand = Hand()
    hand.climb_to(5)
    for rest in (2.0, 2.6, 3.38):
        hand.later(rest - 0.01)
        assert hand.limiter.limit == 5
        hand.later(0.01)
        assert hand.limiter.limit == 6
        assert hand.end(429) == pytest.approx(0.1)
        assert hand.limiter.limit == 5


def test_refusals_in_a_row_cut() -> None:
    """At a limit that was good one refusal is not believed, a second is: a tenth goes. Both count as attempts."""
    hand = Hand()
    hand.climb_to(20)
    hand.later(0.5)
    hand.end(200, newest=False)
    hand.later(0.005)
    assert hand.end(429) is None
    assert hand.limiter.limit == 20
    hand.later(0.005)
    assert hand.end(429) is None
    assert hand.limiter.limit == 18


@pytest.mark.parametrize("status", [502, 503, 504])
def test_doubtful_between_good_ones(status: int) -> None:
    """What may be the function's own failure changes nothing where what is sent next is taken, and is an attempt."""
    hand = Hand()
    hand.climb_to(20)
    hand.end(200, newest=False)
    for _ in range(50):
        hand.later(0.01)
        assert hand.end(status) is None
        hand.later(0.02)
        assert hand.end(200) is None
        assert hand.limiter.limit >= 20


def test_taking_nothing_is_left_alone() -> None:
    """A function that refuses even one is sent none for a while, 1.3 times as long each time, up to 30 s.

    The first refusal is an attempt; those that follow are not, until the waits no longer grow.
    """
    hand, waits = Hand(), []
    for _ in range(25):
        wait = hand.end(429)
        assert hand.limiter.limit == 0
        waits.append(hand.limiter.due - hand.now)
        assert wait == (pytest.approx(waits[-1]) if 1 < len(waits) <= 19 else None)
        hand.later(waits[-1])
        assert hand.limiter.limit == 1
    assert waits[0] == FIRST_REST
    assert waits == pytest.approx([min(LONGEST_REST, FIRST_REST * 1.3**n) for n in range(25)])
    assert sum(wait < LONGEST_REST - 1 for wait in waits) == 19


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


def test_unused_limit_stays() -> None:
    """With fewer in flight than the limit, nothing is learnt: it does not rise, whatever is answered."""
    limiter = Limiter(50)
    for n in range(3):
        limiter.started(n * 0.05)
        limiter.tick(n * 0.05 + 0.05)
    limit, now = limiter.limit, 1.0
    assert limit == 4
    for _ in range(200):
        assert limiter.due == inf
        limiter.ended(now - 0.5, now, 200)
        limiter.started(now)
        now += 0.5
    assert limiter.limit == limit


def test_what_we_stopped_says_nothing() -> None:
    """An invocation that we cancelled is no evidence."""
    hand = Hand()
    hand.climb_to(5)
    for _ in range(20):
        assert hand.end(None) is None
    assert hand.limiter.limit == 5


@pytest.mark.parametrize("status", [429, 503])
def test_message_that_is_always_refused(status: int) -> None:
    """Alone or among good ones, on a limit that is used or not: it does not come back for ever without an attempt."""
    for others in (0, 1, 19):
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
def test_any_sequence(most: int, steps: list[tuple[str, int | None, float, int]]) -> None:
    """Bounds hold, nothing is due again at once, what was not reached does not rise, and waits are short.

    The limit stays within 0 and *most*, and is 0 only while it is due to rise.
    """
    limiter, now, began = Limiter(most), 0.0, list[float]()
    reached = False
    for what, status, passes, which in steps:
        now += passes
        before = limiter.limit
        if what == "start" and len(began) < limiter.limit:
            began.append(now)
            limiter.started(now)
        elif what == "tick":
            limiter.tick(now)
            assert limiter.due > now
        elif what == "end" and began:
            wait = limiter.ended(began.pop(which % len(began)), now, status)
            assert wait is None or (status in (429, 502, 503, 504) and 0 < wait <= LONGEST_REST)
        assert 0 <= limiter.limit <= most
        if limiter.limit == 0:
            assert now < limiter.due <= now + LONGEST_REST or what != "tick"
            assert limiter.due < inf
        if limiter.limit > before > 0:
            assert reached
        reached = len(began) >= limiter.limit or (reached and limiter.limit == before)


# Simulated.


def both(function: Function, again: Function, count: int, **how: int) -> tuple[Result, Result]:
    """The oracle's run and ours."""
    told = Simulation([function], {"f": count}, oracle(how.get("slots", 50)), **how).run()  # type: ignore[arg-type]
    return told, Simulation([again], {"f": count}, ours(how.get("slots", 50)), **how).run()  # type: ignore[arg-type]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 45), st.sampled_from([0.1, 0.5, 2.0]), st.integers(0, 1000))
def test_finds_a_steady_capacity(capacity: int, seconds: float, seed: int) -> None:
    """In the second half of the run it holds what the function takes, whatever that is, and is refused now and then."""
    count = 100 * capacity
    told, run = both(Function("f", noisy(seconds), capacity), Function("f", noisy(seconds), capacity), count, seed=seed)
    held = [limits[0] for at, limits in run.limits if at > run.time / 2]
    assert abs(median(held) - capacity) <= max(1, capacity / 10)
    assert run.rejections <= 20 + run.time / 2 + count / 100
    assert run.time <= 1.10 * told.time + 12.0


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 40), st.integers(0, 40), st.floats(1, 60))
def test_recovers(before: int, during: int, lasts: float) -> None:
    """Whatever happens to the capacity for a while, what it was before is found again within as long, or a minute."""
    changes = ((30.0, during), (30.0 + lasts, before))
    count = int(before * (30 + lasts + 120))
    run = Simulation([Function("f", fixed(1.0), before, changes=changes)], {"f": count}, ours(50)).run()
    assert run.lost == 0
    found = [at for at, limits in run.limits if at > 30 + lasts and limits[0] >= before]
    assert found
    assert found[0] <= 30 + lasts + 60


@pytest.mark.parametrize("phase", range(15))
def test_published_run(phase: int) -> None:
    """OpenFaaS's own run: at most 1.10 of the oracle's time and 15 refusals, whenever the autoscaler looks."""
    told, run = both(published(phase), published(phase), 1_500)
    assert run.time <= 1.10 * told.time
    assert run.rejections <= 15
    assert run.lost == 0


def test_steady_run() -> None:
    """Capacity 20, 10,000 of 2.0 s: within 3 % of the oracle, refusals under 0.5 %."""
    told, run = both(Function("f", fixed(2.0), 20), Function("f", fixed(2.0), 20), 10_000)
    assert run.time <= 1.03 * told.time
    assert run.rejections < 50


def test_failures_of_its_own_do_not_starve_a_function() -> None:
    """One in a hundred ends in a 503 of the function's own: the limit stays where the capacity is."""
    _, run = both(Function("f", noisy(0.2), 20, errors=0.01), Function("f", noisy(0.2), 20, errors=0.01), 10_000)
    held = [limits[0] for at, limits in run.limits if at > 10]
    assert sum(held) / len(held) > 19


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_share(workers: int) -> None:
    """Several workers with limiters of their own: together they hold the capacity, and none is without."""
    told, run = both(Function("f", noisy(1.0), 20), Function("f", noisy(1.0), 20), 4_000, workers=workers)
    assert run.time <= 1.10 * told.time
    assert run.rejections <= 0.05 * 4_000
    held = [sum(limits) for at, limits in run.limits if at > run.time / 2]
    assert 19 <= sum(held) / len(held) <= 21
    served = [sum(by == each for _, by in run.served) for each in range(workers)]
    assert min(served) > 4_000 / workers / 4


def test_latency_is_capacity_too() -> None:
    """A function that never refuses but grows slow in proportion is not sent all that there is."""
    _, run = both(Function("f", shared(0.1, 4), 10**6), Function("f", shared(0.1, 4), 10**6), 1_000, slots=200)
    held = [limits[0] for at, limits in run.limits if at > 10]
    assert sum(held) / len(held) < 50


# The document.

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_document_says_what_was_measured(tmp_path: Path) -> None:
    """Tables are those of the samples that lie beside them."""
    for name in ("fairness.md", report.KEPT):
        (tmp_path / name).write_bytes((DOCS / name).read_bytes())
    report.write(tmp_path)
    assert (tmp_path / "fairness.md").read_text() == (DOCS / "fairness.md").read_text(), (
        "write it again: make bench-fairness FAIRNESS=--again"
    )


def test_samples_are_of_this_limiter() -> None:
    """The published run comes out today as it is told in the document, to the last refusal."""
    _, result = report.simulate(RUNS[0], "ours", 0)
    told = report.kept(DOCS)["published"]["ours"][0]
    assert (round(result.time, 1), result.rejections) == (told.time, told.rejections)
