"""Caps and rates, kept over all workers by tokens: messages of a work queue of their own (worker/policy/quota.py).

A function's tokens of one kind are a flow, with a consumer and pulls as any flow. They are made by whoever wants one
first; that others do the same meanwhile is harmless, since a subject holds one message and each token has its own. No
token is ever taken from who has it. When a cap is lowered, whoever gets one that is too many, or gives it back, takes
it off the queue; so a lower cap is reached as invocations end, and none is cancelled for it.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from itertools import islice
from typing import Any

import msgspec
import trio

from ..config import Settings
from ..model import Ack, Delivery, Nak, Quota, QuotaChanged
from ..policy.quota import CAP, RATE, RATE_WAIT, split_token_flow, token_count, token_number, uses_of_token
from ..ports import BrokerUnavailableError, MisconfiguredError
from .connection import Connection
from .function_state import FunctionStates
from .outbox import Outbox
from .pull_consumer import PullConsumer
from .wire import ApiError

_AT_ONCE = 256
"""Tokens that are published at once."""
_MAKERS = 8
"""Flows for which consumer and tokens are made at once: on three servers a consumer takes 60 ms (measured)."""
_AGAIN = 1.0
"""Seconds before another try to make tokens, or to agree."""
_CHECK = 30.0
"""Seconds between two looks whether the tokens that are in use here are all there."""
_IDLE = 3600.0
"""Seconds without a request, and with no token in anyone's hand, after which the server forgets the consumer. Nothing
is lost by that: its tokens stay, and it is made again."""
_NO_STREAM, _NO_CONSUMER = 10059, 10014
_THERE = 10077
_MADE = (10058, 10148)
"""JetStream's error codes: not there; not there; a message is there already; made meanwhile by another."""


def stream_config(settings: Settings) -> dict[str, Any]:
    """The stream of tokens."""
    return {
        "name": f"{settings.nats_stream}-quotas",
        "subjects": [f"QUOTAS.{settings.queue_name}.>"],
        "retention": "workqueue",
        "discard": "new",
        "discard_new_per_subject": True,
        "max_msgs_per_subject": 1,
        "storage": settings.nats_stream_storage,
        "num_replicas": settings.nats_stream_replicas,
    }


def consumer_config(settings: Settings, kind: str, label: str, ack_wait: float) -> dict[str, Any]:
    """The consumer of a function's tokens."""
    name = f"{kind}-{hashlib.sha256(label.encode()).hexdigest()[:24]}"
    return {
        "durable_name": name,
        "name": name,
        "filter_subject": _subject(settings, kind, label, "*"),
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "max_deliver": -1,
        "max_ack_pending": -1,
        "max_waiting": settings.max_waiting,
        "ack_wait": round(ack_wait * 1e9),
        "inactive_threshold": round(_IDLE * 1e9),
        "metadata": {"queue-worker.function": label},
    }


def _subject(settings: Settings, kind: str, label: str, number: int | str) -> str:
    return f"QUOTAS.{settings.queue_name}.{kind}.{label}.{number}"


class Quotas:
    """See :class:`worker.ports.Quotas`.

    Args:
        connection: to whom to talk.
        settings: all settings.
        controls: what all workers have agreed on.
        flows: where tokens are wanted, and come.
        outbox: says what becomes of them.
    """

    def __init__(
        self, connection: Connection, settings: Settings, controls: FunctionStates, flows: PullConsumer, outbox: Outbox
    ) -> None:
        self._connection, self._settings, self._controls = connection, settings, controls
        self._flows, self._outbox = flows, outbox
        self._config = stream_config(settings)
        self._newest: dict[str, int] = {}
        """When the newest message was stored that said of a function what is agreed."""
        self._news: dict[str, tuple[Quota, int]] = {}
        """What messages said that may have to be agreed on."""
        self._surplus: list[tuple[Delivery, float]] = []
        """Tokens given back that seem to be too many, and until when each is ours."""
        self._unmade: dict[str, None] = {}
        self._made: dict[str, None] = {}
        """Flows whose tokens we have seen to."""
        self._wake = asyncio.Event()

    # The Trio side.

    def agreed(self, function: str) -> Quota | None:
        """See :meth:`worker.ports.Quotas.agreed`."""
        agreed = self._controls.quotas.get(function)
        return agreed.quota if agreed else None

    def propose(self, function: str, quota: Quota, stored: int) -> None:
        """See :meth:`worker.ports.Quotas.propose`."""
        known = self._controls.quotas.get(function)
        if (quota.max_inflight, quota.rate) == (
            (known.quota.max_inflight, known.quota.rate) if known else (None, None)
        ):
            if known:
                self._newest[function] = max(stored, self._newest.get(function, 0))
            return
        if stored > max(known.stored if known else 0, self._newest.get(function, 0)):
            if function not in self._news or self._news[function][1] < stored:
                self._news[function] = msgspec.structs.replace(quota, weight=1), stored
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

    def make(self, flow: str) -> None:
        """Something is wanted of a flow: it needs its consumer, and its tokens."""
        self._flows.open(flow).creating = True
        self._unmade[flow] = None
        self._wake.set()

    def lost(self, flow: str) -> None:
        """A flow's consumer is gone."""
        if (puller := self._flows.find(flow)) and puller.wanted:
            self.make(flow)

    def connection_changed(self, up: bool) -> None:
        """Continue with what was not done, once there is a connection."""
        if up:
            self._wake.set()

    async def run(self) -> None:
        """Agree, make tokens, and take off those that are too many, until cancelled."""
        checked = trio.current_time()
        while True:
            self._wake.clear()
            if self._connection.up:
                await self._agree_all()
                await self._take_off_all()
                await self._make_all()
            await self._sleep(checked + _CHECK - trio.current_time())
            if trio.current_time() >= checked + _CHECK:
                checked = trio.current_time()
                self._unmade |= self._made

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(max(seconds, 0.0)):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _again(self) -> None:
        asyncio.get_running_loop().call_later(_AGAIN, self._wake.set)

    def quota_changed(self, label: str) -> None:
        """Create the tokens of a function's new quota, and notify the core of it."""
        self._newest.pop(label, None)
        self._flows.notify(QuotaChanged(label, self.agreed(label) or Quota()))
        self._unmade |= {flow: None for flow in self._made if split_token_flow(flow)[1] == label}
        self._wake.set()

    async def _agree_all(self) -> None:
        for label, (quota, stored) in [*self._news.items()]:
            try:
                await self._controls.agree(label, quota, stored)
            except (ApiError, BrokerUnavailableError) as error:
                self._connection.report_failure(f"agreeing on the limits of {label}", error)
                self._again()
                if isinstance(error, BrokerUnavailableError):  # nobody is there; else it is about this one
                    return
            else:
                if self._news[label][1] == stored:
                    del self._news[label]

    async def _take_off_all(self) -> None:
        """Tokens that are too many, unless somebody has raised the limit meanwhile."""
        if not self._surplus:
            return
        try:
            await self._controls.read_changes()
        except (ApiError, BrokerUnavailableError) as error:
            self._connection.report_failure("reading what was said about functions", error)
            self._again()
            return
        surplus, self._surplus = self._surplus, []
        for token, before in surplus:
            self._outbox.settle(token, Nak() if self._uses(token) else Ack(), before=before)

    async def _make_all(self) -> None:
        failed: dict[str, None] = {}
        while self._unmade and self._connection.up:
            some = [*islice(self._unmade, _MAKERS)]
            for flow in some:
                del self._unmade[flow]
            made = await asyncio.gather(*map(self._make_one, some))
            failed |= {flow: None for flow, was in zip(some, made, strict=True) if not was}
        if failed:
            self._unmade |= failed
            self._again()

    async def _make_one(self, flow: str) -> bool:
        """Whether it was done."""
        try:
            subject = await self._make(flow)
        except (ApiError, BrokerUnavailableError, MisconfiguredError) as error:
            self._connection.report_failure(f"making tokens for {flow}", error)
            return False
        if puller := self._flows.find(flow):
            puller.creating = False
            if subject and not puller.bound:
                puller.bind(subject)
        return True

    async def _make(self, flow: str) -> str | None:
        """See that a flow's consumer and tokens are there; where to ask for them, or None where there is no limit."""
        kind, label = split_token_flow(flow)
        if not (quota := self.agreed(label)) or not (many := token_count(quota, kind)):
            return None
        leased = max(self._settings.ack_wait, self._flows.ack_wait)
        ack_wait = quota.rate.window + RATE_WAIT if quota.rate and kind == RATE else leased
        config = consumer_config(self._settings, kind, label, ack_wait)
        await self._make_consumer(config, at_least=kind == CAP)
        there = await self._there(config["filter_subject"])
        missing = (_subject(self._settings, kind, label, number) for number in range(many))
        await self._publish(subject for subject in missing if subject not in there)
        self._made[flow] = None
        return f"$JS.API.CONSUMER.MSG.NEXT.{self._config['name']}.{config['name']}"

    async def _make_consumer(self, config: dict[str, Any], *, at_least: bool) -> None:
        """Find it or make it, and the stream; one whose ack wait is another is changed, but for a cap's longer one."""
        where = f"{self._config['name']}.{config['name']}"
        make = {"stream_name": self._config["name"], "config": config, "action": "create"}
        try:
            found = await self._find_or_make(where, make)
        except ApiError as error:
            if error.err_code != _NO_STREAM:
                raise
            await self._create(f"STREAM.CREATE.{self._config['name']}", self._config)
            found = await self._find_or_make(where, make)
        differs = found["config"]["ack_wait"] - config["ack_wait"]
        if differs < 0 or (differs > 0 and not at_least):
            change = {"config": found["config"] | {"ack_wait": config["ack_wait"]}, "action": "update"}
            await self._connection.ask(f"CONSUMER.CREATE.{where}", make | change)

    async def _find_or_make(self, where: str, make: dict[str, Any]) -> dict[str, Any]:
        try:
            return await self._connection.ask(f"CONSUMER.INFO.{where}")
        except ApiError as error:
            if error.err_code != _NO_CONSUMER:
                raise
        await self._create(f"CONSUMER.CREATE.{where}", make)
        return await self._connection.ask(f"CONSUMER.INFO.{where}")

    async def _create(self, verb: str, config: dict[str, Any]) -> None:
        try:
            await self._connection.ask(verb, config)
        except ApiError as error:
            if error.err_code not in _MADE:
                raise

    async def _there(self, pattern: str) -> set[str]:
        """The tokens that the stream has, whoever holds them."""
        there: set[str] = set()
        while True:
            asked = {"subjects_filter": pattern, "offset": len(there)}
            info = await self._connection.ask(f"STREAM.INFO.{self._config['name']}", asked)
            page = info["state"].get("subjects") or {}
            there |= page.keys()
            if not page or len(there) >= info.get("total", 0):
                return there

    async def _publish(self, subjects: Iterable[str]) -> None:
        rest = iter(subjects)
        while some := [*islice(rest, _AT_ONCE)]:
            await asyncio.gather(*map(self._publish_one, some))

    async def _publish_one(self, subject: str) -> None:
        try:
            await self._connection.store(subject, b"", {"Nats-Expected-Stream": self._config["name"]})
        except ApiError as error:
            if error.err_code != _THERE:
                raise
