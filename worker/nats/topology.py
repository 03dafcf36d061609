"""The stream and its consumer: made exactly as the contract has them, or found, checked, and used as they are.

A consumer is created with the server's ``create`` action, never create-or-update: an update to no filter silently
breaks a work queue. What cannot work is told in one message that names all of it; what merely surprises is told and
used.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import re
from collections.abc import Callable
from typing import Any

from ..config import Settings
from ..events import ConfigDrift, Created
from ..policy.durations import format_duration
from ..policy.names import covers
from ..ports import Emit, MisconfiguredError
from .connection import Connection
from .layout import FUNCTION, MODE, PARTITIONS, static
from .wire import ApiError

NO_STREAM, NO_CONSUMER = 10059, 10014
"""JetStream's error codes for what is not there."""
TOO_MANY = 10026
"""The same, where a stream may have no more consumers."""
_MOST_CONSUMERS = 1_000_000
"""What nobody reaches."""
_NOT_FOUND = {"stream": NO_STREAM, "consumer": NO_CONSUMER}
_OVERLAPS = {
    10065: "the subjects overlap with those of another stream",
    10058: "a stream of that name was made meanwhile with another configuration",
    10099: "other consumers, with filters, exist on the stream: the queue is in function mode",
    10100: "another consumer on the stream takes some of the same subjects",
    10148: "a consumer of that name was made meanwhile with another configuration",
}
"""JetStream's error codes for what waiting does not mend, and what each means here."""
_UNREADABLE = re.compile(r"[^A-Za-z0-9_-]+")
_READABLE = 60
"""Characters of a consumer's name that tell people which function it is of; what identifies it is a hash."""
_GONE = 1.0
"""Seconds that a stream which is gone is left alone before it is made again. Nats-server tells of the end of a stream
before its files are removed: one made meanwhile had the old one's sequence, and stored nothing of what was published,
for ever (2.15.1; on a busy machine once in 30 tries)."""
DUPLICATES = 120.0
"""Seconds in which the stream knows a message id again."""
_REMEMBERED = 3600.0
"""The same for dead letters: longer than any ack wait, after which a half-finished burial is done again."""


def stream_config(settings: Settings) -> dict[str, Any]:
    """The stream (contract, section 3)."""
    return {
        "name": settings.nats_stream,
        "subjects": subjects(settings),
        "retention": "workqueue",
        "discard": "old",
        "storage": settings.nats_stream_storage,
        "num_replicas": settings.nats_stream_replicas,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": _ns(DUPLICATES),
    }


def consumer_config(settings: Settings, layout: str = static(1), *, alone: bool = True) -> dict[str, Any]:
    """The shared consumer of static mode (contract, section 3).

    Args:
        settings: what is meant.
        layout: with or without partitions.
        alone: it is the only consumer. Where there are others the server takes none without filters.
    """
    if layout == static(1):
        config = _consumer(settings, settings.nats_durable, "static")
        return config if alone else config | {"filter_subjects": subjects(settings)}
    partitions = int(layout.partition("/")[2])
    part = settings.filter_partition % partitions
    config = _consumer(settings, f"{settings.nats_durable}-p{part}", "static")
    bare = [settings.queue_name] if part == 0 else []
    return config | {
        "filter_subjects": [*bare, f"{settings.queue_name}.{part}.>"],
        "metadata": {MODE: "static", PARTITIONS: str(partitions)},
    }


def shared_consumers(settings: Settings, layout: str) -> list[str]:
    """The names of a static layout's consumers, that of all partitions."""
    if layout == static(1):
        return [settings.nats_durable]
    return [f"{settings.nats_durable}-p{part}" for part in range(int(layout.partition("/")[2]))]


def flow_config(settings: Settings, subject: str, number: int = 1) -> dict[str, Any]:
    """The consumer of one subject. *number*: above one where consumers of that name are retired."""
    name = flow_consumer(settings, subject) + (f"-{number}" if number > 1 else "")
    return _consumer(settings, name, FUNCTION) | {"filter_subject": subject}


def _consumer(settings: Settings, name: str, mode: str) -> dict[str, Any]:
    return {
        "durable_name": name,
        "name": name,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "max_deliver": -1,
        "max_ack_pending": settings.max_ack_pending,
        "max_waiting": settings.max_waiting,
        "ack_wait": _ns(settings.ack_wait),
        "metadata": {MODE: mode},
    }


def flow_consumer(settings: Settings, subject: str) -> str:
    """The name of a subject's consumer: ``faas-workers-0-echo-openfaas-fn-3f786850e387``.

    At most 255 bytes long, as JetStream has it: the durable's name is cut where it must be.
    """
    readable = _UNREADABLE.sub("-", subject.removeprefix(f"{settings.queue_name}."))[:_READABLE].strip("-")
    digest = hashlib.sha256(subject.encode()).hexdigest()[:12]
    return f"{settings.nats_durable[:150]}-{readable or 'any'}-{digest}"


def dead_letter_config(settings: Settings) -> dict[str, Any]:
    """The stream of what was given up. Its subjects begin in capitals, as no queue does, so they collide with none."""
    return {
        "name": dead_letter_stream(settings),
        "subjects": [f"DEAD-LETTERS.{settings.queue_name}.>"],
        "retention": "limits",
        "discard": "old",
        "storage": settings.nats_stream_storage,
        "num_replicas": settings.nats_stream_replicas,
        "max_age": _ns(settings.dead_letter_max_age),
        "duplicate_window": _ns(min(_REMEMBERED, settings.dead_letter_max_age)),
        "allow_direct": True,
    }


def dead_letter_stream(settings: Settings) -> str:
    """Its name."""
    return f"{settings.nats_stream}-dead-letters"


def subjects(settings: Settings) -> list[str]:
    """All subjects of the queue."""
    return [settings.queue_name, f"{settings.queue_name}.>"]


def stream_faults(found: dict[str, Any], settings: Settings) -> tuple[list[str], list[str]]:
    """What cannot work about a stream's configuration, and what merely surprises."""
    faults = []
    if found.get("retention") != "workqueue":
        faults.append(f"its retention is {found.get('retention')!r}, not 'workqueue': messages would not leave it")
    if found.get("sealed"):
        faults.append("it is sealed")
    if found.get("no_ack"):
        faults.append("it has no_ack set: a publisher would never know that its message is stored")
    surprises = [
        f"its subjects {found.get('subjects', [])} leave out {subject!r}"
        for subject in subjects(settings)
        if not _taken(found, subject)
    ]
    for key, meant in (
        ("num_replicas", settings.nats_stream_replicas),
        ("storage", settings.nats_stream_storage),
        ("max_msgs", -1),
        ("max_bytes", -1),
        ("max_msgs_per_subject", -1),
        ("max_age", 0),
    ):
        if (value := found.get(key, meant)) != meant:
            surprises.append(f"its {key} is {value}, not {meant}")
    return faults, surprises


def consumer_faults(found: dict[str, Any], meant: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What cannot work about a consumer's configuration, and what merely surprises."""
    faults = []
    if found.get("ack_policy") != "explicit":
        faults.append(f"its ack_policy is {found.get('ack_policy')!r}, not 'explicit'")
    if found.get("deliver_subject"):
        faults.append("it is a push consumer (deliver_subject is set), and we pull")
    if found.get("max_deliver", -1) != -1:
        faults.append(
            f"its max_deliver is {found['max_deliver']}, not -1: the server would drop what is still to be retried"
        )
    if found.get("backoff"):
        faults.append("it has a backoff, which bends every wait between attempts")
    surprises = []
    theirs, ours = filters(found), filters(meant)
    if "filter_subject" in meant:
        if theirs != ours:
            faults.append(f"its filter is {theirs}, not {ours}")
    elif theirs and not (ours and {*theirs} >= {*ours}):
        surprises.append(f"its filter {theirs} may leave out messages of the queue")
    for key in ("ack_wait", "max_ack_pending", "max_waiting"):
        if (value := found.get(key, meant[key])) != meant[key]:
            shown = (format_duration(each / 1e9) if key == "ack_wait" else each for each in (value, meant[key]))
            surprises.append("its {} is {}, not {}".format(key, *shown))
    return faults, surprises


def filters(consumer: dict[str, Any]) -> list[str]:
    """The subjects that a consumer is for; none where it is for all."""
    return consumer.get("filter_subjects") or ([one] if (one := consumer.get("filter_subject")) else [])


async def as_named(connection: Connection, settings: Settings, emit: Emit) -> Settings:
    """The settings, with the stream's name as it is at the server.

    OpenFaaS's own worker names a queue's stream ``OF_<queue>`` while its charts set ``nats_stream`` to the bare name.
    Where it has worked, that stream holds the queue's subjects, and is used, so that changing the image is all there
    is to do.

    Raises:
        ApiError: the server said no.
        worker.ports.BrokerUnavailableError: it did not answer.
    """
    theirs = f"OF_{settings.nats_stream}"
    if await _find(connection, "stream", settings.nats_stream):
        return settings
    found = await _find(connection, "stream", theirs)
    if found is None or not all(_taken(found["config"], subject) for subject in subjects(settings)):
        return settings
    emit(ConfigDrift(f"there is no stream {settings.nats_stream}, but {theirs} has its subjects; it is used"))
    return dataclasses.replace(settings, nats_stream=theirs)


async def ensure_stream(connection: Connection, settings: Settings, emit: Emit, *, again: bool) -> str:
    """Find the stream, or make it; when it was made, as the server writes it.

    Args:
        connection: to whom to talk.
        settings: what is meant.
        emit: told what was made, and what surprises.
        again: it was there before, so to miss it is worth a warning.

    Raises:
        MisconfiguredError: what was found cannot work.
        ApiError: the server said no for a passing reason.
        worker.ports.BrokerUnavailableError: it did not answer.
    """
    stream, consumer = settings.nats_stream, settings.nats_durable
    if again and not await _find(connection, "stream", stream):
        await asyncio.sleep(_GONE)
    info = await _find_or_make(
        connection,
        "stream",
        stream,
        stream_config(settings),
        lambda: emit(Created("stream", stream, again)),
    )
    if unusable := _judge(f"stream {stream}", *stream_faults(info["config"], settings), emit):
        # Nothing is made on such a stream, but what else is wrong there is told at once.
        if theirs := await _find(connection, "consumer", f"{stream}.{consumer}"):
            what = f"consumer {consumer} of stream {stream}"
            unusable += _judge(what, *consumer_faults(theirs["config"], consumer_config(settings)), emit)
        raise MisconfiguredError(_told(unusable))
    return str(info["created"])


async def ensure_consumer(
    connection: Connection, settings: Settings, config: dict[str, Any], emit: Emit, *, again: bool
) -> dict[str, Any]:
    """Find a consumer, or make it; what the server says of it.

    Raises: as :func:`ensure_stream` does.
    """
    stream, name = settings.nats_stream, config["name"]
    info = await _find_or_make(
        connection,
        "consumer",
        f"{stream}.{name}",
        {"stream_name": stream, "config": config, "action": "create"},
        lambda: emit(Created("consumer", name, again)),
    )
    what = f"consumer {name} of stream {stream}"
    if unusable := _judge(what, *consumer_faults(info["config"], config), emit):
        raise MisconfiguredError(_told(unusable))
    return info


async def allow_more_consumers(connection: Connection, settings: Settings, emit: Emit) -> bool:
    """Let a stream have as many consumers as its configuration says, where that sets no limit.

    From 2.15 on nats-server takes "no limit" for 1,000. False: somebody has set a limit, which stays.

    Raises:
        ApiError: the server said no.
        worker.ports.BrokerUnavailableError: it did not answer.
    """
    stream = settings.nats_stream
    config = (await connection.ask(f"STREAM.INFO.{stream}"))["config"]
    if config.get("max_consumers", -1) > 0:
        return bool(config["max_consumers"] >= _MOST_CONSUMERS)
    await connection.ask(f"STREAM.UPDATE.{stream}", config | {"max_consumers": _MOST_CONSUMERS})
    emit(
        ConfigDrift(f"the stream {stream} may have no more consumers by the server's default; its max_consumers is set")
    )
    return True


async def ack_wait(connection: Connection, settings: Settings) -> float:
    """The consumer's ack wait as it is now (s).

    Raises:
        ApiError: there is no such consumer.
        worker.ports.BrokerUnavailableError: the server did not answer.
    """
    return ack_wait_of(await connection.ask(f"CONSUMER.INFO.{settings.nats_stream}.{settings.nats_durable}"))


async def make_dead_letters(connection: Connection, settings: Settings, emit: Emit) -> None:
    """Make the stream of dead letters; found, it is used as it is.

    Raises:
        ApiError: the server said no.
        worker.ports.BrokerUnavailableError: it did not answer.
    """
    name = dead_letter_stream(settings)
    await _find_or_make(
        connection,
        "stream",
        name,
        dead_letter_config(settings),
        lambda: emit(Created("stream", name, recreated=False)),
    )


async def _find_or_make(
    connection: Connection, what: str, name: str, config: dict[str, Any], made: Callable[[], None]
) -> dict[str, Any]:
    if found := await _find(connection, what, name):
        return found
    try:
        answer = await connection.ask(f"{what.upper()}.CREATE.{name}", config)
    except ApiError as error:
        if not (meaning := _OVERLAPS.get(error.err_code)):
            raise
        try:  # another worker may have been quicker, with what serves us as well
            return await connection.ask(f"{what.upper()}.INFO.{name}")
        except ApiError:
            raise MisconfiguredError(f"cannot make the {what} {name}: {meaning} ({error})") from None
    made()
    return answer


async def _find(connection: Connection, what: str, name: str) -> dict[str, Any] | None:
    try:
        return await connection.ask(f"{what.upper()}.INFO.{name}")
    except ApiError as error:
        if error.err_code != _NOT_FOUND[what]:
            raise
        return None


def _judge(what: str, faults: list[str], surprises: list[str], emit: Emit) -> list[str]:
    """Why it cannot be used, in one text; nothing where it can, and then what surprises is told."""
    if faults:
        return [f"the {what} cannot be used: {'; '.join(faults)}"]
    for surprise in surprises:
        emit(ConfigDrift(f"the {what} is not as set: {surprise}; it is used as it is"))
    return []


def ack_wait_of(consumer: dict[str, Any]) -> float:
    """A consumer's ack wait (s)."""
    return float(consumer["config"]["ack_wait"] / 1e9)


def _told(unusable: list[str]) -> str:
    return f"{'. '.join(unusable)}. Mend it, or delete it to have it made anew"


def _taken(stream: dict[str, Any], subject: str) -> bool:
    return any(covers(pattern, subject) for pattern in stream.get("subjects") or [])


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
