"""CPU a message and messages a second: each contender in turn processes the same full queue, 50 in flight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ..contenders import GO, OURS, UVLOOP_AIOHTTP
from ..model import Figure, Line, Samples, Session
from ..plot import bars
from ..stage import Span, run_contender
from ..statistics import Spread, ratios

_INFLIGHT = 50
_COUNT = 16_000
_SLOW = {"asyncio_httpx": 2_000, "faststream_nats": 8_000}
"""Fewer messages for the slowest contenders."""
_WARM = 8
"""Measured messages for each message of the warm-up, which opens connections and fills caches."""


def measure(session: Session) -> Samples:
    """Measure CPU (µs a message) of each contender, function server and broker; and messages a second."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pair in range(session.pairs):
        for contender in (OURS, *session.peers):
            count = _SLOW.get(contender.name, _COUNT)
            span = run_contender(
                contender, session.directory, session.nats, warm=count // _WARM, count=count, inflight=_INFLIGHT
            )
            _add(samples, contender.name, span)
            session.log(f"{pair + 1}/{session.pairs} {contender.name}: {_text(span)}")
    return samples


def _add(samples: Mapping[str, Mapping[str, list[float]]], contender: str, span: Span) -> None:
    samples["CPU a message (µs)"][contender].append(span.cpu * 1e6)
    samples["messages a second"][contender].append(span.rate)
    samples["CPU of the function server a message (µs)"][contender].append(span.functions * 1e6)
    samples["CPU of the broker a message (µs)"][contender].append(span.broker * 1e6)


def _text(span: Span) -> str:
    return (
        f"{span.cpu * 1e6:.1f} µs a message, {span.rate:,.0f}/s, {span.cpu * span.rate:.0%} of its core"
        f" (function server {span.functions * 1e6:.1f} µs, broker {span.broker * 1e6:.1f} µs)"
    )


def assess(samples: Samples) -> Sequence[Line]:
    """Compare CPU with asyncio's best and with Go, and the throughput with the best Python peer."""
    cpu, rate = samples["CPU a message (µs)"], samples["messages a second"]
    lines = [_at_most("CPU per message against asyncio + uvloop + aiohttp", cpu, UVLOOP_AIOHTTP.name, 0.75)]
    if GO in cpu:
        lines.append(_at_most("CPU per message against Go", cpu, GO, 1.6))
    python = [contender for contender in rate if contender != OURS.name and not contender.startswith(GO)]
    best = max(python, key=lambda contender: Spread.of(rate[contender]).median)
    against = ratios(rate[OURS.name], rate[best])
    own, other = Spread.of(rate[OURS.name]).median, Spread.of(rate[best]).median
    measured = f"{against}: {own:,.0f} against {other:,.0f} of `{best}`"
    figure = "throughput against the best Python peer, one process"
    lines.append(Line(figure, "at least 1.3", measured, against.median >= 1.3))
    return lines


def _at_most(figure: str, cpu: Mapping[str, Sequence[float]], peer: str, maximum: float) -> Line:
    against = ratios(cpu[OURS.name], cpu[peer])
    measured = f"{against}: {Spread.of(cpu[OURS.name]).median:.0f} against {Spread.of(cpu[peer]).median:.0f} µs"
    return Line(figure, f"at most {maximum:g}", measured, against.median <= maximum)


def picture(samples: Samples) -> str:
    """Draw the CPU a message of each contender."""
    return bars("CPU a message (µs), 50 in flight", samples["CPU a message (µs)"])


FIGURE = Figure("cpu", "CPU a message, and messages a second", measure, assess, picture)
