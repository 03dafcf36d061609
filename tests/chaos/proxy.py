"""A proxy to a TCP server, which can cut connections, and delay, hold and drop bytes.

TCP loses no bytes in the middle of a connection. So a connection of which the proxy has dropped bytes is cut at last,
as after a long outage of a network.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import trio

_NO_LINGER = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing a socket resets the connection."""


class Proxy:
    """A port of the loopback whose connections are forwarded to another port.

    Args:
        target: the other port.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.latency = 0.0
        """Delay of each block of bytes, in both directions (s)."""
        self.drops_to_server = self.drops_from_server = False
        """Whether bytes to the server, or from it, are lost."""
        self.closed = False
        """Whether new connections are refused."""
        self._target = target
        self._cuts_in_block = False
        self._lossy: set[trio.SocketStream] = set()
        self._open: dict[trio.SocketStream, trio.SocketStream] = {}
        self._stalled = False
        self._resumed = trio.Event()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections and forward them, until cancelled."""
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._serve_connection, listeners)

    def cut(self) -> None:
        """Reset all connections."""
        for client, server in self._open.items():
            _reset(client)
            _reset(server)

    def cut_in_block(self) -> None:
        """Forward half of the next block from the server, then reset its connection."""
        self._cuts_in_block = True

    def stall(self) -> None:
        """Hold all bytes until :meth:`resume`; no byte is lost."""
        self._stalled = True

    def resume(self) -> None:
        """Forward the held bytes, and all that follow."""
        self._stalled = False
        self._resumed.set()

    def heal(self) -> None:
        """End all faults, and cut the connections that have lost bytes."""
        self.latency, self.closed, self._cuts_in_block = 0.0, False, False
        self.drops_to_server = self.drops_from_server = False
        self.resume()
        for client in [*self._lossy]:
            _reset(client)

    async def _serve_connection(self, client: trio.SocketStream) -> None:
        if self.closed:
            _reset(client)
            return
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self._target)
        except OSError:
            _reset(client)
            return
        self._open[client] = server
        end = _reset
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._forward, client, server, client, nursery.cancel_scope)
                nursery.start_soon(self._forward, server, client, client, nursery.cancel_scope)
            if not nursery.cancel_scope.cancel_called:
                end = _close
        finally:
            del self._open[client]
            self._lossy.discard(client)
            end(client)
            end(server)

    async def _forward(
        self, read: trio.SocketStream, write: trio.SocketStream, client: trio.SocketStream, both: trio.CancelScope
    ) -> None:
        """Forward the bytes of one direction until its end; a fault or a broken connection cancels *both*."""
        down = write is client
        try:
            async for data in read:
                await self._wait()
                if self.drops_from_server if down else self.drops_to_server:
                    self._lossy.add(client)
                elif down and self._cuts_in_block:
                    self._cuts_in_block = False
                    await write.send_all(data[: len(data) // 2])
                    both.cancel()
                else:
                    await write.send_all(data)
            await write.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            both.cancel()

    async def _wait(self) -> None:
        if self.latency:
            await trio.sleep(self.latency)
        while self._stalled:
            self._resumed = trio.Event()
            await self._resumed.wait()


def _close(stream: trio.SocketStream) -> None:
    stream.socket.close()


def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):  # the socket is closed already
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    stream.socket.close()
