"""What functions may have, in a world: what is limited is so by tokens, in the same broker as the messages."""

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

FOR_GOOD = 1 << 62
"""Later than any message."""


class Agreed:
    """What all workers of a world have agreed on, at the broker, and the tokens for it.

    Args:
        server: keeps the tokens.
    """

    def __init__(self, server: Server) -> None:
        self.quotas: dict[str, tuple[Quota, int]] = {}
        """By function, and when the message was stored that said it."""
        self._server = server
        self._workers: list[Callable[[str, Quota], None]] = []

    def join(self, queue: FakeQueue) -> FakeQuotas:
        """A worker's part of it."""
        worker = FakeQuotas(self, queue)
        self._workers.append(worker.tell)
        return worker

    def agree(self, function: str, quota: Quota, stored: int = FOR_GOOD) -> None:
        """The newest word counts; without a time, whatever messages say.

        Tokens that are missing are made at once. Those that are too many leave when they are given back.
        """
        if function in self.quotas and self.quotas[function][1] > stored:
            return
        self.quotas[function] = quota, stored
        if quota.rate:
            self._server.ack_waits[token_flow(RATE, function)] = quota.rate.window + RATE_WAIT
        for kind in (CAP, RATE):
            for number in range(token_count(quota, kind)):
                self._server.store_token(kind, function, number)
        for tell in self._workers:
            tell(function, quota)


class FakeQuotas:
    """See :class:`worker.ports.Quotas`: one worker's."""

    def __init__(self, agreed: Agreed, queue: FakeQueue) -> None:
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
            self._queue.link.there.send("agree", partial(self._agreed.agree, function, quota, stored))

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        """See :meth:`worker.ports.Quotas.give_back`."""
        kind, function = split_token_flow(token.flow)
        good = uses_of_token(self.agreed(function) or Quota(), kind, token_number(token.subject))
        self._queue.settle(token, Nak(delay) if good else Ack(), before=before)

    def tell(self, function: str, quota: Quota) -> None:
        """At the broker: something is agreed on."""
        if self._queue.link.up:
            self._queue.link.down.send("agreed", partial(self._heard, function, quota))

    def _heard(self, function: str, quota: Quota) -> None:
        if self._known.get(function) != quota and (needs_tokens(quota) or function in self._known):
            self._known[function] = quota
            if self._queue.consumer:
                self._queue.consumer.tell(QuotaChanged(function, quota))

    def _on_change(self, up: bool) -> None:
        if up:
            for function, (quota, _) in self._agreed.quotas.items():
                self.tell(function, quota)
