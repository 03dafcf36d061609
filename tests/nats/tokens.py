"""A worker as far as tokens go, on a real nats-server: connection, outbox, flows, quotas and leases; no messages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
import trio_asyncio
from trio_asyncio import aio_as_trio

from tests.servers import NatsServer
from worker.config import load
from worker.events import Event
from worker.heartbeat import Lease, Leases
from worker.model import Delivery, Quota, QuotaChanged
from worker.nats import nats_internals
from worker.nats.connection import Connection
from worker.nats.function_state import FunctionStates
from worker.nats.jetstream import JetStream
from worker.nats.options import connect_options
from worker.nats.outbox import Outbox
from worker.nats.pull_consumer import PullConsumer
from worker.nats.quotas import Quotas
from worker.nats.retired_consumers import RetiredConsumers
from worker.nats.wire import ApiError
from worker.policy.quota import USABLE
from worker.ports import BrokerUnavailableError
from worker.token_store import TokenStore

LABEL = "echo.fn"


class Replica:
    """One worker's hold on tokens.

    Args:
        server: where they are.
        ack_wait: its setting.
        came: called with each token and its lease; without it, the worker's token store receives them.
        changed: called when there may be more room.
    """

    def __init__(
        self,
        server: NatsServer,
        ack_wait: str,
        came: Callable[[Replica, Delivery, Lease], None] | None,
        changed: Callable[[Replica], None],
    ) -> None:
        settings = load({"nats_port": str(server.port), "ack_wait": ack_wait}).settings
        self.events: list[Event] = []
        self.told: dict[str, Quota] = {}
        self.dead = False
        self._came, self._changed = came, changed
        self.connection = Connection(connect_options(settings, name=""), self.events.append, self._on_change)
        self.jetstream = JetStream(self.connection)
        self.outbox = Outbox(self.connection, self.events.append, RetiredConsumers())
        self.flows = PullConsumer(self.connection, self.outbox, create=self._make, lost=self._lost)
        self.flows.ack_wait = settings.ack_wait
        self.controls = FunctionStates(self.jetstream, settings, agreed=self._agreed)
        self.quotas = Quotas(self.jetstream, settings, self.controls, self.flows, self.outbox)
        self.leases = Leases(self.outbox, self.events.append)  # type: ignore[arg-type]  # of a queue it takes this much
        self.leases.set_ack_wait(settings.ack_wait)
        self.wallet = TokenStore(self.outbox, self.quotas, self.leases, lambda _: changed(self))  # type: ignore[arg-type]  # the same
        self._again = False
        """The connection has come again, so requests must be sent again: the queue does that."""

    def _on_change(self, up: bool) -> None:
        self.outbox.connection_changed(up)
        self.flows.connection_changed(up)
        self.controls.connection_changed(up)
        self.quotas.connection_changed(up)
        self._again = up

    def _agreed(self, function: str) -> None:
        self.quotas.quota_changed(function)

    def _make(self, flow: str) -> None:
        self.quotas.create_consumer(flow)

    def _lost(self, flow: str) -> None:
        self.quotas.consumer_lost(flow)

    async def open(self) -> None:
        await self.connection.open()
        self._again = False
        await self.outbox.open()
        await self.controls.open()
        await self.flows.request_again()

    async def serve(self) -> None:
        await asyncio.gather(self.flows.pump(), self._tick(), self.controls.run(), self.quotas.run())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            now = trio.current_time()
            await self.connection.watch()
            if self._again:
                await self._begin_anew()
            await self.flows.check(now)
            self.outbox.repeat_late(now)
            self.outbox.wake()

    async def _begin_anew(self) -> None:
        with contextlib.suppress(BrokerUnavailableError, ApiError):  # it is still starting: again
            await self.jetstream.stream("faas-request-quotas")
            self._again = False
            await self.flows.request_again()

    async def receive(self) -> None:
        """Take what is delivered, forever."""
        while True:
            for each in await self.flows.receive():
                if isinstance(each, QuotaChanged):
                    self.told[each.function] = each.quota
                    self.wallet.set_quota(each.function, each.quota)
                    self._changed(self)
                elif isinstance(each, Delivery) and self._came:
                    self._came(self, each, self.leases.add(each))
                elif isinstance(each, Delivery):
                    self.wallet.receive(each)

    def give(self, lease: Lease, delay: float = 0.0) -> None:
        """Give a token back."""
        token = lease.delivery
        before = token.received_at + USABLE + delay if delay else self.leases.lost_at(lease)
        self.leases.remove(lease)
        self.quotas.give_back(token, delay=delay, before=before)

    def die(self) -> None:
        """End the connection as SIGKILL does: nothing is sent over it from now on."""
        self.dead = True
        setattr(self.outbox, "settle", lambda *_, **__: None)  # noqa: B010 -- mypy would not have it otherwise
        setattr(self.outbox, "extend", lambda *_, **__: None)  # noqa: B010 -- the same
        nats_internals.abort(self.connection.client)


class Work:
    """Invocations of one function, over all workers: as many as they may start, each up to its *wish* at once.

    Args:
        nursery: runs them.
        wish: of each worker.
        hold: how long each takes (s).
    """

    def __init__(self, nursery: trio.Nursery, wish: int, hold: float) -> None:
        self._nursery, self.wish, self.hold = nursery, wish, hold
        self.running: Counter[Replica] = Counter()
        self.most = 0
        self.starts: list[tuple[float, Replica]] = []
        """The time of each, by the wall clock, with which nats-server measures delays, and so windows. (By the
        monotonic clock 3 of 40 were some milliseconds early once, on a virtual machine of a CI.)"""

    def drive(self, worker: Replica) -> None:
        """Start what may be started, and want tokens for the rest."""
        if worker.dead or not worker.quotas.agreed(LABEL):
            return
        while self.running[worker] < self.wish and worker.wallet.room(LABEL) >= 1:
            self.running[worker] += 1
            self.most = max(self.most, self.running.total())
            self.starts.append((time.time(), worker))
            self._nursery.start_soon(self._run, worker, worker.wallet.start(LABEL))
        worker.wallet.balance(LABEL, self.wish - self.running[worker], worker.flows)

    async def _run(self, worker: Replica, held: Lease | None) -> None:
        with trio.CancelScope() as scope:
            if held:
                held.guard(scope)
            await trio.sleep(self.hold)
        if not worker.dead:
            self.running[worker] -= 1
            worker.wallet.finish(LABEL, held)
            self.drive(worker)

    def died(self, worker: Replica) -> None:
        """End a worker, and with it what it runs."""
        worker.die()
        del self.running[worker]

    def of(self, worker: Replica) -> int:
        """Return how many a worker has started."""
        return sum(who is worker for _, who in self.starts)

    def most_in(self, window: float) -> int:
        """Most starts in any window of so many seconds."""
        most = begin = 0
        for end, (at, _) in enumerate(self.starts):
            while self.starts[begin][0] <= at - window:
                begin += 1
            most = max(most, end - begin + 1)
        return most


@asynccontextmanager
async def replicas(
    server: NatsServer,
    count: int,
    came: Callable[[Replica, Delivery, Lease], None] | None,
    ack_wait: str = "60s",
    changed: Callable[[Replica], None] = lambda _: None,
) -> AsyncIterator[list[Replica]]:
    """Run a number of workers."""
    async with trio_asyncio.open_loop() as loop, trio.open_nursery() as nursery:
        loop.set_exception_handler(lambda *_: None)
        started = [Replica(server, ack_wait, came, changed) for _ in range(count)]
        for each in started:
            await aio_as_trio(each.open)()
            nursery.start_soon(aio_as_trio(each.serve))
            nursery.start_soon(each.receive)
            nursery.start_soon(each.leases.run)
        yield started
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            for each in started:
                await aio_as_trio(each.connection.close)()
