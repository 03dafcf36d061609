"""The drain of 1,000 running invocations: the time from the end of the last one to the end of the worker."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from ..contenders import OURS
from ..model import Figure, Line, Samples, Session
from ..programs import RunFailedError, wait
from ..queue import empty_queue, fill
from ..stage import functions, start_contender
from ..statistics import Spread

_INFLIGHT = 1_000
_DELAY = 5.0
"""Duration of each invocation (s): longer than the start of all takes."""
_AFTER, _LEFT = "seconds from the last answer to the end", "messages left in the queue"


def measure(session: Session) -> Samples:
    """Measure the seconds from the function's last answer to the worker's end, with SIGTERM while all were running."""
    after, left = list[float](), list[float]()
    for run in range(session.pairs):
        empty_queue(session.nats)
        with (
            functions(session.directory, _DELAY) as server,
            start_contender(OURS, session.directory, session.nats, server.url, max_inflight=_INFLIGHT) as worker,
        ):
            fill(session.nats, _INFLIGHT)
            wait(lambda: server.stats()["running"] == _INFLIGHT, 30, f"{_INFLIGHT:,} invocations to run", worker)
            worker.process.send_signal(signal.SIGTERM)
            worker.process.wait(60)
            ended, stats = time.monotonic(), server.stats()
            if worker.process.returncode or stats["served"] != _INFLIGHT:
                raise RunFailedError(
                    f"the drain ended with {worker.process.returncode}, {stats['served']:,} were answered"
                )
            after.append(ended - stats["last"])
            left.append(session.nats.state()["messages"])
        session.log(f"{run + 1}/{session.pairs} ended {after[-1]:.3f} s after the last answer; {left[-1]} left")
    return {_AFTER: {OURS.name: after}, _LEFT: {OURS.name: left}}


def assess(samples: Samples) -> Sequence[Line]:
    """Compare the median with the goal; no message may be left in the queue."""
    after, left = Spread.of(samples[_AFTER][OURS.name]), max(samples[_LEFT][OURS.name])
    reached = after.median <= 0.3 and not left
    figure, goal = "drain of 1,000 running invocations", "the longest of them + 0.3 s"
    return [Line(figure, goal, f"+ {after} s", reached)]


FIGURE = Figure("drain", "The drain of 1,000 running invocations", measure, assess)
