"""The figures, in the order of the table. Each measures with a :class:`~benchmarks.model.Session`, and judges purely."""

from __future__ import annotations

from . import cpu, inflight, latency

FIGURES = {figure.name: figure for figure in (cpu.FIGURE, inflight.FIGURE, latency.FIGURE)}
