"""10,000 invocations of 60 s in flight with an ack wait of 30 s: the cost of their leases, and their memory."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..contenders import OURS
from ..machine import cpu, memory
from ..model import Figure, Line, Samples, Session
from ..programs import Running, wait
from ..queue import empty_queue, fill, num_waiting_pulls
from ..stage import FunctionServer, functions, start_contender
from ..statistics import Spread

_INFLIGHT = 10_000
_DELAY, _ACK_WAIT = 60.0, 30
_SETTLED = 1.0
"""Seconds after the start of the last invocation, in which the work of starting it ends."""
_WINDOW = 40.0
"""Measured seconds, with extensions only: every lease is extended four times, every 10 s."""
_CPU, _MEMORY = "CPU (% of a core)", "memory an invocation (KB)"


def measure(session: Session) -> Samples:
    """Measure CPU share and memory of each run, and the time until all invocations ran."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in range(session.pairs):
        empty_queue(session.nats, ack_wait=_ACK_WAIT * 10**9)
        settings: dict[str, Any] = {"max_inflight": _INFLIGHT, "ack_wait": f"{_ACK_WAIT}s", "shutdown_timeout": "1s"}
        with (
            functions(session.directory, _DELAY) as server,
            start_contender(OURS, session.directory, session.nats, server.url, **settings) as worker,
        ):
            for what, number in _measure_once(session, server, worker).items():
                samples[what][OURS.name].append(number)
        values = {what: round(by[OURS.name][-1], 2) for what, by in samples.items()}
        session.log(f"{run + 1}/{session.pairs} {values}")
    return samples


def _measure_once(session: Session, server: FunctionServer, worker: Running) -> dict[str, float]:
    wait(lambda: num_waiting_pulls(session.nats), 30, "a pull request", worker)
    time.sleep(_SETTLED)
    idle, started_at = memory(worker.pid), time.monotonic()
    fill(session.nats, _INFLIGHT)
    wait(lambda: server.stats()["running"] == _INFLIGHT, 50, f"{_INFLIGHT:,} invocations to run", worker)
    took = time.monotonic() - started_at
    time.sleep(_SETTLED)
    spent, since = cpu(worker.pid), time.monotonic()
    time.sleep(min(_WINDOW, started_at + _DELAY - since - _SETTLED))
    share = (cpu(worker.pid) - spent) / (time.monotonic() - since)
    used = memory(worker.pid) - idle
    return {_CPU: share * 100, _MEMORY: used / _INFLIGHT / 1000, "seconds until all ran": took}


def assess(samples: Samples) -> Sequence[Line]:
    """Compare the medians with the goals."""
    share, used = Spread.of(samples[_CPU][OURS.name]), Spread.of(samples[_MEMORY][OURS.name])
    figure = "10,000 invocations of 60 s in flight, ack-wait 30 s"
    return [
        Line(f"{figure}: CPU", "at most 10 % of a core", f"{share:.1f} %", share.median <= 10),
        Line(f"{figure}: memory", "at most 25 KB each", f"{used:.1f} KB", used.median <= 25),
    ]


FIGURE = Figure("leases", "10,000 invocations in flight", measure, assess)
