"""Keeps a worker bound to the queue's stream, which operators may delete, and servers lose for a while."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ..config import Settings
from ..events import BrokerMisconfigured
from ..model import Backlog
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import topology
from .finished_deleter import RetiredConsumers
from .jetstream import JetStream
from .outbox import Outbox
from .pull_consumer import PullConsumer
from .serving import Serving
from .wire import ApiError, ErrorCode

RETRY = 1.0
"""Seconds before another try to find or create the stream and its consumer."""


class Binding:
    """The stream of the queue, and the flows that are served. *settings* have the stream's name at the server."""

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
        self.serving = Serving(jetstream, flows, settings, retired, emit=emit, look=self.read_backlog, lost=self.rebind)
        self._jetstream, self._settings, self._outbox, self._emit = jetstream, settings, outbox, emit
        self._unbound = asyncio.Event()
        self._created: str | None = None
        """The time of the stream's creation, which differs from that of a later one of the same name."""

    async def run(self) -> None:
        """Bind again when the connection is back or the consumer is lost, and look at other workers' changes."""
        connection, pause = self._jetstream.connection, RETRY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):  # wait_for of Python 3.11 may lose a cancellation
                    await self._unbound.wait()
            self._unbound.clear()
            while self._created and connection.up and not self.serving.bound:
                try:
                    if await self.bind(again=True):
                        break
                except MisconfiguredError as error:
                    self._emit(BrokerMisconfigured(str(error)))
                await asyncio.sleep(RETRY)
            if connection.up and self.serving.bound:
                pause = await self.serving.check()

    async def bind(self, *, again: bool) -> bool:
        """Find or create the stream, and begin to consume it. Return False where another try is worth it.

        Raises:
            MisconfiguredError: the stream or its consumer cannot be used.
        """
        try:
            created = await topology.ensure_stream(self._jetstream, self._settings, self._emit, again=again)
            if self._created not in (None, created):
                self._outbox.forget()
                self.serving.forget()
            self._created = created
            await self.serving.bind(again=again)
        except (ApiError, BrokerUnavailableError) as error:
            self._jetstream.connection.report_failure("looking for the stream and its consumer", error)
            return False
        return True

    def rebind(self) -> None:
        """Look soon whether there is something to bind to."""
        if not self._jetstream.connection.up:
            self.serving.unbind()
        self._unbound.set()

    async def read_backlog(self) -> Backlog:
        """See :meth:`worker.ports.Queue.backlog`."""
        bound = self.serving.bound
        try:
            info = await self._jetstream.stream_with_subjects(self._settings.nats_stream)
        except ApiError as error:
            if bound and error.err_code == ErrorCode.STREAM_NOT_FOUND:
                self._on_stream_lost()
            raise BrokerUnavailableError(str(error)) from None
        if bound and info.created != self._created:
            self._on_stream_lost()  # it was replaced while no request was open, which a status would have ended
        if self.serving.bound:
            self.serving.set_stored(info.state.subjects)
        return Backlog(info.state.last_seq, info.state.subjects)

    def _on_stream_lost(self) -> None:
        self.serving.unbind()
        self.rebind()
