"""Caps and rates in this worker: the flows of limited functions, and the tokens that they start by.

A limited flow may hold as many slots as run already, and as many more as there are tokens for. Tokens are wanted for
what the flow could start without them, but for no more than its fair part of the slots while these are taken: what
lies here unused, nobody else can have. So what lies here while all slots are taken by others goes back after a while,
and is wanted anew behind whoever waits for it.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from .heartbeat import Lease, Leases
from .model import Delivery, Quota
from .policy.flow import Flow
from .policy.quota import needs_tokens
from .policy.shares import TOKEN_CHECK, Shares
from .ports import Consumer, Queue, Quotas
from .token_store import TokenStore


class Admission:
    """All of them.

    Args:
        queue: keeps the tokens.
        quotas: knows who is limited.
        leases: keeps those of caps.
        shares: gives slots to flows.
        decide: called when there may be more room for some.
    """

    def __init__(
        self, queue: Queue, quotas: Quotas, leases: Leases, shares: Shares, decide: Callable[[], None]
    ) -> None:
        self._quotas, self._shares, self._decide = quotas, shares, decide
        self._wallet = TokenStore(queue, quotas, leases, self._on_change)
        self._flows: dict[str, set[Flow]] = {}
        """By function, those of limited ones and of those that were."""
        self._able: dict[str, float] = {}
        """By function, when one of it last could start, or its tokens were given back since none could."""
        self._stopped = False

    def add_flow(self, flow: Flow) -> None:
        """A flow is new here."""
        if flow.function and (quota := self._quotas.agreed(flow.function)):
            self.set_quota(flow.function, quota)

    def set_quota(self, function: str, quota: Quota) -> None:
        """All workers have agreed on what a function may have."""
        flows = {flow for flow in self._shares.flows if flow.function == function}
        self._flows[function] = flows
        for flow in flows:
            flow.needs_tokens = needs_tokens(quota)
        self._wallet.set_quota(function, quota)

    def receive_token(self, token: Delivery) -> None:
        """A token came."""
        self._wallet.receive(token)

    def take_back(self, flow: str, count: int) -> None:
        """Tokens that were wanted will not come."""
        self._wallet.take_back(flow, count)

    def may_start(self, flow: Flow) -> bool:
        """Whether there is a token for one more."""
        return not flow.needs_tokens or self._wallet.room(flow.function) >= 1

    def start(self, flow: Flow) -> Lease | None:
        """One starts. What it must not outlive, until :meth:`finish`."""
        if not flow.needs_tokens:
            return None
        self._able[flow.function] = trio.current_time()
        return self._wallet.start(flow.function)

    def finish(self, flow: Flow, token: Lease | None) -> None:
        """It is over."""
        if token:
            token.unguard()
            self._wallet.finish(flow.function, token)
        if self._stopped:
            self._wallet.give_back_unused()
        elif flow.needs_tokens:
            self._give_room(flow)

    def balance(self, consumer: Consumer) -> None:
        """Want the tokens that are lacking, and give back those that are not needed."""
        for flow in self._shares.take_changed_limited():
            if flow.function in self._flows:
                self._wallet.balance(flow.function, self._desired(flow.function), consumer)
                self._give_room(flow)

    def stop(self) -> None:
        """Nothing more is started here: give back all that no invocation holds, and the others' as they end."""
        self._stopped = True
        self._wallet.give_back_unused()

    def _desired(self, function: str) -> int:
        """How many more of it to have tokens for."""
        flows, now = self._flows[function], trio.current_time()
        if self._shares.free or any(flow.credit for flow in flows):
            self._able[function] = now
        elif now - self._able.setdefault(function, now) >= TOKEN_CHECK:
            self._able[function] = now
            return 0
        return sum(map(self._shares.desired, flows))

    def _on_change(self, function: str) -> None:
        for flow in self._flows.get(function, ()):
            self._give_room(flow)
        if self._stopped:
            self._wallet.give_back_unused()
        self._decide()

    def _give_room(self, flow: Flow) -> None:
        cap = flow.running + self._wallet.room(flow.function)
        if cap != flow.cap:
            flow.cap = cap
            self._shares.mark_changed(flow)
