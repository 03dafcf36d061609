"""The drain of 1,000 running invocations: how long after the last of them the worker ends."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from ..contenders import OURS
from ..model import Figure, Line, Samples, Session
from ..programs import Failed, wait
from ..queue import empty_queue, fill
from ..stage import contender, functions
from ..statistics import Spread

_INFLIGHT = 1_000
_DELAY = 5.0
"""Seconds that each takes: more than what it takes to begin them all."""
_AFTER, _LEFT = "seconds from the last answer to the end", "messages left in the queue"


def measure(session: Session) -> Samples:
    """Measure the seconds from the function's last answer to the worker's end, with SIGTERM while all were running."""
    after, left = list[float](), list[float]()
    for turn in range(session.pairs):
        empty_queue(session.nats)
        with (
            functions(session.directory, _DELAY) as server,
            contender(OURS, session.directory, session.nats, server.url, max_inflight=_INFLIGHT) as worker,
        ):
            fill(session.nats, _INFLIGHT)
            wait(lambda: server.stats()["running"] == _INFLIGHT, 30, f"{_INFLIGHT:,} invocations to run", worker)
            worker.process.send_signal(signal.SIGTERM)
            worker.process.wait(60)
            ended, stats = time.monotonic(), server.stats()
            if worker.process.returncode or stats["served"] != _INFLIGHT:
                raise Failed(f"the drain ended with {worker.process.returncode}, {stats['served']:,} were answered")
            after.append(ended - stats["last"])
            left.append(session.nats.state()["messages"])
        session.say(f"{turn + 1}/{session.pairs} ended {after[-1]:.3f} s after the last answer; {left[-1]} left")
    return {_AFTER: {OURS.name: after}, _LEFT: {OURS.name: left}}


def judge(samples: Samples) -> Sequence[Line]:
    """Of the median; a drain that left anything behind is none."""
    after, left = Spread.of(samples[_AFTER][OURS.name]), max(samples[_LEFT][OURS.name])
    reached = after.middle <= 0.3 and not left
    figure, reach = "drain of 1,000 running invocations", "the longest of them + 0.3 s"
    return [Line(figure, reach, f"+ {after} s", reached)]


FIGURE = Figure("drain", "The drain of 1,000 running invocations", measure, judge)
