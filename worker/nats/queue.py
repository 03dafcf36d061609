"""The queue, on JetStream: one connection, one outbox, its flows, and the tasks that keep them going.

One long-lived asyncio island holds nats-py; nothing else in the package touches asyncio. Crossing over costs a task
each time, so nothing crosses per message: deliveries are laid down for Trio to take, settlements go into an outbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import trio
import trio_asyncio
from trio_asyncio import aio_as_trio

from ..config import Settings
from ..events import BrokerFailure, BrokerMisconfigured
from ..model import Backlog, DeadLetter, PausedFunctions
from ..policy.quota import is_token_flow
from ..policy.report import dead_letter_headers
from ..ports import BrokerUnavailableError, Consumer, Emit, MisconfiguredError
from . import topology
from .connection import Connection
from .credit import PORTION
from .finished_deleter import RetiredConsumers
from .function_state import FunctionStates
from .jetstream import JetStream
from .options import connect_options
from .outbox import Outbox
from .pull_consumer import PullConsumer
from .quotas import Quotas
from .serving import Serving
from .wire import ApiError, ErrorCode

_TICK = 0.25
"""Seconds between two looks at what may be late or stuck."""
_AGAIN = 1.0
"""Seconds before another try to find or make the stream and its consumer."""
_CLOSE = 1.0
"""Seconds for closing the connection. Nothing depends on it: all that matters was confirmed before."""
_HEADER_ROOM = 8_192
"""Bytes kept free for a dead letter's headers: nine, each at most a kilobyte, most far below."""


@asynccontextmanager
async def open_queue(settings: Settings, emit: Emit) -> AsyncIterator[NatsQueue]:
    """The queue, which connects when it is first consumed.

    Raises:
        worker.nats.connection.ConnectionClosedError: while open, the connection was lost for good.
    """
    async with trio_asyncio.open_loop() as loop:
        # Without a handler, any stray error of an asyncio callback would end the program.
        loop.set_exception_handler(lambda _, context: emit(BrokerFailure("inside nats-py", _describe(context))))
        queue = NatsQueue(settings, emit)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(aio_as_trio(queue.serve))
            try:
                yield queue
            finally:
                nursery.cancel_scope.cancel()
                with trio.move_on_after(_CLOSE, shield=True):
                    await aio_as_trio(queue.close)()


class NatsQueue:
    """See :class:`worker.ports.Queue`."""

    def __init__(self, settings: Settings, emit: Emit) -> None:
        self._settings, self._emit = settings, emit
        self._found = settings
        """The settings with the stream's name as it is at the server."""
        options = connect_options(settings, name=f"queue-worker {settings.queue_name}")
        self._connection = Connection(options, emit, self._on_connection)
        self._jetstream = JetStream(self._connection)
        self._retired = RetiredConsumers()
        self._outbox = Outbox(self._connection, emit, self._retired)
        most = settings.consumer_pull_max_messages or PORTION
        self._flows = PullConsumer(
            self._connection,
            self._outbox,
            make=self._create_consumer,
            lost=self._on_consumer_lost,
            stopping=self._leave,
            most=most,
        )
        self._states = FunctionStates(
            self._jetstream,
            settings,
            paused=lambda paused: self._flows.tell(PausedFunctions(paused)),
            agreed=self._on_agreed,
        )
        self.quotas = Quotas(self._jetstream, settings, self._states, self._flows, self._outbox)
        self._serving: Serving | None = None
        """None until the stream's name at the server is known."""
        self._opened = asyncio.Event()
        self._unbound = asyncio.Event()
        self._stream_made: str | None = None
        """When, as the server writes it: tells a stream from one made anew under its name."""
        self.settle = self._outbox.settle
        self.extend = self._outbox.extend

    @property
    def ready(self) -> bool:
        """Connected, and with a consumer to pull from; in function mode, knowing which there should be."""
        return self._connection.up and self._serving is not None and self._serving.ready

    async def consume(self) -> Consumer:
        """See :meth:`worker.ports.Queue.consume`."""
        return await aio_as_trio(self._open)()  # type: ignore[no-any-return]  # trio-asyncio has no types

    async def wait_settled(self) -> None:
        """See :meth:`worker.ports.Queue.wait_settled`."""
        await self._outbox.wait_settled()
        if self._serving:
            await aio_as_trio(self._serving.wait_deleted)()

    async def store_dead_letter(self, letter: DeadLetter) -> None:
        """See :meth:`worker.ports.Queue.bury`."""
        await aio_as_trio(self._bury)(letter)

    async def backlog(self) -> Backlog:
        """See :meth:`worker.ports.Queue.backlog`."""
        return await aio_as_trio(self._backlog)()  # type: ignore[no-any-return]  # trio-asyncio has no types

    # The asyncio side.

    async def serve(self) -> None:
        """Keep everything going, for ever."""
        await asyncio.gather(
            self._outbox.pump(),
            self._tick(),
            self._serve_stream(),
            self._states.run(),
            self.quotas.run(),
        )

    async def close(self) -> None:
        """Close the connection."""
        await self._flows.end()
        await self._connection.close()

    async def _open(self) -> Consumer:
        await self._connection.open()
        await self._outbox.open()
        await self._states.open()
        while not await self._bind(again=False):  # noqa: ASYNC110 -- what changes is at the server
            await asyncio.sleep(_AGAIN)
        self._opened.set()
        return self._flows

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK)
            now = trio.current_time()
            await self._connection.watch()
            await self._flows.check(now)
            if self._connection.up:
                self._outbox.repeat(now)
            self._outbox.wake()

    async def _serve_stream(self) -> None:
        await self._opened.wait()
        if self._serving:
            await asyncio.gather(self._keep_bound(self._serving), self._serving.run())

    async def _keep_bound(self, serving: Serving) -> None:
        """Bind again when the connection came back, or the consumer went: operators reset a queue by deleting it.

        And see now and then what others made of it.
        """
        pause = _AGAIN
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._unbound.wait(), pause)
            self._unbound.clear()
            while self._stream_made and self._connection.up and not serving.bound:
                try:
                    if await self._bind(again=True):
                        break
                except MisconfiguredError as error:
                    self._emit(BrokerMisconfigured(str(error)))
                await asyncio.sleep(_AGAIN)
            if self._connection.up and serving.bound:
                pause = await serving.check()

    async def _bind(self, *, again: bool) -> bool:
        """Find or make what we consume, and begin to. False: something is not there yet, and worth another try.

        Raises:
            MisconfiguredError: waiting will not help.
        """
        try:
            if not self._serving:
                self._found = await topology.as_named(self._jetstream, self._settings, self._emit)
            made = await topology.ensure_stream(self._jetstream, self._found, self._emit, again=again)
            serving = self._serve(self._found)
            if self._stream_made not in (None, made):
                self._outbox.forget()
                serving.forget()
            self._stream_made = made
            await serving.bind(again=again)
        except (ApiError, BrokerUnavailableError) as error:
            self._connection.report_failure("looking for the stream and its consumer", error)
            return False
        return True

    def _on_connection(self, up: bool) -> None:
        self._outbox.connection_changed(up)
        self._flows.connection_changed(up)
        self._states.connection_changed(up)
        self.quotas.connection_changed(up)
        if not up and self._serving:
            self._serving.unbind()
        self._unbound.set()

    def _serve(self, found: Settings) -> Serving:
        if not self._serving:
            self._serving = Serving(
                self._jetstream,
                found,
                self._flows,
                self._retired,
                emit=self._emit,
                look=self._backlog,
                lost=self._unbound.set,
            )
        return self._serving

    def _create_consumer(self, flow: str) -> None:
        if is_token_flow(flow):
            self.quotas.create_consumer(flow)
        elif self._serving:
            self._serving.create_consumer(flow)

    def _on_consumer_lost(self, flow: str) -> None:
        if is_token_flow(flow):
            self.quotas.consumer_lost(flow)
        elif self._serving:
            self._serving.consumer_lost(flow)

    def _on_agreed(self, label: str) -> None:
        self.quotas.changed(label)

    async def _leave(self) -> None:
        if self._serving:
            await self._serving.leave()

    def _unbind(self) -> None:
        if self._serving:
            self._serving.unbind()
        self._unbound.set()

    async def _bury(self, letter: DeadLetter) -> None:
        stream = topology.dead_letter_stream(self._settings)
        subject = f"DEAD-LETTERS.{self._settings.queue_name}.{letter.function or 'undecodable'}"
        for part in self._parts(letter):
            try:
                try:
                    await self._jetstream.publish(subject, part.body, part.headers)
                except (BrokerUnavailableError, ApiError):
                    # Most likely the first one ever: make the stream. The message id keeps a second copy out.
                    await topology.create_dead_letters(self._jetstream, self._settings, self._emit)
                    await self._jetstream.publish(subject, part.body, part.headers)
            except (ApiError, MisconfiguredError) as error:
                raise BrokerUnavailableError(f"the stream {stream} did not take it: {error}") from None

    def _parts(self, letter: DeadLetter) -> list[_Part]:
        """A dead letter as one message; in parts where its size leaves no room for headers below the server's limit."""
        headers = dead_letter_headers(letter, stream=self._found.nats_stream)
        payload = letter.delivery.payload
        room = max(1, self._connection.client.max_payload - _HEADER_ROOM)
        bodies = [payload[at : at + room] for at in range(0, len(payload), room)] or [b""]
        identity = f"{self._found.nats_stream}.{letter.delivery.id[0]}.{letter.delivery.id[1]}"
        return [
            _Part(
                body,
                headers
                | {"Nats-Msg-Id": f"{identity}.{number}"}
                | ({"X-Dead-Letter-Part": f"{number}/{len(bodies)}"} if len(bodies) > 1 else {}),
            )
            for number, body in enumerate(bodies, 1)
        ]

    async def _backlog(self) -> Backlog:
        serving = self._serving
        bound = serving is not None and serving.bound
        try:
            info = await self._jetstream.stream_with_subjects(self._found.nats_stream)
        except ApiError as error:
            if error.err_code == ErrorCode.STREAM_NOT_FOUND and bound:
                self._unbind()
            raise BrokerUnavailableError(str(error)) from None
        if bound and info.created != self._stream_made:
            self._unbind()  # it was deleted and created again while no pull request was open to end with that
        if serving and serving.bound:
            serving.set_stored(info.state.subjects)
        return Backlog(info.state.last_seq, info.state.subjects)


@dataclass(frozen=True, slots=True)
class _Part:
    body: bytes
    headers: dict[str, str]


def _describe(context: dict[str, Any]) -> str:
    return f"{context.get('message', '')}: {context.get('exception')!r}"
