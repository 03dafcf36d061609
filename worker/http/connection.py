"""One connection: a request goes out, an answer comes in.

On Python's own sockets, tried before they are waited for: Trio's streams cost as much as all else that is done here.
"""

from __future__ import annotations

import math
import select
from collections.abc import Iterable
from contextlib import suppress
from socket import SHUT_RDWR, socket

import httpx
import outcome
import trio

from .http11 import ProtocolError, ResponseParser
from .watch import Watch

_READ = 65_536
"""Bytes asked for in one read."""


class StaleConnectionError(Exception):
    """The connection had been closed before any of our request was on it: no attempt was made."""


class Connection:
    """Used for one exchange at a time.

    Args:
        origin: the host and port that it leads to.
        sock: it does not block.
        watch: tells what can be read. Where there is none, or it has ended, Trio is asked.
    """

    __slots__ = (
        *("idle", "idle_since", "idle_until", "origin", "overdue", "spent"),
        *("_answer", "_fd", "_sock", "_task", "_watch"),
    )

    def __init__(self, origin: tuple[str, int], sock: socket, watch: Watch | None = None) -> None:
        self.origin = origin
        self.idle = False
        self.idle_since = 0.0
        self.idle_until = 0.0
        """When it is to be closed if it is not used before."""
        self.overdue = False
        self.spent = False
        """More has come than the answer, or the end: it is not to be used again."""
        self._sock, self._fd = sock, sock.fileno()
        self._watch = watch
        self._task: trio.lowlevel.Task | None = None
        """It waits while the watch tells of its answer."""
        self._answer: ResponseParser | None = None
        if watch:
            watch.add(self._fd, self._told)

    def silent(self, now: float) -> bool:
        """Nothing has come on an idle connection: what can be read is its end, or an answer to nothing."""
        if self._watch and self._watch.running:
            self._watch.look_if_stale(now, self.idle_since)
            return self.idle
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return not poll.poll(0)

    def end(self) -> None:
        """Break off the exchange that runs here, from another task."""
        self.overdue = True
        with suppress(OSError):  # the other side was faster
            self._sock.shutdown(SHUT_RDWR)

    def close(self) -> None:
        """No exchange may be running here. Closing it twice does no harm."""
        self.idle = False
        if self._watch:
            self._watch.remove(self._fd)
            self._watch = None
        self._sock.close()

    async def send(self, request: bytes, more: bytes, timeout: float | None, *, reused: bool) -> None:  # noqa: ASYNC109 -- httpx's word
        """Send what will go. Where the connection breaks meanwhile, what the server said before comes next.

        Raises:
            StaleConnectionError: it was a *reused* one, and took nothing.
            httpx.WriteTimeout: for *timeout* seconds it has taken nothing more.
        """
        try:
            sent = self._sock.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            if reused:
                raise StaleConnectionError from None
            return
        if more or sent < len(request):
            await self._send_rest((memoryview(request)[sent:], memoryview(more)), timeout)
            self._ask_again()  # an early answer was told while we did not listen

    async def _send_rest(self, parts: Iterable[memoryview], timeout: float | None) -> None:  # noqa: ASYNC109 -- as above
        for part in parts:
            rest = part
            while rest:
                with trio.move_on_after(math.inf if timeout is None else timeout) as patience:
                    await trio.lowlevel.wait_writable(self._fd)
                if patience.cancelled_caught:
                    raise httpx.WriteTimeout(f"nothing taken for {timeout:g} s")
                try:
                    rest = rest[self._sock.send(rest) :]
                except BlockingIOError:
                    continue
                except OSError:
                    return

    async def receive(self, answer: ResponseParser, timeout: float | None) -> None:  # noqa: ASYNC109 -- httpx's word
        """Read until *answer* is complete.

        Raises:
            httpx.ReadError: the connection broke.
            httpx.RemoteProtocolError: what came is no answer, or not a whole one.
            httpx.ReadTimeout: for *timeout* seconds nothing came.
        """
        try:
            if timeout is None and self._watch and self._watch.running:
                self._task, self._answer = trio.lowlevel.current_task(), answer
                await trio.lowlevel.wait_task_rescheduled(self._leave)
            if answer.complete:
                return
            while not answer.complete:
                if timeout is None:
                    await trio.lowlevel.wait_readable(self._fd)
                else:
                    await self._readable_within(timeout)
                self._read(answer)
            self._ask_again()
        except OSError as error:
            raise httpx.ReadError(f"the connection broke: {error}") from None
        except ProtocolError as error:
            raise httpx.RemoteProtocolError(str(error)) from None

    def _ask_again(self) -> None:
        """What the watch told meanwhile was for others to hear: for us, only what is still there counts."""
        if self._watch:
            self.spent = False
            self._watch.ask_again(self._fd)

    def _leave(self, _: object) -> trio.lowlevel.Abort:
        """The task that waits was cancelled."""
        self._task = self._answer = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _told(self, ended: bool) -> None:
        """Something can be read. What is told here once is not told again when the connection is idle."""
        self.spent = self.spent or ended or not self._task
        if self.idle:
            self.close()
        elif self._task and self._answer and self._watch:
            result: outcome.Outcome[None] = outcome.Value(None)
            try:
                # Once only, however much there is: others' answers come between.
                self._read(self._answer)
            except Exception as error:  # noqa: BLE001 -- whatever it is, it is the exchange's, and not the watch's
                result = outcome.Error(error)
            else:
                if self._watch.running and not self._answer.complete:
                    return self._watch.ask_again(self._fd)
            task, self._task, self._answer = self._task, None, None
            trio.lowlevel.reschedule(task, result)
        return None

    async def _readable_within(self, timeout: float) -> None:  # noqa: ASYNC109 -- as above
        with trio.move_on_after(timeout) as patience:
            await trio.lowlevel.wait_readable(self._fd)
        if patience.cancelled_caught:
            raise httpx.ReadTimeout(f"nothing came for {timeout:g} s")

    def _read(self, answer: ResponseParser) -> None:
        try:
            data = self._sock.recv(_READ)
        except BlockingIOError:  # woken for nothing
            return
        if data:
            answer.feed(data)
            if answer.complete and len(data) == _READ:
                self.spent = True  # there may be more, of which nothing would be told
        elif self.overdue:  # this end is ours
            raise ProtocolError("broken off")
        else:
            answer.feed_eof()
