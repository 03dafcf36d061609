"""From exec to ready, NATS being up."""

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
from ..stage import contender
from ..statistics import Spread

_IDLE = 5.0
"""Seconds after which a worker without work is called idle."""
_READY, _MEMORY = "from exec to ready (s)", "memory idle (MB)"


def measure(session: Session) -> Samples:
    """Measure the seconds until ``/readyz`` answers 200, asked every 10 ms, and the memory held later."""
    empty_queue(session.nats)
    ready, idle = list[float](), list[float]()
    for turn in range(session.pairs):
        port, begun = free_port(), time.monotonic()
        with contender(OURS, session.directory, session.nats, "http://127.0.0.1:9", http_port=port) as worker:
            wait(partial(answers, port, "/readyz"), 30, "the worker to be ready", worker)
            ready.append(time.monotonic() - begun)
            time.sleep(_IDLE)
            idle.append(memory(worker.pid) / 1e6)
        session.say(f"{turn + 1}/{session.pairs} {ready[-1]:.2f} s, {idle[-1]:.1f} MB")
    return {_READY: {OURS.name: ready}, _MEMORY: {OURS.name: idle}}


def judge(samples: Samples) -> Sequence[Line]:
    """Of the medians."""
    ready, idle = Spread.of(samples[_READY][OURS.name]), Spread.of(samples[_MEMORY][OURS.name])
    return [
        Line("resident memory idle", "at most 70 MB", f"{idle:.1f} MB", idle.middle <= 70),
        Line("from exec to ready, NATS up", "at most 1 s", f"{ready} s", ready.middle <= 1),
    ]


FIGURE = Figure("ready", "From exec to ready, and memory idle", measure, judge)
