"""Processor time and memory of processes, as Linux counts them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_PROC = Path("/proc")
_CORES = sorted(os.sched_getaffinity(0))
MEASURED, REST, ALL = frozenset(_CORES[:1]), frozenset(_CORES[1:] or _CORES), frozenset(_CORES)
"""The core of the measured process, those of all other processes, and all cores."""


def cpu(pid: int) -> float:
    """Return the processor time, user and system, of the process *pid* and its children so far (s).

    From ``schedstat`` of each thread, which counts nanoseconds; ``stat`` counts hundredths of a second.
    """
    spent = 0
    for process in family(pid):
        for thread in (_PROC / str(process) / "task").iterdir():
            with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                spent += int((thread / "schedstat").read_text().split()[0])
    return spent / 1e9


def memory(pid: int) -> int:
    """Return the resident memory of the process and its children (bytes)."""
    return sum(
        int((_PROC / str(process) / "statm").read_text().split()[1]) * resource.getpagesize() for process in family(pid)
    )


def family(pid: int) -> Iterator[int]:
    """Yield *pid* and all its descendants."""
    yield pid
    for thread in (_PROC / str(pid) / "task").iterdir():
        for child in (thread / "children").read_text().split():
            yield from family(int(child))


def pin(cores: frozenset[int]) -> None:
    """Pin this process, and those that it starts from now on, to *cores*."""
    os.sched_setaffinity(0, cores)


def many_files() -> None:
    """Allow this process and its children as many open files as the system permits."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
