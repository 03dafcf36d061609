"""The queue on JetStream: its parts, how they are connected, and the tasks that run them.

One long-lived asyncio loop inside Trio, the *island*, runs nats-py; no other part of the worker touches asyncio. Each
crossing costs a task, so nothing crosses per message: deliveries are put into a buffer for Trio, settlements into an
outbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from typing import TypeVar

import trio
import trio_asyncio
from trio_asyncio import aio_as_trio

from ..events import BrokerFailure
from ..model import (
    CALLBACKS,
    AttemptCount,
    Backlog,
    DeadLetter,
    Delivery,
    PausedFunctions,
    Receipt,
    Settlement,
    StoredBody,
    StoredCallback,
)
from ..policy.quota import is_token_flow
from ..policy.stored_callback import CALLBACK_KIND
from ..ports import BrokerUnavailableError, Consumer, Emit
from ..settings import Settings
from . import dead_letters, topology
from .attempt_counts import AttemptCounts
from .binding import LOOKING, RETRY, Binding
from .connection import Connection, connect_options
from .credit import DEFAULT_BATCH
from .faults import Faults
from .function_state import FunctionStates
from .jetstream import JetStream
from .outbox import Outbox
from .presence import Presence
from .pull import Pull
from .pull_consumer import PullConsumer
from .quotas import Quotas
from .retired_consumers import RetiredConsumers
from .stored_bodies import StoredBodies, callbacks_stream
from .stored_callbacks import StoredCallbacks
from .wire import ApiError

T = TypeVar("T")

_TICK = 0.25
"""Seconds between two looks at what may be late or stuck."""
_CLOSE = 1.0
"""Seconds for closing the connection. Nothing depends on it: all that matters was confirmed before."""


@asynccontextmanager
async def open_queue(settings: Settings, emit: Emit) -> AsyncIterator[NatsQueue]:
    """Open the queue, which connects when it is first consumed.

    Raises:
        worker.nats.connection.ConnectionClosedError: while open, nats-py closed the connection.
    """
    async with trio_asyncio.open_loop() as loop:
        # Without a handler, any stray error of an asyncio callback would end the program.
        loop.set_exception_handler(
            lambda _, got: emit(BrokerFailure("inside nats-py", f"{got.get('message', '')}: {got.get('exception')!r}"))
        )
        async with trio.open_nursery() as nursery:
            queue = NatsQueue(settings, emit, nursery)
            nursery.start_soon(aio_as_trio(queue.run))
            try:
                yield queue
            finally:
                nursery.cancel_scope.cancel()
                with trio.move_on_after(_CLOSE, shield=True):
                    await aio_as_trio(queue.close)()


class NatsQueue:
    """See :class:`worker.ports.Queue`.

    What needs the stream's name at the server is constructed once that is known, when the queue is first consumed; then
    its tasks begin in *nursery*.
    """

    def __init__(self, settings: Settings, emit: Emit, nursery: trio.Nursery) -> None:
        self._settings, self._emit, self._nursery = settings, emit, nursery
        options = connect_options(settings, name=f"queue-worker {settings.queue_name}")
        self._connection = Connection(options, emit, self._on_connection_changed)
        self._jetstream = JetStream(self._connection)
        self._retired, self._faults = RetiredConsumers(), Faults(emit)
        self._counts = AttemptCounts(self._connection, self._on_count)
        self._outbox = Outbox(self._connection, emit, self._retired, self._counts)
        self._flows = PullConsumer(
            self._connection,
            self._outbox,
            create=lambda flow: self._owner(flow).create_consumer(flow),
            lost=lambda flow: self._owner(flow).consumer_lost(flow),
            stripped=self._on_stripped,
            stopping=self._on_stopping,
            max_batch=settings.consumer_pull_max_messages or DEFAULT_BATCH,
        )
        self._states = FunctionStates(self._jetstream, settings, self._on_paused, self._on_quota_agreed)
        self._presence = Presence(self._connection, settings.queue_name, self._call_when_applied)
        self.quotas = Quotas(self._jetstream, settings, self._states, self._flows, self._outbox, faults=self._faults)
        self.bodies = StoredBodies(self._jetstream, settings, emit)
        self._callbacks = StoredCallbacks(
            self._jetstream, settings, self._flows, self.bodies, faults=self._faults, emit=emit
        )
        self._binding: Binding | None = None
        self.announce = self._counts.announce
        self.extend = self._outbox.extend

    @property
    def obstacle(self) -> str:
        """The reason why this worker cannot pull all that it is to pull; empty where it can."""
        failure = f": {self._connection.failure}" if self._connection.failure else ""
        if not self._connection.up:
            return f"not connected to NATS{failure}"
        if self._faults.text:
            return self._faults.text
        if self._binding is None or not self._binding.ready:
            return f"no stream and consumer to pull from yet{failure}"
        return ""

    async def consume(self) -> Consumer:
        """See :meth:`worker.ports.Queue.consume`."""
        await aio_as_trio(self._open)()
        self._nursery.start_soon(aio_as_trio(self._bound.run))
        return self._flows

    def settle(
        self, delivery: Delivery, settlement: Settlement, *, before: float, body: StoredBody | None = None
    ) -> None:
        """See :meth:`worker.ports.Queue.settle`."""
        confirmed = partial(self.bodies.delete_soon, body) if body else None
        self._outbox.settle(delivery, settlement, before=before, confirmed=confirmed)

    async def wait_settled(self) -> None:
        """See :meth:`worker.ports.Queue.wait_settled`."""
        await self._outbox.wait_settled()
        await self.bodies.wait_deleted()
        await aio_as_trio(self._retired.wait_deleted)()

    async def store_dead_letter(self, letter: DeadLetter) -> None:
        """See :meth:`worker.ports.Queue.store_dead_letter`."""
        stream = callbacks_stream(self._settings) if letter.delivery.flow == CALLBACKS else self._bound.stream
        if letter.stored_body:
            # Sent again at the last moment, a callback may wait for its whole age again.
            more = self._settings.callback_max_age if letter.kind == CALLBACK_KIND else 0.0
            await self.bodies.keep(letter.stored_body, self._settings.dead_letter_max_age + more)
        await aio_as_trio(dead_letters.store)(self._jetstream, self._settings, self._emit, letter, stream)

    async def store_callback(self, stored: StoredCallback, key: str) -> None:
        """See :meth:`worker.ports.Queue.store_callback`."""
        await aio_as_trio(self._callbacks.store)(stored, key)

    async def backlog(self) -> Backlog:
        """See :meth:`worker.ports.Queue.backlog`."""
        return await aio_as_trio(self._bound.read_backlog)()  # type: ignore[no-any-return]  # trio-asyncio has no types

    @property
    def _bound(self) -> Binding:
        if self._binding is None:
            raise BrokerUnavailableError("not connected to NATS yet")
        return self._binding

    # The asyncio side.

    async def run(self) -> None:
        """Run the tasks that need no stream until cancelled."""
        await asyncio.gather(
            self._flows.pump(),
            self._tick(),
            self._states.run(),
            self.quotas.run(),
            self.bodies.run(),
            self._presence.run(),
            self._callbacks.run(),
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._connection.close()

    async def _open(self) -> None:
        await self._connection.open()
        await self._outbox.open()
        await self._presence.open()  # first: what is stored after that asks this worker, what was before, it reads now
        await self._states.open()
        settings = await self._retry(lambda: topology.as_named(self._jetstream, self._settings, self._emit))
        await self._counts.open(settings.nats_stream)
        self.bodies.open(settings)
        self._binding = binding = Binding(
            self._jetstream, settings, self._flows, retired=self._retired, faults=self._faults, emit=self._emit
        )
        await self._retry(lambda: binding.bind(again=False))

    async def _retry(self, act: Callable[[], Awaitable[T]]) -> T:
        """Act until the server answers, and return the result."""
        while True:
            try:
                return await act()
            except (ApiError, BrokerUnavailableError) as error:
                self._connection.report_failure(LOOKING, error)
                await asyncio.sleep(RETRY)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            now = trio.current_time()
            await self._connection.watch()
            await self._flows.check(now)
            refusal = self._flows.refusal(now)
            self._faults.set("requests", [f"the server refuses {refusal}"] if refusal else ())
            if self._connection.up:
                self._outbox.repeat_late(now)

    # What the parts call each other for.

    def _on_connection_changed(self, up: bool) -> None:
        self._flows.connection_changed(up)
        if up:
            self._outbox.repeat_late(inf)
            self._states.read_soon()
            self.quotas.continue_soon()
        if self._binding:
            self._binding.connection_changed(up)

    def _owner(self, flow: str) -> Quotas | StoredCallbacks | Binding:
        if flow == CALLBACKS:
            return self._callbacks
        return self.quotas if is_token_flow(flow) else self._bound

    def _on_stripped(self, pull: Pull, reply: str, delivery: Delivery) -> None:
        self._bound.on_stripped(pull, reply, delivery)

    async def _on_stopping(self) -> None:
        await self._presence.leave()
        await self._bound.migration.leave()

    def _on_paused(self, functions: frozenset[str]) -> None:
        self._flows.notify(PausedFunctions(functions))

    def _call_when_applied(self, call: Callable[[], None]) -> None:
        """Call *call* once the intake has applied the pauses that are stored now."""
        self._states.call_when_read(lambda: self._flows.notify(Receipt(call)))

    def _on_count(self, count: AttemptCount) -> None:
        self._flows.notify(count)

    def _on_quota_agreed(self, function: str) -> None:
        self.quotas.quota_changed(function)
