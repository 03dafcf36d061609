"""The causes of a repeated invocation: each with its smallest example, and events that are none. Times in seconds."""

from __future__ import annotations

import pytest

from tests.explained import CAUSES, Run, Terms, Trouble, explained

TERMS = Terms(ack_wait=30.0, trip=0.1)

AGAIN = Run("b", 50.0, 51.0, "final")
EXAMPLES = {
    "retry": (Run("a", 0.0, 1.0, "retry"), AGAIN, ()),
    "the worker died": (Run("a", 0.0, 1.0, "died"), AGAIN, (Trouble("kill", 1.0, 1.0, "a"),)),
    "the lease was lost": (Run("a", 0.0, 20.0, "lost"), AGAIN, (Trouble("cut", 5.0, 25.0, "a"),)),
    "the worker stood still": (Run("a", 0.0, 60.0, "lost"), AGAIN, (Trouble("freeze", 5.0, 60.0, "a"),)),
    "the end was not heard": (Run("a", 0.0, 1.0, "final"), AGAIN, (Trouble("deaf", 0.5, 40.0, "a"),)),
    "the drain gave it back": (Run("a", 0.0, 1.0, "given back"), AGAIN, (Trouble("drain", 1.0, 2.0, "a"),)),
    "the drain stopped its callback": (
        Run("a", 0.0, 1.0, "final", "given back"),
        AGAIN,
        (Trouble("drain", 3.0, 4.0, "a"),),
    ),
    "the consumer was made anew": (Run("a", 0.0, 60.0, "final"), AGAIN, (Trouble("anew", 49.0, 49.0),)),
    "no dead letter could be stored": (Run("a", 0.0, 1.0, "final", "buried not"), AGAIN, ()),
    "it came late": (Run("a", 45.0, 60.0, "final"), AGAIN, (Trouble("freeze", 10.0, 50.0, "b"),)),
    "a restart cut its lease short": (Run("a", 45.0, 60.0, "final"), AGAIN, (Trouble("restart", 47.0, 48.0),)),
    "the server forgot": (Run("a", 20.0, 60.0, "final"), AGAIN, (Trouble("crash", 47.0, 48.0),)),
    "it was heard late what was said": (Run("a", 45.0, 60.0, "final"), AGAIN, (Trouble("late", 40.0, 48.0, "a"),)),
    "another that had it too gave it back": (Run("a", 45.0, 60.0, "final"), AGAIN, (Trouble("anew", 42.0, 42.0),)),
}
"""The first run, the next, and the troubles. Of the last of them, a third run is what explains it."""
THIRD = Run("c", 40.0, 49.0, "given back")


@pytest.mark.parametrize("name", EXAMPLES)
def test_cause(name: str) -> None:
    """Each cause explains its own example, without any other."""
    first, again, troubles = EXAMPLES[name]
    runs = (first, again, THIRD) if name == "another that had it too gave it back" else (first, again)
    assert [cause.name for cause in explained(first, again, troubles, TERMS, runs)] == [name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_nothing_without_its_trouble(name: str) -> None:
    """What takes a trouble is not explained without one, nor by the same one to another worker or long before."""
    first, again, troubles = EXAMPLES[name]
    if troubles:
        assert not explained(first, again, (), TERMS)
        early = [Trouble(each.kind, each.begins - 500.0, each.ends - 500.0, each.worker) for each in troubles]
        assert not explained(first, again, early, TERMS)
        theirs = [Trouble(each.kind, each.begins, each.ends, "d") for each in troubles if each.worker == "a"]
        assert not explained(first, again, theirs, TERMS)


@pytest.mark.parametrize("how", ["retry", "given back", "final"])
def test_nothing_excuses_two_at_once(how: str) -> None:
    """A retry, a drain or a lost acknowledgement explains no run that began before the first had ended."""
    first = Run("a", 0.0, 60.0, how)  # type: ignore[arg-type]  # one of the literals
    troubles = (Trouble("deaf", 0.0, 60.0, "a"), Trouble("drain", 0.0, 60.0, "a"))
    assert not explained(first, AGAIN, troubles, TERMS)


def test_all_causes() -> None:
    """Each cause has an example, and a place of its own in the list."""
    assert {cause.name for cause in CAUSES} == {*EXAMPLES}
    assert len({cause.listed for cause in CAUSES}) == len(CAUSES)
