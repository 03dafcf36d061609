"""The time from exec to ready, while NATS runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial

from worker.dev.stack import free_port

from ..contenders import OURS
from ..machine import memory
from ..model import Figure, Line, Samples, Session
from ..programs import answers, wait
from ..queue import empty_queue
from ..stage import start_contender
from ..statistics import Spread

_IDLE = 5.0
"""Seconds after which a worker without messages counts as idle."""
_READY, _MEMORY = "from exec to ready (s)", "memory idle (MB)"


def measure(session: Session) -> Samples:
    """Measure the seconds until ``/readyz`` answers 200, polled every 10 ms, and the memory of the idle worker."""
    empty_queue(session.nats)
    ready, idle = list[float](), list[float]()
    for run in range(session.pairs):
        port, started_at = free_port(), time.monotonic()
        with start_contender(OURS, session.directory, session.nats, "http://127.0.0.1:9", http_port=port) as worker:
            wait(partial(answers, port, "/readyz"), 30, "the worker to be ready", worker)
            ready.append(time.monotonic() - started_at)
            time.sleep(_IDLE)
            idle.append(memory(worker.pid) / 1e6)
        session.log(f"{run + 1}/{session.pairs} {ready[-1]:.2f} s, {idle[-1]:.1f} MB")
    return {_READY: {OURS.name: ready}, _MEMORY: {OURS.name: idle}}


def assess(samples: Samples) -> Sequence[Line]:
    """Compare the medians with the goals."""
    ready, idle = Spread.of(samples[_READY][OURS.name]), Spread.of(samples[_MEMORY][OURS.name])
    return [
        Line("resident memory idle", "at most 70 MB", f"{idle:.1f} MB", idle.median <= 70),
        Line("from exec to ready, NATS up", "at most 1 s", f"{ready} s", ready.median <= 1),
    ]


FIGURE = Figure("ready", "From exec to ready, and memory idle", measure, assess)
