"""CPU of a callback: a message with one, delivered at the first try or at the second, against a message without."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..contenders import OURS
from ..machine import cpu
from ..model import Figure, Line, Samples, Session
from ..queue import empty_queue, fill
from ..stage import functions, start_contender
from ..statistics import Spread

_COUNT, _WARM = 1_000, 200
_WITHOUT, _DELIVERED, _STORED = "no callback", "callback", "callback that fails once"
_KINDS = {_WITHOUT: ("", 1), _DELIVERED: ("/function/receiver/", 2), _STORED: ("/function/failing-once/", 3)}
"""The path of the receiver, and the number of requests to the function server for each message."""
_CPU = "CPU a message (µs)"


def measure(session: Session) -> Samples:
    """Measure CPU (µs a message) without callbacks, and with both kinds."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in range(session.pairs):
        for kind, (path, requests) in _KINDS.items():
            spent = _run(session, path, requests)
            samples[_CPU][kind].append(spent * 1e6)
            session.log(f"{run + 1}/{session.pairs} {kind}: {spent * 1e6:.1f} µs a message")
    return samples


def _run(session: Session, path: str, requests: int) -> float:
    """Return the CPU a message (s), until the last callback is delivered."""
    empty_queue(session.nats)
    settings: dict[str, Any] = {"callback_allow": "127.0.0.0/8", "callback_retry_initial_wait": "100ms"}
    with functions(session.directory) as server:
        fill(session.nats, _WARM + _COUNT, callback=server.url + path if path else "")
        with start_contender(OURS, session.directory, session.nats, server.url, **settings) as worker:
            server.wait_for(requests * _WARM, worker)
            served, spent = int(server.stats()["served"]), cpu(worker.pid)
            server.wait_for(requests * (_WARM + _COUNT), worker)
            last = cpu(worker.pid)
    return (last - spent) * requests / (requests * (_WARM + _COUNT) - served)


def assess(samples: Samples) -> Sequence[Line]:
    """Subtract the message without a callback, pair by pair."""
    found = samples[_CPU]
    lines = list[Line]()
    for kind, what in ((_DELIVERED, "delivered at once"), (_STORED, "stored and sent again")):
        more = Spread.of([with_one - without for with_one, without in zip(found[kind], found[_WITHOUT], strict=True)])
        lines.append(Line(f"CPU a callback, {what}", "", f"{more} µs", None))
    return lines


FIGURE = Figure("callbacks", "CPU a callback", measure, assess)
