"""Causes of a repeated invocation: the smallest example of each, and cases without a cause. Times in seconds."""

from __future__ import annotations

import pytest

from tests.explained import CAUSES, ActiveFault, QueueSettings, Run, causes_of_repeat

SETTINGS = QueueSettings(ack_wait=30.0, latency=0.1)

NEXT = Run("b", 50.0, 51.0, "final")
EXAMPLES = {
    "retry": (Run("a", 0.0, 1.0, "retry"), NEXT, ()),
    "the worker was killed": (Run("a", 0.0, 1.0, "killed"), NEXT, (ActiveFault("kill", 1.0, 1.0, "a"),)),
    "the lease was lost": (Run("a", 0.0, 20.0, "lost"), NEXT, (ActiveFault("cut", 5.0, 25.0, "a"),)),
    "the worker was suspended": (Run("a", 0.0, 60.0, "lost"), NEXT, (ActiveFault("suspend worker", 5.0, 60.0, "a"),)),
    "the ack was not confirmed": (
        Run("a", 0.0, 1.0, "final"),
        NEXT,
        (ActiveFault("drop from worker", 0.5, 40.0, "a"),),
    ),
    "the drain sent a nak": (Run("a", 0.0, 1.0, "nakked"), NEXT, (ActiveFault("drain", 1.0, 2.0, "a"),)),
    "the drain cancelled its callback": (
        Run("a", 0.0, 1.0, "final", "nakked"),
        NEXT,
        (ActiveFault("drain", 3.0, 4.0, "a"),),
    ),
    "the consumer was recreated": (Run("a", 0.0, 60.0, "final"), NEXT, (ActiveFault("recreate consumer", 49.0, 49.0),)),
    "no dead letter could be stored": (Run("a", 0.0, 1.0, "final", "dead letter not stored"), NEXT, ()),
    "the delivery arrived late": (
        Run("a", 45.0, 60.0, "final"),
        NEXT,
        (ActiveFault("suspend worker", 10.0, 50.0, "b"),),
    ),
    "a restart cut its lease short": (Run("a", 45.0, 60.0, "final"), NEXT, (ActiveFault("restart", 47.0, 48.0),)),
    "the server lost state": (Run("a", 20.0, 60.0, "final"), NEXT, (ActiveFault("crash", 47.0, 48.0),)),
    "a settlement arrived late": (Run("a", 45.0, 60.0, "final"), NEXT, (ActiveFault("deliver late", 40.0, 48.0, "a"),)),
    "another worker with the message sent a nak": (
        Run("a", 45.0, 60.0, "final"),
        NEXT,
        (ActiveFault("recreate consumer", 42.0, 42.0),),
    ),
}
"""Cause -> first run, next run, faults. The last cause takes a third run."""
THIRD = Run("c", 40.0, 49.0, "nakked")


@pytest.mark.parametrize("name", EXAMPLES)
def test_explained_example_has_its_cause_alone(name: str) -> None:
    """Each cause's example has this cause and no other."""
    first, again, active_faults = EXAMPLES[name]
    runs = (first, again, THIRD) if name == "another worker with the message sent a nak" else (first, again)
    assert [cause.name for cause in causes_of_repeat(first, again, active_faults, SETTINGS, runs)] == [name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_explained_without_its_fault_is_empty(name: str) -> None:
    """A cause that needs a fault does not apply without it, 500 s after it, or to another worker."""
    first, again, active_faults = EXAMPLES[name]
    if active_faults:
        assert not causes_of_repeat(first, again, (), SETTINGS)
        early = [ActiveFault(each.kind, each.begins - 500.0, each.ends - 500.0, each.worker) for each in active_faults]
        assert not causes_of_repeat(first, again, early, SETTINGS)
        elsewhere = [
            ActiveFault(each.kind, each.begins, each.ends, "d") for each in active_faults if each.worker == "a"
        ]
        assert not causes_of_repeat(first, again, elsewhere, SETTINGS)


@pytest.mark.parametrize("outcome", ["retry", "nakked", "final"])
def test_explained_overlap_without_a_cause_is_empty(outcome: str) -> None:
    """A retry, a drain or a lost ack does not explain a run that began before the first run's end."""
    first = Run("a", 0.0, 60.0, outcome)  # type: ignore[arg-type]  # one of the literals
    active_faults = (ActiveFault("drop from worker", 0.0, 60.0, "a"), ActiveFault("drain", 0.0, 60.0, "a"))
    assert not causes_of_repeat(first, NEXT, active_faults, SETTINGS)


def test_causes_all_have_examples_and_numbers() -> None:
    """Each cause has an example, and its own number in docs/guarantees.md."""
    assert {cause.name for cause in CAUSES} == {*EXAMPLES}
    assert len({cause.listed for cause in CAUSES}) == len(CAUSES)
