"""Tells, after the tests, what the simulations have lived through."""

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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each census."""
    for report in (each for kind in terminalreporter.stats.values() for each in kind):
        lines = dict(getattr(report, "user_properties", ())).get("census")
        if isinstance(lines, list) and report.when == "teardown":
            terminalreporter.write_line("")
            for line in lines:
                terminalreporter.write_line(line)
