"""Caps and rates, kept over all workers by tokens: messages of a work queue of their own (worker/policy/quota.py).

A function's tokens of one kind are a flow, with a consumer and pulls as any flow. The first worker that wants one
creates them; another one may do the same at the same time, because a subject holds one message and each token has its
own. When a cap is lowered, the worker that gives back a surplus token acks it, so that it leaves the stream.
"""

from __future__ import annotations

import asyncio
import hashlib
from itertools import count, islice

import msgspec

from ..model import Ack, Delivery, Nak, Quota, QuotaChanged
from ..policy.quota import (
    CAP,
    RATE,
    RATE_WAIT,
    is_token_flow,
    split_token_flow,
    token_count,
    token_flow,
    token_number,
    uses_of_token,
)
from ..ports import BrokerUnavailableError, MisconfiguredError
from ..settings import Settings
from . import topology
from .faults import Faults
from .flow_consumers import FlowConsumers
from .function_state import READING, AgreedQuota, FunctionStates
from .jetstream import JetStream
from .outbox import Outbox
from .pull import Pull
from .pull_consumer import PullConsumer
from .wire import ApiError, ConsumerConfig, ConsumerInfo, ErrorCode, StreamConfig

_AT_ONCE = 256
"""Tokens that are published at once."""
_RETRY = 1.0
"""Seconds before another try to create tokens, or to agree."""
_JUDGE = 3.0
"""Seconds between two looks at the consumers of the functions that use tokens here."""
_CHECK = 10
"""Looks until one that all tokens exist."""
_IDLE = 3600.0
"""Seconds without a pull request and without a pending ack, after which the server deletes the consumer. Nothing is
lost by that: its tokens stay, and it is created again."""


def stream_config(settings: Settings) -> StreamConfig:
    """Return the configuration of the stream of tokens."""
    return StreamConfig(
        name=f"{settings.nats_stream}-quotas",
        subjects=(f"QUOTAS.{settings.queue_name}.>",),
        retention="workqueue",
        discard="new",
        discard_new_per_subject=True,
        max_bytes=settings.nats_state_max_bytes,
        max_msgs_per_subject=1,
        storage=settings.nats_stream_storage,
        num_replicas=settings.nats_stream_replicas,
    )


def consumer_config(settings: Settings, kind: str, label: str, ack_wait: float) -> ConsumerConfig:
    """Return the configuration of the consumer of a function's tokens."""
    name = f"{kind}-{hashlib.sha256(label.encode()).hexdigest()[:24]}"
    return msgspec.structs.replace(
        topology.flow_config(settings, _subject(settings, kind, label, "*"), name),
        max_ack_pending=-1,
        ack_wait=round(ack_wait * 1e9),
        inactive_threshold=round(_IDLE * 1e9),
        metadata={"queue-worker.function": label},
    )


def _subject(settings: Settings, kind: str, label: str, number: int | str) -> str:
    return f"QUOTAS.{settings.queue_name}.{kind}.{label}.{number}"


class Quotas:
    """See :class:`worker.ports.Quotas`."""

    def __init__(
        self,
        jetstream: JetStream,
        settings: Settings,
        states: FunctionStates,
        flows: PullConsumer,
        outbox: Outbox,
        *,
        faults: Faults,
    ) -> None:
        self._jetstream, self._settings, self._states = jetstream, settings, states
        self._flows, self._outbox, self._faults = flows, outbox, faults
        self._stream = stream_config(settings)
        self._newest: dict[str, int] = {}
        """The time of the newest message that proposed what is agreed, by the function's label."""
        self._proposals: dict[str, AgreedQuota] = {}
        """The quotas that newer messages propose."""
        self._surplus: list[tuple[Delivery, float]] = []
        """Tokens given back that seem to be too many, and until when this worker has each."""
        self._created: dict[str, None] = {}
        """Flows whose tokens this worker has created or found."""
        self._consumers = FlowConsumers(flows, self._create)
        self._wake = asyncio.Event()
        self.continue_soon = self._wake.set
        """Continues with what was not done, once there is a connection."""
        self.create_consumer = self._consumers.request

    # The Trio side.

    def agreed(self, function: str) -> Quota | None:
        """See :meth:`worker.ports.Quotas.agreed`."""
        agreed = self._states.quotas.get(function)
        return agreed.quota if agreed else None

    def propose(self, function: str, quota: Quota, stored: int) -> None:
        """See :meth:`worker.ports.Quotas.propose`."""
        known = self._states.quotas.get(function)
        agreed = known.quota if known else Quota()
        if (quota.max_inflight, quota.rate) == (agreed.max_inflight, agreed.rate):
            if known:
                self._newest[function] = max(stored, self._newest.get(function, 0))
            return
        if stored > max(known.stored if known else 0, self._newest.get(function, 0)):
            if function not in self._proposals or self._proposals[function].stored < stored:
                self._proposals[function] = AgreedQuota(msgspec.structs.replace(quota, weight=1), stored)
            self._wake.set()

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        """See :meth:`worker.ports.Quotas.give_back`."""
        if self._uses(token):
            self._outbox.settle(token, Nak(delay), before=before)
        else:
            self._surplus.append((token, before))
            self._wake.set()

    def _uses(self, token: Delivery) -> int:
        kind, label = split_token_flow(token.flow)
        return uses_of_token(self.agreed(label) or Quota(), kind, token_number(token.subject))

    # The asyncio side.

    def consumer_lost(self, flow: str) -> None:
        """Create a flow's consumer again, where tokens are wanted."""
        if (pull := self._flows.find(flow)) and pull.credit.unrequested > 0:
            self.create_consumer(flow)

    def quota_changed(self, label: str) -> None:
        """Notify of a function's new quota, and create the tokens that it adds."""
        self._newest.pop(label, None)
        self._flows.notify(QuotaChanged(label, self.agreed(label) or Quota()))
        for flow in self._created:
            if split_token_flow(flow)[1] == label:
                self.create_consumer(flow)
        for kind in (CAP, RATE):  # tokens that were wanted while no quota was known
            if (pull := self._flows.find(token_flow(kind, label))) and not pull.bound and pull.credit.unrequested > 0:
                self.create_consumer(pull.flow)

    async def run(self) -> None:
        """Agree, create tokens, and delete those that are too many, until cancelled."""
        await asyncio.gather(self._agree(), self._check(), self._consumers.run())

    async def _agree(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._jetstream.connection.up and not all([await self._agree_all(), await self._settle_surplus()]):
                asyncio.get_running_loop().call_later(_RETRY, self._wake.set)

    async def _check(self) -> None:
        for look in count(1):
            await asyncio.sleep(_JUDGE)
            if self._created and self._jetstream.connection.up:
                await self._judge()
                for flow in self._created if look % _CHECK == 0 else ():  # an operator may have deleted tokens
                    self.create_consumer(flow)

    async def _judge(self) -> None:
        """Judge the consumers of tokens: without tokens, a function's messages wait."""
        try:
            infos, _ = await self._jetstream.consumers(self._stream.name)
        except (ApiError, BrokerUnavailableError) as error:
            self._jetstream.connection.report_failure("looking at the consumers of tokens", error)
        else:
            self._faults.judge("quotas", self._flows, infos, self._wanted_config)

    def _wanted_config(self, pull: Pull, info: ConsumerInfo) -> ConsumerConfig | None:
        if not is_token_flow(pull.flow):
            return None
        return consumer_config(self._settings, *split_token_flow(pull.flow), info.ack_wait)

    async def _agree_all(self) -> bool:
        """Agree on all proposals, and return whether none is left for another try."""
        for label, proposal in [*self._proposals.items()]:
            try:
                await self._states.agree(label, proposal)
            except (ApiError, BrokerUnavailableError, MisconfiguredError) as error:
                self._jetstream.connection.report_failure(f"agreeing on the quota of {label}", error)
                if isinstance(error, BrokerUnavailableError):  # no other proposal would be answered either
                    return False
            else:
                if self._proposals[label] is proposal:
                    del self._proposals[label]
        return not self._proposals

    async def _settle_surplus(self) -> bool:
        """Ack the tokens that are too many, unless the quota was raised since; return whether that is done."""
        if self._surplus:
            try:
                await self._states.read_changes()
            except (ApiError, BrokerUnavailableError) as error:
                self._jetstream.connection.report_failure(READING, error)
                return False
        surplus, self._surplus = self._surplus, []
        for token, before in surplus:
            self._outbox.settle(token, Nak() if self._uses(token) else Ack(), before=before)
        return True

    async def _create(self, flow: str) -> float:
        """Find or create a flow's consumer and tokens, and bind the flow; return the seconds until another try."""
        kind, label = split_token_flow(flow)
        quota = self.agreed(label) or Quota()
        if not (many := token_count(quota, kind)):
            return 0.0
        leased = max(self._settings.ack_wait, self._flows.ack_wait)
        ack_wait = quota.rate.window + RATE_WAIT if quota.rate and kind == RATE else leased
        config = consumer_config(self._settings, kind, label, ack_wait)
        try:
            await self._create_consumer(config, at_least=kind == CAP)
            await self._create_tokens(kind, label, many, config.filter_subject)
        except (ApiError, BrokerUnavailableError, MisconfiguredError) as error:
            self._jetstream.connection.report_failure(f"creating tokens for {flow}", error)
            return _RETRY
        self._created[flow] = None
        if (pull := self._flows.find(flow)) and not pull.bound:
            pull.bind(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream.name}.{config.name}")
        # Where the quota has changed since, another task may have created the consumer for the new one before.
        return 0.0 if (self.agreed(label) or Quota()) == quota else _RETRY

    async def _create_consumer(self, config: ConsumerConfig, *, at_least: bool) -> None:
        """Find or create a consumer and its stream, and correct its ack wait; a cap's may be longer."""
        stream = self._stream.name
        try:
            info, _ = await self._jetstream.find_or_create_consumer(stream, config)
        except ApiError as error:
            if error.err_code != ErrorCode.STREAM_NOT_FOUND:
                raise
            await self._jetstream.find_or_create_stream(self._stream)
            info, _ = await self._jetstream.find_or_create_consumer(stream, config)
        differs = info.config.ack_wait - config.ack_wait
        if differs < 0 or (differs > 0 and not at_least):
            await self._jetstream.update_consumer(stream, info, ack_wait=config.ack_wait)

    async def _create_tokens(self, kind: str, label: str, many: int, pattern: str) -> None:
        there = (await self._jetstream.stream_with_subjects(self._stream.name, pattern)).state.subjects
        missing = (_subject(self._settings, kind, label, number) for number in range(many))
        rest = (subject for subject in missing if subject not in there)
        while some := [*islice(rest, _AT_ONCE)]:
            await asyncio.gather(*map(self._create_token, some))

    async def _create_token(self, subject: str) -> None:
        try:
            await self._jetstream.publish(subject, b"", {"Nats-Expected-Stream": self._stream.name})
        except ApiError as error:
            # Another worker has created it; or the stream is full.
            if error.err_code != ErrorCode.STREAM_STORE_FAILED or "per subject" not in error.description:
                raise
