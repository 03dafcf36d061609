"""Sinks of events: logs and metrics; the server that shows them, and its interface to a worker."""

from __future__ import annotations

from typing import Protocol


class WorkerStatus(Protocol):
    """Metrics and health of a worker of one process or of several."""

    async def metrics(self) -> str:
        """Return all series in Prometheus' text format."""

    async def not_alive(self) -> str | None:
        """Return why the worker must be restarted, None while it is alive."""

    async def not_ready(self) -> str | None:
        """Return why the worker cannot take messages, None when it is ready."""
