from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.policy.backoff import Backoff, Jitter

waits = st.floats(1e-9, 2**33)
attempts = st.integers(1, 10**6)
draws = st.floats(0, 1, exclude_max=True)
backoffs = st.builds(Backoff, waits, waits, st.sampled_from(Jitter))
MAX_DRAW = 1 - 2**-53
"""The greatest number below one."""


def test_backoff_of_the_defaults_has_its_schedule() -> None:
    """The default waits double from 10 s to 120 s, without jitter; a hundred attempts wait for 3 h 12 min 30 s."""
    schedule = [Backoff().delay(attempt, draw=0.5) for attempt in range(1, 100)]
    assert schedule[:7] == [10, 20, 40, 80, 120, 120, 120]
    assert sum(schedule) == 11_550


@given(waits, waits, attempts)
@example(1e-9, 2.0**33, 64)
@example(1e-9, 2.0**33, 65)
@example(1e-9, 2.0**33, 66)
def test_backoff_ceiling_is_the_formula(initial: float, longest: float, attempt: int) -> None:
    """Attempt n waits min(initial * 2^(n-1), max) before jitter, to the last bit."""
    exact = initial * 2.0 ** min(attempt - 1, 900)
    assert Backoff(initial, longest).ceiling(attempt) == min(exact, longest)


@given(backoffs)
def test_backoff_ceiling_doubles_up_to_the_maximum(backoff: Backoff) -> None:
    """Each wait is twice the one before until the longest is reached, and the longest from then on."""
    schedule = [backoff.ceiling(attempt) for attempt in range(1, 80)]
    assert schedule[0] == min(backoff.first_wait, backoff.max_wait)
    assert all(later == min(2 * earlier, backoff.max_wait) for earlier, later in pairwise(schedule))
    assert schedule[-1] == backoff.max_wait


@given(backoffs, attempts, draws)
@example(Backoff(1e-9, 2.0**33), 64, 0.0)
def test_backoff_delay_of_a_later_attempt_is_not_shorter(backoff: Backoff, attempt: int, draw: float) -> None:
    """With the same draw, no attempt waits for less than the one before, with any jitter."""
    earlier, later = (backoff.delay(number, draw=draw) for number in (attempt, attempt + 1))
    assert 0 <= earlier <= later <= backoff.max_wait


@given(backoffs, draws)
def test_backoff_delay_of_the_millionth_attempt_does_not_overflow(backoff: Backoff, draw: float) -> None:
    """The millionth attempt waits as long as the hundredth, a float and no more than the longest."""
    assert backoff.delay(10**6, draw=draw) == backoff.delay(100, draw=draw) <= backoff.max_wait
    assert isinstance(backoff.delay(10**6, draw=draw), float)


SHARES = {Jitter.EXPONENTIAL: (1.0, 1.0), Jitter.FULL: (0.0, 1.0), Jitter.EQUAL: (0.5, 1.0)}


@given(backoffs, attempts, draws)
@example(Backoff(jitter=Jitter.EQUAL), 1, MAX_DRAW)
@example(Backoff(jitter=Jitter.FULL), 1, MAX_DRAW)
def test_jitter_shortens_the_wait_by_its_share(backoff: Backoff, attempt: int, draw: float) -> None:
    """Jitter leaves 100 %, 0-100 % or 50-100 % of the wait, by its kind."""
    min_share, max_share = SHARES[backoff.jitter]
    ceiling = backoff.ceiling(attempt)
    assert min_share * ceiling <= backoff.delay(attempt, draw=draw) <= max_share * ceiling


@pytest.mark.parametrize(
    ("jitter", "delays"),
    [
        ("exponential", [40.0, 40.0, 40.0, 40.0]),
        ("full", [0.0, 10.0, 20.0, 30.0]),
        ("equal", [20.0, 25.0, 30.0, 35.0]),
    ],
)
def test_jitter_of_each_draw_is_exact(jitter: str, delays: list[float]) -> None:
    """Jitter turns 40 s into exact delays for draws of 0, 1/4, 1/2 and 3/4."""
    backoff = Backoff(10.0, 120.0, Jitter(jitter))
    assert [backoff.delay(3, draw=quarter / 4) for quarter in range(4)] == delays


@pytest.mark.parametrize(("jitter", "min_share"), [(Jitter.FULL, 0.0), (Jitter.EQUAL, 0.5)])
def test_jitter_is_uniform(jitter: Jitter, min_share: float) -> None:
    """A hundred thousand delays are uniform over their range (chi-square, p = 0.001)."""
    rng = random.Random(20)
    backoff = Backoff(1.0, 1.0, jitter)
    tenths = Counter(
        int((backoff.delay(1, draw=rng.random()) - min_share) / (1 - min_share) * 10) for _ in range(100_000)
    )
    assert set(tenths) == set(range(10))
    assert sum((count - 10_000) ** 2 / 10_000 for count in tenths.values()) < 27.88
