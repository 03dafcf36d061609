"""CPU a message and messages a second: the same full queue worked off by each in its turn, 50 in flight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from ..contenders import GO, OURS, UVLOOP_AIOHTTP
from ..model import Figure, Line, Samples, Session
from ..plot import bars
from ..stage import Span, work_off
from ..statistics import Spread, ratios

_INFLIGHT = 50
_COUNT = 16_000
_SLOW = {"asyncio_httpx": 2_000, "faststream_nats": 8_000}
"""Fewer for those whose turn would take longest."""
_WARM = 8
"""One message for so many that count comes before the clock starts: connections are open, and caches are full."""


def measure(session: Session) -> Samples:
    """CPU (µs a message) of each, with those of function server and broker; and messages a second."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pair in range(session.pairs):
        for who in (OURS, *session.peers):
            count = _SLOW.get(who.name, _COUNT)
            span = work_off(who, session.directory, session.nats, warm=count // _WARM, count=count, inflight=_INFLIGHT)
            _keep(samples, who.name, span)
            session.say(f"{pair + 1}/{session.pairs} {who.name}: {_told(span)}")
    return samples


def _keep(samples: Mapping[str, Mapping[str, list[float]]], who: str, span: Span) -> None:
    samples["CPU a message (µs)"][who].append(span.cpu * 1e6)
    samples["messages a second"][who].append(span.rate)
    samples["CPU of the function server a message (µs)"][who].append(span.functions * 1e6)
    samples["CPU of the broker a message (µs)"][who].append(span.broker * 1e6)


def _told(span: Span) -> str:
    return (
        f"{span.cpu * 1e6:.1f} µs a message, {span.rate:,.0f}/s, {span.cpu * span.rate:.0%} of its core"
        f" (function server {span.functions * 1e6:.1f} µs, broker {span.broker * 1e6:.1f} µs)"
    )


def judge(samples: Samples) -> Sequence[Line]:
    """Against asyncio's best, against Go, and the throughput against the best Python peer."""
    cpu, rate = samples["CPU a message (µs)"], samples["messages a second"]
    lines = [_at_most("CPU per message against asyncio + uvloop + aiohttp", cpu, UVLOOP_AIOHTTP.name, 0.75)]
    if GO in cpu:
        lines.append(_at_most("CPU per message against Go", cpu, GO, 1.6))
    python = [who for who in rate if who != OURS.name and not who.startswith(GO)]
    best = max(python, key=lambda who: Spread.of(rate[who]).middle)
    against = ratios(rate[OURS.name], rate[best])
    mine, theirs = Spread.of(rate[OURS.name]).middle, Spread.of(rate[best]).middle
    measured = f"{against}: {mine:,.0f} against {theirs:,.0f} of `{best}`"
    figure = "throughput against the best Python peer, one process"
    lines.append(Line(figure, "at least 1.3", measured, against.middle >= 1.3))
    return lines


def _at_most(figure: str, cpu: Mapping[str, Sequence[float]], peer: str, most: float) -> Line:
    against = ratios(cpu[OURS.name], cpu[peer])
    measured = f"{against}: {Spread.of(cpu[OURS.name]).middle:.0f} against {Spread.of(cpu[peer]).middle:.0f} µs"
    return Line(figure, f"at most {most:g}", measured, against.middle <= most)


def picture(samples: Samples) -> str:
    """CPU a message of each."""
    return bars("CPU a message (µs), 50 in flight", samples["CPU a message (µs)"])


FIGURE = Figure("cpu", "CPU a message, and messages a second", measure, judge, picture)
