"""Admission: whether a flow may start another invocation, by the quota of its function.

A flow whose function has a cap or a rate may hold as many slots as it runs, and as many more as there are tokens.
Tokens are requested for what the flow could start with them, but for no more than its fair share while all slots are
taken. A token that is unused here is one that no other worker can have. So tokens that no slot was free for are given
back after a while, and requested again behind the workers that wait for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from .heartbeat import Lease, Leases
from .model import NO_ANNOTATIONS, Quota
from .policy.flow import Flow
from .policy.quota import needs_tokens, parse_quota
from .policy.retry import IgnoredAnnotation
from .policy.shares import TOKEN_CHECK, Shares
from .ports import Consumer, Queue, Quotas
from .token_store import TokenStore


class Admission:
    """The quotas of all flows of one worker. *decide* is called when a flow may have become able to start more."""

    def __init__(
        self, queue: Queue, quotas: Quotas, leases: Leases, shares: Shares, decide: Callable[[], None]
    ) -> None:
        self._quotas, self._shares, self._decide = quotas, shares, decide
        self.tokens = TokenStore(queue, quotas, leases, self._on_new_room)
        self._flows: dict[str, set[Flow]] = {}
        """The flows of each function that has a quota or had one."""
        self._active_at: dict[str, float] = {}
        """For each function: when it last had a slot, or gave its tokens back because it had none."""
        self._stopped = False

    def add_flow(self, flow: Flow) -> None:
        """Apply the agreed quota of a new flow's function, if there is one."""
        if flow.function and (quota := self._quotas.agreed(flow.function)):
            self._apply(flow.function, quota, {flow})

    def set_quota(self, function: str, quota: Quota) -> None:
        """Apply a quota that all workers have agreed on."""
        self._apply(function, quota, set())
        self._on_new_room(function)

    def observe(self, flow: Flow, annotations: Mapping[str, str], stored: int) -> tuple[IgnoredAnnotation, ...]:
        """Use the quota in the annotations of a message: its weight here, the rest once all workers have agreed.

        The newest message decides: *stored* is when it was stored (ns since the epoch). Return the invalid annotations.
        """
        if annotations is NO_ANNOTATIONS or not (annotations or self._quotas.agreed(flow.function)):
            return ()
        quota, ignored = parse_quota(annotations)
        flow.weight = quota.weight
        self._quotas.propose(flow.function, quota, stored)
        return ignored

    def may_start(self, flow: Flow) -> bool:
        """Return whether the flow may start another invocation."""
        return not flow.needs_tokens or self.tokens.room(flow.function) >= 1

    def start(self, flow: Flow) -> Lease | None:
        """Start an invocation; return the lease of its token, if it holds one, for :meth:`finish`."""
        if not flow.needs_tokens:
            return None
        self._active_at[flow.function] = trio.current_time()
        return self.tokens.start(flow.function)

    def finish(self, flow: Flow, token: Lease | None) -> None:
        """End an invocation, and free its token."""
        if token:
            token.guard(None)
            self.tokens.finish(flow.function, token)
        if self._stopped:
            self.tokens.give_back_unused()
        elif flow.needs_tokens:
            self._set_cap(flow)

    def limit_changed(self, flow: Flow) -> None:
        """Note that the flow's learned limit may have changed."""
        self._shares.mark_changed(flow)
        self._decide()

    def balance(self, consumer: Consumer) -> None:
        """Request the tokens that are missing, and give back those that are not needed."""
        for flow in self._shares.take_changed_limited():
            self.tokens.balance(flow.function, self._desired(flow.function), consumer)
            self._set_cap(flow)

    def stop(self) -> None:
        """Give back all tokens that no invocation holds, and the others as their invocations end."""
        self._stopped = True
        self.tokens.give_back_unused()

    def _apply(self, function: str, quota: Quota, new: set[Flow]) -> None:
        self._flows[function] = new | {flow for flow in self._shares.flows if flow.function == function}
        self.tokens.set_quota(function, quota)
        for flow in self._flows[function]:
            flow.needs_tokens = needs_tokens(quota)
            self._set_cap(flow)

    def _desired(self, function: str) -> int:
        """Return how many more of a function's invocations to have tokens for."""
        flows, now = self._flows[function], trio.current_time()
        if self._shares.free or any(flow.credit for flow in flows):
            self._active_at[function] = now
        elif now - self._active_at.setdefault(function, now) >= TOKEN_CHECK:
            # No slot came free for its tokens: other workers may have one.
            self._active_at[function] = now
            return 0
        return sum(map(self._shares.desired, flows))

    def _on_new_room(self, function: str) -> None:
        for flow in self._flows.get(function, ()):
            self._set_cap(flow)
        if self._stopped:
            self.tokens.give_back_unused()
        self._decide()

    def _set_cap(self, flow: Flow) -> None:
        cap = flow.running + self.tokens.room(flow.function)
        if cap != flow.cap:
            flow.cap = cap
            self._shares.mark_changed(flow)
