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


class Found(Exception):  # noqa: N818 -- an event, not an error
    """A violation of a law or of a port's rule."""


def _is_broken_patch(error: BaseException) -> bool:
    """Return whether a patch names an attribute that does not exist, which any life would find."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_broken_patch, error.exceptions))
    return isinstance(error, AttributeError | NameError | TypeError)


def lives_until_found(first: Sequence[Plan], plans: Any, max_lives: int) -> int | None:
    """Return the number of lives after which a bug is found, or None where *max_lives* do not find it.

    The lives are the same each time: those of *first*, as in test_simulation.py, then those that Hypothesis draws. Its
    draws depend only on this file and the plans (see tests/conftest.py).
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
        max_examples=max_lives - len(first),
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
def test_simulation_without_faults_finds_the_bug(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bug that shows without faults is found within a hundred lives without faults."""
    bug(monkeypatch)
    assert lives_until_found(RARE_HEALTHY, healthy, 100)


@pytest.mark.parametrize("bug", FAULTY, ids=lambda bug: bug.__name__)
def test_simulation_with_faults_finds_the_bug(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bug that shows after a fault is found within two hundred lives with faults."""
    bug(monkeypatch)
    assert lives_until_found(RARE, faulty, 200)


@pytest.mark.parametrize("bug", bugs.RARE, ids=lambda bug: bug.__name__)
def test_simulation_finds_the_bug_of_a_rare_fault(bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each bug that shows after a certain fault in a certain second is found within two thousand lives."""
    bug(monkeypatch)
    assert lives_until_found(RARE, faulty, 2000)
