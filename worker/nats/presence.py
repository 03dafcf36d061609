"""The messages by which the workers of a queue are found, and confirm that they act by what is stored.

Each worker reports on a subject that it is alive, so that each has the names of the others. A command that has stored a
pause asks all workers. Each reads the stored pauses, applies them, and then answers with its name and those of the
others. So the command finds also the worker that does not answer, such as a suspended one, from the second worker on.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Annotated

import msgspec
import nats.errors
from msgspec import Meta, Struct
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from . import nats_internals
from .connection import Connection
from .pull_messages import parse_status

_EVERY = 5.0
"""Seconds between two reports of a worker: 400 processes cost each other 80 small messages a second."""
_ALIVE = 3 * _EVERY
"""Seconds after its last report for which a worker counts as alive: one report may be lost, and one late."""
_GREET = 1.0
"""Seconds between two reports at least. An unknown worker's report is followed by one, so that it has all names soon;
when hundreds start together, each reports once a second until then."""
_MOST = 1_000
"""Most workers that are remembered: their names fit into one message."""
WITHIN = 5.0
"""Seconds in which the workers have to answer, because a person waits. Reading the pauses takes them half of one."""
_AGAIN = 1.0
"""Seconds until workers are asked again: the connection may have been lost and made again."""
_QUIET = 0.3
"""Seconds without another answer after which no unknown worker is expected to answer."""
_LOOK = 0.02
"""Seconds between two looks whether all have answered."""

_Name = Annotated[str, Meta(max_length=300, pattern="^[!-~]+$")]
"""A worker's name: visible ASCII, because commands write it to a terminal."""


class _Report(Struct, frozen=True):
    """A worker is alive; or it has *left*, and starts nothing any more."""

    worker: _Name
    left: bool = False


class _Answer(Struct, frozen=True):
    """A worker acts by what was stored when it was asked. *others* are the names of workers that are alive."""

    worker: _Name
    others: Annotated[list[_Name], Meta(max_length=_MOST)] = []


@dataclass(slots=True)
class WorkerReport:
    """The workers that have confirmed, and those that have not."""

    confirmed: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    """Workers that were alive a moment ago, as others report, and have not answered."""
    problem: str = ""
    """The reason why these may not be all workers; empty where they are."""


def _subject(queue: str, last: str) -> str:
    return f"queue-worker.{queue}.{last}"


class Presence:
    """This worker's reports and answers, and the reports of the others; for the asyncio side.

    *apply* has to call its argument once this worker acts by all pauses that are stored now.
    """

    def __init__(self, connection: Connection, queue: str, apply: Callable[[Callable[[], None]], None]) -> None:
        host = re.sub("[^!-~]", "?", socket.gethostname()[:200])
        self.name = f"{host}/{os.getpid()}/{token_hex(2)}"
        self._connection, self._queue, self._apply = connection, queue, apply
        self._heard: dict[str, float] = {}
        """The other workers, and the time of each one's last report."""
        self._reported = self._due = 0.0
        """The times of its last report and of its next one."""
        self._questions: Subscription | None = None
        self._left = False
        self._answers: list[str] = []
        """The reply subjects of answers to send."""
        self._wake = asyncio.Event()

    async def open(self) -> None:
        """Subscribe to reports and questions, and report for the first time."""
        client = self._connection.client
        await nats_internals.listen(client, _subject(self._queue, "alive"), self._on_report)
        self._questions = await nats_internals.listen(client, _subject(self._queue, "confirm"), self._on_question)
        await self._report()

    async def run(self) -> None:
        """Report and answer until cancelled."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + _EVERY
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._due - loop.time())):
                    await self._wake.wait()
            self._wake.clear()
            answers, self._answers = self._answers, []
            if answers:
                text = msgspec.json.encode(_Answer(self.name, self._others()))
                for reply in answers:
                    await self._publish(reply, text)
            if loop.time() >= self._due:
                await self._report()

    async def leave(self) -> None:
        """Report that this worker starts nothing any more, and answer no question: it drains."""
        self._left = True
        await self._publish(_subject(self._queue, "alive"), msgspec.json.encode(_Report(self.name, left=True)))
        if self._questions:
            with suppress(nats.errors.Error, OSError):
                await self._questions.unsubscribe()

    async def _report(self) -> None:
        self._reported = asyncio.get_running_loop().time()
        self._due = self._reported + _EVERY
        if not self._left:
            await self._publish(_subject(self._queue, "alive"), msgspec.json.encode(_Report(self.name)))

    async def _publish(self, subject: str, text: bytes) -> None:
        if self._connection.up:
            with suppress(nats.errors.Error, OSError):  # the next report, or the next question, makes up for it
                await self._connection.client.publish(subject, text)

    def _others(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        self._heard = {name: at for name, at in self._heard.items() if now - at < _ALIVE}
        return [*self._heard]

    def _on_report(self, message: Msg) -> None:
        try:
            report = msgspec.json.decode(message.data, type=_Report)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            self._connection.report_foreign("reading a report of another worker", error)
            return
        if report.left:
            self._heard.pop(report.worker, None)
        elif report.worker != self.name and (report.worker in self._heard or len(self._others()) < _MOST):
            if report.worker not in self._heard:
                self._due = min(self._due, self._reported + _GREET)
                self._wake.set()
            self._heard[report.worker] = asyncio.get_running_loop().time()

    def _on_question(self, message: Msg) -> None:
        if self._left or not message.reply:
            return
        if self._connection.is_inbox(message.reply):
            self._apply(lambda: self._answer(message.reply))
        else:
            error = f"{message.reply[:80]!r} is no inbox: begin the command's nats_inbox_prefix with _INBOX"
            self._connection.report_foreign("answering a command", error)

    def _answer(self, reply: str) -> None:
        self._answers.append(reply)
        self._wake.set()


async def ask_workers(connection: Connection, queue: str) -> WorkerReport:
    """Ask all workers of a queue to confirm that they act by what is stored, and wait for a few seconds at most."""
    loop, client, report = asyncio.get_running_loop(), connection.client, WorkerReport()
    alive: set[str] = set()
    last_answer, no_worker = loop.time(), False

    def on_answer(message: Msg) -> None:
        nonlocal last_answer, no_worker
        if status := parse_status(message.headers):
            no_worker = status.code == 503
            return
        with suppress(msgspec.MsgspecError, ValueError, RecursionError):  # anyone may answer on a subject
            answer = msgspec.json.decode(message.data, type=_Answer)
            report.confirmed.add(answer.worker)
            alive.update(answer.others)
            last_answer = loop.time()

    inbox = client.new_inbox()
    with suppress(nats.errors.Error, OSError):
        await nats_internals.listen(client, inbox, on_answer)
    ends, asks = loop.time() + WITHIN, loop.time()
    while (now := loop.time()) < ends:
        if now >= asks and connection.up:
            asks = now + _AGAIN
            with suppress(nats.errors.Error, OSError):
                await client.publish(_subject(queue, "confirm"), b"", inbox)
        await asyncio.sleep(_LOOK)
        if no_worker and not report.confirmed:
            return report
        if report.confirmed and alive <= report.confirmed and loop.time() - last_answer > _QUIET:
            return report
    report.silent = alive - report.confirmed
    if not connection.up:
        report.problem = "the connection to NATS was lost"
    elif not report.confirmed:
        report.problem = "at least one worker is connected, but none has answered"
    if report.problem and connection.failure:
        report.problem += f" ({connection.failure})"
    return report
