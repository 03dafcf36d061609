"""CPU a message at 2,000 in flight against 50, at the same rate."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from ..contenders import GO, OURS, UVLOOP_AIOHTTP
from ..model import Figure, Line, Samples, Session
from ..stage import run_contender
from ..statistics import ratios

FEW, MANY = 50, 2_000
_RATE = 2_000
"""Messages a second for each number in flight, by the delay of the function. CPU a message falls as the
rate rises, because one wake-up then serves several; with the same rate only the number in flight differs."""
_WARM, _COUNT = 2 * MANY, 6_000
_CONTENDERS = {OURS.name, UVLOOP_AIOHTTP.name, GO}


def measure(session: Session) -> Samples:
    """Measure CPU (µs a message) of each contender, for both numbers."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pair in range(session.pairs):
        for contender in (OURS, *session.peers):
            if contender.name not in _CONTENDERS:
                continue
            for inflight in (FEW, MANY):
                delay = inflight / _RATE
                span = run_contender(
                    contender, session.directory, session.nats, warm=_WARM, count=_COUNT, inflight=inflight, delay=delay
                )
                samples[_quantity(inflight)][contender.name].append(span.cpu * 1e6)
                samples[f"messages a second, {inflight:,} in flight"][contender.name].append(span.rate)
                text = f"{span.cpu * 1e6:.1f} µs a message, {span.running:,} running, {span.rate:,.0f}/s"
                session.log(f"{pair + 1}/{session.pairs} {contender.name} at {inflight:,}: {text}")
    return samples


def _quantity(inflight: int) -> str:
    return f"CPU a message, {inflight:,} in flight (µs)"


def assess(samples: Samples) -> Sequence[Line]:
    """Compare the worker at 10,000 invocations with itself at fewer."""
    against = ratios(samples[_quantity(MANY)][OURS.name], samples[_quantity(FEW)][OURS.name])
    return [Line("CPU per message at 2,000 in flight against 50", "at most 1.2", f"{against}", against.median <= 1.2)]


FIGURE = Figure("inflight", "CPU a message with many in flight", measure, assess)
