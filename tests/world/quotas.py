"""What functions may have, in a world."""

from __future__ import annotations

from worker.model import Delivery, Quota


class Unlimited:
    """See :class:`worker.ports.Quotas`: nobody is limited."""

    def of(self, function: str) -> Quota | None:  # noqa: ARG002 -- the port's
        """Nothing is agreed on."""
        return None

    def said(self, function: str, quota: Quota, stored: int) -> None:
        """It is not heeded."""

    def give(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        """There are none."""
