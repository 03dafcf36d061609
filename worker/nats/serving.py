"""Keeps the queue in the layout that is served, and this worker pulling from its consumers.

Observes the stream's consumers, lets :mod:`worker.nats.reconcile` decide, applies the changes, and serves the layout.
A retired consumer is a flow of its own, because only what must be retried still comes from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import trio

from ..config import Settings
from ..events import BrokerMisconfigured, ConfigDrift, ConsumerBound
from ..model import SHARED, QueueShared, StoredCount
from ..policy.names import covers, partition_of
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import topology
from .apply import Applier
from .discovery import SubjectDiscovery
from .finished_deleter import FinishedDeleter, RetiredConsumers
from .flow_consumers import SubjectConsumers
from .jetstream import JetStream
from .layout import FUNCTION, ConsumerSet, partitions_of, static
from .migration import Migration
from .pull_consumer import PullConsumer
from .reconcile import BindShared, Idle, Observed, Retire, Serve, Wanted, delete_idle, idle_consumers, reconcile
from .wire import ApiError

_CHECK = 3.0
"""Seconds between two looks at the consumers at least."""
_SHARE = 10
"""A look may take one in so many seconds, however many consumers there are."""
_ROUNDS = 5
"""Observations until the consumers have to be in order: retiring, deleting and serving take one each."""
_RETIRED = "retired/"
"""The beginning of a retired consumer's flow. No subject of a queue has it: queues' names have no slash."""


class Serving:
    """The flows of one worker's queue.

    Args:
        settings: with the stream's name at the server.
        look: looks at the stream, and calls :meth:`set_stored`.
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
        self.bound = False
        """Whether the consumers are in order and pulled from, as far as this worker has observed."""
        self._jetstream, self._settings, self._flows, self._emit, self._lost = jetstream, settings, flows, emit, lost
        stream, queue = settings.nats_stream, settings.queue_name
        layout = FUNCTION if settings.scaling_mode == FUNCTION else static(settings.queue_partitions)
        self._wanted = Wanted(layout, queue, settings.nats_durable, settings.filter_partition)
        self._served: str | None = None
        """The layout that is served."""
        self._consumers = ConsumerSet()
        """The consumers as last observed."""
        self._leaderless: dict[str, float] = {}
        """The consumers without a leader, and since when."""
        self._idle: dict[str, Idle] = {}
        self._retired: dict[str, int] = {}
        """The pending acks of retired consumers, as last notified."""
        self._migration = Migration(jetstream.connection, stream, layout, retired)
        self._applier = Applier(jetstream, stream, queue, self._announce)
        self._deleter = FinishedDeleter(jetstream, stream, retired)
        self._subjects = SubjectConsumers(jetstream, settings, flows, lambda: self._consumers, emit)
        self._discovery = SubjectDiscovery(
            jetstream.connection, topology.subjects(settings), settings.consumer_inactive_threshold, flows, look
        )
        self.leave = self._migration.leave
        self.set_stored = self._discovery.set_stored
        self.wait_deleted = self._deleter.wait_done

    @property
    def ready(self) -> bool:
        """Whether this worker pulls; in function mode, whether it has found the subjects."""
        return self.bound and (self._served != FUNCTION or self._discovery.ready)

    async def run(self) -> None:
        """Find subjects, create their consumers, and delete finished messages, until cancelled."""
        await asyncio.gather(self._discovery.run(), self._subjects.run(), self._deleter.run())

    def unbind(self) -> None:
        """Note that the consumers may be gone."""
        self.bound = False
        if shared := self._flows.find(SHARED):
            shared.unbind()

    def forget(self) -> None:
        """Forget what was observed: the stream was replaced."""
        self._discovery.forget()
        self._deleter.forget()
        self._migration.forget()
        for name in [*self._retired]:
            self._end_retired(name)

    async def bind(self, *, again: bool) -> None:
        """Bring the queue into the layout that is to be served, and pull from its consumers.

        Args:
            again: the consumers existed before, so that their absence is worth a warning.

        Raises:
            worker.ports.MisconfiguredError: what was found cannot be used.
            ApiError: the server answers with an error that passes.
            worker.ports.BrokerUnavailableError: the server does not answer, or the consumers keep changing.
        """
        await self._migration.begin()
        await self._flows.request_again()
        if not self._flows.stopped:
            await self._reconcile(again=again)
        self._discovery.look_soon()
        self.bound = True

    async def check(self) -> float:
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

    # Consumers.

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
        infos, leaderless = await self._jetstream.consumers(self._settings.nats_stream)
        now = trio.current_time()
        self._leaderless = {name: self._leaderless.get(name, now) for name in leaderless}
        ages = {name: now - since for name, since in self._leaderless.items()}
        consumers = ConsumerSet.of(infos, self._settings.nats_durable)
        if ages:
            return Observed(consumers, ages)
        self._consumers = consumers
        current = consumers.current
        foreign = current is not None and current != self._wanted.layout
        shared = self._flows.find(SHARED)
        return Observed(
            consumers,
            current_is_wanted=foreign and await self._migration.is_wanted(str(current)),
            served=self._served,
            bound=shared is not None and shared.bound,
        )

    async def _announce(self, change: Retire) -> None:
        current, count = self._consumers.current, len(change.names)
        self._emit(ConfigDrift(f"the queue goes over from {current} to {change.layout}: {count} consumers retire"))
        await self._migration.announce(change.names)

    async def _delete_idle(self, now: float) -> None:
        self._idle = idle_consumers(self._consumers, self._idle, now)
        threshold, crowded = self._settings.consumer_inactive_threshold, self._subjects.crowded
        for subject in await self._applier.delete_idle(delete_idle(self._idle, threshold, now, crowded=crowded)):
            self._discovery.lost(subject)

    # Flows.

    async def _serve(self, layout: str) -> None:
        consumers = self._consumers
        self._flows.consumers = consumers
        self._migration.set_consumers(consumers)
        for each in consumers.retired:
            self._serve_retired(each.name, each.num_ack_pending)
        for name in self._retired.keys() - {each.name for each in consumers.retired}:
            self._end_retired(name)
        waits = [each.ack_wait for each in (*consumers.live, *consumers.retired)]
        self._flows.ack_wait = min(waits, default=self._settings.ack_wait)
        if self._served not in (None, layout):
            await self._discovery.end()
            if self._flows.find(SHARED):
                self._flows.close(SHARED)
        self._served = layout
        if layout != static(1):
            self._discovery.begin(self._is_flow)

    async def _bind_shared(self, action: BindShared, *, again: bool) -> None:
        config = topology.consumer_config(self._settings, action.layout, alone=action.alone)
        info = await topology.ensure_consumer(self._jetstream, self._settings, config, self._emit, again=again)
        self._flows.ack_wait = min([info.ack_wait, *(each.ack_wait for each in self._consumers.retired)])
        if self._flows.find(SHARED) is None:
            self._flows.notify(QueueShared())
        self._flows.open(SHARED).bind(self._pull_subject(action.name))
        self._emit(ConsumerBound(self._settings.nats_stream, action.name, info.ack_wait))

    def _serve_retired(self, name: str, ack_pending: int) -> None:
        flow = self._flows.open(f"{_RETIRED}{name}")
        if name not in self._retired:
            flow.bind(self._pull_subject(name))
        if self._retired.get(name) != ack_pending or not flow.credit.outstanding:
            self._flows.notify(StoredCount(flow.flow, ack_pending))
        self._retired[name] = ack_pending

    def _end_retired(self, name: str) -> None:
        if self._retired.pop(name, None) is not None:
            self._flows.close(f"{_RETIRED}{name}")

    def _is_flow(self, subject: str) -> bool:
        """Return whether a subject is a flow of this worker, and not in the share of a shared consumer."""
        queue, partition = self._wanted.queue, self._wanted.partition
        if self._served == FUNCTION:
            return partition_of(queue, subject, self._settings.queue_partitions) == partition
        if self._served is None or self._served == static(1):
            return False
        partitions = partitions_of(self._served)
        if subject == queue or any(covers(f"{queue}.{part}.>", subject) for part in range(partitions)):
            return False
        return partition_of(queue, subject, partitions) == partition % partitions

    def _pull_subject(self, consumer: str) -> str:
        return f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.nats_stream}.{consumer}"

    def create_consumer(self, flow: str) -> None:
        """Have a flow's consumer created, where something is wanted of it; shared and retired ones have theirs."""
        if flow != SHARED and not flow.startswith(_RETIRED):
            self._subjects.request(flow)

    def consumer_lost(self, flow: str) -> None:
        """Follow the loss of a flow's consumer, which the server has reported."""
        if flow == SHARED:
            self.bound = False
            self._lost()
        elif flow.startswith(_RETIRED):
            self._end_retired(flow.removeprefix(_RETIRED))
        else:
            self._discovery.lost(flow)
