"""Counts what the simulations live through; :mod:`tests.conftest` tells it after the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.simulation.census import Census


@pytest.fixture
def census(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Census]:
    """Counts the lives of one test. It goes with the test's report, which may come from another process."""
    census = Census(request.function.__name__.removeprefix("test_"))
    yield census
    record_property("census", census.lines())
