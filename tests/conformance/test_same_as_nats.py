"""The simulated broker behaves as JetStream: a client receives the same from it and from a nats-server.

Scripts are drawn by Hypothesis and played on both, dozens at the same time: publications, pulls, and all settlements
of deliveries old and new, by two clients; consumers recreated or given another ack wait; servers that stop, are
killed, and are killed while they write. A difference prints as code that plays the script again.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.conformance.compare import Comparison, compare, expected_traces, shrink
from tests.conformance.draw import draw
from tests.conformance.laws import LAWS
from tests.conformance.script import Restart

RESTARTS = [None, Restart("stop"), Restart("kill"), Restart("mid-write")]
SIDE_BY_SIDE = 25
"""Scripts with each kind of restart at the same time."""
REPORTED = 2
"""Most differences that are shrunk, because each takes minutes."""


def report(comparison: Comparison) -> str:
    """Describe the differences."""
    differences = comparison.differences
    small = [str(shrink(difference)) for difference in differences[:REPORTED]]
    return "\n\n".join([f"{len(differences)} of {comparison.compared} scripts differ", *small])


def test_laws_do_not_depend_on_the_order_of_ties() -> None:
    """The script of a law does not depend on the order of two events that are due at the same time."""
    assert [law for law, script in LAWS.items() if not expected_traces(script)] == []


@pytest.mark.parametrize("number", range(max(1, settings().max_examples // 100)))
def test_scripts_have_the_same_trace_on_both_brokers(number: int) -> None:
    """Both brokers show the same for each script: messages, order, counts, times, responses, statuses and numbers."""
    del number  # each run draws other scripts, unless Hypothesis draws the same every time
    drawn = [script for restart in RESTARTS for script in draw(restart, SIDE_BY_SIDE, expected_traces)]
    comparison = compare([*LAWS.values(), *drawn])
    print(f"{comparison.compared} scripts compared")  # noqa: T201 -- shown by pytest -s
    if not comparison.compared:
        pytest.skip("the machine was late with every script, five times")
    assert not comparison.differences, report(comparison)
