"""What of a queue is served, and through which consumers: the layout it is in, and what is left of the one before."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import trio

from ..config import Settings
from ..events import BrokerMisconfigured, ConfigDrift, ConsumerBound
from ..model import SHARED, QueueShared, StoredCount
from ..policy.names import covers, partition_of
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import topology
from .discovery import SubjectDiscovery
from .finished_deleter import FinishedDeleter, RetiredConsumers
from .janitor import Janitor
from .jetstream import JetStream
from .layout import FUNCTION, ConsumerSet, ConsumerState, static
from .migration import Migration
from .pull_consumer import PullConsumer
from .wire import ApiError

_CHECK = 3.0
"""Seconds between two looks at the consumers."""
_SHARE = 10
"""Each may take one in so many seconds, however many there are."""


def retired_flow(consumer: str) -> str:
    """The flow of a retired consumer. No subject of a queue begins so: queues' names have no slash."""
    return f"retired/{consumer}"


class Serving:
    """The flows of one worker.

    Args:
        jetstream: the client.
        flows: the flows of this worker.
        settings: all settings, with the stream's name at the server.
        retired: has the names of retired consumers.
        emit: told what is made and found.
        look: looks at the stream; what it finds is to be given to :attr:`functions`.
        lost: told when what was bound is not there any more.
    """

    def __init__(
        self,
        jetstream: JetStream,
        settings: Settings,
        flows: PullConsumer,
        retired: RetiredConsumers,
        *,
        emit: Emit,
        look: Callable[[], Awaitable[object]],
        lost: Callable[[], None],
    ) -> None:
        self.bound = False
        """Whether what we consume is there, as far as we know."""
        connection = jetstream.connection
        self._jetstream, self.flows = jetstream, flows
        self._connection, self._settings, self._emit, self._lost = connection, settings, emit, lost
        self.functions = SubjectDiscovery(jetstream, settings, self.flows, emit=emit, look=look)
        self._switch = Migration(connection, settings)
        self.sweep = FinishedDeleter(connection, settings, retired)
        self._janitor = Janitor(connection, settings, self.functions, self._switch)
        self._served: str | None = None
        """The layout."""
        self._kept: dict[str, int] = {}
        """What was last told of retired consumers, by name."""

    @property
    def ready(self) -> bool:
        """Whether there is something to pull from; in function mode, whether we know what."""
        return self.bound and (self._served != FUNCTION or self.functions.ready)

    def unbind(self) -> None:
        """What we consume may not be there."""
        self.bound = False
        if shared := self.flows.find(SHARED):
            shared.unbind()

    def forget(self) -> None:
        """The stream is another one."""
        self.functions.forget()
        self.sweep.forget()
        for name in [*self._kept]:
            self._drop(name)

    async def leave(self) -> None:
        """Answer no more questions of other workers about the layout, because this worker ends."""
        await self._switch.hide()

    async def bind(self, *, again: bool) -> None:
        """Bring the queue into the layout that is wanted, or serve the one that it is in.

        Raises:
            worker.ports.MisconfiguredError: waiting will not help.
            ApiError: the server said no for a passing reason.
            worker.ports.BrokerUnavailableError: it did not answer.
        """
        await self._switch.show()
        await self.sweep.listen()
        await self.flows.request_again()
        if not self.flows.stopped:
            await self._bring_about(again=again)
        self.functions.look_soon()
        self.bound = True

    async def check(self) -> float:
        """Follow what others did, and go on with what is not finished. When to do that again (s from now)."""
        began, took = trio.current_time(), 0.0
        try:
            if not self.flows.stopped:
                await self._bring_about(again=True)
                took = trio.current_time() - began
                await self._janitor.tidy(trio.current_time())
        except MisconfiguredError as error:
            self._emit(BrokerMisconfigured(str(error)))
        except (ApiError, BrokerUnavailableError) as error:
            self._connection.report_failure("looking at the consumers", error)
        return max(_CHECK, _SHARE * took)

    async def run(self) -> None:
        """Find subjects, create their consumers, and delete finished messages, until cancelled."""
        await asyncio.gather(self.functions.run(), self.sweep.run())

    def set_stored(self, messages: Mapping[str, int]) -> None:
        """Set how many messages each subject has."""
        self.functions.seen(messages)

    async def wait_deleted(self) -> None:
        """Return when no message is left to be deleted."""
        await self.sweep.done()

    # Layouts.

    async def _bring_about(self, *, again: bool) -> None:
        layout = await self._switch.look()
        aim = await self._switch.aim(layout)
        durable, queue = self._settings.nats_durable, self._settings.queue_name
        if strangers := layout.misplaced(aim, durable, queue):
            self._emit(
                ConfigDrift(f"the queue goes over from {layout.current} to {aim}: {len(strangers)} consumers retire")
            )
            await self.sweep.announce(each.name for each in strangers)
            await self._switch.retire(strangers, aim)
            layout = await self._switch.look()
        if await self._switch.clear(layout):
            layout = await self._switch.look()
        self._know(layout)
        if self._served != aim:
            await self._leave()
        if aim != FUNCTION:
            await self._share(aim, layout, again=again)
        self._served = aim
        if aim != static(1):
            self.functions.begin(self._is_flow)
        self._janitor.know(layout)

    def _know(self, layout: ConsumerSet) -> None:
        self.flows.set_consumers(layout)
        self.functions.know(layout)
        self.sweep.know({each.name for each in layout.retired})
        for each in layout.retired:
            flow = retired_flow(each.name)
            if each.name not in self._kept:
                self.flows.open(flow).bind(self._pull_from(each.name))
            if self._kept.get(each.name) != each.num_ack_pending or not self.flows.open(flow).outstanding:
                self.flows.notify(StoredCount(flow, each.num_ack_pending))
            self._kept[each.name] = each.num_ack_pending
        for name in self._kept.keys() - {each.name for each in layout.retired}:
            self._drop(name)
        waits = [each.ack_wait for each in (*layout.live, *layout.retired)]
        self.flows.ack_wait = min(waits, default=self._settings.ack_wait)

    def _drop(self, name: str) -> None:
        if self._kept.pop(name, None) is not None:
            self.flows.close(retired_flow(name))

    async def _leave(self) -> None:
        """Have none of the flows of the layout before."""
        if self._served is not None:
            await self.functions.end()
            if self.flows.find(SHARED):
                self.flows.close(SHARED)

    async def _share(self, aim: str, layout: ConsumerSet, *, again: bool) -> None:
        names = {each.name: each for each in (*layout.live, *layout.retired, *layout.foreign)}
        name = topology.consumer_config(self._settings, aim).name
        alone = not names.keys() - {name}
        if aim == static(1) and alone and name in names and self._is_filtered(names[name]):
            await self._switch.unfilter(name)
        shared = self.flows.find(SHARED)
        if shared and shared.bound and name in names:
            return
        config = topology.consumer_config(self._settings, aim, alone=alone)
        info = await topology.ensure_consumer(self._jetstream, self._settings, config, self._emit, again=again)
        self.flows.ack_wait = info.ack_wait
        if shared is None:
            self.flows.notify(QueueShared())
        self.flows.open(SHARED).bind(self._pull_from(name))
        self._emit(ConsumerBound(self._settings.nats_stream, name, self.flows.ack_wait))

    def _is_filtered(self, found: ConsumerState) -> bool:
        return set(found.subjects) == set(topology.subjects(self._settings))

    def _is_flow(self, subject: str) -> bool:
        """Whether a subject is a flow of its own, and ours."""
        served = self._served
        queue, ours = self._settings.queue_name, self._settings.filter_partition
        if served == FUNCTION:
            return partition_of(queue, subject, self._settings.queue_partitions) == ours
        if served in (None, static(1)):
            return False
        partitions = int(str(served).partition("/")[2])
        if subject == queue or any(covers(f"{queue}.{part}.>", subject) for part in range(partitions)):
            return False
        return partition_of(queue, subject, partitions) == ours % partitions

    def _pull_from(self, consumer: str) -> str:
        return f"$JS.API.CONSUMER.MSG.NEXT.{self._settings.nats_stream}.{consumer}"

    # What the flows tell.

    def create_consumer(self, flow: str) -> None:
        """Have the consumer of a flow created that has credit."""
        if flow != SHARED and not flow.startswith(retired_flow("")):
            self.functions.make(flow)

    def consumer_lost(self, flow: str) -> None:
        """Look for the consumer of a flow again, because the server reports that it does not exist."""
        if flow == SHARED:
            self.bound = False
            self._lost()
        elif flow.startswith(retired_flow("")):
            self._drop(flow.removeprefix(retired_flow("")))
        else:
            self.functions.lost(flow)
