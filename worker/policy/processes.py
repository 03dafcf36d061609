"""Several processes as one worker: what each may run, and when to start one again that crashed."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .backoff import Backoff, Jitter

RESTART_BACKOFF = Backoff(0.5, 30.0, Jitter.EQUAL)
"""Waits before a process that crashed is started again. The first is short, since most crashes are single ones; the
longest is well below the five minutes of Kubernetes, since a process costs less to start than a container. The jitter
keeps processes apart that crashed together."""
STABLE_AFTER = 60.0
"""Seconds after which a process that crashes is one that had been well: its crashes are counted anew."""
MAX_CRASHES = 5
"""Crashes in a row: with the waits before it, the fifth comes some ten seconds after the start."""


def share(slots: int, processes: int, number: int) -> int:
    """Of *slots* invocations at once, how many process *number* (from 1) of so many runs; the first get the rest."""
    each, over = divmod(slots, processes)
    return each + (number <= over)


def share_minimums(minimums: Sequence[tuple[str, int]], processes: int, number: int) -> tuple[tuple[str, int], ...]:
    """Of the slots that functions have before others, those that process *number* (from 1) of so many keeps.

    Dealt one after the other, so that no process keeps more than it has slots, where all of them have enough.
    """
    kept, dealt = list[tuple[str, int]](), 0
    for name, slots in minimums:
        mine = sum((dealt + slot) % processes == number - 1 for slot in range(slots))
        dealt += slots
        if mine:
            kept.append((name, mine))
    return tuple(kept)


def crashes_in_a_row(before: int, lived: float) -> int:
    """How often in a row a process has crashed, now that it did once more, after *lived* seconds."""
    return 1 if lived >= STABLE_AFTER else before + 1


def must_give_up(in_a_row: Collection[int], running: int) -> bool:
    """Whether to give up: none runs, and each has crashed in a row as often as makes chance unlikely.

    As long as one works, giving up would only take that one too. When none does, a container that stays would hide
    from Kubernetes what it shows best: a worker that cannot run.
    """
    return not running and min(in_a_row) >= MAX_CRASHES
