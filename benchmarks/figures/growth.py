"""Memory after 1,000,000 messages against that after 50,000."""

from __future__ import annotations

from collections.abc import Sequence

from ..contenders import OURS
from ..machine import memory
from ..model import Figure, Line, Samples, Session
from ..plot import line
from ..queue import empty_queue, fill
from ..stage import functions, start_contender

_STEP, _STEPS = 50_000, 20
_FUNCTIONS = 100
"""As many functions as a busy cluster has, because the worker stores some values for each function."""
_NOISE = 1.0
"""Variation of a heap that does not grow (MB): the interpreter allocates arenas of 1 MiB."""
_QUANTITY = "memory every 50,000 messages (MB)"


def measure(session: Session) -> Samples:
    """Measure the memory (MB) each 50,000 messages, in one run."""
    empty_queue(session.nats)
    memory_used = list[float]()
    with (
        functions(session.directory) as server,
        start_contender(OURS, session.directory, session.nats, server.url) as worker,
    ):
        for step in range(1, _STEPS + 1):
            fill(session.nats, _STEP, _FUNCTIONS)
            server.wait_for(step * _STEP, worker)
            memory_used.append(memory(worker.pid) / 1e6)
            session.log(f"{step * _STEP:,} messages: {memory_used[-1]:.1f} MB")
    return {_QUANTITY: {OURS.name: memory_used}}


def assess(samples: Samples) -> Sequence[Line]:
    """Compare the end with the first 50,000 messages."""
    memory_used = samples[_QUANTITY][OURS.name]
    grown = memory_used[-1] - memory_used[0]
    measured = f"{grown:+.1f} MB ({memory_used[0]:.1f} MB, then {memory_used[-1]:.1f} MB)"
    figure, goal = "resident memory after 1,000,000 messages", "no growth past the first 50,000"
    return [Line(figure, goal, measured, grown <= _NOISE)]


def picture(samples: Samples) -> str:
    """Draw memory over messages."""
    memory_used = samples[_QUANTITY][OURS.name]
    return line("Resident memory over messages", [_STEP * (n + 1) for n in range(len(memory_used))], memory_used, "MB")


FIGURE = Figure("growth", "Memory over 1,000,000 messages", measure, assess, picture, long=True)
