"""Parts of the limiter: the refusals that it counts, and the times of its probes."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from worker.policy.limiter import ProbeTimes, Refusals


def test_probe_times_after_many_failures_are_30_seconds_apart() -> None:
    """After any number of refused probes, the wait before the next one is 30 s."""
    times = ProbeTimes()
    for _ in range(20):
        times.delay(0.0, 30.0)
    assert times.next_at == 30.0


@pytest.mark.parametrize(
    ("periods", "next_after"),
    [([], 2.0), ([10.0], 8.0), ([15.0, 15.0], 12.0), ([2.0], 2.0), ([60.0], 2.0), ([59.0], 30.0), ([2.1], 1.68)],
)
def test_probe_times_after_climbs_follow_their_period(periods: Sequence[float], next_after: float) -> None:
    """The next probe comes after 0.8 of the last period, if that is regular: more than 2 s and less than 60 s."""
    times, now = ProbeTimes(), 100.0
    times.follow(3, now, 30.0)
    for period in periods:
        now += period
        times.follow(3, now, 30.0)
    assert times.next_at - now == pytest.approx(next_after)


def test_probe_times_after_an_early_probe_reach_the_end_of_the_period() -> None:
    """After a refused probe at 0.8 of a period of 15 s, the next probe is at the period's end."""
    times = ProbeTimes()
    times.follow(5, 100.0, 30.0)
    times.follow(5, 115.0, 30.0)
    times.delay(127.0, 30.0)
    assert times.next_at == pytest.approx(130.0)
    times.delay(130.0, 30.0)
    assert times.next_at == pytest.approx(133.9)


def test_probe_times_of_short_periods_wait_two_seconds() -> None:
    """A fifth of a period of 5 s is 1 s, which is less than a first probe waits."""
    times = ProbeTimes()
    times.follow(5, 100.0, 30.0)
    times.follow(5, 105.0, 30.0)
    times.delay(109.0, 30.0)
    assert times.next_at == pytest.approx(111.0)


@pytest.mark.parametrize("longest", [1.0, 1.5])
def test_probe_times_never_exceed_the_longest_wait(longest: float) -> None:
    """No wait exceeds the maximum, after a climb or after a refused probe."""
    times = ProbeTimes()
    times.follow(5, 100.0, longest)
    assert times.next_at == 100.0 + longest
    times.delay(110.0, longest)
    assert times.next_at == 110.0 + longest
    times.delay(120.0, 30.0)
    assert times.next_at == pytest.approx(120.0 + 1.3 * longest)


def test_probe_times_after_a_restart_begin_with_two_seconds() -> None:
    """After a restart of the probe times, as after a cut, the first probe comes after two seconds."""
    times = ProbeTimes()
    for _ in range(5):
        times.delay(0.0, 30.0)
    times.restart(10.0)
    assert times.next_at == 12.0
    times.delay(12.0, 30.0)
    assert times.next_at == pytest.approx(14.6)


@pytest.mark.parametrize(
    ("gains", "gained", "usual"),
    [
        ([5, 5], 5, True),
        ([5, 4], 5, False),
        ([4, 5], 5, False),
        ([5, 5], 4, False),
        ([5], 5, False),
        ([], 0, False),
        ([1, 1], 1, True),
    ],
)
def test_probe_times_usual_gain_is_that_of_the_last_two_climbs(gains: list[int], gained: int, usual: bool) -> None:
    """There is a usual gain if the last two climbs gained equally."""
    times = ProbeTimes()
    for number, gain in enumerate([7, *gains] if gains else []):
        times.follow(gain, float(number), 30.0)
    assert times.is_usual(gained) is usual


def test_probe_times_first_climb_has_no_usual_gain() -> None:
    """After the first climb there is no usual gain."""
    times = ProbeTimes()
    times.follow(1, 100.0, 30.0)
    assert not times.is_usual(1)


@pytest.mark.parametrize(
    ("duration", "silence"), [(0.001, 0.05), (0.017, 0.051), (0.1, 0.3), (0.333, 0.999), (0.4, 1.0), (5.0, 1.0)]
)
def test_refusals_silence_is_three_times_as_long_as_a_refusal(duration: float, silence: float) -> None:
    """A silence is a proof after three times what a 429 duration: 50 ms at least, 1 s at most."""
    refusals = Refusals()
    refusals.add(10.0, 10.0 + duration, certain=True)
    assert refusals.silence == pytest.approx(silence)


def test_refusals_doubtful_ones_do_not_change_the_silence() -> None:
    """A timeout after 60 s does not change the silence, because it does not show the duration of a refusal."""
    refusals = Refusals()
    refusals.add(10.0, 70.0, certain=False)
    assert refusals.silence == 0.05


def test_refusals_of_one_burst_count_once() -> None:
    """A refusal of an invocation that was sent before the last refusal arrived is not counted."""
    refusals = Refusals()
    assert refusals.add(1.0, 1.01, certain=True)
    assert not refusals.add(1.009, 1.02, certain=True)
    assert refusals.in_row == 1
    assert refusals.add(1.01, 1.03, certain=True)
    assert refusals.in_row == 2


def test_refusals_with_a_silence_between_them_are_no_row() -> None:
    """Silence shows that the invocation sent in the place of the refused one was accepted."""
    refusals = Refusals()
    refusals.add(1.0, 1.01, certain=True)
    refusals.add(1.059, 1.065, certain=True)
    assert refusals.in_row == 2
    refusals.add(1.115, 1.12, certain=True)
    assert refusals.in_row == 1


@pytest.mark.parametrize(
    ("certain", "above_proof", "alone", "needed"),
    [
        (True, True, 0, 1),
        (True, False, 0, 2),
        (False, True, 0, 2),
        (False, False, 0, 3),
        (True, True, 1, 2),
        (True, False, 1, 3),
        (False, False, 1, 3),
        (True, True, 2, 2),
    ],
)
def test_refusals_are_believed_when_enough_are_in_a_row(
    certain: bool, above_proof: bool, alone: int, needed: int
) -> None:
    """One refusal is enough above the proven limit; below it one more is needed, and with doubtful statuses another."""
    refusals, now = Refusals(), 0.0
    for _ in range(alone):
        now += 1.0
        refusals.add(now, now, certain=True)
        refusals.end_row()
    for number in range(1, needed + 1):
        now += 0.01
        refusals.add(now, now, certain=certain)
        assert refusals.are_believed(certain=certain, above_proof=above_proof) is (number == needed)
    assert refusals.in_row == 0


def test_refusals_single_once_need_one_more_row() -> None:
    """After one single refusal, one row of two refusals is no evidence, and later rows are."""
    refusals = Refusals()
    refusals.add(1.0, 1.01, certain=True)
    refusals.end_row()
    for now in (2.0, 2.02):
        refusals.add(now, now + 0.01, certain=True)
    assert refusals.are_believed(certain=True, above_proof=True)
    refusals.add(2.04, 2.05, certain=True)
    assert refusals.are_believed(certain=True, above_proof=True)


def test_refusals_single_often_need_three_more_rows() -> None:
    """After any number of single refusals, three rows of refusals make a single one evidence again."""
    refusals, now = Refusals(), 0.0
    for _ in range(10):
        now += 1.0
        refusals.add(now, now, certain=True)
        refusals.end_row()
        refusals.end_row()
    for needed in (2, 2, 2, 1, 1):
        now += 1.0
        for number in range(1, needed + 1):
            now += 0.01
            refusals.add(now, now, certain=True)
            assert refusals.are_believed(certain=True, above_proof=True) is (number == needed)
