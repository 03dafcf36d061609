"""Throughput with ``processes=2`` against one, on both cores, which broker and function server share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from worker.settings import SETTING_FIELDS

from ..contenders import OURS
from ..machine import ALL
from ..model import Figure, Line, Samples, Session
from ..stage import run_contender
from ..statistics import ratios

_WARM, _COUNT = 5_000, 30_000
_RATE, _CPU = "messages a second", "CPU a message (µs)"
ONE, TWO = "1 process", "2 processes"


def measure(session: Session) -> Samples:
    """Measure messages a second, and CPU (µs) a message of all processes together, if the setting exists."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    if "processes" not in SETTING_FIELDS:
        session.log("left out: this worker has no setting `processes`")
        return samples
    for pair in range(session.pairs):
        for name, processes in ((ONE, 1), (TWO, 2)):
            span = run_contender(
                OURS,
                session.directory,
                session.nats,
                warm=_WARM,
                count=_COUNT,
                inflight=50,
                cores=ALL,
                processes=processes,
            )
            samples[_RATE][name].append(span.rate)
            samples[_CPU][name].append(span.cpu * 1e6)
            session.log(f"{pair + 1}/{session.pairs} {name}: {span.rate:,.0f}/s, {span.cpu * 1e6:.1f} µs a message")
    return samples


def assess(samples: Samples) -> Sequence[Line]:
    """Compare two processes with one."""
    if _RATE not in samples:
        return []
    against = ratios(samples[_RATE][TWO], samples[_RATE][ONE])
    return [Line("throughput with 2 processes against 1, on 2 cores", "", f"{against}", None)]


FIGURE = Figure("processes", "More than one process", measure, assess)
