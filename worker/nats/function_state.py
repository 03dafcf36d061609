"""The states of single functions that all workers agree on: whether one is paused, and its quota.

They are stored in a small stream, which keeps the last message of each subject. A change has a higher sequence than
all that was read before, so that only changes are read. They are read from the stream's leader: a direct get may be
answered by a server that lags behind.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import msgspec
import trio
from msgspec import Struct
from nats.aio.msg import Msg

from ..model import Quota
from ..policy.names import is_name
from ..policy.quota import needs_tokens, parse_max_inflight, parse_rate, write_rate
from ..ports import BrokerUnavailableError
from ..settings import Settings
from . import nats_internals
from .jetstream import JetStream
from .wire import ApiError, ErrorCode, StreamConfig

READ_AGAIN = 30.0
"""Seconds after which the stream is read again without a change received: a copy of a message may be lost."""
_SETTLES = 2.0
"""Seconds for which the stream is read after a change was received: its copy may arrive before it is stored."""
_RETRY = 1.0
"""Seconds before another try to read the stream."""
_LOOK = 0.25
"""Seconds between two looks whether the stream has to be read."""
_WAITING = 100
"""Calls that wait for the stream to be read: commands repeat their questions each second."""
_QUOTA = ".quota"
"""The end of the subject of a function's quota. No function's name has a dot, so it collides with none."""
_TRIES = 5
"""Tries to store a quota that other workers change at the same time. The next message proposes it again."""
_OUTDATED = {ErrorCode.STREAM_WRONG_LAST_SEQUENCE, ErrorCode.STREAM_WRONG_LAST_SEQUENCE_CONSTANT}
READING = "reading the pauses and quotas of functions"


class PauseState(Struct, frozen=True):
    """An operator's last pause or resume of a function."""

    paused: bool
    since: str = ""
    """The time of it (RFC 3339)."""


class AgreedQuota(Struct, frozen=True):
    """A function's quota over all workers, and when the message was stored that proposed it (ns)."""

    quota: Quota
    stored: int


class _StoredQuota(Struct, frozen=True):
    """An :class:`AgreedQuota` as it is written."""

    max_inflight: int | None
    rate: str | None
    stored: int


def subject_for(queue: str, label: str) -> str:
    """Return the subject of the function *label*, ``name.namespace``. It begins in capitals, as no queue's does."""
    return f"FUNCTIONS.{queue}.{label}"


def stream_config(settings: Settings) -> StreamConfig:
    """Return the stream's configuration."""
    return StreamConfig(
        name=f"{settings.nats_stream}-functions",
        subjects=(subject_for(settings.queue_name, ">"),),
        retention="limits",
        discard="old",
        storage=settings.nats_stream_storage,
        num_replicas=settings.nats_stream_replicas,
        max_bytes=settings.nats_state_max_bytes,
        max_msgs_per_subject=1,
        allow_direct=True,
    )


def encode(state: PauseState | AgreedQuota) -> bytes:
    """Return the message that stores a state."""
    if isinstance(state, PauseState):
        return json.dumps({"paused": state.paused, "since": state.since}).encode()
    rate = write_rate(state.quota.rate) if state.quota.rate else None
    return json.dumps({"max_inflight": state.quota.max_inflight, "rate": rate, "stored": state.stored}).encode()


def decode(queue: str, subject: str, data: bytes) -> tuple[str, PauseState | AgreedQuota] | None:
    """Return a message's label and state, or None for a foreign message. Later versions may write more fields."""
    below = subject.removeprefix(subject_for(queue, ""))
    label = below.removesuffix(_QUOTA)
    name, _, namespace = label.partition(".")
    if not (is_name(name) and is_name(namespace)):
        return None
    try:
        if label == below:
            pause = msgspec.json.decode(data, type=PauseState)
            return label, PauseState(pause.paused, pause.since[:40])
        found = msgspec.json.decode(data, type=_StoredQuota)
        cap = None if found.max_inflight is None else parse_max_inflight(str(found.max_inflight))
        rate = None if found.rate is None else parse_rate(found.rate)
        return label, AgreedQuota(Quota(max_inflight=cap, rate=rate), found.stored)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None


class FunctionStates:
    """The states of functions by label, ``name.namespace``, as far as this worker has read them; for the asyncio side.

    *paused* is called with the labels of the paused functions, whenever others are, *agreed* with the label of each
    function whose quota has changed. What reads or stores raises what :class:`JetStream` does.
    """

    def __init__(
        self,
        jetstream: JetStream,
        settings: Settings,
        paused: Callable[[frozenset[str]], None] = lambda _: None,
        agreed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.pauses: dict[str, PauseState] = {}
        self.quotas: dict[str, AgreedQuota] = {}
        self._jetstream, self._settings = jetstream, settings
        self._stream, self._pattern = stream_config(settings), subject_for(settings.queue_name, ">")
        self._paused, self._agreed = paused, agreed
        self._sequences: dict[str, int] = {}
        """The last sequence of each subject that was read, also of foreign messages."""
        self._created = ""
        self._read_to = 0
        """The last sequence that was read of the stream that was created then."""
        self._notified: tuple[frozenset[str], dict[str, Quota]] = frozenset(), {}
        self._due = self._changed_at = float("-inf")
        self._when_read: list[Callable[[], None]] = []
        """Calls to make after the next reading that begins."""

    async def open(self) -> None:
        """Subscribe to changes, and read the stream. Where the server does not answer, nothing is agreed at first."""
        client = self._jetstream.connection.client
        await nats_internals.listen(client, self._pattern, self._on_message)
        await self.refresh(trio.current_time())

    async def run(self) -> None:
        """Follow changes until cancelled."""
        while True:
            await asyncio.sleep(_LOOK)
            await self.refresh(trio.current_time())

    async def refresh(self, now: float) -> None:
        """Read the stream, if that is due: soon after a change was received, and every 30 s."""
        if not self._jetstream.connection.up or (now < self._due and now >= self._changed_at + _SETTLES):
            return
        self._due = now + READ_AGAIN
        waiting, self._when_read = self._when_read, []
        try:
            if await self.read_changes():
                self._changed_at = float("-inf")
        except (ApiError, BrokerUnavailableError) as error:
            self._jetstream.connection.report_failure(READING, error)
            self._due = now + _RETRY
            self._when_read = waiting + self._when_read
        else:
            for call in waiting:
                call()

    async def agree(self, label: str, proposal: AgreedQuota) -> None:
        """Store the quota that a message proposes, unless a message that was stored later has proposed another one."""
        for _ in range(_TRIES):
            known = self.quotas.get(label)
            if known and (proposal.stored <= known.stored or proposal.quota == known.quota):
                return
            if not known and not needs_tokens(proposal.quota):
                return
            try:
                await self.store(label, proposal)
            except ApiError as error:  # another worker has stored one that this worker has not read
                if error.err_code not in _OUTDATED:
                    raise
            await self.read_changes()

    async def store(self, label: str, state: PauseState | AgreedQuota) -> None:
        """Store a state, a quota only in place of the one that was read; the stream is created where there is none."""
        subject, headers = subject_for(self._settings.queue_name, label), {"Nats-Expected-Stream": self._stream.name}
        if isinstance(state, AgreedQuota):
            subject += _QUOTA
            headers["Nats-Expected-Last-Subject-Sequence"] = str(self._sequences.get(subject, 0))
        # Publishing first would take a timeout where the stream is missing: workers subscribe to the subject, so that
        # the server finds a subscriber, and reports no missing stream.
        await self._jetstream.find_or_create_stream(self._stream)
        await self._jetstream.publish(subject, encode(state), headers)

    async def read_changes(self) -> bool:
        """Read what is new, and return whether there was anything."""
        before = self._created, self._read_to
        if info := await self._jetstream.find_stream(self._stream.name):
            if info.created != self._created or info.state.last_seq < self._read_to:
                self._forget(info.created)
            await self._read_on(info.state.last_seq)
            if info.state.messages != len(self._sequences):  # an operator has deleted messages: read all again
                self._forget(info.created)
                await self._read_on(info.state.last_seq)
        else:
            self._forget("")
        self._notify()
        return (self._created, self._read_to) != before

    def read_soon(self) -> None:
        """Read the stream soon, also if no change was received, as after a time without a connection."""
        self._due = float("-inf")

    def call_when_read(self, call: Callable[[], None]) -> None:
        """Read the stream soon, and then call *call*; without effect while many such calls wait."""
        if len(self._when_read) < _WAITING:
            self._when_read.append(call)
        self.read_soon()

    async def _read_on(self, last: int) -> None:
        while self._read_to < last:
            message = await self._jetstream.next_message(self._stream.name, self._read_to + 1, self._pattern)
            if message is None:
                self._read_to = last  # the messages in between were deleted
                return
            self._read_to = self._sequences[message.subject] = message.seq
            match decode(self._settings.queue_name, message.subject, message.data):
                case label, PauseState() as pause:
                    self.pauses[label] = pause
                case label, AgreedQuota() as agreed:
                    self.quotas[label] = agreed
                case None:
                    self._jetstream.connection.report_failure(READING, f"a foreign message: {message}"[:200])

    def _forget(self, created: str) -> None:
        self._created, self._read_to = created, 0
        self.pauses.clear()
        self.quotas.clear()
        self._sequences.clear()

    def _notify(self) -> None:
        paused = frozenset(label for label, pause in self.pauses.items() if pause.paused)
        quotas = {label: agreed.quota for label, agreed in self.quotas.items()}
        (paused_before, before), self._notified = self._notified, (paused, quotas)
        if paused != paused_before:
            self._paused(paused)
        for label in before | quotas:
            if before.get(label, Quota()) != quotas.get(label, Quota()):
                self._agreed(label)

    def _on_message(self, _: Msg) -> None:
        self._changed_at = trio.current_time()
