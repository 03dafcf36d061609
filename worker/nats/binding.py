"""Keeps a worker bound to the queue's stream, which operators may delete, and servers lose for a while.

Observes the stream's consumers, lets :mod:`worker.nats.reconcile` decide, applies that, and pulls from the consumers of
the layout. In static mode one flow is the whole queue, or a partition of it; in function mode each subject is a flow
(:mod:`worker.nats.discovery`). A retired consumer is a flow of its own, because only what must be retried still comes
from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import trio

from ..events import ConfigDrift, ConsumerBound
from ..model import SHARED, Backlog, Delivery, QueueShared, StoredCount
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from ..settings import Settings
from . import topology
from .apply import Applier
from .discovery import SubjectFlows
from .drifts import RETIRED_FLOW, Drifts
from .faults import Faults
from .jetstream import JetStream
from .layout import FUNCTION, ConsumerSet, static
from .migration import Migration
from .pull import Pull
from .pull_consumer import PullConsumer
from .reconcile import BindShared, Idle, Observed, Retire, Serve, Wanted, delete_idle, idle_consumers, reconcile
from .retired_consumers import RetiredConsumers
from .wire import ApiError, ErrorCode

LOOKING = "looking for the stream and its consumer"
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
        *,
        retired: RetiredConsumers,
        faults: Faults,
        emit: Emit,
    ) -> None:
        layout = FUNCTION if settings.scaling_mode == FUNCTION else static(settings.queue_partitions)
        self.stream = stream = settings.nats_stream
        self.migration = Migration(jetstream.connection, stream, layout, retired)
        self._subjects = SubjectFlows(jetstream, settings, flows, emit, self.read_backlog, faults=faults)
        self._jetstream, self._settings, self._flows, self._emit = jetstream, settings, flows, emit
        self._retired, self._faults = retired, faults
        self._drifts = Drifts(settings, flows, faults, emit)
        self._wanted = Wanted(layout, settings.queue_name, settings.nats_durable, settings.filter_partition)
        self._applier = Applier(jetstream, stream, settings.queue_name, self._announce)
        self._bound = False
        """Whether the consumers are in order and pulled from, as far as this worker has observed."""
        self._unbound = asyncio.Event()
        self._created: str | None = None
        """The time of the stream's creation, which differs from that of a later one of the same name."""
        self._consumers = ConsumerSet()
        """The stream's consumers as last observed."""
        self._leaderless: dict[str, float] = {}
        """The consumers without a leader, and since when."""
        self._idle: dict[str, Idle] = {}
        self._served: str | None = None
        """The layout that is served."""
        self._retired_flows: dict[str, int] = {}
        """The pending acks of retired consumers, as last notified."""
        self._stripped: set[asyncio.Task[None]] = set()
        self._backlog: Backlog | None = None
        """The stream's messages as last read."""

    @property
    def ready(self) -> bool:
        """Whether this worker pulls; in function mode, whether it has found the subjects."""
        return self._bound and (self._served != FUNCTION or self._subjects.ready)

    async def run(self) -> None:
        """Bind again where that is needed, find subjects, and delete finished messages, until cancelled."""
        await asyncio.gather(self._keep_bound(), self._subjects.run(), self._retired.run(self._jetstream, self.stream))

    async def _keep_bound(self) -> None:
        connection, pause = self._jetstream.connection, RETRY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for of Python 3.11 may lose a cancellation
                    await self._unbound.wait()
            self._unbound.clear()
            doing, pause = LOOKING, RETRY
            try:
                if connection.up and not self._bound:
                    await self.bind(again=True)
                    self._faults.set(LOOKING, ())
                if connection.up and self._bound:
                    doing, pause = "looking at the consumers", _CHECK
                    pause = max(_CHECK, _SHARE * await self._check())
            except MisconfiguredError as error:
                self._faults.set(LOOKING, [str(error)])
            except (ApiError, BrokerUnavailableError) as error:
                connection.report_failure(doing, error)

    async def bind(self, *, again: bool) -> None:
        """Find or create the stream, bring it into the layout that is to be served, and pull from its consumers.

        *again*: they existed before, so that their absence is worth a warning. Where the consumers keep changing, raise
        a :class:`BrokerUnavailableError`; else the errors of :mod:`worker.nats.topology`.
        """
        created = await topology.ensure_stream(self._jetstream, self._settings, self._drifts.report, again=again)
        if self._created not in (None, created):
            self._flows.outbox.forget()
            self._retired.forget()
            self._subjects.forget()
            self._end_retired(self._retired_flows)
        self._created = created
        await self.migration.begin()
        await self._flows.request_again()
        if not self._flows.stopped:
            await self._reconcile(again=again)
        self._subjects.look_soon()
        self._bound = True

    def connection_changed(self, up: bool) -> None:
        """Bind again once there is a connection."""
        if not up:
            self._on_lost()
        self._unbound.set()

    def create_consumer(self, flow: str) -> None:
        """Have a flow's consumer created, where something is wanted of it; shared and retired ones have theirs."""
        if flow != SHARED and not flow.startswith(RETIRED_FLOW):
            self._subjects.create_consumer(flow)

    def consumer_lost(self, flow: str) -> None:
        """Follow the loss of a flow's consumer, which the server has reported."""
        if flow == SHARED:
            self._on_lost()
        elif flow.startswith(RETIRED_FLOW):
            self._end_retired([flow.removeprefix(RETIRED_FLOW)])
        else:
            self._subjects.lost(flow)

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
            self._drifts.judge_stream(info)
            self._subjects.set_stored(info.state.subjects)
        self._backlog = Backlog(info.state.last_seq, info.state.subjects)
        return self._backlog

    def on_stripped(self, pull: Pull, reply: str, delivery: Delivery) -> None:
        """Stop pulling from a consumer that may leave out payloads, judge it, and look for this payload."""
        self._flows.hold(pull, held=True)
        task = asyncio.ensure_future(self._return_stripped(pull, reply, delivery))
        self._stripped.add(task)
        task.add_done_callback(self._stripped.discard)

    async def _return_stripped(self, pull: Pull, reply: str, delivery: Delivery) -> None:
        try:
            stored = await self._jetstream.message(self.stream, delivery.id[0])
        except (ApiError, BrokerUnavailableError):
            stored = None
        if stored is None or stored.data:
            self._flows.outbox.postpone(reply, RETRY)
            pull.credit.add(1)
        else:  # it has none: its publisher wrote the header by which a consumer with headers_only is recognized
            self._flows.deliver(pull, reply, delivery)
        self._unbound.set()

    def _on_lost(self) -> None:
        self._bound = False
        if shared := self._flows.find(SHARED):
            shared.unbind()
        self._unbound.set()

    # Consumers.

    async def _check(self) -> float:
        """Follow the changes of other workers, and delete idle consumers. Return the seconds that looking took."""
        if self._flows.stopped:
            return 0.0
        began = trio.current_time()
        await self._reconcile(again=True)
        now = trio.current_time()
        self._drifts.look_for_undelivered(self._backlog, self._consumers)
        self._idle = idle_consumers(self._consumers, self._idle, now)
        threshold, crowded = self._settings.consumer_inactive_threshold, self._subjects.crowded
        due = delete_idle(self._idle, threshold, now, crowded=crowded)
        for subject in await self._applier.delete_idle(due):
            self._subjects.lost(subject)
        return now - began

    async def _reconcile(self, *, again: bool) -> None:
        for _ in range(_ROUNDS):
            observed = await self._observe()
            actions = reconcile(observed, self._wanted)
            for action in actions:
                match action:
                    case Serve(layout):
                        await self._serve(layout)
                    case BindShared():
                        await self._bind_shared(action, again=again)
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
        self._drifts.judge_consumers(infos, self._served)
        self._consumers = self._subjects.consumers = consumers
        wanted, current = self._wanted.layout, consumers.current or self._wanted.layout
        shared = self._flows.find(SHARED)
        return Observed(
            consumers,
            current_is_wanted=current != wanted and await self.migration.is_wanted(current),
            served=self._served,
            bound=shared is not None and shared.bound,
        )

    async def _announce(self, change: Retire) -> None:
        current, count = self._consumers.current, len(change.names)
        self._emit(ConfigDrift(f"the queue goes over from {current} to {change.layout}: {count} consumers retire"))
        await self.migration.announce(change.names)

    # Flows.

    async def _serve(self, layout: str) -> None:
        consumers = self._consumers
        self._flows.consumers = consumers
        self._retired.set_consumers(consumers)
        for each in consumers.retired:
            self._serve_retired(each.name, each.num_ack_pending)
        self._end_retired(self._retired_flows.keys() - {each.name for each in consumers.retired})
        waits = [each.ack_wait for each in (*consumers.live, *consumers.retired)]
        self._flows.ack_wait = min(waits, default=self._settings.ack_wait)
        if self._served not in (None, layout):
            await self._subjects.end()
            if self._flows.find(SHARED):
                self._flows.close(SHARED)
        self._served = layout
        if layout != static(1):
            self._subjects.begin(layout)

    async def _bind_shared(self, action: BindShared, *, again: bool) -> None:
        config = topology.consumer_config(self._settings, action.layout, alone=action.alone)
        info = await topology.ensure_consumer(self._jetstream, self._settings, config, self._drifts.report, again=again)
        self._flows.ack_wait = min([info.ack_wait, *(each.ack_wait for each in self._consumers.retired)])
        if self._flows.find(SHARED) is None:
            self._flows.notify(QueueShared())
        self._flows.open(SHARED).bind(self._pull_subject(action.name))
        self._drifts.judge_shared(info)
        self._emit(ConsumerBound(self.stream, action.name, info.ack_wait))

    def _serve_retired(self, name: str, ack_pending: int) -> None:
        flow = self._flows.open(f"{RETIRED_FLOW}{name}")
        if name not in self._retired_flows:
            flow.bind(self._pull_subject(name))
        if self._retired_flows.get(name) != ack_pending or not flow.credit.outstanding:
            self._flows.notify(StoredCount(flow.flow, ack_pending))
        self._retired_flows[name] = ack_pending

    def _end_retired(self, names: Iterable[str]) -> None:
        for name in [*names]:
            if self._retired_flows.pop(name, None) is not None:
                self._flows.close(f"{RETIRED_FLOW}{name}")

    def _pull_subject(self, consumer: str) -> str:
        return f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{consumer}"
