"""The one JetStream client: requests to its API, confirmed publishes, paging, find-or-create.

Runs on asyncio alone, so that the producer can use it, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import msgspec

from ..ports import BrokerUnavailableError, MisconfiguredError
from .connection import Connection
from .wire import (
    ApiError,
    ConsumerConfig,
    ConsumerInfo,
    ConsumerPage,
    ErrorCode,
    PubAck,
    StoredMessage,
    StreamConfig,
    StreamInfo,
    decode_answer,
)

T = TypeVar("T")

_CONFLICTS: dict[int, str] = {
    ErrorCode.STREAM_SUBJECT_OVERLAP: "the subjects overlap with those of another stream",
    ErrorCode.STREAM_NAME_EXIST: "a stream of that name was created at the same time with another configuration",
    ErrorCode.CONSUMER_WQ_MULTIPLE_UNFILTERED: (
        "other consumers, with filters, exist on the stream: the queue is in function mode"
    ),
    ErrorCode.CONSUMER_WQ_CONSUMER_NOT_UNIQUE: "another consumer on the stream takes some of the same subjects",
    ErrorCode.CONSUMER_ALREADY_EXISTS: (
        "a consumer of that name was created at the same time with another configuration"
    ),
}
"""Errors of a creation that waiting does not resolve."""


class _Got(msgspec.Struct):
    message: StoredMessage


class _Names(msgspec.Struct):
    streams: list[str] | None = None


class _Paused(msgspec.Struct):
    paused: bool = False


class _Purged(msgspec.Struct):
    purged: int


class JetStream:
    """JetStream over one connection.

    All methods raise :class:`ApiError` where the server answers with an error, and
    :class:`worker.ports.BrokerUnavailableError` where there is no answer, or one that is not JetStream's. Those that
    create raise :class:`worker.ports.MisconfiguredError` where what there is does not allow it.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def publish(self, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
        """Publish a message, and return the confirmation that it is stored."""
        return await self._request(subject, payload, PubAck, headers)

    async def _ask(self, verb: str, kind: type[T], body: object = None) -> T:
        payload = b"" if body is None else msgspec.json.encode(body)
        return await self._request(f"$JS.API.{verb}", payload, kind)

    async def _request(self, subject: str, payload: bytes, kind: type[T], headers: dict[str, str] | None = None) -> T:
        answer = await self.connection.request(subject, payload, headers)
        try:
            return decode_answer(answer.data, kind)
        except ValueError as error:
            raise BrokerUnavailableError(f"{error}, on {subject}") from None

    # Streams.

    async def stream(self, name: str) -> StreamInfo:
        """Return a stream's info, without its subjects."""
        return await self._ask(f"STREAM.INFO.{name}", StreamInfo)

    async def find_stream(self, name: str) -> StreamInfo | None:
        """Return a stream's info, or None where there is no such stream."""
        return await _none_on(ErrorCode.STREAM_NOT_FOUND, self.stream(name))

    async def streams_of(self, subject: str) -> list[str]:
        """Return the names of the streams that take a subject."""
        return (await self._ask("STREAM.NAMES", _Names, {"subject": subject})).streams or []

    async def stream_with_subjects(self, name: str, pattern: str = ">") -> StreamInfo:
        """Return a stream's info with the number of messages on each of its subjects that match *pattern*."""
        subjects: dict[str, int] = {}
        while True:
            body = {"subjects_filter": pattern, "offset": len(subjects)}
            info = await self._ask(f"STREAM.INFO.{name}", StreamInfo, body)
            page = info.state.subjects
            subjects |= page
            if not page or len(subjects) >= info.total:
                info.state.subjects = subjects
                return info

    async def find_or_create_stream(self, config: StreamConfig) -> tuple[StreamInfo, bool]:
        """Return the info of the stream of that name, and whether it was created for that."""
        find = partial(self.find_stream, config.name)
        create = partial(self._ask, f"STREAM.CREATE.{config.name}", StreamInfo, config)
        return await _find_or_create(f"stream {config.name}", find, create)

    async def update_stream(self, info: StreamInfo, **changes: Any) -> None:
        """Change fields of a stream's configuration; the other fields are sent back as they came."""
        await self._ask(f"STREAM.UPDATE.{info.config.name}", dict, info.sent | changes)

    async def purge(self, stream: str, subject: str) -> int:
        """Delete all messages on a subject, and return how many they were."""
        return (await self._ask(f"STREAM.PURGE.{stream}", _Purged, {"filter": subject})).purged

    # Messages.

    async def message(self, stream: str, sequence: int) -> StoredMessage:
        """Return the message with a sequence."""
        return (await self._ask(f"STREAM.MSG.GET.{stream}", _Got, {"seq": sequence})).message

    async def next_message(self, stream: str, sequence: int, pattern: str) -> StoredMessage | None:
        """Return the first message from a sequence on whose subject matches *pattern*, or None."""
        body = {"seq": sequence, "next_by_subj": pattern}
        got = await _none_on(ErrorCode.NO_MESSAGE_FOUND, self._ask(f"STREAM.MSG.GET.{stream}", _Got, body))
        return got.message if got else None

    async def last_message(self, stream: str, subject: str) -> StoredMessage | None:
        """Return the last message on a subject, or None."""
        got = await _none_on(
            ErrorCode.NO_MESSAGE_FOUND, self._ask(f"STREAM.MSG.GET.{stream}", _Got, {"last_by_subj": subject})
        )
        return got.message if got else None

    async def delete_message(self, stream: str, sequence: int) -> None:
        """Delete the message with a sequence, without overwriting it."""
        await self._ask(f"STREAM.MSG.DELETE.{stream}", dict, {"seq": sequence, "no_erase": True})

    # Consumers.

    async def consumer(self, stream: str, name: str) -> ConsumerInfo:
        """Return a consumer's info."""
        return await self._ask(f"CONSUMER.INFO.{stream}.{name}", ConsumerInfo)

    async def find_consumer(self, stream: str, name: str) -> ConsumerInfo | None:
        """Return a consumer's info, or None where there is no such consumer."""
        return await _none_on(ErrorCode.CONSUMER_NOT_FOUND, self.consumer(stream, name))

    async def consumers(self, stream: str) -> tuple[list[ConsumerInfo], list[str]]:
        """Return all consumers of a stream, and the names of those without a leader; then the list is not complete."""
        found: list[ConsumerInfo] = []
        while True:
            page = await self._ask(f"CONSUMER.LIST.{stream}", ConsumerPage, {"offset": len(found)})
            found += page.consumers or []
            if page.missing or not page.consumers or len(found) >= page.total:
                return found, page.missing

    async def find_or_create_consumer(self, stream: str, config: ConsumerConfig) -> tuple[ConsumerInfo, bool]:
        """Return the info of the consumer of that name, and whether it was created for that."""
        find = partial(self.find_consumer, stream, config.name)
        create = partial(self._write_consumer, stream, config.name, config, "create")
        return await _find_or_create(f"consumer {stream}.{config.name}", find, create)

    async def update_consumer(self, stream: str, info: ConsumerInfo, **changes: Any) -> None:
        """Change fields of a consumer's configuration, or remove those that are None; the others stay as they were."""
        config = {name: value for name, value in (info.sent | changes).items() if value is not None}
        await self._write_consumer(stream, info.name, config, "update")

    async def _write_consumer(self, stream: str, name: str, config: object, action: str) -> ConsumerInfo:
        # Never without an action, which is create-or-update: an update to no filter breaks a work queue silently.
        body = {"stream_name": stream, "config": config, "action": action}
        return await self._ask(f"CONSUMER.CREATE.{stream}.{name}", ConsumerInfo, body)

    async def pause_consumer(self, stream: str, name: str, until: str) -> bool:
        """Pause a consumer until a time (RFC 3339); return whether it is. Servers before 2.11 may not answer at all."""
        return (await self._ask(f"CONSUMER.PAUSE.{stream}.{name}", _Paused, {"pause_until": until})).paused

    async def delete_consumer(self, stream: str, name: str) -> None:
        """Delete a consumer, if there is one of that name."""
        await _none_on(ErrorCode.CONSUMER_NOT_FOUND, self._ask(f"CONSUMER.DELETE.{stream}.{name}", dict))


async def _none_on(code: ErrorCode, answer: Awaitable[T]) -> T | None:
    try:
        return await answer
    except ApiError as error:
        if error.err_code != code:
            raise
        return None


async def _find_or_create(
    what: str, find: Callable[[], Awaitable[T | None]], create: Callable[[], Awaitable[T]]
) -> tuple[T, bool]:
    if found := await find():
        return found, False
    try:
        return await create(), True
    except ApiError as error:
        if error.err_code not in _CONFLICTS:
            raise ApiError(error.code, error.err_code, f"cannot create the {what}: {error.description}") from None
        if found := await find():  # another worker created it at the same time
            return found, False
        raise MisconfiguredError(f"cannot create the {what}: {_CONFLICTS[error.err_code]} ({error})") from None
