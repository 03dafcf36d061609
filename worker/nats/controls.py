"""What operators have said about single functions, remembered in a small stream and obeyed by every worker.

The stream has one message a function, the last. So it can be read on from where one has read to: what changed since
comes behind. It is read from its leader, and not by a direct get, which may be answered by a server that lags behind.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio
from nats.aio.msg import Msg

from ..config import Settings
from ..policy.names import is_name
from ..ports import NotStored
from . import quirks
from .connection import ApiError, Connection

READ_AGAIN = 30.0
"""Seconds after which the stream is looked at though nothing was heard: what announces a change is said only once."""
_SETTLES = 2.0
"""Seconds for which it is looked at after a change was heard of: that may come before the stream has it."""
_LOOK = 0.25
"""Seconds between two looks at what is due."""
_NO_STREAM = 10059
_NO_MESSAGE = 10037
"""JetStream's error codes."""


@dataclass(frozen=True, slots=True)
class Control:
    """What was said last about a function."""

    paused: bool
    since: str = ""
    """When that was said (RFC 3339)."""


def stream_name(settings: Settings) -> str:
    """The stream's name."""
    return f"{settings.nats_stream}-functions"


def subject_for(queue: str, label: str) -> str:
    """Where what is said about the function *label*, ``name.namespace``, is published. In capitals, as no queue is."""
    return f"FUNCTIONS.{queue}.{label}"


def stream_config(settings: Settings) -> dict[str, Any]:
    """The stream."""
    return {
        "name": stream_name(settings),
        "subjects": [subject_for(settings.queue_name, ">")],
        "retention": "limits",
        "discard": "old",
        "storage": settings.nats_stream_storage,
        "num_replicas": settings.nats_stream_replicas,
        "max_msgs_per_subject": 1,
        "allow_direct": True,
    }


def write(control: Control) -> bytes:
    """A control, as the stream has it."""
    return json.dumps({"paused": control.paused, "since": control.since}).encode()


def read(queue: str, subject: str, data: bytes) -> tuple[str, Control] | None:
    """The function's label and its control; None where it is none that we know. Later versions may write more."""
    label = subject.removeprefix(subject_for(queue, ""))
    name, _, namespace = label.partition(".")
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not (is_name(name) and is_name(namespace) and isinstance(said, dict) and isinstance(said.get("paused"), bool)):
        return None
    return label, Control(said["paused"], str(said.get("since", ""))[:40])


class Controls:
    """The stream, as far as it was read.

    Everything is called on the asyncio side.

    Args:
        connection: to whom to talk.
        settings: the stream's and the queue's name.
        changed: called with the labels, ``name.namespace``, of the functions that are paused, whenever others are.
    """

    def __init__(
        self, connection: Connection, settings: Settings, changed: Callable[[frozenset[str]], None] = lambda _: None
    ) -> None:
        self._connection, self._queue, self._stream = connection, settings.queue_name, stream_name(settings)
        self._changed = changed
        self._known: dict[str, Control] = {}
        self._subjects: set[str] = set()
        """All that were read, also those that tell nothing that we know."""
        self._made = ""
        self._sequence = 0
        """Up to which we have read the stream that was made then."""
        self._paused: frozenset[str] = frozenset()
        self._due = self._heard = float("-inf")
        connection.changed.append(self._on_change)

    @property
    def known(self) -> Mapping[str, Control]:
        """What was said last about each function, by its label."""
        return self._known

    async def open(self) -> None:
        """Begin to hear of changes, and learn what is so now. Without an answer we begin with nothing paused."""
        await quirks.listen(self._connection.client, subject_for(self._queue, ">"), self._on_message)
        await self.refresh(trio.current_time())

    async def serve(self) -> None:
        """Keep up to date, for ever."""
        while True:
            await asyncio.sleep(_LOOK)
            await self.refresh(trio.current_time())

    async def refresh(self, now: float) -> None:
        """Look at the stream, if that is due: soon after something was heard, and every 30 s."""
        if not self._connection.up or (now < self._due and now >= self._heard + _SETTLES):
            return
        try:
            if await self.look():
                self._heard = float("-inf")
        except (ApiError, NotStored) as error:
            self._connection.complain("reading which functions are paused", error)
        self._due = now + READ_AGAIN

    async def look(self) -> bool:
        """Read what is new; whether something was.

        Raises:
            ApiError: the server said no.
            worker.ports.NotStored: it did not answer.
        """
        before = self._made, self._sequence
        try:
            info = await self._connection.ask(f"STREAM.INFO.{self._stream}")
        except ApiError as error:
            if error.err_code != _NO_STREAM:
                raise
            self._forget("")
        else:
            if info["created"] != self._made or info["state"]["last_seq"] < self._sequence:
                self._forget(info["created"])
            await self._read_on(info["state"]["last_seq"])
            if info["state"]["messages"] != len(self._subjects):  # someone took messages out of it
                self._forget(info["created"])
                await self._read_on(info["state"]["last_seq"])
        self._tell()
        return (self._made, self._sequence) != before

    async def _read_on(self, last: int) -> None:
        while self._sequence < last:
            where = {"seq": self._sequence + 1, "next_by_subj": subject_for(self._queue, ">")}
            try:
                message = (await self._connection.ask(f"STREAM.MSG.GET.{self._stream}", where))["message"]
            except ApiError as error:
                if error.err_code != _NO_MESSAGE:
                    raise
                self._sequence = last  # what was there has been taken out
                return
            self._sequence = message["seq"]
            self._subjects.add(message["subject"])
            said = read(self._queue, message["subject"], base64.b64decode(message.get("data") or ""))
            if said is None:
                self._connection.complain("reading which functions are paused", f"nothing of ours: {message}"[:200])
            else:
                self._known[said[0]] = said[1]

    def _forget(self, made: str) -> None:
        self._made, self._sequence = made, 0
        self._known.clear()
        self._subjects.clear()

    def _tell(self) -> None:
        paused = frozenset(label for label, control in self._known.items() if control.paused)
        if paused != self._paused:
            self._paused = paused
            self._changed(paused)

    def _on_message(self, _: Msg) -> None:
        self._heard = trio.current_time()

    def _on_change(self, up: bool) -> None:
        if up:  # whatever was said meanwhile was not heard
            self._due = float("-inf")
