"""The capacity of the function server alone, to show that it is never the bottleneck."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..machine import MEASURED, cpu
from ..model import Figure, Line, Samples, Session
from ..programs import program
from ..queue import BODY
from ..stage import functions

_COUNT, _CONNECTIONS = 50_000, 50
_RATE, _CPU = "requests a second", "CPU a request (µs)"
_NAME = "function server"


def measure(session: Session) -> Samples:
    """Measure requests a second with a raw client on the other core, and the CPU (µs) of one."""
    rates, each = list[float](), list[float]()
    for run in range(session.pairs):
        with functions(session.directory) as server:
            address = server.url.removeprefix("http://")
            arguments = (address, "/function/echo", str(_COUNT), str(_CONNECTIONS))
            command = (sys.executable, "-m", "benchmarks.client", *arguments)
            with program("client", command, session.directory, {}, cores=MEASURED, stdin=BODY) as client:
                rates.append(_COUNT / float(client.finish(120).split()[1]))
            each.append(cpu(server.running.pid) / _COUNT * 1e6)
        session.log(f"{run + 1}/{session.pairs} {rates[-1]:,.0f}/s, {each[-1]:.1f} µs each")
    return {_RATE: {_NAME: rates}, _CPU: {_NAME: each}}


def assess(samples: Samples) -> Sequence[Line]:  # noqa: ARG001 -- the signature of every figure
    """Return no goals: the samples are for comparison with the contenders' rates."""
    return []


FIGURE = Figure("server", "The function server by itself", measure, assess)
