"""Tells, after the tests, what the simulations have lived through."""

from __future__ import annotations

import pytest

from tests.simulation.census import TAKEN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print each census."""
    for census in TAKEN:
        if census.lives:
            terminalreporter.write_line("")
            for line in census.lines():
                terminalreporter.write_line(line)
