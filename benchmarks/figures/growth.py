"""Memory after 1,000,000 messages against that after 50,000."""

from __future__ import annotations

from collections.abc import Sequence

from ..contenders import OURS
from ..machine import memory
from ..model import Figure, Line, Samples, Session
from ..plot import line
from ..queue import empty_queue, fill
from ..stage import contender, functions

_STEP, _STEPS = 50_000, 20
_FUNCTIONS = 100
"""As many functions as a busy cluster has, so that what is kept by function is kept."""
_NOISE = 1.0
"""MB that a heap moves by when nothing grows: the interpreter takes and returns memory by 1 MiB arenas."""
_QUANTITY = "memory every 50,000 messages (MB)"


def measure(session: Session) -> Samples:
    """One run: memory (MB) each 50,000 messages."""
    empty_queue(session.nats)
    held = list[float]()
    with (
        functions(session.directory) as server,
        contender(OURS, session.directory, session.nats, server.url) as worker,
    ):
        for step in range(1, _STEPS + 1):
            fill(session.nats, _STEP, _FUNCTIONS)
            server.wait_for(step * _STEP, worker)
            held.append(memory(worker.pid) / 1e6)
            session.say(f"{step * _STEP:,} messages: {held[-1]:.1f} MB")
    return {_QUANTITY: {OURS.name: held}}


def judge(samples: Samples) -> Sequence[Line]:
    """Compare the end with the first 50,000 messages."""
    held = samples[_QUANTITY][OURS.name]
    grown = held[-1] - held[0]
    measured = f"{grown:+.1f} MB ({held[0]:.1f} MB, then {held[-1]:.1f} MB)"
    figure, reach = "resident memory after 1,000,000 messages", "no growth past the first 50,000"
    return [Line(figure, reach, measured, grown <= _NOISE)]


def picture(samples: Samples) -> str:
    """Memory over messages."""
    held = samples[_QUANTITY][OURS.name]
    return line("Resident memory over messages", [_STEP * (n + 1) for n in range(len(held))], held, "MB")


FIGURE = Figure("growth", "Memory over 1,000,000 messages", measure, judge, picture, long=True)
