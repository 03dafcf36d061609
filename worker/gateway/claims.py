"""Claims: which request of a function a call id stands for, in a memory that all producers share.

The queue's stream recognizes a repeated message by its message id, but cannot compare two requests: a message leaves
the stream when its invocation ends, while its id is still recognized. So each call first claims its id. A claim is a
message of a small stream, with the hash of the request, and with a hash of call id and function as message id. The
first claim counts; JetStream answers a later one with the sequence number of the first, which the producer reads.

The stream keeps claims for as long as the queue's stream recognizes message ids. Its id of an invocation includes the
request, so that without claims nothing is dropped either: another request is then another call.
"""

from __future__ import annotations

import asyncio

import msgspec

from ..nats.jetstream import JetStream
from ..nats.wire import ApiError, ErrorCode, PubAck, StreamConfig
from ..ports import BrokerUnavailableError
from ..settings import Settings

_MARGIN = 30
"""Seconds that a claim is kept after its id is no longer recognized, so that one that is recognized can be read."""
_TRIES = 5
"""Tries of a claim: the first claim may expire before it is read, or another producer's may be stored just now."""
_CONFLICT_WAIT = 0.1
"""Seconds before a publish is tried again whose message id is being stored: replication takes a few milliseconds."""


class Claim(msgspec.Struct, frozen=True):
    """The request that a call id stands for."""

    digest: str
    """Hash of method, path, query and body."""
    started: str
    """The X-Start-Time of the call (ns since the epoch)."""


class Claims:
    """The claims of one queue. Requests raise the errors of :class:`JetStream`."""

    def __init__(self, jetstream: JetStream, config: StreamConfig) -> None:
        self._jetstream, self._stream, self._subject = jetstream, config.name, config.subjects[0]

    async def claim(self, key: str, wanted: Claim) -> Claim:
        """Return the claim that counts for *key*: an earlier one, or else *wanted*, which is stored."""
        headers = {"Nats-Msg-Id": key, "Nats-Expected-Stream": self._stream}
        for _ in range(_TRIES):
            ack = await publish_once(self._jetstream, self._subject, msgspec.json.encode(wanted), headers)
            if not ack.duplicate:
                return wanted
            if found := await self._read(ack.seq):
                return found
        raise BrokerUnavailableError(f"the claim of a call id in stream {self._stream} cannot be read")

    async def _read(self, sequence: int) -> Claim | None:
        try:
            stored = await self._jetstream.message(self._stream, sequence)
            return msgspec.json.decode(stored.data, type=Claim)
        except ApiError as error:
            if error.err_code != ErrorCode.NO_MESSAGE_FOUND:
                raise
        except (msgspec.MsgspecError, ValueError):
            pass  # a foreign message: other programs may publish there
        return None


async def open_claims(jetstream: JetStream, settings: Settings) -> Claims | None:
    """Return the claims of the queue, after finding or creating their stream; None if the queue has no stream yet.

    *settings* have the stream's name at the server. Errors are those of :class:`JetStream`.
    """
    if (queue := await jetstream.find_stream(settings.nats_stream)) is None:
        return None
    config = stream_config(settings, queue.config.duplicate_window)
    info, _ = await jetstream.find_or_create_stream(config)
    if info.config.duplicate_window != config.duplicate_window:  # the queue's was changed
        await jetstream.update_stream(info, duplicate_window=config.duplicate_window, max_age=config.max_age)
    return Claims(jetstream, config)


def stream_config(settings: Settings, window: int) -> StreamConfig:
    """Return the configuration of the stream of claims. *window* is the duplicate window of the queue's stream (ns)."""
    return StreamConfig(
        name=f"{settings.nats_stream}-call-ids",
        subjects=(f"CALL-IDS.{settings.queue_name}",),
        retention="limits",
        discard="old",
        storage=settings.nats_stream_storage,
        num_replicas=settings.nats_stream_replicas,
        max_age=window + _MARGIN * 10**9,
        duplicate_window=window,
        max_bytes=settings.nats_state_max_bytes,
    )


async def publish_once(jetstream: JetStream, subject: str, payload: bytes, headers: dict[str, str]) -> PubAck:
    """Publish a message with a message id; wait while the same id of another producer is being stored."""
    for _ in range(_TRIES):
        try:
            return await jetstream.publish(subject, payload, headers)
        except ApiError as error:
            if error.err_code != ErrorCode.STREAM_DUPLICATE_MESSAGE_CONFLICT:
                raise
        await asyncio.sleep(_CONFLICT_WAIT)
    raise BrokerUnavailableError("another producer stores the same call, and has not been confirmed")
