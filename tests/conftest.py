"""The profiles of Hypothesis: HYPOTHESIS_PROFILE is ``ci``, with the same examples in each run, or ``nightly``.

``mutants`` is for mutation testing (docs/mutants.md), which runs each function's tests dozens of times: failing
examples are neither shrunk nor stored.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.internal.conjecture.providers import HypothesisProvider
from hypothesis.internal.constants_ast import Constants

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as under nohup
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else the programs that the tests start would ignore it, too

# There are no time limits, because a test must not fail on a busy machine.
_patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

settings.register_profile("ci", _patient, max_examples=100, derandomize=True)
settings.register_profile("nightly", _patient, max_examples=10_000, print_blob=True)
settings.register_profile(
    "mutants", _patient, max_examples=50, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate]
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

if settings().derandomize:
    # Hypothesis draws constants from all imported modules. So the cases of one test would depend on the imports of the
    # other tests in its process. (Only a run of all tests found one of the bugs in tests/simulation/bugs.py.)
    assert hasattr(HypothesisProvider, "_local_constants"), "Hypothesis has changed: its constants have another name"
    HypothesisProvider._local_constants = Constants()  # type: ignore[assignment]  # a property, cached


pytest_plugins = ["tests.gateway"]

LONG = (
    "chaos/test_chaos.py",
    "conformance/test_same_as_nats.py",
    "e2e/",
    "http/test_in_flight.py",
    "nats/test_idle_consumers.py",
    "nats/test_migration.py",
    "nats/test_quotas.py",
    "parent/test_parent.py",
    "simulation/test_simulation.py",
    "simulation/test_bugs.py",
    "test_dev.py",
    "test_gateway.py",
    "test_gateway_annotations.py",
    "test_gateway_overload.py",
    "test_gateway_hostile.py",
    "test_gateway_nemesis.py",
    "test_pause.py",
    "test_submit.py",
)
"""Paths of the tests that `make test` leaves to `make test-rest`."""
SHORT = ("e2e/test_e2e_outcomes.py", "e2e/test_e2e_queue.py", "e2e/test_e2e_request.py")
"""Paths of the tests among these that `make test` also runs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the long tests."""
    root = Path(__file__).parent
    for item in items:
        path = item.path.relative_to(root).as_posix()
        if path.startswith(LONG) and path not in SHORT:
            item.add_marker(pytest.mark.long)


PRINTED = 3_000
"""Characters of each program's output that are shown when a test fails."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the programs of a failed test printed last to its report: the failure may be rare."""
    report = yield
    directory = item.funcargs.get("tmp_path")
    if report.failed and isinstance(directory, Path):
        for path in sorted([*directory.glob("*.out"), *directory.glob("*.err")]):
            if last := path.read_text(errors="replace")[-PRINTED:]:
                report.sections.append((f"The end of {path.name}", last))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the census of the simulations from their reports, which another process may have made."""
    for report in (each for kind in terminalreporter.stats.values() for each in kind):
        lines = dict(getattr(report, "user_properties", ())).get("census")
        if isinstance(lines, list) and report.when == "teardown":
            terminalreporter.write_line("")
            for line in lines:
                terminalreporter.write_line(line)


if "MUTANT_UNDER_TEST" in os.environ:  # set by mutmut
    from tests.world import world

    # Under a mutant tests wait for events that do not happen; the longest wait of any is an hour and a minute.
    world.LONGEST = 10_000.0

    def pytest_sessionfinish(exitstatus: int) -> None:
        """End with 35, "suspicious", if a test was not found by name: mutmut would count the mutant as killed."""
        if exitstatus == pytest.ExitCode.USAGE_ERROR:
            os._exit(35)
