"""The tokens in this worker's hand: those of all functions that are limited (worker/policy/function_tokens.py).

A token counts only once the queue has confirmed that we keep it. One that was merely handed out is given out again when
its server restarts, since that counts the ack wait from when a message was stored, and tokens are old; three of five
that were held so were held twice (measured, nats-server 2.15.1). One that was extended is not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import trio

from .heartbeat import Lease, Leases
from .model import Delivery, MessageId, Quota
from .policy.function_tokens import FunctionTokens, Given
from .policy.quota import CAP, RATE, flow_of, limited, number_of, split_flow, uses
from .ports import Consumer, Queue, Quotas


class TokenStore:
    """All tokens.

    Args:
        queue: keeps them.
        quotas: gives them back.
        leases: keeps those of caps for as long as they are here.
        changed: called when there may be more room for a function, with its label.
    """

    def __init__(self, queue: Queue, quotas: Quotas, leases: Leases, changed: Callable[[str], None]) -> None:
        self._queue, self._quotas, self._leases, self._changed = queue, quotas, leases, changed
        self._purses: dict[str, FunctionTokens[Lease]] = {}
        self._here: dict[MessageId, Lease] = {}
        """Tokens that are here, counted or not."""

    def limited(self, function: str, quota: Quota) -> None:
        """All workers have agreed on what a function may have."""
        if purse := self._purses.get(function):
            purse.quota = quota
        elif limited(quota):
            self._purses[function] = FunctionTokens(quota)
        if purse:
            for lease in [lease for lease in purse.free if not self._worth(lease)]:
                purse.lost(lease, held=False)
                self._give(Given(lease))
        self._changed(function)

    def room(self, function: str) -> float:
        """How many invocations of a function may start now; infinite where it is not limited."""
        if not (purse := self._purses.get(function)):
            return float("inf")
        for lease in [lease for lease in purse.free if lease.lost]:
            self._forget(lease)
            purse.lost(lease, held=False)
        return purse.room(trio.current_time())

    def balance(self, function: str, desired: int, consumer: Consumer) -> None:
        """Want what is lacking for so many invocations to start, and give back what is more than that.

        To be called whenever the wish changes; and once a second while there is any of a function's tokens, since those
        of a rate grow too old.
        """
        if not (purse := self._purses.get(function)):
            return
        now = trio.current_time()
        for given in purse.spare(desired, now):
            self._give(given)
        for kind, count in purse.lacks(desired, now).items():
            consumer.want(count, flow_of(kind, function))

    def take(self, token: Delivery) -> None:
        """One came."""
        if (here := self._here.get(token.id)) and not here.lost:  # once more: we have it already
            self._leases.adopt(token)
            here.delivery = token
            self.returned(token.flow, 1)
            return
        lease, now = self._leases.take(token), trio.current_time()
        self._here[token.id] = lease
        self._queue.extend(token, partial(self._kept, lease, now), before=self._leases.lost_at(lease))

    def returned(self, flow: str, count: int) -> None:
        """So many that were wanted will not come."""
        kind, function = split_flow(flow)
        if purse := self._purses.get(function):
            purse.returned(kind, count)

    def start(self, function: str) -> Lease | None:
        """An invocation starts, for which there must be room. What it holds until :meth:`ended`; nothing without a cap.

        The invocation must not outlive that lease: guard its scope by it.
        """
        if not (purse := self._purses.get(function)):
            return None
        held, spent = purse.start(trio.current_time())
        if spent:
            self._give(spent)
        return held

    def ended(self, function: str, held: Lease | None) -> None:
        """It is over."""
        if held:
            purse = self._purses[function]
            if held.lost:
                self._forget(held)
                purse.lost(held, held=True)
            elif self._worth(held):
                purse.ended(held)
            else:  # the cap was lowered, or lifted
                purse.lost(held, held=True)
                self._give(Given(held))

    def give_all(self) -> None:
        """Give back all that no invocation holds: the worker starts nothing more."""
        for purse in self._purses.values():
            for given in purse.spare(0, trio.current_time()):
                self._give(given)

    def _kept(self, lease: Lease, asked: float) -> None:
        """The queue has confirmed that we keep a token, from when we asked for that at least."""
        lease.confirm(asked)
        kind, function = split_flow(lease.delivery.flow)
        purse, worth = self._purses.get(function), self._worth(lease)
        if lease.lost:
            self._forget(lease)
            self.returned(lease.delivery.flow, 1)
            return
        if not purse or not worth:
            self.returned(lease.delivery.flow, 1)
            self._give(Given(lease))
            return
        if kind == RATE:
            self._leases.release(lease)
        purse.received(kind, lease, worth, asked)
        self._changed(function)

    def _worth(self, lease: Lease) -> int:
        """Uses of a token by what is agreed now; none where it is too many."""
        kind, function = split_flow(lease.delivery.flow)
        purse = self._purses.get(function)
        return uses(purse.quota, kind, number_of(lease.delivery.subject)) if purse else 0

    def _give(self, given: Given[Lease]) -> None:
        lease = given.token
        before = self._leases.lost_at(lease) if split_flow(lease.delivery.flow)[0] == CAP else given.before
        self._leases.release(lease)
        self._forget(lease)
        if not lease.lost:
            self._quotas.give(lease.delivery, delay=given.delay, before=before)

    def _forget(self, lease: Lease) -> None:
        if self._here.get(lease.delivery.id) is lease:
            del self._here[lease.delivery.id]
