"""Function mode: a consumer for each subject that something is wanted of."""

from __future__ import annotations

from collections.abc import Callable

from ..config import Settings
from ..events import BrokerMisconfigured
from ..model import PendingCount
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import topology
from .flow_consumers import FlowConsumers
from .jetstream import JetStream
from .layout import ConsumerSet
from .pull_consumer import PullConsumer
from .reconcile import create_for_subject
from .wire import ApiError, ErrorCode

_RETRY, _RETRY_LATER, _RETRY_NOW = 1.0, 5.0, 0.01
"""Seconds before another try to create a consumer: usually, where an operator has to act, and where the limit of
consumers has just been raised."""


class SubjectConsumers:
    """The consumers of subjects.

    Args:
        jetstream: the client.
        settings: with the stream's name at the server.
        flows: the flows of this worker.
        consumers: returns the consumers that were last observed.
        emit: called with what is wrong.
    """

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
        if (pull := self._flows.find(subject)) is None or not pull.wanted:
            return 0.0
        name = create_for_subject(self._consumers(), subject, topology.flow_consumer(self._settings, subject)).name
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
            self._jetstream.connection.report_failure(f"making a consumer for {subject}", error)
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
