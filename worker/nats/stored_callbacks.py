"""The stream of stored callbacks, and its consumer, which all workers of the queue share.

Its messages are a flow of their own. The stream is created when the first callback is stored, so a queue whose
callbacks all arrive has none. Until then each worker looks for it now and then, because another may have created it.
A body that no message can hold is stored before its callback, among the large bodies.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from msgspec.structs import replace

from ..events import Created, StoredCallbacksRead
from ..model import CALLBACKS, StoredCallback
from ..policy.stored_callback import encode_callback
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from ..settings import Settings
from . import topology
from .connection import NoRespondersError
from .faults import Faults
from .flow_consumers import FlowConsumers
from .jetstream import JetStream
from .pull import Pull
from .pull_consumer import PullConsumer
from .stored_bodies import StoredBodies, callbacks_stream
from .wire import ApiError, ConsumerConfig, ConsumerInfo, ErrorCode, StreamConfig, nanoseconds

_LOOK = 5.0
"""Seconds between two looks at the stream and its consumer."""
_HEADER_ROOM = 8_192
"""Bytes of a message that are left for headers: those of its dead letter, too, so that one message can hold it."""
_REFERENCE = 256
"""Bytes of a reference to a body in the object store, at most."""


def subject(settings: Settings) -> str:
    """Return the subject of stored callbacks. It begins in capitals, as no queue's name does."""
    return f"CALLBACKS.{settings.queue_name}"


def stream_config(settings: Settings) -> StreamConfig:
    """Return the stream's configuration. A stream that is full stores no more, and deletes none."""
    return StreamConfig(
        name=callbacks_stream(settings),
        subjects=(subject(settings),),
        retention="workqueue",
        discard="new",
        max_bytes=settings.nats_state_max_bytes,
        storage=settings.nats_stream_storage,
        num_replicas=settings.nats_stream_replicas,
    )


def consumer_config(settings: Settings, ack_wait: float) -> ConsumerConfig:
    """Return the configuration of its consumer."""
    return replace(
        topology.flow_config(settings, subject(settings), "callbacks"),
        max_ack_pending=-1,
        ack_wait=round(ack_wait * 1e9),
        metadata={},
    )


class StoredCallbacks:
    """Stores callbacks, and binds their flow to the consumer."""

    def __init__(
        self,
        jetstream: JetStream,
        settings: Settings,
        flows: PullConsumer,
        bodies: StoredBodies,
        *,
        faults: Faults,
        emit: Emit,
    ) -> None:
        self._bodies = bodies
        self._jetstream, self._settings, self._flows, self._faults, self._emit = (
            jetstream,
            settings,
            flows,
            faults,
            emit,
        )
        self._stream = stream_config(settings)
        self._consumers = FlowConsumers(flows, self._bind)
        self.create_consumer = self._consumers.request

    def consumer_lost(self, flow: str) -> None:
        """Find or create the consumer again."""
        self.create_consumer(flow)

    async def store(self, stored: StoredCallback, key: str) -> None:
        """See :meth:`worker.ports.Queue.store_callback`."""
        payload, body = encode_callback(stored), None
        limit = self._jetstream.connection.client.max_payload - _HEADER_ROOM
        if len(payload) > limit:
            head = len(payload) - len(stored.callback.body) + _REFERENCE
            if head > limit:
                raise BrokerUnavailableError(f"its headers of {head} bytes exceed the {limit} that the server stores")
            body = await self._bodies.put(stored.callback.body)
            payload = encode_callback(replace(stored, callback=replace(stored.callback, body=b"", stored_body=body)))
        refused = True
        headers = {"Nats-Msg-Id": key, "Nats-Expected-Stream": self._stream.name}
        try:
            try:
                await self._jetstream.publish(subject(self._settings), payload, headers)
            except (BrokerUnavailableError, ApiError) as error:
                refused = isinstance(error, ApiError | NoRespondersError)
                # Most likely this is the first one, and there is no stream. The message id prevents a second copy.
                _, created = await self._jetstream.find_or_create_stream(self._stream)
                if created:
                    self._emit(Created("stream", self._stream.name, recreated=False))
                await self._jetstream.publish(subject(self._settings), payload, headers)
        except (ApiError, MisconfiguredError) as error:
            if body and refused and isinstance(error, ApiError):
                # Surely not stored. Without an answer it may be: then the body stays, for a sweep if it is not.
                self._bodies.delete_soon(body)
            raise BrokerUnavailableError(f"the stream {self._stream.name} did not store it: {error}") from None
        if (pull := self._flows.find(CALLBACKS)) and not pull.bound:
            await self._bind(CALLBACKS)

    async def run(self) -> None:
        """Bind the flow, count what is stored, and judge the consumer, until cancelled."""
        await asyncio.gather(self._consumers.run(), self._look())

    async def _bind(self, flow: str) -> float:
        """Bind the flow to its consumer, if the stream exists; return 0, or the seconds until another try."""
        if not self._jetstream.connection.up or not self._flows.ack_wait:
            return 0.25
        ack_wait = max(self._settings.ack_wait, self._flows.ack_wait)
        config = consumer_config(self._settings, ack_wait)
        try:
            info, _ = await self._jetstream.find_or_create_consumer(self._stream.name, config)
            if info.config.ack_wait < config.ack_wait:
                await self._jetstream.update_consumer(self._stream.name, info, ack_wait=config.ack_wait)
        except (ApiError, BrokerUnavailableError, MisconfiguredError) as error:
            if not (isinstance(error, ApiError) and error.err_code == ErrorCode.STREAM_NOT_FOUND):
                self._jetstream.connection.report_failure("looking for the consumer of stored callbacks", error)
            return _LOOK
        if (pull := self._flows.find(flow)) and not pull.bound:
            pull.bind(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream.name}.{config.name}")
        return 0.0

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(_LOOK)
            if (pull := self._flows.find(CALLBACKS)) and pull.bound and self._jetstream.connection.up:
                try:
                    await self._count()
                except (ApiError, BrokerUnavailableError) as error:
                    self._jetstream.connection.report_failure("counting the stored callbacks", error)

    async def _count(self) -> None:
        stream = await self._jetstream.stream(self._stream.name)
        oldest = 0.0
        if stream.state.messages and stream.state.first_ts:
            with suppress(ValueError):
                oldest = max(0.0, time.time() - nanoseconds(stream.state.first_ts) / 1e9)
        self._emit(StoredCallbacksRead(stream.state.messages, oldest))
        infos, _ = await self._jetstream.consumers(self._stream.name)
        self._faults.judge("callbacks", self._flows, infos, self._wanted_config)

    def _wanted_config(self, pull: Pull, info: ConsumerInfo) -> ConsumerConfig | None:
        return consumer_config(self._settings, info.ack_wait) if pull.flow == CALLBACKS else None
