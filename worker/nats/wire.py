"""The JSON of JetStream's API: requests, answers and errors. Bytes in, values out; nothing here waits."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import IntEnum
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

T = TypeVar("T")


class ErrorCode(IntEnum):
    """JetStream's ``err_code``, by the names of nats-server's errors.json; those that are treated differently."""

    ACCOUNT_RESOURCES_EXCEEDED = 10002
    CLUSTER_NO_PEERS = 10005
    CLUSTER_NOT_AVAILABLE = 10008
    CONSUMER_NOT_FOUND = 10014
    INSUFFICIENT_RESOURCES = 10023
    MAXIMUM_CONSUMERS_LIMIT = 10026
    MAXIMUM_STREAMS_LIMIT = 10027
    MEMORY_RESOURCES_EXCEEDED = 10028
    NO_MESSAGE_FOUND = 10037
    NOT_ENABLED_FOR_ACCOUNT = 10039
    STORAGE_RESOURCES_EXCEEDED = 10047
    STREAM_INVALID_CONFIG = 10052
    STREAM_MESSAGE_EXCEEDS_MAXIMUM = 10054
    STREAM_NAME_EXIST = 10058
    STREAM_NOT_FOUND = 10059
    STREAM_NOT_MATCH = 10060
    """The subject belongs to another stream than the publisher expects."""
    STREAM_SUBJECT_OVERLAP = 10065
    STREAM_WRONG_LAST_SEQUENCE = 10071
    STREAM_REPLICAS_NOT_SUPPORTED = 10074
    NOT_ENABLED = 10076
    STREAM_STORE_FAILED = 10077
    """Among other reasons: the subject has as many messages as it may have."""
    CONSUMER_WQ_MULTIPLE_UNFILTERED = 10099
    CONSUMER_WQ_CONSUMER_NOT_UNIQUE = 10100
    STREAM_MAX_BYTES_REQUIRED = 10113
    STREAM_OFFLINE = 10118
    CONSUMER_MAX_PENDING_EXCESS = 10121
    STREAM_MAX_STREAM_BYTES_EXCEEDED = 10122
    CONSUMER_ALREADY_EXISTS = 10148
    STREAM_DUPLICATE_MESSAGE_CONFLICT = 10158
    """A replicated stream is just storing a message with the same message id."""
    STREAM_WRONG_LAST_SEQUENCE_CONSTANT = 10164


_SIZES = "nats_stream_max_bytes, dead_letter_max_bytes, nats_bodies_max_bytes and nats_state_max_bytes"
_REPLICAS = "set nats_stream_replicas to what the servers can hold, 1 for a single server"
_ROOM = f"raise the account's limit, or set smaller {_SIZES}"
_JETSTREAM = "switch JetStream on for the server and the account, or connect to one that has it"
_REMEDIES: dict[int, str] = {
    ErrorCode.ACCOUNT_RESOURCES_EXCEEDED: _ROOM,
    ErrorCode.CLUSTER_NO_PEERS: _REPLICAS,
    ErrorCode.INSUFFICIENT_RESOURCES: _ROOM,
    ErrorCode.MAXIMUM_CONSUMERS_LIMIT: "raise the limit of consumers of the account or stream, or delete unused ones",
    ErrorCode.MAXIMUM_STREAMS_LIMIT: "raise the account's limit of streams, or delete one: a queue has up to six",
    ErrorCode.MEMORY_RESOURCES_EXCEEDED: f"set nats_stream_storage to file, or {_ROOM}",
    ErrorCode.NOT_ENABLED_FOR_ACCOUNT: _JETSTREAM,
    ErrorCode.NOT_ENABLED: _JETSTREAM,
    ErrorCode.STORAGE_RESOURCES_EXCEEDED: _ROOM,
    ErrorCode.STREAM_INVALID_CONFIG: "if it names the duplicates window, set nats_duplicate_window within that limit",
    ErrorCode.STREAM_REPLICAS_NOT_SUPPORTED: _REPLICAS,
    ErrorCode.STREAM_MAX_BYTES_REQUIRED: f"set {_SIZES}",
    ErrorCode.CONSUMER_MAX_PENDING_EXCESS: "set max_ack_pending within that limit",
    ErrorCode.STREAM_MAX_STREAM_BYTES_EXCEEDED: f"set smaller {_SIZES}",
}
"""An operator's remedies of errors, most of them of a creation."""


class ApiError(Exception):
    """An error that JetStream answered to a request or a publish."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        remedy = f": {_REMEDIES[err_code]}" if err_code in _REMEDIES else ""
        super().__init__(f"{description} ({code}/{err_code}){remedy}")
        self.code, self.err_code, self.description = code, err_code, description


class ConsumerConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A consumer's configuration: what a worker creates, and the same fields of a server's. Durations are in ns."""

    name: str = ""
    durable_name: str = ""
    deliver_policy: str = ""
    ack_policy: str = ""
    replay_policy: str = ""
    deliver_subject: str = ""
    filter_subject: str = ""
    filter_subjects: tuple[str, ...] = ()
    max_deliver: int | None = None
    max_ack_pending: int | None = None
    max_waiting: int | None = None
    ack_wait: int = 0
    backoff: tuple[int, ...] = ()
    headers_only: bool = False
    max_batch: int = 0
    max_expires: int = 0
    priority_groups: tuple[str, ...] = ()
    pause_until: str = ""
    inactive_threshold: int = 0
    metadata: dict[str, str] = {}

    @property
    def filters(self) -> tuple[str, ...]:
        """The subjects that the consumer is filtered to; none where it has no filter."""
        return self.filter_subjects or tuple(filter(None, [self.filter_subject]))


class DeliveredSequence(Struct, frozen=True):
    """The end of what a consumer has delivered."""

    stream_seq: int = 0
    consumer_seq: int = 0
    """The number of its deliveries, redeliveries among them."""


class ConsumerInfo(Struct, kw_only=True):
    """A consumer as the server describes it."""

    name: str
    sent: dict[str, Any] = field(name="config")
    """The whole configuration as the server sent it; an update has to send all of it back."""
    config: ConsumerConfig = field(name="", default=ConsumerConfig())
    """The fields of it that are used."""
    delivered: DeliveredSequence
    num_ack_pending: int
    num_pending: int
    paused: bool = False
    pause_remaining: int = 0
    """Nanoseconds until its pause ends."""
    ts: str = ""
    """The server's time, as :func:`parse_time` reads it."""

    def __post_init__(self) -> None:
        self.config = msgspec.convert(self.sent, ConsumerConfig)

    @property
    def ack_wait(self) -> float:
        """The ack wait (s)."""
        return self.config.ack_wait / 1e9


class StreamConfig(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stream's configuration, as :class:`ConsumerConfig` is a consumer's."""

    name: str = ""
    subjects: tuple[str, ...] = ()
    retention: str = ""
    discard: str = ""
    discard_new_per_subject: bool = False
    storage: str | None = None
    num_replicas: int | None = None
    max_consumers: int | None = None
    max_msgs: int | None = None
    max_bytes: int | None = None
    max_age: int = 0
    max_msg_size: int | None = None
    max_msgs_per_subject: int | None = None
    duplicate_window: int = 0
    allow_direct: bool = False
    allow_rollup_hdrs: bool = False
    sealed: bool = False
    deny_delete: bool = False
    no_ack: bool = False


class StreamState(Struct):
    """The contents of a stream."""

    messages: int
    last_seq: int
    first_ts: str = ""
    """The time at which the first message was stored, as :func:`parse_time` reads it."""
    subjects: dict[str, int] = {}
    """Messages by subject, where the request asked for them."""


class StreamInfo(Struct, kw_only=True):
    """A stream as the server describes it, with its configuration as a :class:`ConsumerInfo` has it."""

    sent: dict[str, Any] = field(name="config")
    config: StreamConfig = field(name="", default=StreamConfig())
    state: StreamState
    created: str
    """The time of its creation, which differs from that of a later stream of the same name."""
    ts: str = ""
    """The server's time."""
    total: int = 0
    """The number of subjects on all pages."""

    def __post_init__(self) -> None:
        self.config = msgspec.convert(self.sent, StreamConfig)


class ConsumerPage(Struct, frozen=True):
    """A part of the list of a stream's consumers."""

    consumers: list[ConsumerInfo] | None = None
    missing: list[str] = []
    """Consumers that have no leader now."""
    total: int = 0


class StoredMessage(Struct, frozen=True):
    """A message of a stream."""

    subject: str
    seq: int
    time: str
    data: bytes = b""


class PubAck(Struct, frozen=True):
    """The confirmation that a stream stored a message."""

    stream: str
    seq: int
    duplicate: bool = False
    """The stream had it already, by its message id."""


class _Error(Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Failure(Struct, frozen=True):
    error: _Error | None = None


def decode_answer(data: bytes, kind: type[T]) -> T:
    """Decode JetStream's answer to a request or a publish.

    Raises:
        ApiError: the answer is an error.
        ValueError: the answer is not JetStream's; anyone may answer on a subject.
    """
    try:
        if not data.isascii():
            data.decode()  # msgspec does not check the names of fields that it does not know
        if (error := msgspec.json.decode(data, type=_Failure).error) is not None:
            raise ApiError(error.code, error.err_code, error.description)
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise ValueError("an answer that is not JetStream's") from None


def parse_time(text: str) -> datetime:
    """Read a time as the server writes it, with as many digits as there are, to the microsecond."""
    head, _, tail = text.rstrip("Z").partition(".")
    return datetime.fromisoformat(f"{head}.{(tail + '000000')[:6]}").replace(tzinfo=UTC)


def nanoseconds(text: str) -> int:
    """Return a time as the server writes it in nanoseconds since the epoch, to the microsecond."""
    return int(parse_time(text).timestamp() * 1e6) * 1000
