"""The settings: read once, checked together, frozen, and passed on in parts.

Names are lower case, because Kubernetes puts ``NATS_PORT=tcp://10.0.0.7:4222`` and the like into every container beside
a service called nats. A default is written as an operator would write it, and is parsed by the same parser. A test
compares the table of docs/operations.md with the fields of :class:`Settings`.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from .policy.durations import format_duration
from .policy.names import is_name, parse_function
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
from .policy.quota import parse_minimums
from .policy.retry import NO_CODES, Jitter, parse_attempts, parse_codes

T = TypeVar("T")

_UPPER = "QUEUE_WORKER_"
_FOREIGN_VARIABLES = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"})
"""Lower-case variables of other programs."""
MAX_PARTITIONS = 1024
"""Each partition is a consumer that a worker must serve: more are a mistake."""
ORDINAL = -1
"""Value of ``filter_partition=ordinal`` until it is replaced by the number in the pod's name."""
_TYPO_RATIO = 0.8
"""The similarity (``difflib``'s ratio) from which a name is taken for a typo of a setting's: 8 letters in 10."""
_KUBERNETES = re.compile(
    r"\w+_(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*|PORT=(tcp|udp|sctp)://.*)",
    re.ASCII,
)
"""Variables that Kubernetes sets for a service: for queue-worker-nats, QUEUE_WORKER_NATS_PORT=tcp://..."""


class InvalidSettingsError(Exception):
    """One or more settings are invalid. The text names each one, its value and the accepted values."""


def readable_file(value: str) -> str:
    """Parse the path of a readable file."""
    try:
        with Path(value).open("rb"):
            return value
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    except ValueError:
        raise ValueError("not the path of a file") from None


def partition(value: str) -> int:
    """Parse the number of a partition, or :data:`ORDINAL`."""
    error = f"not a whole number from 0 to {MAX_PARTITIONS - 1}, or ordinal"
    return ORDINAL if value == "ordinal" else whole(0, MAX_PARTITIONS - 1, error=error)(value)


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
        "-1", byte_limit, "the same of each of the streams `<nats_stream>-functions` and `<nats_stream>-quotas`"
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
    upstream_timeout: float = setting("1m", duration(0.001), "longest invocation; past it, it counts as 504")
    default_function_name: str = setting(
        "openfaas-fn", queue, "(the charts' name for) the namespace of a function named without one"
    )
    max_response_bytes: int = setting(
        "10485760", whole(0), "how much of a function's response is kept for its callback; the rest is not read"
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
    callback_attempts: int = setting("3", whole(1, 100), "how many times a callback is sent before it is given up")
    callback_initial_wait: float = setting("500ms", duration(0.001), "first wait between those, doubling, half chance")
    callback_max_wait: float = setting("5s", duration(0.001), "longest wait between those")
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


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, the origin of each, and warnings."""

    settings: Settings
    origins: Mapping[str, str]
    warnings: tuple[str, ...]


def load(environment: Mapping[str, str]) -> LoadedSettings:
    """Read all settings from *environment*, and from the files that it names, or raise InvalidSettingsError."""
    environment = {name: value for name, value in environment.items() if not _KUBERNETES.fullmatch(f"{name}={value}")}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    problems: list[str] = []
    for name, field in SETTING_FIELDS.items():
        try:
            text, origins[name] = _raw_value(name, field, environment)
            values[name] = None if text is None else _parse(name, text, field, origins[name])
        except ValueError as error:
            problems.append(str(error))
    problems += _set_ordinal(values, origins, environment)
    problems += _combination_problems(values, origins)
    if problems:
        count = "1 setting" if len(problems) == 1 else f"{len(problems)} settings"
        raise InvalidSettingsError(f"{count} cannot be used:\n" + "\n".join(f"  {problem}" for problem in problems))
    return LoadedSettings(Settings(**values), origins, tuple(_typo_warnings(environment)))


def describe(loaded: LoadedSettings) -> list[tuple[str, str, str]]:
    """Return name, value as an operator would write it, and origin of each setting; secrets are masked."""
    values = ((name, getattr(loaded.settings, name), field) for name, field in SETTING_FIELDS.items())
    return [(name, _display(value, field), loaded.origins[name]) for name, value, field in values]


def _raw_value(name: str, field: dataclasses.Field[Any], environment: Mapping[str, str]) -> tuple[str | None, str]:
    """Return a setting's text and origin. An empty value counts as unset, because the charts set some settings so."""
    upper = _UPPER + name.upper()
    files = (f"{name}_file", f"{upper}_FILE") if field.metadata["secret"] else ()
    found = [source for source in (name, upper, *files) if environment.get(source)]
    if len(found) > 1:
        raise ValueError(f"{name} is set twice, by {' and '.join(found)}: keep one")
    if not found:
        return field.metadata["default"], "default"
    source, value = found[0], environment[found[0]]
    if not _is_text(value):
        raise ValueError(f"{source} is not text in UTF-8")
    if source not in files:
        return value, f"environment {source}"
    try:
        content = Path(value).read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:  # a ValueError: not a path, or not a text file
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"{source} = {value!r} cannot be read: {reason}") from None
    if not content:
        raise ValueError(f"{source} = {value!r} is empty")
    return content, f"file {value}"


def _parse(name: str, text: str, field: dataclasses.Field[Any], origin: str) -> Any:
    try:
        return field.metadata["parse"](text)
    except ValueError as error:
        raise ValueError(f"{name} = {_display(text, field)!r} ({origin}): {error}") from None


def _is_text(value: str) -> bool:
    """Return whether *value* has no lone surrogate, Python's mark of a byte that is not UTF-8."""
    return value.encode(errors="ignore").decode() == value


def _combination_problems(values: dict[str, Any], origins: dict[str, str]) -> list[str]:
    """Return the problems of settings with each other; set queue_name where nats_stream gives it."""
    problems = []
    if values.get("queue_name", "") is None and (stream := values.get("nats_stream")):
        name, origins["queue_name"] = stream.removeprefix("OF_"), "nats_stream"
        values["queue_name"] = name
        if not is_name(name):
            named = f"queue_name is not set, and {name!r}, after nats_stream = {stream!r}"
            problems.append(f"{named}, cannot name a queue: set it")
    for one, other in (("nats_user", "nats_password"), ("nats_tls_cert_file", "nats_tls_key_file")):
        if (values.get(one) is None) != (values.get(other) is None) and one in values and other in values:
            problems.append(f"{one} and {other} go together: set both or neither")
    methods = [name for name in ("nats_token", "nats_user", "nats_nkey_seed", "nats_creds_file") if values.get(name)]
    if len(methods) > 1:
        problems.append(f"{' and '.join(methods)} are different ways to authenticate: keep one")
    if (number := values.get("filter_partition", 0)) >= (partitions := values.get("queue_partitions", number + 1)):
        problems.append(
            f"filter_partition = {number} ({origins['filter_partition']}) is none of queue_partitions = {partitions}:"
            " they are counted from 0"
        )
    minimums = sum(minimum for _, minimum in values.get("function_minimums") or ())
    if minimums > (slots := values.get("max_inflight", minimums)):
        problems.append(f"function_minimums are {minimums} slots in all, and max_inflight = {slots} has fewer")
    if (processes := values.get("processes", 1)) > (slots := values.get("max_inflight", processes)):
        problems.append(
            f"processes = {processes} is more than max_inflight = {slots}, which they share: each runs one at least"
        )
    return problems


def _set_ordinal(values: dict[str, Any], origins: dict[str, str], environment: Mapping[str, str]) -> list[str]:
    """Replace :data:`ORDINAL` by the number in the name of a StatefulSet's pod; return the problems with it."""
    if values.get("filter_partition") != ORDINAL:
        return []
    pod = environment.get("HOSTNAME", "")
    if number := re.fullmatch(r".*-([0-9]{1,9})", pod, re.ASCII):
        values["filter_partition"] = int(number[1])
        origins["filter_partition"] += f", HOSTNAME={pod}"
        return []
    del values["filter_partition"]
    named = f"HOSTNAME is {pod!r}, which ends in no -number" if pod else "HOSTNAME is not set"
    origin, advice = origins["filter_partition"], "as the name of a StatefulSet's pod does: set the partition's number"
    return [f"filter_partition = 'ordinal' ({origin}): {named}, {advice}"]


def _typo_warnings(environment: Mapping[str, str]) -> list[str]:
    known = set(SETTING_FIELDS) | {f"{name}_file" for name, field in SETTING_FIELDS.items() if field.metadata["secret"]}
    warnings = []
    for variable in filter(_is_text, sorted(environment)):
        prefixed, name = variable.startswith(_UPPER), variable.removeprefix(_UPPER).lower()
        if name in known or not (prefixed or (variable.islower() and variable not in _FOREIGN_VARIABLES)):
            continue
        if close := difflib.get_close_matches(name, known, n=1, cutoff=_TYPO_RATIO):
            warnings.append(f"{variable} is not a setting; did you mean {close[0]}?")
        elif prefixed:
            warnings.append(f"{variable} is not a setting")
    return warnings


def _display(value: Any, field: dataclasses.Field[Any]) -> str:
    if value is None:
        return ""
    if field.metadata["secret"]:
        return "********"
    if field.metadata["parse"] in (host, http_url, nats_urls):
        return without_password(value)
    return _FORMATTERS.get(type(value), str)(value)


_FORMATTERS: Mapping[type, Callable[[Any], str]] = {
    bool: lambda value: str(value).lower(),
    float: format_duration,
    frozenset: lambda value: ",".join(map(str, sorted(value))) or NO_CODES,
    tuple: lambda value: ",".join(f"{name}={slots}" for name, slots in value),
}


def without_password(url: str) -> str:
    """Mask user and password of a URL, or of a list of URLs, also if they have characters that should be escaped."""
    urls = re.split(r",(?=\s*\w+://)", url)
    return ",".join(re.sub(r"^(\s*\w+://)?.*@", r"\1********@", each, flags=re.DOTALL) for each in urls)
