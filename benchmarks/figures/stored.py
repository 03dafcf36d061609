"""CPU and memory of a worker while 100,000 stored callbacks wait for a receiver that is away."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from tests.wire import ApiError
from worker.dev.stack import free_port
from worker.model import Callback, StoredCallback
from worker.policy.stored_callback import encode_callback

from ..contenders import OURS
from ..machine import cpu, memory
from ..model import Figure, Line, Samples, Session
from ..programs import wait
from ..queue import STREAM, empty_queue
from ..stage import functions, start_contender
from ..statistics import Spread

_COUNT, _BATCH = 100_000, 2_000
_SECONDS = 60.0
_STORED, _SUBJECT = f"{STREAM}-callbacks", f"CALLBACKS.{STREAM}"
_HEADERS = tuple((b"X-Header-%d" % number, b"some value of a header") for number in range(9))
_SHARE, _MEMORY, _FIRST = "CPU over a minute (% of a core)", "memory (MB)", "CPU of a first delivery (µs)"


def measure(session: Session) -> Samples:
    """Measure the first delivery of each callback, and the minute after them."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in range(session.pairs):
        for what, number in _run(session).items():
            samples[what][OURS.name].append(number)
        session.log(f"{run + 1}/{session.pairs}: {samples[_SHARE][OURS.name][-1]:.1f} % of a core")
    return samples


def _run(session: Session) -> dict[str, float]:
    nats = session.nats
    empty_queue(nats)
    with suppress(ApiError):
        nats.api(f"STREAM.DELETE.{_STORED}")
    url = f"http://127.0.0.1:{free_port()}/away"
    now = time.time()
    stored = encode_callback(StoredCallback(Callback(url, _HEADERS, b"x" * 200), "call", "echo", now, 0.0))
    nats.make_stream(_STORED, _SUBJECT, subjects=[_SUBJECT], discard="new")
    for _ in range(0, _COUNT, _BATCH):
        nats.publish_many([(_SUBJECT, stored, {})] * _BATCH)
    settings: dict[str, Any] = {"callback_allow": "127.0.0.0/8", "callback_retry_initial_wait": "10m"}

    def postponed() -> bool:
        with suppress(ApiError):
            info = nats.api(f"CONSUMER.INFO.{_STORED}.callbacks")
            return not info["num_pending"] and bool(info["num_ack_pending"] == _COUNT)
        return False

    with (
        functions(session.directory) as server,
        start_contender(OURS, session.directory, nats, server.url, **settings) as worker,
    ):
        wait(postponed, 600, "each callback to be postponed", worker)
        first = cpu(worker.pid)
        time.sleep(_SECONDS)
        return {
            _SHARE: (cpu(worker.pid) - first) / _SECONDS * 100,
            _MEMORY: memory(worker.pid) / 1e6,
            _FIRST: first / _COUNT * 1e6,
        }


def assess(samples: Samples) -> Sequence[Line]:
    """Compare the minute with the goal."""
    share = Spread.of(samples[_SHARE][OURS.name])
    figure = "CPU of a worker with 100,000 stored callbacks to a receiver that is away"
    return [Line(figure, "at most 5 % of a core", f"{share} %", share.median <= 5)]


FIGURE = Figure("stored", "100,000 stored callbacks", measure, assess, long=True)
