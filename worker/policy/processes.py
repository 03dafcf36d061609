"""Several processes as one worker: the share of each, and the restarts of those that crash."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from .retry import Backoff, Jitter

RESTART_BACKOFF = Backoff(0.5, 30.0, Jitter.EQUAL)
"""Waits before a crashed process is started again. The first is short, because most crashes are single ones. The
longest is below the five minutes of Kubernetes, because a process costs less to start than a container. The jitter
separates processes that crashed together."""
STABLE_AFTER = 60.0
"""Seconds after which a crash starts a new count."""
MAX_CRASHES = 5
"""Crashes in a row: with the waits before it, the fifth happens some ten seconds after the start."""


def share(slots: int, processes: int, number: int) -> int:
    """Return how many of *slots* process *number* (from 1) has; the first processes get the remainder."""
    each, remainder = divmod(slots, processes)
    return each + (number <= remainder)


def share_minimums(minimums: Sequence[tuple[str, int]], processes: int, number: int) -> tuple[tuple[str, int], ...]:
    """Return the share of process *number* (from 1) in the functions' minimal slots.

    The slots are dealt to the processes in turn, so that no process keeps more than it has, where all have enough.
    """
    shares, dealt = list[tuple[str, int]](), 0
    for name, slots in minimums:
        own = share(dealt + slots, processes, number) - share(dealt, processes, number)
        dealt += slots
        if own:
            shares.append((name, own))
    return tuple(shares)


def crashes_in_a_row(before: int, lifetime: float) -> int:
    """Count a crash after *lifetime* seconds, with *before* earlier ones in a row."""
    return 1 if lifetime >= STABLE_AFTER else before + 1


def must_give_up(crashes: Collection[int], running: int) -> bool:
    """Return whether no process runs and each has crashed so often in a row that chance is unlikely.

    While one works, giving up would only end that one too. When none works, the container must end: Kubernetes shows
    a container that restarts, and would not show a worker that cannot run.
    """
    return not running and min(crashes) >= MAX_CRASHES


def open_files_warning(limit: int, max_inflight: int) -> str | None:
    """Return a warning if *limit* open files are too few for *max_inflight* invocations; None if they are enough.

    Each invocation or callback in flight is a connection, as many may be idle, and some 30 files are always open.
    """
    needed = 2 * max_inflight + 30
    if limit >= needed:
        return None
    remedy = f"raise it (ulimit -n, LimitNOFILE, the container's limit) to {needed}, or lower max_inflight"
    return f"the limit of open files, {limit}, is too low for max_inflight = {max_inflight}: {remedy}"
