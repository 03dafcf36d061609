"""Connections to the port for metrics and health: bounded in number and in time.

Hypercorn serves one connection. It has no limit for their number, and it waits without end, also when it is cancelled,
for a client that does not read. So the connections are accepted here, and each is closed from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app

MAX_CONNECTIONS = 100
"""Connections at once. A new one closes the oldest, so that a probe is answered whatever else is connected."""
SEND_TIMEOUT = 10.0
"""Seconds for a client to read an answer: Prometheus' usual limit for a scrape."""
_GRACE = 0.5
"""Seconds that open requests may take after the server is cancelled."""


async def serve_connections(app: Any, config: Config, listeners: Sequence[trio.SocketListener]) -> None:
    """Accept and serve connections until cancelled; then close them, within half a second."""
    connections = Connections(app, config)
    async with trio.open_nursery() as nursery:
        handlers = await nursery.start(connections.hold)
        try:
            await trio.serve_listeners(connections.handle, list(listeners), handler_nursery=handlers)
        finally:
            connections.closing.set()


class Connections:
    """All open connections."""

    def __init__(self, app: Any, config: Config) -> None:
        self._app, self._config = wrap_app(app, config.wsgi_max_body_size, "asgi"), config
        self._context = WorkerContext(None)
        self._streams: dict[Stream, None] = {}
        """Oldest first."""
        self._ended = trio.lowlevel.ParkingLot()
        self.closing = trio.Event()

    async def hold(self, *, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the nursery of the handlers, which ends last: open requests are answered first."""
        await trio.lowlevel.checkpoint()  # if it is cancelled, started() has no effect, and nothing would set closing
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as handlers:
                task_status.started(handlers)
                await self.closing.wait()
                await self._context.terminated.set()
                with trio.move_on_after(_GRACE):
                    while self._streams:
                        await self._ended.park()
                for stream in self._streams:
                    stream.abort()

    async def handle(self, accepted: trio.SocketStream) -> None:
        """Serve one connection; close the oldest if there are too many."""
        stream = Stream(accepted)
        self._streams[stream] = None
        if len(self._streams) > MAX_CONNECTIONS:
            next(iter(self._streams)).abort()
        try:
            await TCPServer(self._app, self._config, self._context, ConnectionState({}), stream)  # type: ignore[arg-type]  # it needs these methods only
        finally:
            self._streams.pop(stream, None)
            stream.abort()
            self._ended.unpark_all()


class Stream:
    """The stream of a connection, as Hypercorn uses it, on which no sending takes longer than SEND_TIMEOUT."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        """Send *data*; if the client does not read it in time, close the connection."""
        # Hypercorn shields this wait from cancellation; abort() ends it.
        with trio.move_on_after(SEND_TIMEOUT) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            self.abort()
            raise trio.BrokenResourceError("the client does not read")

    async def receive_some(self, size: int) -> bytes:
        """See :class:`trio.abc.ReceiveStream`."""
        return await self._stream.receive_some(size)

    async def send_eof(self) -> None:
        """See :class:`trio.abc.HalfCloseableStream`."""
        await self._stream.send_eof()

    async def aclose(self) -> None:
        """See :class:`trio.abc.AsyncResource`."""
        await self._stream.aclose()

    def abort(self) -> None:
        """Close the connection; tasks that wait for it get an error."""
        self.socket.close()
