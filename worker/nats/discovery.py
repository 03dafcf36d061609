"""Function mode: finds the subjects that have messages, and creates a consumer for each that something is wanted of.

A subject is found as soon as a message on it is stored, and without a request to the server all the time: by
*a subscription that ends by itself, then one look*. The server ends the subscription to the queue's subjects after a
few messages. Then the worker waits a little, subscribes again, and asks once what the stream stores. So a quiet queue
costs nothing, and a busy one costs a few copies and one request in each interval. A message that no subscription
received is found by a look every two seconds. Where subscribing is not permitted, only the looks remain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import nats.errors
import trio
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..model import PendingCount, Published, StoredCount
from ..policy.names import covers, partition_of
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from ..settings import Settings
from . import nats_internals, topology
from .connection import Connection
from .faults import Faults
from .flow_consumers import FlowConsumers
from .jetstream import JetStream
from .layout import FUNCTION, ConsumerSet, partitions_of
from .pull_consumer import PullConsumer
from .reconcile import name_for_subject
from .wire import ApiError, ErrorCode

MAX_MESSAGES = 8
"""Messages after which a subscription ends."""
PAUSE = 0.04
"""Seconds between two looks at least."""
LOOK = 2.0
"""Seconds between two looks at most."""
_SHARE = 4
"""A look may take one in so many seconds, however much the stream stores."""
_CALM = 0.25
"""Seconds before a flow that was lost is looked for: an election may have made its consumer unavailable, for some
seconds."""
_GRACE = 10.0
"""Seconds after the threshold when a flow ends without the deletion of its consumer, which another worker may have
seen to."""
_RETRY, _RETRY_LATER, _RETRY_NOW = 1.0, 5.0, 0.01
"""Seconds before another try to create a consumer: usually, where an operator has to act, and where the limit of
consumers has just been raised."""


class OneShotSubscription:
    """A subscription that ends after :data:`MAX_MESSAGES` messages; then *ended* is called."""

    def __init__(
        self, connection: Connection, subject: str, received: Callable[[str], None], ended: Callable[[], None]
    ) -> None:
        self._connection, self._subject, self._received, self._ended = connection, subject, received, ended
        self._left = 0
        self._subscription: Subscription | None = None

    async def begin(self) -> None:
        """Subscribe, unless the subscription has not ended."""
        if self._left <= 0:
            self._left, client = MAX_MESSAGES, self._connection.client
            try:
                self._subscription = await nats_internals.listen(client, self._subject, self._on_message)
                await self._subscription.unsubscribe(MAX_MESSAGES)
            except (nats.errors.Error, OSError):
                self._left = 0
                raise

    async def end(self) -> None:
        """Unsubscribe."""
        self._left = 0
        if self._subscription:
            with suppress(nats.errors.Error):  # the server ended it before
                await self._subscription.unsubscribe()

    def _on_message(self, message: Msg) -> None:
        self._left -= 1
        self._received(message.subject)
        if self._left == 0:
            self._ended()


class SubjectFlows:
    """The flows that are a subject each. *look* looks at the stream, and calls :meth:`set_stored`.

    *settings* have the stream's name at the server.
    """

    def __init__(
        self,
        jetstream: JetStream,
        settings: Settings,
        flows: PullConsumer,
        emit: Emit,
        look: Callable[[], Awaitable[object]],
        *,
        faults: Faults,
    ) -> None:
        self.ready = False
        """Whether it is known what the stream stores."""
        self.crowded = False
        """Whether the stream may have no more consumers."""
        self.consumers = ConsumerSet()
        """The stream's consumers as last observed."""
        self._layout: str | None = None
        """The layout in which subjects are flows; None where no subject is looked for."""
        self._jetstream, self._connection, self._settings = jetstream, jetstream.connection, settings
        self._flows, self._faults, self._emit, self._look = flows, faults, emit, look
        self._soon = asyncio.Event()
        self.look_soon = self._soon.set
        """Lets the stream be looked at as soon as the shortest pause has passed."""
        self._subscriptions = [
            OneShotSubscription(self._connection, each, self._on_published, self.look_soon)
            for each in topology.subjects(settings)
        ]
        self._stored: dict[str, int] = {}
        """Messages of each flow, as last notified."""
        self._empty_since: dict[str, float] = {}
        self._empty_for = settings.consumer_inactive_threshold + _GRACE
        self._repeat_at = 0.0
        """The time from which flows are notified also of an unchanged count."""
        self._looked_at = float("-inf")
        self._creation = FlowConsumers(flows, self._create)
        self.create_consumer = self._creation.request

    def begin(self, layout: str) -> None:
        """Find the subjects that are flows of this worker in a layout."""
        if self._layout is None:
            self._layout = layout
            self.look_soon()

    async def end(self) -> None:
        """End all flows, and find no subjects any more."""
        self._layout, self.ready = None, False
        self.forget()
        for each in self._subscriptions:
            await each.end()

    def lost(self, flow: str) -> None:
        """End a flow, because its consumer is gone. Where messages are stored, it is found again."""
        self._empty_since.pop(flow, None)
        self._faults.set(flow, ())
        if self._stored.pop(flow, None) is not None or self._flows.find(flow):
            self._flows.close(flow)
            asyncio.get_running_loop().call_later(_CALM, self.look_soon)

    def forget(self) -> None:
        """End all flows."""
        for flow in [*self._stored]:
            self.lost(flow)

    def set_stored(self, stored: Mapping[str, int]) -> None:
        """Notify of what a look at the stream found, by subject."""
        if self._layout is None:
            return
        now = trio.current_time()
        self._looked_at, self.ready = now, True
        # A count is repeated now and then where nothing is wanted of the flow: the scheduler may have taken back its
        # credit, and a subscription's copy may have been lost.
        repeat = now >= self._repeat_at
        if repeat:
            self._repeat_at = now + LOOK
        for subject, messages in stored.items():
            changed = self._stored.get(subject) != messages
            if (changed or (repeat and not self._outstanding(subject))) and self._is_flow(self._layout, subject):
                self._set(subject, messages)
        for subject in self._stored.keys() - stored.keys():
            if self._stored[subject]:
                self._set(subject, 0)
            elif now - self._empty_since.setdefault(subject, now) >= self._empty_for:
                self.lost(subject)

    async def run(self) -> None:
        """Find flows, and create their consumers, until cancelled."""
        await asyncio.gather(self._find(), self._creation.run())

    async def _find(self) -> None:
        took = 0.0
        while True:
            self._soon.clear()
            if self._connection.up and self._layout:
                began = trio.current_time()
                try:
                    for each in self._subscriptions:
                        await each.begin()
                    await self._look()
                except (ApiError, BrokerUnavailableError, nats.errors.Error, OSError) as error:
                    self._connection.report_failure("looking at the stream", error)
                took = trio.current_time() - began
            patience = max(0.0, self._looked_at + LOOK - trio.current_time()) or LOOK
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):  # wait_for of Python 3.11 may lose a cancellation
                    await self._soon.wait()
            if (wait := self._looked_at + max(PAUSE, _SHARE * took) - trio.current_time()) > 0:
                await asyncio.sleep(wait)

    def _on_published(self, subject: str) -> None:
        if subject in self._stored:
            self._stored[subject] += 1
            self._empty_since.pop(subject, None)
            self._flows.notify(Published(subject))
        elif self._layout and self._is_flow(self._layout, subject):
            self._set(subject, 1)

    def _set(self, subject: str, messages: int) -> None:
        self._stored[subject] = messages
        self._empty_since.pop(subject, None)
        self._flows.notify(StoredCount(subject, messages))

    def _outstanding(self, flow: str) -> int:
        pull = self._flows.find(flow)
        return pull.credit.outstanding if pull else 0

    def _is_flow(self, layout: str, subject: str) -> bool:
        """Return whether a subject is a flow of this worker, and not in the share of a shared consumer."""
        queue, partition = self._settings.queue_name, self._settings.filter_partition
        if layout == FUNCTION:
            return partition_of(queue, subject, self._settings.queue_partitions) == partition
        partitions = partitions_of(layout)
        shared = subject == queue or any(covers(f"{queue}.{part}.>", subject) for part in range(partitions))
        return not shared and partition_of(queue, subject, partitions) == partition % partitions

    async def _create(self, subject: str) -> float:
        """Find or create a subject's consumer, and bind its flow; return the seconds until another try."""
        if (pull := self._flows.find(subject)) is None or pull.credit.unrequested <= 0:
            return 0.0
        name = name_for_subject(self.consumers, subject, topology.flow_consumer(self._settings, subject))
        config = topology.flow_config(self._settings, subject, name)
        try:
            info = await topology.ensure_consumer(self._jetstream, self._settings, config, lambda _: None, again=False)
        except MisconfiguredError as error:
            self._faults.set(subject, [str(error)])
            return _RETRY_LATER
        except (ApiError, BrokerUnavailableError) as error:
            if isinstance(error, ApiError) and error.err_code == ErrorCode.MAXIMUM_CONSUMERS_LIMIT:
                self.crowded = not await topology.allow_more_consumers(self._jetstream, self._settings, self._emit)
                if not self.crowded:
                    return _RETRY_NOW
            self._connection.report_failure(f"creating a consumer for {subject}", error)
            return _RETRY_LATER if self.crowded else _RETRY
        self.crowded = False
        self._faults.set(subject, ())
        if pull := self._flows.find(subject):
            self._flows.ack_wait = min(self._flows.ack_wait, info.ack_wait)
            self._flows.notify(PendingCount(subject, info.num_pending))
            pull.bind(f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.nats_stream}.{name}")
        return 0.0
