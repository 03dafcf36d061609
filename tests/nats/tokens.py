"""Workers that use tokens only, on a real nats-server: connection, outbox, flows, quotas and leases, no messages."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from math import inf

import trio
import trio_asyncio
from trio_asyncio import aio_as_trio

from tests.servers import NatsServer
from worker.config import load
from worker.events import Event
from worker.heartbeat import Lease, Leases
from worker.model import Delivery, Quota, QuotaChanged
from worker.nats import nats_internals
from worker.nats.attempt_counts import AttemptCounts
from worker.nats.connection import Connection, connect_options
from worker.nats.faults import Faults
from worker.nats.function_state import FunctionStates
from worker.nats.jetstream import JetStream
from worker.nats.outbox import Outbox
from worker.nats.pull_consumer import PullConsumer
from worker.nats.quotas import Quotas
from worker.nats.retired_consumers import RetiredConsumers
from worker.nats.wire import ApiError
from worker.policy.quota import USABLE
from worker.ports import BrokerUnavailableError
from worker.token_store import TokenStore

LABEL = "echo.fn"


class TokenWorker:
    """A worker that receives, uses and gives back tokens.

    Args:
        server: the server that stores the tokens.
        ack_wait: the worker's setting.
        on_token: called with each token and its lease; without it, the worker's token store receives them.
        changed: called when there may be more room.
    """

    def __init__(
        self,
        server: NatsServer,
        ack_wait: str,
        on_token: Callable[[TokenWorker, Delivery, Lease], None] | None,
        changed: Callable[[TokenWorker], None],
    ) -> None:
        settings = load({"nats_port": str(server.port), "ack_wait": ack_wait}).settings
        self.events: list[Event] = []
        self.received_quotas: dict[str, Quota] = {}
        self.killed = False
        self._on_token, self._changed = on_token, changed
        self.connection = Connection(connect_options(settings, name=""), self.events.append, self._on_change)
        self.jetstream = JetStream(self.connection)
        self.outbox = Outbox(
            self.connection, self.events.append, RetiredConsumers(), AttemptCounts(self.connection, lambda _: None)
        )
        self.flows = PullConsumer(
            self.connection, self.outbox, create=self._make, lost=self._lost, stripped=lambda *_: None
        )
        self.flows.ack_wait = settings.ack_wait
        self.function_states = FunctionStates(self.jetstream, settings, agreed=self._agreed)
        self.quotas = Quotas(
            self.jetstream, settings, self.function_states, self.flows, self.outbox, faults=Faults(self.events.append)
        )
        self.leases = Leases(self.outbox, self.events.append)  # type: ignore[arg-type]  # of a queue it takes this much
        self.leases.set_ack_wait(settings.ack_wait)
        self.token_store = TokenStore(self.outbox, self.quotas, self.leases, lambda _: changed(self))  # type: ignore[arg-type]  # the same
        self._reconnected = False
        """Whether the connection was restored, so that requests must be sent again, as the queue does."""

    def _on_change(self, up: bool) -> None:
        self.flows.connection_changed(up)
        if up:
            self.outbox.repeat_late(inf)
            self.function_states.read_soon()
            self.quotas.continue_soon()
        self._reconnected = up

    def _agreed(self, function: str) -> None:
        self.quotas.quota_changed(function)

    def _make(self, flow: str) -> None:
        self.quotas.create_consumer(flow)

    def _lost(self, flow: str) -> None:
        self.quotas.consumer_lost(flow)

    async def open(self) -> None:
        await self.connection.open()
        self._reconnected = False
        await self.outbox.open()
        await self.function_states.open()
        await self.flows.request_again()

    async def serve(self) -> None:
        await asyncio.gather(self.flows.pump(), self._tick(), self.function_states.run(), self.quotas.run())

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(0.05)
            now = trio.current_time()
            await self.connection.watch()
            if self._reconnected:
                await self._request_again()
            await self.flows.check(now)
            self.outbox.repeat_late(now)

    async def _request_again(self) -> None:
        with contextlib.suppress(
            BrokerUnavailableError, ApiError
        ):  # the server is still starting: again at the next tick
            await self.jetstream.stream("faas-request-quotas")
            self._reconnected = False
            await self.flows.request_again()

    async def receive(self) -> None:
        """Receive deliveries and notices, forever."""
        while True:
            for each in await self.flows.receive():
                if isinstance(each, QuotaChanged):
                    self.received_quotas[each.function] = each.quota
                    self.token_store.set_quota(each.function, each.quota)
                    self._changed(self)
                elif isinstance(each, Delivery) and self._on_token:
                    self._on_token(self, each, self.leases.add(each))
                elif isinstance(each, Delivery):
                    self.token_store.receive(each)

    def give_back(self, lease: Lease, delay: float = 0.0) -> None:
        """Give a token back."""
        token = lease.delivery
        before = token.received_at + USABLE + delay if delay else self.leases.lost_at(lease)
        self.leases.remove(lease)
        self.quotas.give_back(token, delay=delay, before=before)

    def kill(self) -> None:
        """End the connection as SIGKILL does: nothing is sent over it from now on."""
        self.killed = True
        setattr(self.outbox, "settle", lambda *_, **__: None)  # noqa: B010 -- mypy would not have it otherwise
        setattr(self.outbox, "extend", lambda *_, **__: None)  # noqa: B010 -- the same
        nats_internals.abort(self.connection.client)


class Workload:
    """Invocations of one function by all workers, each of which runs up to *demand* at once if its tokens allow.

    Args:
        nursery: runs them.
        demand: of each worker (invocations).
        duration: of each invocation (s).
    """

    def __init__(self, nursery: trio.Nursery, demand: int, duration: float) -> None:
        self._nursery, self.demand, self.duration = nursery, demand, duration
        self.running: Counter[TokenWorker] = Counter()
        self.peak = 0
        self.starts: list[tuple[float, TokenWorker]] = []
        """The time of each, by the wall clock, with which nats-server measures delays, and so windows. (By the
        monotonic clock 3 of 40 were some milliseconds early once, on a virtual machine of a CI.)"""

    def drive(self, worker: TokenWorker) -> None:
        """Start as many invocations as tokens allow, and request tokens for the rest."""
        if worker.killed or not worker.quotas.agreed(LABEL):
            return
        while self.running[worker] < self.demand and worker.token_store.room(LABEL) >= 1:
            self.running[worker] += 1
            self.peak = max(self.peak, self.running.total())
            self.starts.append((time.time(), worker))
            self._nursery.start_soon(self._run, worker, worker.token_store.start(LABEL))
        worker.token_store.balance(LABEL, self.demand - self.running[worker], worker.flows)

    async def _run(self, worker: TokenWorker, held: Lease | None) -> None:
        with trio.CancelScope() as scope:
            if held:
                held.guard(scope)
            await trio.sleep(self.duration)
        if not worker.killed:
            self.running[worker] -= 1
            worker.token_store.finish(LABEL, held)
            self.drive(worker)

    def kill(self, worker: TokenWorker) -> None:
        """Kill a worker, with its running invocations."""
        worker.kill()
        del self.running[worker]

    def starts_of(self, worker: TokenWorker) -> int:
        """Return the number of invocations that a worker has started."""
        return sum(each is worker for _, each in self.starts)

    def peak_in(self, window: float) -> int:
        """Return the maximum of starts in any window of *window* seconds."""
        peak = begin = 0
        for end, (at, _) in enumerate(self.starts):
            while self.starts[begin][0] <= at - window:
                begin += 1
            peak = max(peak, end - begin + 1)
        return peak


@asynccontextmanager
async def token_workers(
    server: NatsServer,
    count: int,
    on_token: Callable[[TokenWorker, Delivery, Lease], None] | None,
    ack_wait: str = "60s",
    changed: Callable[[TokenWorker], None] = lambda _: None,
) -> AsyncIterator[list[TokenWorker]]:
    """Run a number of workers."""
    async with trio_asyncio.open_loop() as loop, trio.open_nursery() as nursery:
        loop.set_exception_handler(lambda *_: None)
        started = [TokenWorker(server, ack_wait, on_token, changed) for _ in range(count)]
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
