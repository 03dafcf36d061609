"""The tokens that this worker holds, of all functions with a cap or a rate (worker/policy/function_tokens.py).

A token counts only after the queue has confirmed an extension of it. A server that restarts redelivers a token that was
merely delivered, because it counts the ack wait from when the message was stored, and tokens are old: three of five
such tokens were held twice (measured, nats-server 2.15.1). It does not redeliver one that was extended.
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
    """All tokens of one worker. *has_room* is called with a function's label when a token of it was added."""

    def __init__(self, queue: Queue, quotas: Quotas, leases: Leases, has_room: Callable[[str], None]) -> None:
        self._queue, self._quotas, self._leases, self._has_room = queue, quotas, leases, has_room
        self._functions: dict[str, FunctionTokens[Lease]] = {}
        self._leased: dict[MessageId, Lease] = {}
        """Tokens that are here, whether they count already or not."""
        self._unconfirmed: dict[Lease, None] = {}
        """Tokens that do not count yet."""

    def set_quota(self, function: str, quota: Quota) -> None:
        """Use a function's new quota, and give back the tokens that are too many under it."""
        if tokens := self._functions.get(function):
            tokens.quota = quota
            for lease in [lease for lease in tokens.free if not self._uses(lease)]:
                tokens.remove(lease, held=False)
                self._give_back(TokenReturn(lease))
        elif needs_tokens(quota):
            self._functions[function] = FunctionTokens(quota)

    def room(self, function: str) -> float:
        """Return how many invocations of a function may start now; infinite where it needs no tokens."""
        if not (tokens := self._functions.get(function)):
            return float("inf")
        for lease in [lease for lease in tokens.free if lease.lost]:
            self._forget(lease)
            tokens.remove(lease, held=False)
        return tokens.room(trio.current_time())

    def balance(self, function: str, desired: int, consumer: Consumer) -> None:
        """Request the tokens that are missing for *desired* invocations to start, and give back those above that.

        To be called whenever *desired* changes, and every second while there is a token, because those of rates expire.
        """
        if not (tokens := self._functions.get(function)):
            return
        now = trio.current_time()
        for lease in [lease for lease in self._unconfirmed if lease.lost]:
            self._stop_waiting(lease)
        for spare in tokens.take_spare(desired, now):
            self._give_back(spare)
        for kind, count in tokens.request(desired, now).items():
            consumer.add_credit(count, token_flow(kind, function))

    def receive(self, token: Delivery) -> None:
        """Extend a token that has arrived; it counts once that is confirmed."""
        if (here := self._leased.get(token.id)) and not here.lost:  # a redelivery of a token that is here already
            self._leases.replace_delivery(token)
            here.delivery = token
            self.take_back(token.flow, 1)
            return
        lease, now = self._leases.add(token), trio.current_time()
        self._leased[token.id] = lease
        self._unconfirmed[lease] = None
        self._queue.extend(token, partial(self._on_extended, lease, now), before=self._leases.lost_at(lease))

    def take_back(self, flow: str, count: int) -> None:
        """Note that *count* requested tokens will not arrive."""
        kind, function = split_token_flow(flow)
        if tokens := self._functions.get(function):
            tokens.take_back(kind, count)

    def start(self, function: str) -> Lease | None:
        """Start an invocation, for which there must be room; return the token that it holds, if it needs one.

        The invocation must not outlive that lease: guard its scope by it.
        """
        if not (tokens := self._functions.get(function)):
            return None
        held, used_up = tokens.start(trio.current_time())
        if used_up:
            self._give_back(used_up)
        return held

    def finish(self, function: str, held: Lease | None) -> None:
        """End an invocation, and free the token that it held."""
        if not held:
            return
        tokens = self._functions[function]
        if self._uses(held) and not held.lost:
            tokens.release(held)
        else:  # the cap was lowered or lifted, or another worker has the token
            tokens.remove(held, held=True)
            self._give_back(TokenReturn(held))

    def give_back_unused(self) -> None:
        """Give back all tokens that no invocation holds, because the worker starts nothing more."""
        for tokens in self._functions.values():
            for spare in tokens.take_spare(0, trio.current_time()):
                self._give_back(spare)

    def _on_extended(self, lease: Lease, sent_at: float) -> None:
        """Add a token whose extension, sent at *sent_at*, the queue has confirmed."""
        if lease.lost:
            self._stop_waiting(lease)
            return
        del self._unconfirmed[lease]
        lease.confirm(sent_at)
        kind, function = split_token_flow(lease.delivery.flow)
        tokens, uses = self._functions.get(function), self._uses(lease)
        if not tokens or not uses:
            self.take_back(lease.delivery.flow, 1)
            self._give_back(TokenReturn(lease))
            return
        if kind == RATE:
            self._leases.remove(lease)
        tokens.add(kind, lease, uses, sent_at)
        self._has_room(function)

    def _stop_waiting(self, lease: Lease) -> None:
        """Note that an unconfirmed token was lost, so that another one is requested in its place."""
        if lease in self._unconfirmed:
            del self._unconfirmed[lease]
            self._forget(lease)
            self.take_back(lease.delivery.flow, 1)

    def _uses(self, lease: Lease) -> int:
        """Return the uses of a token under the quota agreed on now; 0 if there is one token too many."""
        kind, function = split_token_flow(lease.delivery.flow)
        tokens = self._functions.get(function)
        return uses_of_token(tokens.quota, kind, token_number(lease.delivery.subject)) if tokens else 0

    def _give_back(self, back: TokenReturn[Lease]) -> None:
        lease = back.token
        self._forget(lease)
        if lease.lost:
            return
        before = self._leases.lost_at(lease) if split_token_flow(lease.delivery.flow)[0] == CAP else back.before
        self._leases.remove(lease)
        if trio.current_time() < before:  # afterwards, another worker may have it
            self._quotas.give_back(lease.delivery, delay=back.delay, before=before)

    def _forget(self, lease: Lease) -> None:
        if self._leased.get(lease.delivery.id) is lease:
            del self._leased[lease.delivery.id]
