"""Durable enqueues a second, one process: through the gateway over HTTP, and by ``queue-worker submit``.

The stream is in files here, as by default: a message is stored when JetStream has confirmed it. The gateway uses
uvloop if it is installed, as it is here for the peers; it is measured with uvloop and without, as in a plain
install.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from worker.dev.stack import free_port

from ..machine import MEASURED, cpu
from ..model import Figure, Line, Samples, Session
from ..programs import RunFailedError, answers, program, wait
from ..queue import BODY, STREAM, empty_queue, stored_at
from ..statistics import Spread

_COUNT, _WARM = 20_000, 1_000
_CONNECTIONS = 64
_RATE, _CPU = "durable enqueues a second", "CPU an enqueue (µs)"
_PLAIN = "import sys; sys.modules['uvloop'] = None; from worker.entry import program; program()"
"""The command's program without uvloop."""
GATEWAYS = {
    "gateway": (sys.executable, "-c", _PLAIN, "gateway"),
    "gateway with uvloop": (sys.executable, "-m", "worker.cli", "gateway"),
}
SUBMIT = "submit"


def measure(session: Session) -> Samples:
    """Measure enqueues a second of each way, and the CPU (µs) of each in gateway, broker and client."""
    samples: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in range(session.pairs):
        for name, command in GATEWAYS.items():
            for what, number in _through_gateway(session, command).items():
                samples[what][name].append(number)
            rate, each = samples[_RATE][name][-1], samples[_CPU][name][-1]
            session.log(f"{run + 1}/{session.pairs} {name}: {rate:,.0f}/s, {each:.0f} µs each")
        samples[_RATE][SUBMIT].append(rate := _by_submit(session))
        session.log(f"{run + 1}/{session.pairs} {SUBMIT}: {rate:,.0f}/s")
    return samples


def _through_gateway(session: Session, command: tuple[str, ...]) -> dict[str, float]:
    empty_queue(session.nats, storage="file")
    port = free_port()
    settings = {"nats_port": session.nats.port, "nats_stream": STREAM, "listen_host": "127.0.0.1", "listen_port": port}
    environment = {name: str(value) for name, value in settings.items()}
    with program("gateway", command, session.directory, environment, cores=MEASURED) as gateway:
        wait(partial(answers, port, "/readyz"), 30, "the gateway", gateway)
        _load(session, port, _WARM)
        spent, brokers = cpu(gateway.pid), cpu(session.nats.pid)
        seconds, clients = _load(session, port, _COUNT)
        spent, brokers = cpu(gateway.pid) - spent, cpu(session.nats.pid) - brokers
    if (stored := session.nats.state()["messages"]) != _COUNT + _WARM:
        raise RunFailedError(f"{stored:,} are stored of {_COUNT + _WARM:,} that the gateway accepted")
    each = {_CPU: spent, "CPU of the broker an enqueue (µs)": brokers, "CPU of the client an enqueue (µs)": clients}
    return {_RATE: _COUNT / seconds} | {what: seconds / _COUNT * 1e6 for what, seconds in each.items()}


def _load(session: Session, port: int, count: int) -> tuple[float, float]:
    """Measure the client's time until all its requests were answered with 202, and its CPU (s)."""
    arguments = (f"127.0.0.1:{port}", "/async-function/echo", str(count), str(_CONNECTIONS))
    command = (sys.executable, "-m", "benchmarks.client", *arguments)
    with program("client", command, session.directory, {}, stdin=BODY) as client:
        good, seconds, spent = client.finish(120).split()
    if int(good) != count:
        raise RunFailedError(f"only {good} of {count:,} requests were answered with 2xx")
    return float(seconds), float(spent)


def _by_submit(session: Session) -> float:
    """Return the messages a second after the first thousand, so that the start is not measured."""
    empty_queue(session.nats, storage="file")
    settings = {"nats_port": str(session.nats.port), "nats_stream": STREAM}
    command = (sys.executable, "-m", "worker.cli", "submit", "echo", "--data-file", "-", "--count")
    whole = (*command, str(_COUNT + _WARM))
    with program(SUBMIT, whole, session.directory, settings, cores=MEASURED, stdin=BODY) as submit:
        submit.finish(120)
    first, last = (stored_at(session.nats, sequence) for sequence in (_WARM, _WARM + _COUNT))
    return _COUNT / (last - first)


def assess(samples: Samples) -> Sequence[Line]:
    """Compare the median of each way with the goal."""
    rates = {name: Spread.of(each) for name, each in samples[_RATE].items()}
    return [
        Line(
            f"producer: durable enqueues a second, one process: {name}",
            "at least 3,000",
            f"{rate:,.0f}",
            rate.median >= 3000,
        )
        for name, rate in rates.items()
    ]


FIGURE = Figure("producer", "Durable enqueues a second", measure, assess)
