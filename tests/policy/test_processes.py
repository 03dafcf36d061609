from __future__ import annotations

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.policy.processes import (
    MAX_CRASHES,
    RESTART_BACKOFF,
    STABLE_AFTER,
    crashes_in_a_row,
    must_give_up,
    open_files_warning,
    share,
    share_minimums,
)


@given(st.integers(1, 128), st.integers(0, 10**6))
def test_shares_add_up_to_the_slots(processes: int, more: int) -> None:
    """Shares add up to the slots; each process has at least one, and the first ones have at most one more."""
    slots = processes + more
    shares = [share(slots, processes, number) for number in range(1, processes + 1)]
    assert sum(shares) == slots
    assert min(shares) >= 1
    assert max(shares) - min(shares) <= 1
    assert shares == sorted(shares, reverse=True)


def test_shares_of_50_slots_among_4_processes_are_as_documented() -> None:
    """50 slots among 4 processes are 13, 13, 12 and 12."""
    assert [share(50, 4, number) for number in (1, 2, 3, 4)] == [13, 13, 12, 12]


@given(st.integers(1, 16), st.lists(st.integers(1, 40), max_size=8), st.integers(0, 100))
def test_share_minimums_deals_each_slot_once(processes: int, each: list[int], more: int) -> None:
    """A function's minimum is divided evenly among processes, and no process has minimums above its slots."""
    minimums = [(f"f{number}", slots) for number, slots in enumerate(each)]
    slots = max(processes, sum(each)) + more
    parts = [dict(share_minimums(minimums, processes, number)) for number in range(1, processes + 1)]
    for name, whole in minimums:
        kept = [part.get(name, 0) for part in parts]
        assert sum(kept) == whole
        assert max(kept) - min(kept) <= 1
    assert all(sum(part.values()) <= share(slots, processes, number) for number, part in enumerate(parts, 1))


@given(st.lists(st.floats(0, STABLE_AFTER, exclude_max=True), max_size=20))
def test_crashes_in_a_row_of_an_unstable_process_add_up(lifetimes: list[float]) -> None:
    """Each crash within a minute after the start adds one to the crashes in a row."""
    assert [*accumulate(lifetimes, crashes_in_a_row, initial=0)] == list(range(len(lifetimes) + 1))


@given(st.integers(0, 10**6), st.floats(STABLE_AFTER, 10**9))
def test_crashes_in_a_row_after_a_minute_start_again(before: int, lifetime: float) -> None:
    """A crash more than a minute after the start is the first in a row."""
    assert crashes_in_a_row(before, lifetime) == 1


def test_restart_backoff_grows_from_half_a_second_to_half_a_minute() -> None:
    """The waits double from 0.5 s to 30 s, with jitter of up to a half; those before the fifth crash are 7.5 s."""
    assert [RESTART_BACKOFF.ceiling(number) for number in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert RESTART_BACKOFF.delay(1, draw=0.0) == 0.25
    assert sum(RESTART_BACKOFF.ceiling(number) for number in range(1, MAX_CRASHES)) == 7.5


@pytest.mark.parametrize(
    ("in_a_row", "running", "gives_up"),
    [
        ((5, 5), 0, True),
        ((5, 9), 0, True),
        ((4, 9), 0, False),
        ((5, 9), 1, False),
        ((5,), 0, True),
    ],
)
def test_must_give_up_after_crashes_of_all_processes_is_true(
    in_a_row: tuple[int, ...], running: int, gives_up: bool
) -> None:
    """The parent gives up when every process has crashed five times in a row and none runs."""
    assert must_give_up(in_a_row, running) == gives_up


def test_open_files_warning_names_limit_and_remedy() -> None:
    """Fewer files than two for each invocation and 30 are too few; the warning names both numbers."""
    assert open_files_warning(130, 50) is None
    warning = open_files_warning(129, 50)
    assert warning is not None
    assert "129" in warning
    assert "130" in warning
    assert "max_inflight = 50" in warning
