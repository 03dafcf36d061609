"""What was said about single functions: by operators, that one is paused, and by messages, what one may have.

All workers go by it, so it is remembered in a small stream, which has one message a function and matter, the last. So
it can be read on from where one has read to: what changed since comes behind. It is read from its leader, and not by
a direct get, which may be answered by a server that lags behind.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import trio
from nats.aio.msg import Msg

from ..config import Settings
from ..model import Quota
from ..policy.names import is_name
from ..policy.quota import needs_tokens, parse_max_inflight, parse_rate, write_rate
from ..ports import BrokerUnavailableError
from . import nats_internals
from .connection import Connection
from .wire import ApiError

T = TypeVar("T")

READ_AGAIN = 30.0
"""Seconds after which the stream is looked at though nothing was heard: what announces a change is said only once."""
_SETTLES = 2.0
"""Seconds for which it is looked at after a change was heard of: that may come before the stream has it."""
_AGAIN = 1.0
"""Seconds before another try to read it."""
_LOOK = 0.25
"""Seconds between two looks at what is due."""
_QUOTA = ".quota"
"""What the subject of a function's quota ends with. No function's name has a dot, so it collides with none."""
_TRIES = 5
"""How often a quota is written that others change at the same time. The next message says it once more."""
_NO_STREAM = 10059
_NO_MESSAGE = 10037
_OTHERWISE = 10058
_CHANGED = (10071, 10164)
"""JetStream's error codes: not there; not there; there with another configuration; not the last any more."""


@dataclass(frozen=True, slots=True)
class PauseState:
    """What an operator said last about a function."""

    paused: bool
    since: str = ""
    """When that was said (RFC 3339)."""


@dataclass(frozen=True, slots=True)
class AgreedQuota:
    """What a function may have, all its workers together, and when the message was stored that said so (ns)."""

    quota: Quota
    stored: int


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


def encode(what: PauseState | AgreedQuota) -> bytes:
    """What was said, as the stream has it."""
    if isinstance(what, PauseState):
        return json.dumps({"paused": what.paused, "since": what.since}).encode()
    rate = write_rate(what.quota.rate) if what.quota.rate else None
    return json.dumps({"max_inflight": what.quota.max_inflight, "rate": rate, "stored": what.stored}).encode()


def decode(queue: str, subject: str, data: bytes) -> tuple[str, PauseState | AgreedQuota] | None:
    """The function's label and what was said; None where it is nothing that we know. Later versions may write more."""
    below = subject.removeprefix(subject_for(queue, ""))
    label = below.removesuffix(_QUOTA)
    name, _, namespace = label.partition(".")
    if not (is_name(name) and is_name(namespace)):
        return None
    try:
        said = json.loads(data)
        if label == below:
            return label, PauseState(typed(bool, said["paused"]), str(said.get("since", ""))[:40])
        most, rate = said["max_inflight"], said["rate"]
        quota = Quota(
            max_inflight=None if most is None else parse_max_inflight(str(typed(int, most))),
            rate=None if rate is None else parse_rate(typed(str, rate)),
        )
        return label, AgreedQuota(quota, typed(int, said["stored"]))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def typed(kind: type[T], value: object) -> T:
    if type(value) is not kind:
        raise TypeError(f"not a {kind.__name__}")
    return value


async def store(
    connection: Connection, settings: Settings, subject: str, data: bytes, headers: Mapping[str, str] | None = None
) -> None:
    """Store what was said; the stream is made where there is none.

    Raises:
        ApiError: the server said no.
        worker.ports.BrokerUnavailableError: nothing confirms it.
    """
    config = stream_config(settings)
    try:  # to find out by storing would take a timeout: workers hear what is said there, so it does not go unheard
        await connection.ask(f"STREAM.INFO.{config['name']}")
    except ApiError as error:
        if error.err_code != _NO_STREAM:
            raise
        await _make(connection, config)
    await connection.store(subject, data, {"Nats-Expected-Stream": config["name"], **(headers or {})})


async def _make(connection: Connection, config: dict[str, Any]) -> None:
    try:
        await connection.ask(f"STREAM.CREATE.{config['name']}", config)
    except ApiError as error:
        if error.err_code != _OTHERWISE:  # someone was quicker, perhaps with settings of their own, which are used
            raise


class FunctionStates:
    """The stream, as far as it was read.

    Everything is called on the asyncio side.

    Args:
        connection: to whom to talk.
        settings: the stream's and the queue's name.
        paused: called with the labels, ``name.namespace``, of the functions that are paused, whenever others are.
        agreed: called with the label of each function that may have something else than before.
    """

    def __init__(
        self,
        connection: Connection,
        settings: Settings,
        paused: Callable[[frozenset[str]], None] = lambda _: None,
        agreed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.pauses: dict[str, PauseState] = {}
        """What operators said last, by the function's label."""
        self.quotas: dict[str, AgreedQuota] = {}
        """What functions may have."""
        self._agreed = agreed
        self._connection, self._settings = connection, settings
        self._queue, self._stream = settings.queue_name, stream_name(settings)
        self._paused = paused
        self._subjects: dict[str, int] = {}
        """All that were read, and the sequence of each one's message; also those that tell nothing that we know."""
        self._made = ""
        self._sequence = 0
        """Up to which we have read the stream that was made then."""
        self._told: tuple[frozenset[str], dict[str, AgreedQuota]] = frozenset(), {}
        self._due = self._heard = float("-inf")

    async def open(self) -> None:
        """Begin to hear of changes, and learn what is so now. Without an answer we begin with nothing known."""
        await nats_internals.listen(self._connection.client, subject_for(self._queue, ">"), self._on_message)
        await self.refresh(trio.current_time())

    def connection_changed(self, up: bool) -> None:
        """Read the stream soon, once there is a connection: what was announced without one was not received."""
        if up:
            self._due = float("-inf")

    async def serve(self) -> None:
        """Keep up to date, for ever."""
        while True:
            await asyncio.sleep(_LOOK)
            await self.refresh(trio.current_time())

    async def refresh(self, now: float) -> None:
        """Look at the stream, if that is due: soon after something was heard, and every 30 s."""
        if not self._connection.up or (now < self._due and now >= self._heard + _SETTLES):
            return
        self._due = now + READ_AGAIN
        try:
            if await self.read_changes():
                self._heard = float("-inf")
        except (ApiError, BrokerUnavailableError) as error:
            self._connection.report_failure("reading what was said about functions", error)
            self._due = now + _AGAIN

    async def agree(self, label: str, quota: Quota, stored: int) -> None:
        """Have it remembered what a message says that was stored then, unless a newer one said something else.

        Raises:
            ApiError: the server said no.
            worker.ports.BrokerUnavailableError: it did not answer.
        """
        subject, agreed = f"{subject_for(self._queue, label)}{_QUOTA}", AgreedQuota(quota, stored)
        for _ in range(_TRIES):
            known = self.quotas.get(label)
            if (stored <= known.stored or quota == known.quota) if known else not needs_tokens(quota):
                return
            last = {"Nats-Expected-Last-Subject-Sequence": str(self._subjects.get(subject, 0))}
            try:
                await store(self._connection, self._settings, subject, encode(agreed), last)
            except ApiError as error:
                if error.err_code not in _CHANGED:
                    raise
            await self.read_changes()

    async def read_changes(self) -> bool:
        """Read what is new; whether something was.

        Raises:
            ApiError: the server said no.
            worker.ports.BrokerUnavailableError: it did not answer.
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
            self._sequence = self._subjects[message["subject"]] = message["seq"]
            match decode(self._queue, message["subject"], base64.b64decode(message.get("data") or "")):
                case label, PauseState() as control:
                    self.pauses[label] = control
                case label, AgreedQuota() as agreed:
                    self.quotas[label] = agreed
                case None:
                    self._connection.report_failure(
                        "reading what was said about functions", f"not ours: {message}"[:200]
                    )

    def _forget(self, made: str) -> None:
        self._made, self._sequence = made, 0
        self.pauses.clear()
        self.quotas.clear()
        self._subjects.clear()

    def _tell(self) -> None:
        paused = frozenset(label for label, control in self.pauses.items() if control.paused)
        before, self._told = self._told, (paused, dict(self.quotas))
        if paused != before[0]:
            self._paused(paused)
        for label in {*before[1], *self.quotas}:
            if _quota(before[1], label) != _quota(self.quotas, label):
                self._agreed(label)

    def _on_message(self, _: Msg) -> None:
        self._heard = trio.current_time()


def _quota(agreed: Mapping[str, AgreedQuota], label: str) -> Quota:
    return agreed[label].quota if label in agreed else Quota()
