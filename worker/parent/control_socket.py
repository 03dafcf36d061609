"""The line between the parent and one of its processes: a socket pair, which also tells each that the other is gone.

The parent writes a question, one byte. The process answers with that byte, the length of what follows (four bytes, the
highest first) and a text in UTF-8. It may say something unasked, too, in the same form. A question is asked again only
when it was answered, so a process that hangs is never owed more than one answer to each.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from ..observe.status import WorkerStatus

METRICS, READY = b"m", b"r"
"""Questions. The answer to :data:`READY` is why it is not, empty where it is."""
FATAL = b"f"
"""Said unasked, before ending: what is wrong, and that no new start would mend it."""
VARIABLE = "_QUEUE_WORKER_PROCESS"
"""How a process learns that it is one of several: ``2/4/7`` is the second of four, its end of the line the file 7. It
begins with an underscore, so that nobody takes it for a setting."""
_HEAD = 5
_READ = 65_536


class ControlSocket:
    """The parent's end."""

    def __init__(self, end: socket.socket) -> None:
        self.answers: dict[bytes, str] = {}
        """The last text of each kind."""
        self._socket = trio.socket.from_stdlib_socket(end)
        self._pending: dict[bytes, trio.Event] = {}

    async def receive(self) -> None:
        """Hear what the process says, until it is gone; then close this end."""
        heard = bytearray()
        with self._socket:
            while data := await self._read():
                heard += data
                while len(heard) >= _HEAD and len(heard) >= (end := _HEAD + int.from_bytes(heard[1:_HEAD], "big")):
                    self._store(bytes(heard[:1]), heard[_HEAD:end].decode())
                    del heard[:end]

    async def query(self, question: bytes, within: float) -> bool:
        """Ask; whether an answer came in so many seconds. It is then in *said*."""
        answered = self._pending.get(question)
        if answered is None:
            answered = self._pending[question] = trio.Event()
            try:
                await self._socket.send(question)
            except OSError:  # it is gone, or just going
                return False
        with trio.move_on_after(within):
            await answered.wait()
        return answered.is_set()

    async def _read(self) -> bytes:
        try:
            return await self._socket.recv(_READ)
        except ConnectionError:
            return b""

    def _store(self, kind: bytes, text: str) -> None:
        self.answers[kind] = text
        if (answered := self._pending.pop(kind, None)) is not None:
            answered.set()


@dataclass(frozen=True, slots=True)
class WorkerRank:
    """What a process is of a worker, and its end of the line."""

    number: int
    count: int
    end: socket.socket

    def send(self, kind: bytes, text: str) -> None:
        """Say something unasked, at the end: waits for the parent to take it, though not long."""
        self.end.settimeout(1.0)
        try:
            self.end.sendall(_frame(kind, text))
        except OSError:
            return  # nobody listens any more

    async def serve(self, observed: WorkerStatus) -> None:
        """Answer questions until the parent is gone."""
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(self.end))
        try:
            while questions := await stream.receive_some(16):
                for number in questions:
                    question = bytes([number])
                    text = await (observed.metrics() if question == METRICS else observed.not_ready())
                    with self._unbroken():
                        await stream.send_all(_frame(question, text or ""))
        except trio.BrokenResourceError:
            return

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """What is said in the block is said whole, or nothing more is: the parent could not tell where it begins."""
        try:
            yield
        except BaseException:
            with suppress(OSError):
                self.end.shutdown(socket.SHUT_WR)
            raise


def worker_rank(environment: MutableMapping[str, str]) -> WorkerRank | None:
    """What this process is of a worker, by its environment, which then tells no more; None where it is all of one."""
    told = environment.pop(VARIABLE, None)
    if told is None:
        return None
    number, of, file = map(int, told.split("/"))
    os.set_inheritable(file, False)
    return WorkerRank(number, of, socket.socket(fileno=file))


def _frame(kind: bytes, text: str) -> bytes:
    body = text.encode()
    return kind + len(body).to_bytes(_HEAD - 1, "big") + body
