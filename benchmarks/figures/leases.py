"""10,000 invocations of 60 s in flight with an ack wait of 30 s: what keeping their leases costs, and their memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..contenders import OURS
from ..machine import cpu, memory
from ..model import Figure, Line, Samples, Session
from ..programs import Running, wait
from ..queue import asked, empty_queue, fill
from ..stage import FunctionServer, contender, functions
from ..statistics import Spread

_INFLIGHT = 10_000
_DELAY, _ACK_WAIT = 60.0, 30
_SETTLED = 1.0
"""Seconds after the last invocation began, in which the last of its beginning is done."""
_WINDOW = 40.0
"""Seconds that are measured, in which nothing happens but leases: every one is extended four times, at 10 s each."""
_CPU, _MEMORY = "CPU (% of a core)", "memory an invocation (KB)"


def measure(session: Session) -> Samples:
    """CPU share and memory of each run, and the rate at which all that was begun."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for turn in range(session.pairs):
        empty_queue(session.nats, ack_wait=_ACK_WAIT * 10**9)
        settings: dict[str, Any] = {"max_inflight": _INFLIGHT, "ack_wait": f"{_ACK_WAIT}s", "shutdown_timeout": "1s"}
        with (
            functions(session.directory, _DELAY) as server,
            contender(OURS, session.directory, session.nats, server.url, **settings) as worker,
        ):
            for what, number in _turn(session, server, worker).items():
                samples[what][OURS.name].append(number)
        told = {what: round(by[OURS.name][-1], 2) for what, by in samples.items()}
        session.say(f"{turn + 1}/{session.pairs} {told}")
    return samples


def _turn(session: Session, server: FunctionServer, worker: Running) -> dict[str, float]:
    wait(lambda: asked(session.nats), 30, "the worker to ask for work", worker)
    time.sleep(_SETTLED)
    idle, begun = memory(worker.pid), time.monotonic()
    fill(session.nats, _INFLIGHT)
    wait(lambda: server.stats()["running"] == _INFLIGHT, 50, f"{_INFLIGHT:,} invocations to run", worker)
    took = time.monotonic() - begun
    time.sleep(_SETTLED)
    spent, since = cpu(worker.pid), time.monotonic()
    time.sleep(min(_WINDOW, begun + _DELAY - since - _SETTLED))
    share = (cpu(worker.pid) - spent) / (time.monotonic() - since)
    held = memory(worker.pid) - idle
    return {_CPU: share * 100, _MEMORY: held / _INFLIGHT / 1000, "seconds until all ran": took}


def judge(samples: Samples) -> Sequence[Line]:
    """Of the medians."""
    share, held = Spread.of(samples[_CPU][OURS.name]), Spread.of(samples[_MEMORY][OURS.name])
    figure = "10,000 invocations of 60 s in flight, ack-wait 30 s"
    return [
        Line(f"{figure}: CPU", "at most 10 % of a core", f"{share:.1f} %", share.middle <= 10),
        Line(f"{figure}: memory", "at most 25 KB each", f"{held:.1f} KB", held.middle <= 25),
    ]


FIGURE = Figure("leases", "10,000 invocations in flight", measure, judge)
