"""Quotas of functions in a world: tokens in the in-memory broker enforce caps and rates."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from worker.model import Ack, Delivery, Nak, Quota, QuotaChanged
from worker.policy.quota import (
    CAP,
    RATE,
    RATE_WAIT,
    needs_tokens,
    split_token_flow,
    token_count,
    token_flow,
    token_number,
    uses_of_token,
)

from .queue import FakeQueue
from .server import Server

FOREVER = 1 << 62
"""Later than any message."""


class AgreedQuotas:
    """Agreed quotas of all workers of a world, as the broker stores them, and their tokens.

    Args:
        server: stores the tokens.
    """

    def __init__(self, server: Server) -> None:
        self.quotas: dict[str, tuple[Quota, int]] = {}
        """Function -> its quota, and when the message that contained it was stored."""
        self._server = server
        self._workers: list[Callable[[str, Quota], None]] = []

    def join(self, queue: FakeQueue) -> FakeQuotas:
        """Create one worker's view of the quotas."""
        worker = FakeQuotas(self, queue)
        self._workers.append(worker.send)
        return worker

    def agree(self, function: str, quota: Quota, stored: int = FOREVER) -> None:
        """Store a quota if it is the newest; without a time, it takes precedence over all messages.

        Missing tokens are created at once. Surplus tokens are deleted when they are given back.
        """
        if function in self.quotas and self.quotas[function][1] > stored:
            return
        self.quotas[function] = quota, stored
        if quota.rate:
            self._server.ack_waits[token_flow(RATE, function)] = quota.rate.window + RATE_WAIT
        for kind in (CAP, RATE):
            for number in range(token_count(quota, kind)):
                self._server.store_token(kind, function, number)
        for notify in self._workers:
            notify(function, quota)


class FakeQuotas:
    """One worker's view of the quotas: see :class:`worker.ports.Quotas`."""

    def __init__(self, agreed: AgreedQuotas, queue: FakeQueue) -> None:
        self._agreed, self._queue = agreed, queue
        self._known = {function: quota for function, (quota, _) in agreed.quotas.items()}
        queue.link.changed.append(self._on_change)

    def agreed(self, function: str) -> Quota | None:
        """See :meth:`worker.ports.Quotas.agreed`."""
        return self._known.get(function)

    def propose(self, function: str, quota: Quota, stored: int) -> None:
        """See :meth:`worker.ports.Quotas.propose`."""
        known = self._known.get(function)
        if (quota.max_inflight, quota.rate) != ((known.max_inflight, known.rate) if known else (None, None)):
            self._queue.link.to_broker.send("agree", partial(self._agreed.agree, function, quota, stored))

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        """See :meth:`worker.ports.Quotas.give_back`."""
        kind, function = split_token_flow(token.flow)
        good = uses_of_token(self.agreed(function) or Quota(), kind, token_number(token.subject))
        self._queue.settle(token, Nak(delay) if good else Ack(), before=before)

    def send(self, function: str, quota: Quota) -> None:
        """Send an agreed quota from the broker to this worker."""
        if self._queue.link.up:
            self._queue.link.from_broker.send("agreed", partial(self._receive, function, quota))

    def _receive(self, function: str, quota: Quota) -> None:
        if self._known.get(function) != quota and (needs_tokens(quota) or function in self._known):
            self._known[function] = quota
            if self._queue.consumer:
                self._queue.consumer.notify(QuotaChanged(function, quota))

    def _on_change(self, up: bool) -> None:
        if up:
            for function, (quota, _) in self._agreed.quotas.items():
                self.send(function, quota)
