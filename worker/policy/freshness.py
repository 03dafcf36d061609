"""The use of a copy of another program's value: its age decides whether it is used, refreshed or waited for."""

from __future__ import annotations

from enum import Enum


class Step(Enum):
    """The step before a copy is used."""

    USE = "use"
    """Use the copy, or nothing where there is none."""
    REFRESH = "refresh"
    """Use the copy, and request a new one beside that."""
    WAIT = "wait"
    """Request a new copy and wait for it, in bounded time; then use what there is."""


def step(age: float, fresh: float, usable: float) -> Step:
    """Return the step for a copy of this age (s): fresh up to *fresh*, and used without a wait up to *usable*.

    A copy that is in constant use is refreshed beside the calls, so they never wait. One that was not used for long
    is not trusted.
    """
    if age < fresh:
        return Step.USE
    return Step.REFRESH if age < usable else Step.WAIT
