"""The control socket between the parent and one of its processes: a socket pair, which also shows that the peer ended.

The parent writes a question of one byte. The process answers with a frame: that byte, the length of the text (four
bytes, big-endian) and the text in UTF-8. It may also send a frame without a question. The parent repeats a question
only after its answer, so a process that hangs owes at most one answer to each.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress
from dataclasses import dataclass

import trio

from ..observe import WorkerStatus

METRICS, READY = b"m", b"r"
"""Questions. The answer to :data:`READY` is why the process is not ready, and empty where it is."""
FATAL = b"f"
"""Frame that a process sends before it ends: an error that a restart would not fix."""
VARIABLE = "_QUEUE_WORKER_PROCESS"
"""Environment variable that makes a process one of several: ``2/4/7`` is the second of four, with its end of the socket
as file 7. It begins with an underscore, so that it is not taken for a setting."""
_HEADER = 5


class ControlSocket:
    """The parent's end."""

    def __init__(self, end: socket.socket) -> None:
        self.answers: dict[bytes, str] = {}
        """The last text of each kind of frame."""
        self._socket = trio.socket.from_stdlib_socket(end)
        self._pending: dict[bytes, trio.Event] = {}

    async def receive(self) -> None:
        """Store each frame of the process until it has ended; then close this end."""
        buffer = bytearray()
        with self._socket, suppress(ConnectionError):
            while data := await self._socket.recv(65_536):
                buffer += data
                while len(buffer) >= (end := _HEADER + int.from_bytes(buffer[1:_HEADER], "big")):
                    kind = bytes(buffer[:1])
                    self.answers[kind] = buffer[_HEADER:end].decode()
                    del buffer[:end]
                    if kind in self._pending:
                        self._pending.pop(kind).set()

    async def query(self, question: bytes, within: float) -> bool:
        """Send *question*, and return whether the answer arrived *within* so many seconds. It is then in *answers*."""
        answered = self._pending.get(question)
        if answered is None:
            answered = self._pending[question] = trio.Event()
            try:
                await self._socket.send(question)
            except OSError:  # the process has ended, or is about to
                return False
        with trio.move_on_after(within):
            await answered.wait()
        return answered.is_set()


@dataclass(frozen=True, slots=True)
class WorkerRank:
    """The number of a process among *count*, and its end of the control socket."""

    number: int
    count: int
    end: socket.socket

    def send(self, kind: bytes, text: str) -> None:
        """Send a frame before this process ends; wait at most a second for the parent to read it."""
        self.end.settimeout(1.0)
        with suppress(OSError):  # the parent has ended
            self.end.sendall(_frame(kind, text))

    async def serve(self, observed: WorkerStatus) -> None:
        """Answer questions until the parent ends."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.end))
        with suppress(trio.BrokenResourceError):
            while questions := await stream.receive_some(16):
                for number in questions:
                    question = bytes([number])
                    text = await (observed.metrics() if question == METRICS else observed.not_ready())
                    try:
                        await stream.send_all(_frame(question, text or ""))
                    except BaseException:  # a frame is cut short: the parent could not find the next one's start
                        with suppress(OSError):
                            self.end.shutdown(socket.SHUT_WR)
                        raise


def worker_rank(environment: MutableMapping[str, str]) -> WorkerRank | None:
    """Take this process's rank out of *environment*; None for a single process."""
    value = environment.pop(VARIABLE, None)
    if value is None:
        return None
    number, count, file = map(int, value.split("/"))
    os.set_inheritable(file, False)
    return WorkerRank(number, count, socket.socket(fileno=file))


def _frame(kind: bytes, text: str) -> bytes:
    body = text.encode()
    return kind + len(body).to_bytes(_HEADER - 1, "big") + body
