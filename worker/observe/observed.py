"""What is shown of a worker."""

from __future__ import annotations

from typing import Protocol


class Observed(Protocol):
    """A worker as one sees it from outside, whether it is one process or several."""

    async def metrics(self) -> str:
        """All series, in Prometheus' text format."""

    async def not_alive(self) -> str | None:
        """Why it should be started anew, None while it is alive."""

    async def not_ready(self) -> str | None:
        """Why it is not ready to work, None when it is."""
