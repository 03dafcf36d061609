"""Event counts of the simulations, which :mod:`tests.conftest` prints after the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.simulation.census import Census


@pytest.fixture
def census(request: pytest.FixtureRequest, record_property: Callable[[str, object], None]) -> Iterator[Census]:
    """Count the events of one test, and attach them to its report, which may come from another process."""
    census = Census(request.function.__name__.removeprefix("test_"))
    yield census
    record_property("census", census.lines())
