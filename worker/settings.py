"""The settings as a table: each with its default, its parser and its meaning.

Names are lower case, because Kubernetes puts ``NATS_PORT=tcp://10.0.0.7:4222`` and the like into every container beside
a service called nats. A default is written as an operator would write it, and is parsed by the same parser. A test
compares the table of docs/operations.md with the fields of :class:`Settings`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, cast

from .model import Rate
from .policy.caller_rates import parse_networks
from .policy.names import parse_function
from .policy.parse import (
    byte_limit,
    duration,
    flag,
    host,
    http_url,
    jetstream_name,
    limit,
    nats_urls,
    one_of,
    port,
    queue,
    subject_prefix,
    whole,
)
from .policy.quota import parse_minimums, parse_rate
from .policy.receiver_patterns import ReceiverPatterns, parse_patterns
from .policy.retry import Jitter, parse_attempts, parse_codes
from .policy.signature import MAX_SIZE, parse_keys

T = TypeVar("T")

MAX_PARTITIONS = 1024
"""Each partition is a consumer that a worker must serve: more are a mistake."""
ORDINAL = -1
"""Value of ``filter_partition=ordinal`` until it is replaced by the number in the pod's name."""


def readable_file(value: str) -> str:
    """Parse the path of a readable file."""
    try:
        with Path(value).open("rb"):
            return value
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError("not the path of a file") from None


def signing_keys_file(value: str) -> str:
    """Parse the path of a file of signing keys, and check its content."""
    with Path(readable_file(value)).open("rb") as file:
        parse_keys(file.read(MAX_SIZE + 1))
    return value


def partition(value: str) -> int:
    """Parse the number of a partition, or :data:`ORDINAL`."""
    error = f"not a whole number from 0 to {MAX_PARTITIONS - 1}, or ordinal"
    return ORDINAL if value == "ordinal" else whole(0, MAX_PARTITIONS - 1, error=error)(value)


def networks(value: str) -> str:
    """Parse a list of networks, and return its text."""
    parse_networks(value)
    return value


def setting(default: str | None, parse: Callable[[str], T], meaning: str, *, secret: bool = False) -> T:
    """Declare a field of :class:`Settings`. With *default* None it is unset, or derived as *meaning* describes."""
    metadata = {"default": default, "parse": parse, "meaning": meaning, "secret": secret}
    hidden = secret or parse in (http_url, nats_urls)  # a URL may hold a password
    return cast(T, dataclasses.field(metadata=metadata, repr=not hidden))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings; durations in seconds."""

    # The broker.
    nats_host: str = setting("127.0.0.1", host, "the NATS server")
    nats_port: int = setting("4222", port, "and its port")
    nats_url: str | None = setting(
        None, nats_urls, "comma-separated servers, `nats://`, `tls://` or `ws://`; overrides host and port"
    )
    nats_token: str | None = setting(None, str, "authentication by token", secret=True)
    nats_user: str | None = setting(None, str, "authentication by user and password")
    nats_password: str | None = setting(None, str, "the password of `nats_user`", secret=True)
    nats_nkey_seed: str | None = setting(None, str, "authentication by nkey", secret=True)
    nats_creds_file: str | None = setting(None, readable_file, "authentication by a credentials file")
    nats_tls_ca_file: str | None = setting(None, readable_file, "TLS: the CA of the server's certificate")
    nats_tls_cert_file: str | None = setting(None, readable_file, "TLS: client's certificate, with `nats_tls_key_file`")
    nats_tls_key_file: str | None = setting(None, readable_file, "TLS: the key of the client's certificate")

    nats_tls_first: bool = setting("false", flag, "TLS: begin with it, as a server with `handshake_first` expects")
    nats_inbox_prefix: str = setting(
        "_INBOX", subject_prefix, "the beginning of the subjects on which the program receives answers"
    )

    # The stream and its consumer.
    queue_name: str = setting(None, queue, "the queue: its subjects and label; by default the stream's name less `OF_`")
    nats_stream: str = setting("faas-request", jetstream_name, "the stream")
    nats_durable: str = setting("faas-workers", jetstream_name, "the shared consumer")
    nats_stream_replicas: int = setting("1", whole(1, 5), "the stream's replication factor")
    nats_stream_storage: Literal["file", "memory"] = setting("file", one_of("file", "memory"), "`file` or `memory`")
    nats_stream_max_bytes: int = setting("-1", byte_limit, "the stream's size when it is created, -1 for no limit")
    nats_state_max_bytes: int = setting(
        "-1", byte_limit, "the same of each of the streams `<nats_stream>-functions`, `-quotas` and `-callbacks`"
    )
    nats_bodies_max_bytes: int = setting(
        "10737418240", byte_limit, "the size of the store for large bodies when it is created, -1 for no limit"
    )
    nats_duplicate_window: float = setting(
        "2m", duration(0.1), "how long the stream recognizes a message id, when it is created"
    )
    ack_wait: float = setting(
        "60s",
        duration(1.0),
        "lease on a message; extended while its invocation runs, so it bounds how fast a dead worker is noticed, "
        "not how long a function may run",
    )
    max_ack_pending: int = setting("-1", limit, "consumer's limit of unacknowledged messages, -1 for none")
    max_waiting: int = setting("512", whole(1), "consumer's limit of waiting pulls")
    scaling_mode: Literal["static", "function"] = setting(
        "static",
        one_of("static", "function"),
        "`static`: one shared consumer, FIFO; `function`: a consumer for each function that has work",
    )
    consumer_inactive_threshold: float = setting(
        "30s", duration(1.0), "`function`: a function with nothing stored for so long loses its consumer"
    )
    consumer_pull_max_messages: int | None = setting(None, whole(1), "most messages in one pull; by default 250")
    queue_partitions: int = setting(
        "1", whole(1, MAX_PARTITIONS), "how many parts producers divide the queue into; a worker serves one of them"
    )
    filter_partition: int = setting(
        "0", partition, "the one that this worker serves; `ordinal`: the number that a StatefulSet gave this pod"
    )

    # Invoking.
    max_inflight: int = setting("50", whole(1, 1_000_000), "most invocations at once in this worker")
    function_minimums: tuple[tuple[str, int], ...] | None = setting(
        None, parse_minimums, "`function`: slots of functions, whatever others want, as `checkout=5,billing.shop=2`"
    )
    limiter_enabled: bool = setting("true", flag, "`function`: learn how many invocations each function takes at once")
    gateway_url: str = setting(
        "http://127.0.0.1:8080",
        http_url,
        "where functions are invoked; `http://user:password@host` for a gateway that asks for it",
    )
    basic_auth_user_file: str | None = setting(
        None, readable_file, "the file with the user for the gateway's `/system/`, if that asks for one"
    )
    basic_auth_password_file: str | None = setting(
        None, readable_file, "the file with its password; both are read again when they change"
    )
    upstream_timeout: float = setting("1m", duration(0.001), "longest invocation; past it, it counts as 504")
    default_function_name: str = setting(
        "openfaas-fn", queue, "(the charts' name for) the namespace of a function named without one"
    )
    max_response_bytes: int = setting(
        "10485760", whole(0), "how much of a function's response is kept for its callback; the rest is not read"
    )
    max_results_bytes: int = setting(
        "134217728", whole(0), "all responses that are kept for callbacks; beyond it, responses wait to be read"
    )

    # Deciding.
    max_retry_attempts: int = setting("100", parse_attempts, "how often an invocation is sent before it is given up")
    initial_retry_wait: float = setting("10s", duration(), "first wait between attempts")
    max_retry_wait: float = setting("120s", duration(), "longest wait between attempts")
    retry_http_codes: frozenset[int] = setting(
        "408,429,500,502,503,504", parse_codes, "codes that are retried, or `none`"
    )
    backoff: Jitter = setting(  # noqa: RUF009 -- it makes a field, as dataclasses.field does
        "exponential",
        lambda value: Jitter(one_of(*Jitter)(value)),
        "jitter: `exponential` (none), `full` (0-100 %), `equal` (50-100 %)",
    )
    retry_strategy: str = setting(
        "nak", one_of("nak", error="this version supports only nak"), "`nak`: the message is given back with a delay"
    )
    dead_letter: bool = setting("true", flag, "keep what was given up in the stream `<nats_stream>-dead-letters`")
    dead_letter_max_age: float = setting("168h", duration(1.0), "for how long")
    dead_letter_max_bytes: int = setting("-1", byte_limit, "that stream's size when it is created, -1 for no limit")

    # Calling back.
    callback_timeout: float = setting("10s", duration(0.001), "longest wait for an answer to a callback")
    callback_durable: bool = setting(
        "true", flag, "store a callback that fails in the stream `<nats_stream>-callbacks`, and retry it from there"
    )
    callback_max_age: float = setting("24h", duration(1.0), "for how long; then it becomes a dead letter")
    callback_retry_initial_wait: float = setting(
        "1s", duration(0.001), "first wait between the tries of a stored callback, doubling, half chance"
    )
    callback_retry_max_wait: float = setting("10m", duration(0.001), "longest wait between those")
    callback_attempts: int = setting(
        "3", whole(1, 100), "how many times a callback that cannot be stored is sent before it is given up"
    )
    callback_initial_wait: float = setting("500ms", duration(0.001), "first wait between those, doubling, half chance")
    callback_max_wait: float = setting("5s", duration(0.001), "longest wait between those")
    callback_allow: ReceiverPatterns | None = setting(  # noqa: RUF009 -- it makes a field, as dataclasses.field does
        None,
        parse_patterns,
        "receivers that are always allowed: hosts (`*.example.com`, `host:port`), addresses and networks, or `*`",
    )
    callback_deny: ReceiverPatterns | None = setting(  # noqa: RUF009 -- the same
        None, parse_patterns, "receivers that are refused unless `callback_allow` lists them, in the same form"
    )
    callback_secret_file: str | None = setting(
        None, signing_keys_file, "keys that sign callbacks, one a line, the first one first"
    )
    tls_insecure: bool = setting("false", flag, "do not verify TLS certificates of callbacks")

    # The process.
    processes: int = setting(
        "1", whole(1, 128), "worker processes in this container, which share `max_inflight`; one for each core"
    )
    shutdown_timeout: float = setting("25s", duration(), "how long a drain waits for running invocations")
    http_host: str = setting("0.0.0.0", host, "where metrics and health are served")  # noqa: S104 -- the contract's: Prometheus and the kubelet come from outside
    http_port: int = setting("8081", port, "and the port")
    listen_host: str = setting("0.0.0.0", host, "where `queue-worker gateway` listens")  # noqa: S104 -- the same: it is a front door
    listen_port: int = setting("8080", port, "and the port")
    max_connections: int = setting("2000", whole(1, 1_000_000), "most connections of callers there at once")
    max_body_bytes: int = setting(
        "104857600",
        whole(0, 2**53, digits=16, error="not a number of bytes: write a whole number from 0"),
        "largest body there; above the server's `max_payload` it travels through the object store",
    )
    client_timeout: float = setting(
        "20s", duration(0.1), "longest wait there for a caller's bytes: for a header, a part of a body, or a read"
    )
    function_annotations: bool = setting(
        "true", flag, "there: read a function's annotations from `gateway_url`, and write them into its messages"
    )
    function_check: bool = setting("false", flag, "there: 404 for functions that the gateway does not have")
    max_queued: int | None = setting(
        None, whole(1), "there: 429 with `Retry-After` above so many messages in the function's queue"
    )
    max_queued_per_function: int | None = setting(None, whole(1), "there: the same above so many of one function")
    caller_rate: Rate | None = setting(  # noqa: RUF009 -- it makes a field, as dataclasses.field does
        None, parse_rate, "there: 429 above so many calls of one address (IPv6: one /64), as `100/s`, `1000/m`"
    )
    trusted_proxies: str | None = setting(
        None, networks, "there: addresses and networks of proxies whose `X-Forwarded-For` names the caller's address"
    )
    debug: bool = setting("false", flag, "debug logs")
    log_encoding: Literal["console", "json"] = setting("console", one_of("console", "json"), "`console` or `json`")

    @property
    def minimums(self) -> Mapping[str, int]:
        """:attr:`function_minimums` by ``name.namespace``."""
        minimums = self.function_minimums or ()
        return {".".join(parse_function(name, self.default_function_name)): slots for name, slots in minimums}

    @property
    def nats_servers(self) -> tuple[str, ...]:
        """The servers to connect to, as URLs."""
        if self.nats_url:
            return tuple(url.strip() for url in self.nats_url.split(","))
        host = f"[{self.nats_host}]" if ":" in self.nats_host else self.nats_host
        return (f"nats://{host}:{self.nats_port}",)


SETTING_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
