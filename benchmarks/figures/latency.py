"""The time from publication to invocation, one message at a time, beside a bare loop over nats.py."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence

from ..contenders import OURS, Contender, python_peer
from ..model import Figure, Line, Samples, Session
from ..plot import bars
from ..programs import program, wait
from ..queue import STREAM, empty_queue, message
from ..stage import start_contender
from ..statistics import percentile, ratios

_COUNT, _WARM = 600, 100
"""Counted messages of a run, and messages of its warm-up: 3,000 in five pairs."""
_PACE = 0.005
"""Seconds from one message to the next."""
BARE = python_peer("bare_loop")
_P50, _P99 = "p50 of a turn (µs)", "p99 of a turn (µs)"


def measure(session: Session) -> Samples:
    """Measure p50 and p99 (µs) of each run."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for pair in range(session.pairs):
        for contender in (OURS, BARE):
            times = _measure_once(session, contender)[_WARM:]
            p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
            samples[_P50][contender.name].append(p50)
            samples[_P99][contender.name].append(p99)
            session.log(f"{pair + 1}/{session.pairs} {contender.name}: p50 {p50:.0f} µs, p99 {p99:.0f} µs")
    return samples


def _measure_once(session: Session, contender: Contender) -> list[float]:
    empty_queue(session.nats)
    port_file = session.directory / "prober.port"
    port_file.unlink(missing_ok=True)
    numbers = (str(session.nats.port), STREAM, str(_COUNT + _WARM), str(_PACE))
    command = (sys.executable, "-m", "benchmarks.prober", str(port_file), *numbers)
    with program("prober", command, session.directory, {}, stdin=message(0)) as prober:
        port = wait(lambda: port_file.exists() and int(port_file.read_text()), 30, "the prober", prober)
        with start_contender(contender, session.directory, session.nats, f"http://127.0.0.1:{port}"):
            return [float(line) for line in prober.finish(60).split()]


def assess(samples: Samples) -> Sequence[Line]:
    """Compare the median of the pairs' ratios with 1, to two places."""
    lines = []
    for name, quantity in (("p50", _P50), ("p99", _P99)):
        by = samples[quantity]
        against = ratios(by[OURS.name], by[BARE.name])
        figure = f"enqueue → invoke latency, unloaded, {name} against a bare nats.py loop"
        lines.append(Line(figure, "no worse", f"{against}", round(against.median, 2) <= 1))
    return lines


def picture(samples: Samples) -> str:
    """Draw both quantities of both contenders."""
    return bars(
        "From being published to being invoked (µs)",
        {f"{contender}, {what[:3]}": each for what, by in samples.items() for contender, each in by.items()},
    )


FIGURE = Figure("latency", "From being published to being invoked, unloaded", measure, assess, picture)
