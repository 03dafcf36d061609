"""The reconciler: a table of situations with their actions."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.nats.layout import FUNCTION, RETIRED, UNMARKED, ConsumerSet, ConsumerState, static
from worker.nats.reconcile import (
    AT_A_TIME,
    REFUSED,
    Action,
    BindShared,
    DeleteRefused,
    DeleteRetired,
    Idle,
    Observed,
    Retire,
    Serve,
    Unfilter,
    Wanted,
    delete_idle,
    idle_consumers,
    name_for_subject,
    reconcile,
)

ONE, TWO, THREE = static(1), static(2), static(3)


def live(name: str, layout: str, *subjects: str, pending: int = 0, ack_pending: int = 0, at: int = 0) -> ConsumerState:
    """Return a consumer of a worker."""
    return ConsumerState(name, layout, subjects, at, ack_pending, pending, 30.0)


def retired(consumer: ConsumerState, layout: str, at: int, ack_pending: int = 0) -> ConsumerState:
    """Return the same consumer, retired for a layout at a time."""
    return replace(consumer, layout=RETIRED, mark=10, retired_for=layout, retired_at=at, num_ack_pending=ack_pending)


SHARED = live("w", ONE)
FILTERED = live("w", ONE, "q", "q.>")
ECHO = live("w-echo", FUNCTION, "q.0.echo.ns")
OTHER = live("w-other", FUNCTION, "q.0.other.ns")
FAR = live("w-far", FUNCTION, "q.far")
"""Its subject belongs to no partition."""
PART = live("w-p0", TWO, "q", "q.0.>")
FOREIGN = live("audit", ONE, "q.0.echo.ns")


def found(*consumers: ConsumerState, foreign: tuple[ConsumerState, ...] = ()) -> ConsumerSet:
    """Return the consumers of a stream, sorted."""
    retirees = tuple(each for each in consumers if each.layout == RETIRED)
    return ConsumerSet(tuple(each for each in consumers if each.layout != RETIRED), retirees, foreign)


UNMARKED_ECHO = replace(retired(ECHO, ONE, 5), mark=UNMARKED)
SITUATIONS: dict[str, tuple[str, Observed, list[Action]]] = {
    # A queue without consumers.
    "function mode, no consumer": (FUNCTION, Observed(), [Serve(FUNCTION)]),
    "retired by a worker that died before it set the mark": (
        FUNCTION,
        Observed(found(UNMARKED_ECHO)),
        [Retire(("w-echo",), FUNCTION)],
    ),
    "static mode, no consumer": (ONE, Observed(), [Serve(ONE), BindShared("w", ONE, alone=True)]),
    "two partitions, no consumer": (TWO, Observed(), [Serve(TWO), BindShared("w-p1", TWO, alone=True)]),
    # The desired layout.
    "function mode as wanted": (FUNCTION, Observed(found(ECHO, OTHER)), [Serve(FUNCTION)]),
    "static mode as wanted": (ONE, Observed(found(SHARED)), [Serve(ONE), BindShared("w", ONE, alone=True)]),
    "already bound": (ONE, Observed(found(SHARED), served=ONE, bound=True), [Serve(ONE)]),
    "served, and not bound": (
        ONE,
        Observed(found(SHARED), served=ONE),
        [Serve(ONE), BindShared("w", ONE, alone=True)],
    ),
    "bound in another layout": (
        ONE,
        Observed(found(SHARED), served=TWO, bound=True),
        [Serve(ONE), BindShared("w", ONE, alone=True)],
    ),
    "bound to a consumer that is gone": (
        ONE,
        Observed(found(), served=ONE, bound=True),
        [Serve(ONE), BindShared("w", ONE, alone=True)],
    ),
    "beside a foreign consumer": (
        ONE,
        Observed(found(foreign=(FOREIGN,))),
        [Serve(ONE), BindShared("w", ONE, alone=False)],
    ),
    "beside another partition": (TWO, Observed(found(PART)), [Serve(TWO), BindShared("w-p1", TWO, alone=False)]),
    "filtered, and alone since": (
        ONE,
        Observed(found(FILTERED), served=ONE, bound=True),
        [Unfilter("w"), Serve(ONE)],
    ),
    "filtered, beside another": (
        ONE,
        Observed(found(FILTERED, foreign=(FOREIGN,)), served=ONE, bound=True),
        [Serve(ONE)],
    ),
    "filtered by an operator": (
        ONE,
        Observed(found(live("w", ONE, "q.0.>")), served=ONE, bound=True),
        [Serve(ONE)],
    ),
    "filtered to more than the queue": (
        ONE,
        Observed(found(live("w", ONE, "q", "q.>", "more")), served=ONE, bound=True),
        [Serve(ONE)],
    ),
    # Another layout.
    "static to function": (FUNCTION, Observed(found(SHARED)), [Retire(("w",), FUNCTION)]),
    "partitions to function": (FUNCTION, Observed(found(PART, ECHO)), [Retire(("w-p0",), FUNCTION)]),
    "function to static": (ONE, Observed(found(ECHO, OTHER)), [Retire(("w-echo", "w-other"), ONE)]),
    "function to partitions": (TWO, Observed(found(ECHO, FAR)), [Retire(("w-echo",), TWO)]),
    "the bare subject's to partitions": (TWO, Observed(found(live("w-any", FUNCTION, "q"))), [Retire(("w-any",), TWO)]),
    "a shared consumer of another name": (ONE, Observed(found(live("w2", ONE))), [Retire(("w2",), ONE)]),
    "static to partitions": (TWO, Observed(found(SHARED)), [Retire(("w",), TWO)]),
    "two to three partitions": (THREE, Observed(found(PART)), [Retire(("w-p0",), THREE)]),
    "a foreign consumer stays": (
        ONE,
        Observed(found(SHARED, foreign=(FOREIGN,)), served=ONE, bound=True),
        [Serve(ONE)],
    ),
    "another worker wants the layout": (
        FUNCTION,
        Observed(found(SHARED), current_is_wanted=True, served=ONE, bound=True),
        [Serve(ONE)],
    ),
    "a worker died before it had retired all": (
        FUNCTION,
        Observed(found(retired(ECHO, ONE, 5, ack_pending=1), OTHER), current_is_wanted=True),
        [Retire(("w-other",), ONE)],
    ),
    # Retired consumers.
    "retired, and holds nothing": (
        FUNCTION,
        Observed(found(retired(SHARED, FUNCTION, 9))),
        [DeleteRetired((retired(SHARED, FUNCTION, 9),))],
    ),
    "retired, with pending acks": (
        FUNCTION,
        Observed(found(retired(SHARED, FUNCTION, 9, ack_pending=1))),
        [Serve(FUNCTION)],
    ),
    "an older one holds messages of a younger one": (
        FUNCTION,
        Observed(found(retired(ECHO, ONE, 5, ack_pending=1), retired(OTHER, ONE, 5), retired(SHARED, FUNCTION, 9))),
        [DeleteRetired((retired(OTHER, ONE, 5),))],
    ),
    "one of the same time holds messages of another": (
        FUNCTION,
        Observed(found(retired(SHARED, FUNCTION, 9, ack_pending=1), retired(PART, FUNCTION, 9))),
        [Serve(FUNCTION)],
    ),
    "a younger one holds messages": (
        FUNCTION,
        Observed(found(retired(ECHO, ONE, 5), retired(SHARED, FUNCTION, 9, ack_pending=1))),
        [DeleteRetired((retired(ECHO, ONE, 5),))],
    ),
    "the shared name is in use by a retired consumer": (
        ONE,
        Observed(found(retired(SHARED, FUNCTION, 9, ack_pending=1), ECHO)),
        [Serve(FUNCTION)],
    ),
    "a partition's name is in use by a retired consumer": (
        THREE,
        Observed(found(retired(PART, THREE, 9, ack_pending=1))),
        [Serve(FUNCTION)],
    ),
    "static mode beside a retired consumer": (
        ONE,
        Observed(found(retired(ECHO, ONE, 5, ack_pending=1), FILTERED), served=ONE, bound=True),
        [Serve(ONE)],
    ),
    # Consumers without a leader: nothing else is decided until all have one.
    "an election": (FUNCTION, Observed(found(SHARED), leaderless={"w-echo": REFUSED - 0.1}), []),
    "refused by the cluster": (
        FUNCTION,
        Observed(found(FILTERED, retired(PART, ONE, 1), foreign=(FOREIGN,)), leaderless={"w-echo": REFUSED}),
        [DeleteRefused(("w-echo",), (("q", "q.>"), ("q.0.echo.ns",)))],
    ),
    "the shared consumer refused": (
        FUNCTION,
        Observed(found(ECHO), leaderless={"w": REFUSED}),
        [DeleteRefused(("w",), (("q.0.echo.ns",),))],
    ),
    "a foreign one without a leader": (FUNCTION, Observed(found(SHARED), leaderless={"audit": REFUSED}), []),
}


@pytest.mark.parametrize(("layout", "observed", "actions"), SITUATIONS.values(), ids=SITUATIONS.keys())
def test_reconcile_of_each_situation_returns_its_actions(
    layout: str, observed: Observed, actions: list[Action]
) -> None:
    """Each situation has one list of actions."""
    assert reconcile(observed, Wanted(layout, "q", "w", partition=1)) == actions


def test_idle_consumers_are_those_without_messages() -> None:
    """A consumer with a message to deliver, or with a pending ack, is not idle; shared ones never are."""
    consumers = found(ECHO, replace(OTHER, num_pending=1), replace(FAR, num_ack_pending=1), SHARED)
    assert idle_consumers(consumers, {}, 7.0) == {"w-echo": Idle("w-echo", "q.0.echo.ns", 7.0, 0)}


@pytest.mark.parametrize(("last_delivered", "since"), [(4, 7.0), (5, 9.0)])
def test_idle_consumers_are_idle_since_their_last_delivery(last_delivered: int, since: float) -> None:
    """A consumer that has delivered between two observations was not idle in between."""
    consumers = found(replace(ECHO, last_delivered=last_delivered))
    before = {"w-echo": Idle("w-echo", "q.0.echo.ns", 7.0, 4)}
    assert idle_consumers(consumers, before, 9.0)["w-echo"].since == since


@pytest.mark.parametrize(
    ("now", "crowded", "deleted"), [(16.9, False, 0), (17.0, False, 1), (7.0, True, 0), (7.1, True, 1)]
)
def test_delete_idle_after_the_threshold(now: float, crowded: bool, deleted: int) -> None:
    """An idle consumer is deleted after the threshold; after one more observation where others wait for a consumer."""
    idle = {"w-echo": Idle("w-echo", "q.0.echo.ns", 7.0, 0)}
    assert delete_idle(idle, 10.0, now, crowded=crowded) == [*idle.values()] * deleted


def test_delete_idle_is_bounded() -> None:
    """At most AT_A_TIME idle consumers are deleted at once."""
    idle = {f"w-{number}": Idle(f"w-{number}", "q.x", 0.0, 0) for number in range(AT_A_TIME + 1)}
    assert len(delete_idle(idle, 1.0, 2.0, crowded=False)) == AT_A_TIME


@pytest.mark.parametrize(
    ("consumers", "name"),
    [
        (found(), "w-echo"),
        (found(ECHO), "w-echo"),
        (found(live("w-p0", TWO, "q.0.echo.ns")), "w-echo"),
        (found(retired(ECHO, ONE, 5)), "w-echo-2"),
        (found(retired(ECHO, ONE, 5), retired(replace(ECHO, name="w-echo-2"), ONE, 9)), "w-echo-3"),
        (found(replace(ECHO, name="w-echo-2")), "w-echo-2"),
        (found(retired(ECHO, ONE, 5), replace(ECHO, name="w-echo-3")), "w-echo-3"),
    ],
    ids=[
        "none",
        "there",
        "a shared one",
        "name retired",
        "both retired",
        "numbered by another worker",
        "numbered higher",
    ],
)
def test_name_for_subject_is_free_or_in_use(consumers: ConsumerSet, name: str) -> None:
    """A retired consumer keeps its name; the consumer that another worker created for the subject is used."""
    assert name_for_subject(consumers, "q.0.echo.ns", "w-echo") == name
