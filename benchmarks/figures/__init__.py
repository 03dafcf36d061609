"""The figures, in the order of the table. Each has ``measure``, with a session, and ``assess``, which is pure."""

from __future__ import annotations

from . import (
    bodies,
    callbacks,
    cpu,
    drain,
    growth,
    inflight,
    latency,
    leases,
    processes,
    producer,
    ready,
    server,
    stored,
)

_MODULES = (
    server,
    cpu,
    inflight,
    latency,
    leases,
    ready,
    growth,
    drain,
    producer,
    processes,
    callbacks,
    stored,
    bodies,
)
FIGURES = {module.FIGURE.name: module.FIGURE for module in _MODULES}
