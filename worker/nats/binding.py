"""Keeps a worker bound to the queue's stream, which operators may delete, and servers lose for a while.

Observes the stream's consumers, lets :mod:`worker.nats.reconcile` decide, and applies that, so that the queue is in the
layout that this worker serves.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import trio

from ..config import Settings
from ..events import BrokerMisconfigured, ConfigDrift
from ..model import SHARED, Backlog
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import topology
from .apply import Applier
from .jetstream import JetStream
from .layout import FUNCTION, ConsumerSet, static
from .migration import Migration
from .outbox import Outbox
from .pull_consumer import PullConsumer
from .reconcile import BindShared, Idle, Observed, Retire, Serve, Wanted, delete_idle, idle_consumers, reconcile
from .retired_consumers import RetiredConsumers
from .serving import Serving
from .wire import ApiError, ErrorCode

RETRY = 1.0
"""Seconds before another try to find or create the stream and its consumer."""
_CHECK = 3.0
"""Seconds between two looks at the consumers at least."""
_SHARE = 10
"""A look may take one in so many seconds, however many consumers there are."""
_ROUNDS = 5
"""Observations until the consumers have to be in order: retiring, deleting and serving take one each."""


class Binding:
    """The stream of the queue, and its consumers. *settings* have the stream's name at the server."""

    def __init__(
        self,
        jetstream: JetStream,
        settings: Settings,
        flows: PullConsumer,
        outbox: Outbox,
        *,
        retired: RetiredConsumers,
        emit: Emit,
    ) -> None:
        self.stream = stream = settings.nats_stream
        self.serving = Serving(
            jetstream, flows, settings, retired, emit=emit, look=self.read_backlog, lost=self._on_lost
        )
        self._jetstream, self._settings, self._flows, self._emit = jetstream, settings, flows, emit
        self._outbox, self._retired = outbox, retired
        layout = FUNCTION if settings.scaling_mode == FUNCTION else static(settings.queue_partitions)
        self._wanted = Wanted(layout, settings.queue_name, settings.nats_durable, settings.filter_partition)
        self.migration = Migration(jetstream.connection, stream, layout, retired)
        self._applier = Applier(jetstream, stream, settings.queue_name, self._announce)
        self._bound = False
        """Whether the consumers are in order and pulled from, as far as this worker has observed."""
        self._unbound = asyncio.Event()
        self._created: str | None = None
        """The time of the stream's creation, which differs from that of a later one of the same name."""
        self._leaderless: dict[str, float] = {}
        """The consumers without a leader, and since when."""
        self._idle: dict[str, Idle] = {}

    @property
    def ready(self) -> bool:
        """Whether this worker pulls; in function mode, whether it has found the subjects."""
        return self._bound and (self.serving.layout != FUNCTION or self.serving.discovery.ready)

    async def run(self) -> None:
        """Bind again when the connection is back or the consumer is lost, and look at other workers' changes."""
        connection, pause = self._jetstream.connection, RETRY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for of Python 3.11 may lose a cancellation
                    await self._unbound.wait()
            self._unbound.clear()
            while connection.up and not self._bound:
                try:
                    if await self.bind(again=True):
                        break
                except MisconfiguredError as error:
                    self._emit(BrokerMisconfigured(str(error)))
                await asyncio.sleep(RETRY)
            if connection.up and self._bound:
                pause = await self._check()

    async def bind(self, *, again: bool) -> bool:
        """Find or create the stream, bring it into the layout that is to be served, and pull from its consumers.

        *again*: they existed before, so that their absence is worth a warning. Return False where another try is worth
        it.

        Raises:
            MisconfiguredError: the stream or its consumer cannot be used.
        """
        try:
            created = await topology.ensure_stream(self._jetstream, self._settings, self._emit, again=again)
            if self._created not in (None, created):
                self._outbox.forget()
                self._retired.forget()
                self.serving.forget()
            self._created = created
            await self.migration.begin()
            await self._flows.request_again()
            if not self._flows.stopped:
                await self._reconcile(again=again)
        except (ApiError, BrokerUnavailableError) as error:
            self._jetstream.connection.report_failure("looking for the stream and its consumer", error)
            return False
        self.serving.discovery.look_soon()
        self._bound = True
        return True

    def connection_changed(self, up: bool) -> None:
        """Bind again once there is a connection."""
        if up:
            self._unbound.set()
        else:
            self._on_lost()

    async def read_backlog(self) -> Backlog:
        """See :meth:`worker.ports.Queue.backlog`."""
        bound = self._bound
        try:
            info = await self._jetstream.stream_with_subjects(self.stream)
        except ApiError as error:
            if bound and error.err_code == ErrorCode.STREAM_NOT_FOUND:
                self._on_lost()
            raise BrokerUnavailableError(str(error)) from None
        if bound and info.created != self._created:
            self._on_lost()  # it was replaced while no request was open, which a status would have ended
        if self._bound:
            self.serving.discovery.set_stored(info.state.subjects)
        return Backlog(info.state.last_seq, info.state.subjects)

    def _on_lost(self) -> None:
        self._bound = False
        if shared := self._flows.find(SHARED):
            shared.unbind()
        self._unbound.set()

    # Consumers.

    async def _check(self) -> float:
        """Follow the changes of other workers, and delete idle consumers. Return the seconds until the next check."""
        began, took = trio.current_time(), 0.0
        try:
            if not self._flows.stopped:
                await self._reconcile(again=True)
                took = trio.current_time() - began
                await self._delete_idle(trio.current_time())
        except MisconfiguredError as error:
            self._emit(BrokerMisconfigured(str(error)))
        except (ApiError, BrokerUnavailableError) as error:
            self._jetstream.connection.report_failure("looking at the consumers", error)
        return max(_CHECK, _SHARE * took)

    async def _reconcile(self, *, again: bool) -> None:
        for _ in range(_ROUNDS):
            observed = await self._observe()
            actions = reconcile(observed, self._wanted)
            for action in actions:
                match action:
                    case Serve(layout):
                        await self.serving.serve(layout)
                    case BindShared():
                        await self.serving.bind_shared(action, again=again)
                    case _:
                        await self._applier.apply(action)
            if observed.leaderless:
                raise BrokerUnavailableError(f"{len(observed.leaderless)} consumers have no leader now")
            if any(isinstance(each, Serve) for each in actions):
                return
        raise BrokerUnavailableError("the stream's consumers keep changing")

    async def _observe(self) -> Observed:
        infos, leaderless = await self._jetstream.consumers(self.stream)
        now = trio.current_time()
        self._leaderless = {name: self._leaderless.get(name, now) for name in leaderless}
        ages = {name: now - since for name, since in self._leaderless.items()}
        consumers = ConsumerSet.of(infos, self._settings.nats_durable)
        if ages:
            return Observed(consumers, ages)
        self.serving.consumers = consumers
        current = consumers.current
        foreign = current is not None and current != self._wanted.layout
        shared = self._flows.find(SHARED)
        return Observed(
            consumers,
            current_is_wanted=foreign and await self.migration.is_wanted(str(current)),
            served=self.serving.layout,
            bound=shared is not None and shared.bound,
        )

    async def _announce(self, change: Retire) -> None:
        current, count = self.serving.consumers.current, len(change.names)
        self._emit(ConfigDrift(f"the queue goes over from {current} to {change.layout}: {count} consumers retire"))
        await self.migration.announce(change.names)

    async def _delete_idle(self, now: float) -> None:
        self._idle = idle_consumers(self.serving.consumers, self._idle, now)
        threshold, crowded = self._settings.consumer_inactive_threshold, self.serving.crowded
        for subject in await self._applier.delete_idle(delete_idle(self._idle, threshold, now, crowded=crowded)):
            self.serving.discovery.lost(subject)
