"""A way to a TCP server: a proxy that can cut, delay, hold and drop what passes.

TCP loses no bytes in the middle of a connection. So a connection of which a way has dropped bytes is cut in the end, as
after a long outage of a network.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress

import trio

_NO_LINGER = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing a socket resets the connection."""


class Way:
    """A port of the loopback whose connections are passed on to another port.

    Args:
        target: the other port.
    """

    def __init__(self, target: int) -> None:
        self.port = 0
        self.latency = 0.0
        """Delay of each block of bytes, in both directions (s)."""
        self.swallows_up = self.swallows_down = False
        """Whether bytes to the server, or from it, are lost."""
        self.closed = False
        """Whether new connections are refused."""
        self._target = target
        self._tears = False
        self._spoilt: set[trio.SocketStream] = set()
        self._open: dict[trio.SocketStream, trio.SocketStream] = {}
        self._still = False
        self._moves = trio.Event()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Accept connections and pass them on, until cancelled."""
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._lead, listeners)

    def cut(self) -> None:
        """Reset all connections."""
        for near, far in self._open.items():
            _reset(near)
            _reset(far)

    def tear(self) -> None:
        """Pass half of the next block from the server, then reset its connection."""
        self._tears = True

    def stand_still(self) -> None:
        """Hold all bytes until :meth:`move`; none is lost."""
        self._still = True

    def move(self) -> None:
        """Pass on the held bytes, and all that follow."""
        self._still = False
        self._moves.set()

    def heal(self) -> None:
        """End all faults, and cut the connections that have lost bytes."""
        self.latency, self.closed, self._tears = 0.0, False, False
        self.swallows_up = self.swallows_down = False
        self.move()
        for near in [*self._spoilt]:
            _reset(near)

    async def _lead(self, near: trio.SocketStream) -> None:
        if self.closed:
            _reset(near)
            return
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self._target)
        except OSError:
            _reset(near)
            return
        self._open[near] = far
        end = _reset
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry, near, far, near, nursery.cancel_scope)
                nursery.start_soon(self._carry, far, near, near, nursery.cancel_scope)
            if not nursery.cancel_scope.cancel_called:
                end = _close
        finally:
            del self._open[near]
            self._spoilt.discard(near)
            end(near)
            end(far)

    async def _carry(
        self, read: trio.SocketStream, write: trio.SocketStream, near: trio.SocketStream, both: trio.CancelScope
    ) -> None:
        """Pass on the bytes of one direction until its end; a fault or a broken connection cancels *both*."""
        down = write is near
        try:
            async for data in read:
                await self._wait()
                if self.swallows_down if down else self.swallows_up:
                    self._spoilt.add(near)
                elif down and self._tears:
                    self._tears = False
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
        while self._still:
            self._moves = trio.Event()
            await self._moves.wait()


def _close(stream: trio.SocketStream) -> None:
    stream.socket.close()


def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):  # the socket is closed already
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    stream.socket.close()
