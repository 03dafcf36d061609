"""The queue's stream and its consumers: created as the contract has them, or used as found.

What is found is checked. All that makes it unusable is named in one message, by a :class:`MisconfiguredError`; what
merely differs from the settings is reported, and used. Requests raise the errors of :class:`JetStream`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
from collections.abc import Iterable
from typing import Any

from msgspec import Struct

from ..events import ConfigDrift, Created
from ..policy.durations import format_duration
from ..policy.names import covers
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from ..settings import Settings
from .credit import DEFAULT_BATCH, EXPIRES
from .jetstream import JetStream
from .layout import FUNCTION, MODE, PARTITIONS, partitions_of, static
from .wire import ApiError, ConsumerConfig, ConsumerInfo, StreamConfig

_MAX_CONSUMERS = 1_000_000
"""More consumers than any stream has."""
_UNREADABLE = re.compile(r"[^A-Za-z0-9_-]+")
_READABLE = 60
"""Characters of a consumer's name that show people which function it is for; a hash identifies the subject."""
_DELETED = 1.0
"""Seconds that a deleted stream is left alone before it is created again. Nats-server reports the end of a stream
before it removes the files: one created in between had the old one's sequence, and stored nothing of what was
published, forever (2.15.1; on a busy machine once in 30 tries)."""


def stream_config(settings: Settings) -> StreamConfig:
    """Return the configuration of the queue's stream (contract, section 3)."""
    return StreamConfig(
        name=settings.nats_stream,
        subjects=subjects(settings),
        retention="workqueue",
        discard="old",
        storage=settings.nats_stream_storage,
        num_replicas=settings.nats_stream_replicas,
        max_consumers=-1,
        max_msgs=-1,
        max_bytes=settings.nats_stream_max_bytes,
        max_msg_size=-1,
        max_msgs_per_subject=-1,
        duplicate_window=round(settings.nats_duplicate_window * 1e9),
    )


def consumer_config(settings: Settings, layout: str = static(1), *, alone: bool = True) -> ConsumerConfig:
    """Return the configuration of this worker's shared consumer in static mode (contract, section 3).

    *alone*: it is the stream's only consumer. Beside others, the server accepts none without filters.
    """
    if layout == static(1):
        filters = () if alone else subjects(settings)
        return _consumer(settings, settings.nats_durable, {MODE: "static"}, filter_subjects=filters)
    partitions = partitions_of(layout)
    partition = settings.filter_partition % partitions
    name, metadata = f"{settings.nats_durable}-p{partition}", {MODE: "static", PARTITIONS: str(partitions)}
    bare = (settings.queue_name,) if partition == 0 else ()
    return _consumer(settings, name, metadata, filter_subjects=(*bare, f"{settings.queue_name}.{partition}.>"))


def flow_config(settings: Settings, subject: str, name: str) -> ConsumerConfig:
    """Return the configuration of one subject's consumer."""
    return _consumer(settings, name, {MODE: FUNCTION}, filter_subject=subject)


def _consumer(settings: Settings, name: str, metadata: dict[str, str], **filters: Any) -> ConsumerConfig:
    return ConsumerConfig(
        name=name,
        durable_name=name,
        deliver_policy="all",
        ack_policy="explicit",
        replay_policy="instant",
        max_deliver=-1,
        max_ack_pending=settings.max_ack_pending,
        max_waiting=settings.max_waiting,
        ack_wait=round(settings.ack_wait * 1e9),
        metadata=metadata,
        **filters,
    )


def flow_consumer(settings: Settings, subject: str) -> str:
    """Return the name of a subject's consumer: ``faas-workers-0-echo-openfaas-fn-3f786850e387``.

    It has at most 255 bytes, JetStream's limit: the durable's name is cut where it must be.
    """
    readable = _UNREADABLE.sub("-", subject.removeprefix(f"{settings.queue_name}."))[:_READABLE].strip("-")
    digest = hashlib.sha256(subject.encode()).hexdigest()[:12]
    return f"{settings.nats_durable[:150]}-{readable or 'any'}-{digest}"


def subjects(settings: Settings) -> tuple[str, str]:
    """Return the patterns that cover all subjects of the queue."""
    return settings.queue_name, f"{settings.queue_name}.>"


def stream_faults(found: StreamConfig, settings: Settings) -> tuple[list[str], list[str]]:
    """Return what makes a stream unusable, and what merely differs from the settings."""
    faults = []
    if found.retention != "workqueue":
        faults.append(f"its retention is {found.retention!r}, not 'workqueue': messages would not leave it")
    if found.sealed:
        faults.append("it is sealed")
    if found.no_ack:
        faults.append("it has no_ack set: a publisher would never know that its message is stored")
    drifts = []
    if found.deny_delete and not found.sealed:
        drifts.append("its deny_delete is set: messages that end while scaling_mode is changed run again")
    drifts += [f"its subjects {[*found.subjects]} leave out {each!r}" for each in _left_out(found, settings)]
    limits = ("num_replicas", "storage", "max_msgs", "max_bytes", "max_msgs_per_subject", "max_age")
    return faults, drifts + _differences(found, stream_config(settings), limits)


def consumer_faults(found: ConsumerConfig, wanted: ConsumerConfig) -> tuple[list[str], list[str]]:
    """Return what makes a consumer unusable, and what merely differs from the settings."""
    another = bool(wanted.filter_subject) and found.filters != wanted.filters
    faults = {
        f"its ack_policy is {found.ack_policy!r}, not 'explicit'": found.ack_policy != "explicit",
        "it is a push consumer (deliver_subject is set), and we pull": found.deliver_subject,
        f"its max_deliver is {found.max_deliver}, not -1: the server would drop messages to be retried": (
            found.max_deliver not in (None, -1)
        ),
        "it has a backoff, which changes every wait between attempts": found.backoff,
        "its headers_only is set: the server would leave out every payload": found.headers_only,
        "it has priority_groups: the server refuses requests that name none": found.priority_groups,
        f"its filter is {[*found.filters]}, not {[*wanted.filters]}": another,
    }
    left_out = found.filters and not (wanted.filters and {*found.filters} >= {*wanted.filters})
    ack_wait, expires, threshold = map(_format_time, (found.ack_wait, found.max_expires, found.inactive_threshold))
    drifts = {
        f"its filter {[*found.filters]} may leave out messages of the queue": left_out and not wanted.filter_subject,
        f"its ack_wait is {ack_wait}, not {_format_time(wanted.ack_wait)}": found.ack_wait != wanted.ack_wait,
        f"its max_batch is {found.max_batch}: no request is for more messages": 0 < found.max_batch < DEFAULT_BATCH,
        f"its max_expires is {expires}: no request is open for longer": 0 < found.max_expires < EXPIRES * 1e9,
        f"its inactive_threshold is {threshold}: the server deletes it where no worker pulls for so long": (
            found.inactive_threshold
        ),
    }
    limits = _differences(found, wanted, ("max_ack_pending", "max_waiting"))
    return [text for text, holds in faults.items() if holds], [text for text, holds in drifts.items() if holds] + limits


def _format_time(nanoseconds: int) -> str:
    return format_duration(nanoseconds / 1e9)


def _differences(found: Struct, wanted: Struct, names: Iterable[str]) -> list[str]:
    values = ((name, getattr(found, name), getattr(wanted, name)) for name in names)
    return [f"its {name} is {value}, not {other}" for name, value, other in values if value not in (None, other)]


async def as_named(jetstream: JetStream, settings: Settings, emit: Emit) -> Settings:
    """Return the settings with the stream's name at the server.

    OpenFaaS's own worker names a queue's stream ``OF_<queue>``, while its charts set ``nats_stream`` to the bare name.
    Such a stream is used where it has the queue's subjects, so that an operator has to change nothing but the image.
    """
    openfaas = f"OF_{settings.nats_stream}"
    if await jetstream.find_stream(settings.nats_stream):
        return settings
    found = await jetstream.find_stream(openfaas)
    if found is None or _left_out(found.config, settings):
        return settings
    emit(ConfigDrift(f"there is no stream {settings.nats_stream}, but {openfaas} has its subjects; it is used"))
    return dataclasses.replace(settings, nats_stream=openfaas)


async def ensure_stream(jetstream: JetStream, settings: Settings, emit: Emit, *, again: bool) -> str:
    """Find or create the queue's stream, check it, and return when it was created, as the server writes it.

    *again*: the stream existed before, so that its absence is worth a warning.
    """
    name, durable = settings.nats_stream, settings.nats_durable
    if again and not await jetstream.find_stream(name):
        await asyncio.sleep(_DELETED)
    info, created = await jetstream.find_or_create_stream(stream_config(settings))
    if created:
        emit(Created("stream", name, again))
    if faults := _check(f"stream {name}", *stream_faults(info.config, settings), emit):
        # No consumer is created on such a stream, but the faults of one that exists are reported in the same message.
        if consumer := await jetstream.find_consumer(name, durable):
            wanted = consumer_config(settings)
            faults += _check(f"consumer {durable} of stream {name}", *consumer_faults(consumer.config, wanted), emit)
        raise _unusable(faults)
    return info.created


async def ensure_consumer(
    jetstream: JetStream, settings: Settings, config: ConsumerConfig, emit: Emit, *, again: bool
) -> ConsumerInfo:
    """Find or create a consumer, check it, and return its info. *again*: as for :func:`ensure_stream`."""
    info, created = await jetstream.find_or_create_consumer(settings.nats_stream, config)
    if created:
        emit(Created("consumer", config.name, again))
    what = f"consumer {config.name} of stream {settings.nats_stream}"
    if faults := _check(what, *consumer_faults(info.config, config), emit):
        raise _unusable(faults)
    return info


async def allow_more_consumers(jetstream: JetStream, settings: Settings, emit: Emit) -> bool:
    """Let the stream have as many consumers as its configuration allows, where that sets no limit.

    Nats-server 2.15 and later takes "no limit" for 1,000. Return False where a limit that an operator has set stays,
    and where the stream cannot be changed.
    """
    try:
        info = await jetstream.stream(settings.nats_stream)
        limit = info.config.max_consumers
        if limit is not None and limit > 0:
            return limit >= _MAX_CONSUMERS
        await jetstream.update_stream(info, max_consumers=_MAX_CONSUMERS)
    except (ApiError, BrokerUnavailableError):  # no permission
        return False
    reason = "may have no more consumers by the server's default; its max_consumers is set"
    emit(ConfigDrift(f"the stream {settings.nats_stream} {reason}"))
    return True


def _check(what: str, faults: list[str], drifts: list[str], emit: Emit) -> list[str]:
    """Return the faults as one sentence, if there are any; else report what differs from the settings."""
    if faults:
        return [f"the {what} cannot be used: {'; '.join(faults)}"]
    for each in drifts:
        emit(drift(what, each))
    return []


def drift(what: str, text: str) -> ConfigDrift:
    """Return the report of one difference from the settings."""
    return ConfigDrift(f"the {what} is not as set: {text}; it is used as it is")


def _unusable(faults: list[str]) -> MisconfiguredError:
    return MisconfiguredError(f"{'. '.join(faults)}. Fix it, or delete it, and the worker creates it again")


def _left_out(found: StreamConfig, settings: Settings) -> list[str]:
    """Return the queue's subjects that a stream does not have."""
    return [each for each in subjects(settings) if not any(covers(pattern, each) for pattern in found.subjects)]
