"""Creates the consumers of flows that something is wanted of: of a subject, or of a function's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ..config import Settings
from ..events import BrokerMisconfigured
from ..model import PendingCount
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import topology
from .jetstream import JetStream
from .layout import ConsumerSet
from .pull_consumer import PullConsumer
from .reconcile import name_for_subject
from .wire import ApiError, ErrorCode

_AT_ONCE = 8
"""Flows at the same time: on three servers one consumer takes 60 ms (measured)."""
_RETRY, _RETRY_LATER, _RETRY_NOW = 1.0, 5.0, 0.01
"""Seconds before another try to create a consumer: usually, where an operator has to act, and where the limit of
consumers has just been raised."""


class FlowConsumers:
    """A queue of flows, and the tasks that create their consumers.

    Args:
        create: finds or creates a flow's consumer and binds the flow. Returns 0, or the seconds until another try.
    """

    def __init__(self, flows: PullConsumer, create: Callable[[str], Awaitable[float]]) -> None:
        self._flows, self._create = flows, create
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()

    def request(self, flow: str) -> None:
        """Have a flow's consumer created."""
        self._flows.open(flow).creating = True
        self._put(flow)

    async def run(self) -> None:
        """Create consumers until cancelled."""
        await asyncio.gather(*(self._work() for _ in range(_AT_ONCE)))

    def _put(self, flow: str) -> None:
        if flow not in self._queued:
            self._queued.add(flow)
            self._queue.put_nowait(flow)

    async def _work(self) -> None:
        while True:
            flow = await self._queue.get()
            self._queued.discard(flow)
            if self._flows.find(flow) is None:
                continue  # it has ended since
            if retry_in := await self._create(flow):
                asyncio.get_running_loop().call_later(retry_in, self._put, flow)
            elif pull := self._flows.find(flow):
                pull.creating = False


class SubjectConsumers:
    """The consumers of subjects."""

    def __init__(
        self,
        jetstream: JetStream,
        settings: Settings,
        flows: PullConsumer,
        consumers: Callable[[], ConsumerSet],
        emit: Emit,
    ) -> None:
        self.crowded = False
        """Whether the stream may have no more consumers."""
        self._jetstream, self._settings, self._flows = jetstream, settings, flows
        self._consumers, self._emit = consumers, emit
        self._queue = FlowConsumers(flows, self._create)
        self.request, self.run = self._queue.request, self._queue.run

    async def _create(self, subject: str) -> float:
        if (pull := self._flows.find(subject)) is None or pull.credit.unrequested <= 0:
            return 0.0
        name = name_for_subject(self._consumers(), subject, topology.flow_consumer(self._settings, subject))
        config = topology.flow_config(self._settings, subject, name)
        try:
            info = await topology.ensure_consumer(self._jetstream, self._settings, config, lambda _: None, again=False)
        except MisconfiguredError as error:
            self._emit(BrokerMisconfigured(str(error)))
            return _RETRY_LATER
        except (ApiError, BrokerUnavailableError) as error:
            full = isinstance(error, ApiError) and error.err_code == ErrorCode.MAXIMUM_CONSUMERS_LIMIT
            if full and await self._raise_limit():
                return _RETRY_NOW
            self._jetstream.connection.report_failure(f"creating a consumer for {subject}", error)
            return _RETRY_LATER if self.crowded else _RETRY
        self.crowded = False
        if pull := self._flows.find(subject):
            self._flows.ack_wait = min(self._flows.ack_wait, info.ack_wait)
            self._flows.notify(PendingCount(subject, info.num_pending))
            pull.bind(f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.nats_stream}.{name}")
        return 0.0

    async def _raise_limit(self) -> bool:
        try:
            self.crowded = not await topology.allow_more_consumers(self._jetstream, self._settings, self._emit)
        except (ApiError, BrokerUnavailableError):  # no permission
            self.crowded = True
        return not self.crowded
