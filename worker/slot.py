"""A job's hold on a slot of its flow, and what it tells of the invocation in it."""

from __future__ import annotations

from collections.abc import Callable

from .heartbeat import Lease
from .policy.flow import Flow


class Slot:
    """One slot, held by one job.

    Args:
        flow: whose slot it is.
        learned: called when the flow's limit may have become another.
        token: what it must not outlive.
    """

    __slots__ = ("_learned", "_running", "flow", "token")

    def __init__(self, flow: Flow, learned: Callable[[Flow], None], token: Lease | None = None) -> None:
        self.flow, self.token = flow, token
        self._learned = learned
        self._running = False

    def started(self, now: float) -> None:
        """An invocation was sent."""
        if limit := self.flow.limiter:
            self._running = True
            due = limit.due
            limit.started(now)
            if limit.due != due:
                self._learned(self.flow)

    def ended(self, began: float, now: float, status: int | None) -> float | None:
        """It came to that; what is to be learned of it. See :meth:`worker.policy.limiter.Limiter.ended`."""
        if not (self._running and self.flow.limiter):
            return None
        self._running = False
        wait = self.flow.limiter.ended(began, now, status)
        self._learned(self.flow)
        return wait
