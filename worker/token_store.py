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
from .policy.function_tokens import FunctionTokens, TokenReturn
from .policy.quota import CAP, RATE, needs_tokens, split_token_flow, token_flow, token_number, uses_of_token
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

    def set_quota(self, function: str, quota: Quota) -> None:
        """All workers have agreed on what a function may have."""
        if purse := self._purses.get(function):
            purse.quota = quota
        elif needs_tokens(quota):
            self._purses[function] = FunctionTokens(quota)
        if purse:
            for lease in [lease for lease in purse.free if not self._worth(lease)]:
                purse.remove(lease, held=False)
                self._give(TokenReturn(lease))
        self._changed(function)

    def room(self, function: str) -> float:
        """How many invocations of a function may start now; infinite where it is not limited."""
        if not (purse := self._purses.get(function)):
            return float("inf")
        for lease in [lease for lease in purse.free if lease.lost]:
            self._forget(lease)
            purse.remove(lease, held=False)
        return purse.room(trio.current_time())

    def balance(self, function: str, desired: int, consumer: Consumer) -> None:
        """Want what is lacking for so many invocations to start, and give back what is more than that.

        To be called whenever the wish changes; and once a second while there is any of a function's tokens, since those
        of a rate grow too old.
        """
        if not (purse := self._purses.get(function)):
            return
        now = trio.current_time()
        for given in purse.take_spare(desired, now):
            self._give(given)
        for kind, count in purse.request(desired, now).items():
            consumer.add_credit(count, token_flow(kind, function))

    def receive(self, token: Delivery) -> None:
        """One came."""
        if (here := self._here.get(token.id)) and not here.lost:  # once more: we have it already
            self._leases.replace_delivery(token)
            here.delivery = token
            self.take_back(token.flow, 1)
            return
        lease, now = self._leases.add(token), trio.current_time()
        self._here[token.id] = lease
        self._queue.extend(token, partial(self._kept, lease, now), before=self._leases.lost_at(lease))

    def take_back(self, flow: str, count: int) -> None:
        """So many that were wanted will not come."""
        kind, function = split_token_flow(flow)
        if purse := self._purses.get(function):
            purse.take_back(kind, count)

    def start(self, function: str) -> Lease | None:
        """Start an invocation, for which there must be room; return the token that it holds, if it needs one.

        The invocation must not outlive that lease: guard its scope by it.
        """
        if not (purse := self._purses.get(function)):
            return None
        held, spent = purse.start(trio.current_time())
        if spent:
            self._give(spent)
        return held

    def finish(self, function: str, held: Lease | None) -> None:
        """It is over."""
        if held:
            purse = self._purses[function]
            if held.lost:
                self._forget(held)
                purse.remove(held, held=True)
            elif self._worth(held):
                purse.release(held)
            else:  # the cap was lowered, or lifted
                purse.remove(held, held=True)
                self._give(TokenReturn(held))

    def give_back_unused(self) -> None:
        """Give back all that no invocation holds: the worker starts nothing more."""
        for purse in self._purses.values():
            for given in purse.take_spare(0, trio.current_time()):
                self._give(given)

    def _kept(self, lease: Lease, asked: float) -> None:
        """The queue has confirmed that we keep a token, from when we asked for that at least."""
        lease.confirm(asked)
        kind, function = split_token_flow(lease.delivery.flow)
        purse, worth = self._purses.get(function), self._worth(lease)
        if lease.lost:
            self._forget(lease)
            self.take_back(lease.delivery.flow, 1)
            return
        if not purse or not worth:
            self.take_back(lease.delivery.flow, 1)
            self._give(TokenReturn(lease))
            return
        if kind == RATE:
            self._leases.remove(lease)
        purse.add(kind, lease, worth, asked)
        self._changed(function)

    def _worth(self, lease: Lease) -> int:
        """Uses of a token by what is agreed now; none where it is too many."""
        kind, function = split_token_flow(lease.delivery.flow)
        purse = self._purses.get(function)
        return uses_of_token(purse.quota, kind, token_number(lease.delivery.subject)) if purse else 0

    def _give(self, given: TokenReturn[Lease]) -> None:
        lease = given.token
        before = self._leases.lost_at(lease) if split_token_flow(lease.delivery.flow)[0] == CAP else given.before
        self._leases.remove(lease)
        self._forget(lease)
        if not lease.lost:
            self._quotas.give_back(lease.delivery, delay=given.delay, before=before)

    def _forget(self, lease: Lease) -> None:
        if self._here.get(lease.delivery.id) is lease:
            del self._here[lease.delivery.id]
