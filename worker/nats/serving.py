"""The flows of this worker, in the layout that is served.

In static mode one flow is the whole queue, or a partition of it. In function mode each subject that holds messages is a
flow, and its consumer is created when something is wanted of it. A retired consumer is a flow of its own, because only
what must be retried still comes from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from ..config import Settings
from ..events import BrokerMisconfigured, ConsumerBound
from ..model import SHARED, PendingCount, QueueShared, StoredCount
from ..policy.names import covers, partition_of
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import topology
from .discovery import SubjectDiscovery
from .flow_consumers import FlowConsumers
from .jetstream import JetStream
from .layout import FUNCTION, ConsumerSet, partitions_of, static
from .pull_consumer import PullConsumer
from .reconcile import BindShared, name_for_subject
from .retired_consumers import RetiredConsumers
from .wire import ApiError, ErrorCode

_RETRY, _RETRY_LATER, _RETRY_NOW = 1.0, 5.0, 0.01
"""Seconds before another try to create a consumer: usually, where an operator has to act, and where the limit of
consumers has just been raised."""
_RETIRED = "retired/"
"""The beginning of a retired consumer's flow. No subject of a queue has it: queues' names have no slash."""


class Serving:
    """The flows of one worker's queue.

    Args:
        settings: with the stream's name at the server.
        look: looks at the stream, and calls the discovery's ``set_stored``.
        lost: called when the shared consumer is gone.
    """

    def __init__(
        self,
        jetstream: JetStream,
        flows: PullConsumer,
        settings: Settings,
        retired: RetiredConsumers,
        *,
        emit: Emit,
        look: Callable[[], Awaitable[object]],
        lost: Callable[[], None],
    ) -> None:
        self.layout: str | None = None
        """The layout that is served."""
        self.consumers = ConsumerSet()
        """The stream's consumers as last observed."""
        self.crowded = False
        """Whether the stream may have no more consumers."""
        self.discovery = SubjectDiscovery(
            jetstream.connection, topology.subjects(settings), settings.consumer_inactive_threshold, flows, look
        )
        self._jetstream, self._flows, self._settings, self._emit, self._lost = jetstream, flows, settings, emit, lost
        self._retired = retired
        self._retired_flows: dict[str, int] = {}
        """The pending acks of retired consumers, as last notified."""
        self._creation = FlowConsumers(flows, self._create)

    async def run(self) -> None:
        """Find subjects and create their consumers, until cancelled."""
        await asyncio.gather(self.discovery.run(), self._creation.run())

    def forget(self) -> None:
        """End the flows that have a consumer of their own: the stream was replaced."""
        self.discovery.forget()
        for name in [*self._retired_flows]:
            self._end_retired(name)

    async def serve(self, layout: str) -> None:
        """Pull from retired consumers, and from those of a layout; end the flows of any other layout."""
        consumers = self.consumers
        self._flows.set_consumers(consumers)
        self._retired.set_consumers(consumers)
        for each in consumers.retired:
            self._serve_retired(each.name, each.num_ack_pending)
        for name in self._retired_flows.keys() - {each.name for each in consumers.retired}:
            self._end_retired(name)
        waits = [each.ack_wait for each in (*consumers.live, *consumers.retired)]
        self._flows.ack_wait = min(waits, default=self._settings.ack_wait)
        if self.layout not in (None, layout):
            await self.discovery.end()
            if self._flows.find(SHARED):
                self._flows.close(SHARED)
        self.layout = layout
        if layout != static(1):
            self.discovery.begin(partial(self._is_flow, layout))

    async def bind_shared(self, action: BindShared, *, again: bool) -> None:
        """Find or create this worker's shared consumer, and pull from it. *again*: it existed before."""
        config = topology.consumer_config(self._settings, action.layout, alone=action.alone)
        info = await topology.ensure_consumer(self._jetstream, self._settings, config, self._emit, again=again)
        self._flows.ack_wait = min([info.ack_wait, *(each.ack_wait for each in self.consumers.retired)])
        if self._flows.find(SHARED) is None:
            self._flows.notify(QueueShared())
        self._flows.open(SHARED).bind(self._pull_subject(action.name))
        self._emit(ConsumerBound(self._settings.nats_stream, action.name, info.ack_wait))

    def create_consumer(self, flow: str) -> None:
        """Have a flow's consumer created, where something is wanted of it; shared and retired ones have theirs."""
        if flow != SHARED and not flow.startswith(_RETIRED):
            self._creation.request(flow)

    def consumer_lost(self, flow: str) -> None:
        """Follow the loss of a flow's consumer, which the server has reported."""
        if flow == SHARED:
            self._lost()
        elif flow.startswith(_RETIRED):
            self._end_retired(flow.removeprefix(_RETIRED))
        else:
            self.discovery.lost(flow)

    def _serve_retired(self, name: str, ack_pending: int) -> None:
        flow = self._flows.open(f"{_RETIRED}{name}")
        if name not in self._retired_flows:
            flow.bind(self._pull_subject(name))
        if self._retired_flows.get(name) != ack_pending or not flow.outstanding:
            self._flows.notify(StoredCount(flow.flow, ack_pending))
        self._retired_flows[name] = ack_pending

    def _end_retired(self, name: str) -> None:
        if self._retired_flows.pop(name, None) is not None:
            self._flows.close(f"{_RETIRED}{name}")

    def _is_flow(self, layout: str, subject: str) -> bool:
        """Return whether a subject is a flow of this worker, and not in the share of a shared consumer."""
        queue, partition = self._settings.queue_name, self._settings.filter_partition
        if layout == FUNCTION:
            return partition_of(queue, subject, self._settings.queue_partitions) == partition
        partitions = partitions_of(layout)
        if subject == queue or any(covers(f"{queue}.{part}.>", subject) for part in range(partitions)):
            return False
        return partition_of(queue, subject, partitions) == partition % partitions

    async def _create(self, subject: str) -> float:
        """Find or create a subject's consumer, and bind its flow; return the seconds until another try."""
        if (pull := self._flows.find(subject)) is None or not pull.wanted:
            return 0.0
        name = name_for_subject(self.consumers, subject, topology.flow_consumer(self._settings, subject))
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
            pull.bind(self._pull_subject(name))
        return 0.0

    async def _raise_limit(self) -> bool:
        try:
            self.crowded = not await topology.allow_more_consumers(self._jetstream, self._settings, self._emit)
        except (ApiError, BrokerUnavailableError):  # no permission
            self.crowded = True
        return not self.crowded

    def _pull_subject(self, consumer: str) -> str:
        return f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.nats_stream}.{consumer}"
