"""The stream of dead letters."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from ..events import Created
from ..model import DeadLetter
from ..policy.report import dead_letter_headers
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from ..settings import Settings
from .jetstream import JetStream
from .wire import ApiError, ErrorCode, StreamConfig

_WINDOW = 3600.0
"""Seconds in which the stream recognizes a message id: longer than any ack wait, after which a half-stored dead letter
is stored again."""
_HEADER_ROOM = 8_192
"""Bytes of a message that are left for a dead letter's headers: nine, each at most a kilobyte, most far below."""


def stream_config(settings: Settings) -> StreamConfig:
    """Return the stream's configuration.

    Its subjects begin in capitals, as no queue's name does, so they overlap with no queue's.
    """
    return StreamConfig(
        name=f"{settings.nats_stream}-dead-letters",
        subjects=(f"DEAD-LETTERS.{settings.queue_name}.>",),
        retention="limits",
        discard="old",
        storage=settings.nats_stream_storage,
        num_replicas=settings.nats_stream_replicas,
        max_bytes=settings.dead_letter_max_bytes,
        max_age=round(settings.dead_letter_max_age * 1e9),
        duplicate_window=round(min(_WINDOW, settings.dead_letter_max_age) * 1e9),
        allow_direct=True,
    )


async def store(jetstream: JetStream, settings: Settings, emit: Emit, letter: DeadLetter, stream: str) -> None:
    """See :meth:`worker.ports.Queue.store_dead_letter`. *stream* is the queue's stream, by its name at the server."""
    config = stream_config(settings)
    subject = f"DEAD-LETTERS.{settings.queue_name}.{letter.function or 'undecodable'}"
    try:
        for body, headers in _parts(letter, stream, jetstream.connection.client.max_payload):
            try:
                await jetstream.publish(subject, body, headers)
            except (BrokerUnavailableError, ApiError):
                # Most likely this is the first one, and there is no stream. The message id prevents a second copy.
                if await _find_or_create(jetstream, config):
                    emit(Created("stream", config.name, recreated=False))
                await jetstream.publish(subject, body, headers)
    except (ApiError, MisconfiguredError) as error:
        raise BrokerUnavailableError(f"the stream {config.name} did not store it: {error}") from None


async def _find_or_create(jetstream: JetStream, config: StreamConfig) -> bool:
    """Find or create the stream, and return whether it was created; its window may be limited by the server."""
    try:
        return (await jetstream.find_or_create_stream(config))[1]
    except ApiError as error:
        if error.err_code != ErrorCode.STREAM_INVALID_CONFIG or "duplicates window" not in error.description:
            raise
        return (await jetstream.find_or_create_stream(replace(config, duplicate_window=0)))[1]  # the server's limit


def _parts(letter: DeadLetter, stream: str, max_payload: int) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Yield the messages of a dead letter: one, or more where its size leaves no room for headers in one."""
    headers, payload = dead_letter_headers(letter, stream=stream), letter.delivery.payload
    room = max(1, max_payload - _HEADER_ROOM)
    bodies = [payload[at : at + room] for at in range(0, len(payload), room)] or [b""]
    sequence, stored_at = letter.delivery.id
    kind = f".{letter.kind}" if letter.kind else ""
    for number, body in enumerate(bodies, 1):
        part = {"X-Dead-Letter-Part": f"{number}/{len(bodies)}"} if len(bodies) > 1 else {}
        yield body, headers | {"Nats-Msg-Id": f"{stream}.{sequence}.{stored_at}.{number}{kind}"} | part
