"""A job's slot, and the limiter's view of the invocation in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .heartbeat import Lease
from .policy.flow import Flow


@dataclass(slots=True, eq=False)
class Slot:
    """One slot of a flow, held by one job."""

    flow: Flow
    limit_changed: Callable[[Flow], None]
    """Called when the flow's learned limit may have changed."""
    token: Lease | None = None
    """The lease of the invocation's token; when it is lost, the invocation must end."""
    _in_flight: bool = False

    def start_invocation(self, now: float) -> None:
        """Count an invocation as in flight."""
        if limiter := self.flow.limiter:
            self._in_flight = True
            due = limiter.due
            limiter.started(now)
            if limiter.due != due:
                self.limit_changed(self.flow)

    def end_invocation(self, started_at: float, now: float, status: int | None) -> float | None:
        """Have the limiter learn from an outcome.

        Returns:
            None, or for how long (s) the message of a refused probe is to stay away; see
            :meth:`worker.policy.limiter.Limiter.ended`.
        """
        if not (self._in_flight and self.flow.limiter):
            return None
        self._in_flight = False
        wait = self.flow.limiter.ended(started_at, now, status)
        self.limit_changed(self.flow)
        return wait
