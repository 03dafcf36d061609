"""The simulation can fail: each of these bugs, put into the worker, is found within a bounded number of lives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.simulation import bugs
from tests.simulation.bugs import FAULTY, HEALTHY, Bug
from tests.simulation.exact import check_exactly
from tests.simulation.laws import check
from tests.simulation.plans import RARE, RARE_HEALTHY, faulty, healthy
from tests.world.simulation import Plan, simulate


class Found(Exception):  # noqa: N818 -- it says what happened
    """A law, or a rule of a port, was seen to be broken."""


def _is_broken_patch(error: BaseException) -> bool:
    """Whether a patch names something that is no longer there, which would be found in any life."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_broken_patch, error.exceptions))
    return isinstance(error, AttributeError | NameError | TypeError)


def lives_until_found(first: Sequence[Plan], plans: Any, most: int) -> int | None:
    """Return how many lives it takes to find a bug, or None where *most* are not enough.

    The lives are the same each time: those of *first*, as in test_simulation.py, and then those that Hypothesis draws,
    which depends on nothing but this file and the plans (see tests/conftest.py).
    """
    lives = 0

    def live(plan: Plan) -> None:
        nonlocal lives
        lives += 1
        try:
            life = simulate(plan)
            stories, _ = check(life)
            if not plan.faults:
                check_exactly(life, stories)
        except Exception as error:
            if _is_broken_patch(error):
                raise
            raise Found(repr(error)[:200]) from None

    drawn = settings(
        max_examples=most - len(first),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )(given(plan=plans)(live))
    try:
        for plan in first:
            live(plan)
        drawn()
    except Found:
        return lives
    return None


@pytest.mark.parametrize("bug", HEALTHY, ids=lambda bug: bug.__name__)
def test_found_where_nothing_fails(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these is found among a hundred lives without faults."""
    bug(monkeypatch)
    assert lives_until_found(RARE_HEALTHY, healthy, 100)


@pytest.mark.parametrize("bug", FAULTY, ids=lambda bug: bug.__name__)
def test_found_in_trouble(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes a fault, and is found among two hundred lives with some."""
    bug(monkeypatch)
    assert lives_until_found(RARE, faulty, 200)


@pytest.mark.parametrize("bug", bugs.RARE, ids=lambda bug: bug.__name__)
def test_found_seldom(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these takes a certain fault in a certain second, and is found among two thousand lives."""
    bug(monkeypatch)
    assert lives_until_found(RARE, faulty, 2000)
