from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from worker.config import InvalidSettingsError, LoadedSettings, describe, load
from worker.model import Rate
from worker.policy.parse import without_password
from worker.policy.receiver_patterns import parse_patterns
from worker.settings import SETTING_FIELDS, Settings

# The contract's table (section 2), less the settings that have no default of their own.
TABLE = """
| `nats_host`† `nats_port`† | `127.0.0.1` `4222` |
| `nats_stream`† | `faas-request` |
| `nats_durable`† | `faas-workers` |
| `nats_stream_replicas`† | `1` |
| `nats_stream_storage` | `file` |
| `ack_wait`† | `60s` |
| `max_ack_pending` | `-1` |
| `max_waiting` | `512` |
| `scaling_mode`† | `static` |
| `consumer_inactive_threshold`† | `30s` |
| `queue_partitions`† `filter_partition`† | `1` `0` |
| `max_inflight`† | `50` |
| `limiter_enabled`† | `true` |
| `gateway_url`† | `http://127.0.0.1:8080` |
| `upstream_timeout`† | `1m` |
| `max_retry_attempts`† | `100` |
| `initial_retry_wait`† `max_retry_wait`† | `10s` `120s` |
| `retry_http_codes`† | `408,429,500,502,503,504` |
| `backoff`† | `exponential` |
| `default_function_name`† | `openfaas-fn` |
| `tls_insecure`† | `false` |
| `debug`† `log_encoding`† | `false` `console` |
| `shutdown_timeout` | `25s` |
| `http_host` `http_port` | `0.0.0.0` `8081` |
| `listen_host` `listen_port` | `0.0.0.0` `8080` |
| `dead_letter` `dead_letter_max_age` | `true` `168h` |
| `retry_strategy` | `nak` |
"""
CONTRACT = {
    name: default
    for row in TABLE.strip().splitlines()
    for name, default in zip(*(re.findall("`([^`]+)`", cell) for cell in row.split("|")[1:3]), strict=True)
}
NO_DEFAULT = {
    *("nats_url", "nats_token", "nats_user", "nats_password", "nats_nkey_seed", "nats_creds_file"),
    *("nats_tls_ca_file", "nats_tls_cert_file", "nats_tls_key_file", "queue_name", "consumer_pull_max_messages"),
    *("function_minimums", "basic_auth_user_file", "basic_auth_password_file"),
    *("max_queued", "max_queued_per_function", "caller_rate", "trusted_proxies"),
}
SECRETS = {"nats_token", "nats_password", "nats_nkey_seed"}
# A value that is valid, and not the default, for each.
OTHER: dict[str, tuple[str, Any]] = {
    "nats_host": ("nats.nats.svc", "nats.nats.svc"),
    "nats_port": ("4223", 4223),
    "nats_url": ("nats://a:4222,tls://b", "nats://a:4222,tls://b"),
    "nats_token": ("t0ken", "t0ken"),
    "nats_nkey_seed": ("SUA", "SUA"),
    "queue_name": ("slow", "slow"),
    "nats_stream": ("OF_slow", "OF_slow"),
    "nats_durable": ("others", "others"),
    "nats_stream_replicas": ("3", 3),
    "nats_stream_storage": ("memory", "memory"),
    "nats_tls_first": ("true", True),
    "nats_inbox_prefix": ("_INBOX_u.x", "_INBOX_u.x"),
    "nats_stream_max_bytes": ("10737418240", 10 * 2**30),
    "nats_state_max_bytes": ("1000000", 1_000_000),
    "nats_bodies_max_bytes": ("1000000000", 10**9),
    "nats_duplicate_window": ("1m", 60.0),
    "max_body_bytes": ("5368709120", 5 * 2**30),
    "dead_letter_max_bytes": ("1000000", 1_000_000),
    "ack_wait": ("1h30m", 5400.0),
    "max_ack_pending": ("1000", 1000),
    "max_waiting": ("1", 1),
    "scaling_mode": ("function", "function"),
    "consumer_inactive_threshold": ("1m30s", 90.0),
    "consumer_pull_max_messages": ("7", 7),
    "queue_partitions": ("1024", 1024),
    "filter_partition": ("0", 0),
    "max_inflight": ("9", 9),
    "function_minimums": ("checkout=5,billing.shop=2", (("checkout", 5), ("billing.shop", 2))),
    "limiter_enabled": ("false", False),
    "gateway_url": ("https://gateway.openfaas:8080/base", "https://gateway.openfaas:8080/base"),
    "upstream_timeout": ("300ms", 0.3),
    "default_function_name": ("dev", "dev"),
    "max_response_bytes": ("0", 0),
    "max_results_bytes": ("123456", 123456),
    "max_retry_attempts": ("1", 1),
    "initial_retry_wait": ("1.5s", 1.5),
    "max_retry_wait": ("2h", 7200.0),
    "retry_http_codes": ("429,503", frozenset({429, 503})),
    "backoff": ("equal", "equal"),
    "retry_strategy": ("nak", "nak"),
    "dead_letter": ("false", False),
    "dead_letter_max_age": ("24h", 86400.0),
    "callback_timeout": ("1m", 60.0),
    "callback_attempts": ("1", 1),
    "callback_initial_wait": ("1s", 1.0),
    "callback_max_wait": ("1m", 60.0),
    "callback_allow": ("*.example.com,10.0.0.0/8", parse_patterns("*.example.com,10.0.0.0/8")),
    "callback_deny": ("[::1]:80", parse_patterns("[::1]:80")),
    "tls_insecure": ("true", True),
    "processes": ("2", 2),
    "max_connections": ("100", 100),
    "client_timeout": ("5s", 5.0),
    "shutdown_timeout": ("0s", 0.0),
    "http_host": ("::1", "::1"),
    "http_port": ("0", 0),
    "listen_host": ("127.0.0.1", "127.0.0.1"),
    "listen_port": ("65535", 65535),
    "function_annotations": ("false", False),
    "function_check": ("true", True),
    "max_queued": ("1", 1),
    "max_queued_per_function": ("5", 5),
    "caller_rate": ("60/m", Rate(60, 60.0)),
    "trusted_proxies": ("10.0.0.0/8, ::1", "10.0.0.0/8, ::1"),
    "debug": ("true", True),
    "log_encoding": ("json", "json"),
}


def refused(environment: dict[str, str]) -> str:
    """Return the one message about invalid settings."""
    with pytest.raises(InvalidSettingsError) as invalid:
        load(environment)
    return str(invalid.value)


def only_problem(name: str, value: str) -> str:
    """Return the problem with one setting, after its name, value and origin."""
    first, *problems = refused({name: value}).splitlines()
    assert first == "1 setting cannot be used:"
    assert len(problems) == 1
    start = f"  {name} = {value!r} (environment {name}): "
    assert problems[0].startswith(start)
    return problems[0].removeprefix(start)


# Defaults, names, origins.


def test_load_defaults_are_those_of_the_contract() -> None:
    """Each default of the contract's table is its setting's, and is described as an operator would write it."""
    loaded = load({})
    assert len(CONTRACT) == 34
    assert {name: default for name, default, _ in describe(loaded) if name in CONTRACT} == CONTRACT | {
        "max_retry_wait": "2m",
        "ack_wait": "1m",
    }
    assert load(CONTRACT).settings == loaded.settings
    assert {name for name in NO_DEFAULT if getattr(loaded.settings, name) is not None} == {"queue_name"}
    assert set(loaded.origins.values()) == {"default", "nats_stream"}
    assert loaded.warnings == ()


def test_load_settings_beyond_the_contract_are_listed() -> None:
    """A setting that the contract lacks is listed in this file."""
    own = {"max_response_bytes", "callback_timeout", "callback_attempts", "callback_initial_wait", "callback_max_wait"}
    own |= {
        "processes",
        "max_results_bytes",
        "max_connections",
        "client_timeout",
        "nats_tls_first",
        "nats_inbox_prefix",
        "nats_duplicate_window",
    }
    own |= {"function_annotations", "function_check"}
    own |= {"callback_allow", "callback_deny", "callback_secret_file"}
    own |= {"nats_stream_max_bytes", "nats_state_max_bytes", "dead_letter_max_bytes", "nats_bodies_max_bytes"}
    own |= {"max_body_bytes"}  # of the contract's section 11
    assert set(SETTING_FIELDS) == set(CONTRACT) | NO_DEFAULT | own
    assert set(OTHER) == set(SETTING_FIELDS) - {
        name for name in NO_DEFAULT | {"callback_secret_file"} if name.endswith(("_user", "_password", "_file"))
    }


def test_load_without_settings_returns_the_default_values() -> None:
    """Without settings all defaults apply: durations are seconds; numbers, switches and codes are parsed."""
    settings_ = load({}).settings
    assert (settings_.ack_wait, settings_.upstream_timeout, settings_.dead_letter_max_age) == (60.0, 60.0, 604800.0)
    assert (settings_.initial_retry_wait, settings_.max_retry_wait, settings_.max_retry_attempts) == (10.0, 120.0, 100)
    assert settings_.retry_http_codes == frozenset({408, 429, 500, 502, 503, 504})
    assert (settings_.backoff, settings_.max_inflight, settings_.max_ack_pending) == ("exponential", 50, -1)
    assert (settings_.dead_letter, settings_.debug, settings_.tls_insecure) == (True, False, False)
    assert (settings_.nats_port, settings_.http_port, settings_.listen_port) == (4222, 8081, 8080)
    assert (settings_.callback_timeout, settings_.callback_attempts) == (10.0, 3)
    assert (settings_.callback_initial_wait, settings_.callback_max_wait) == (0.5, 5.0)
    assert settings_.max_response_bytes == 10 * 2**20


@pytest.mark.parametrize("name", OTHER)
def test_load_reads_each_setting_by_either_name(name: str) -> None:
    """In lower case exactly, or in upper case with the prefix.

    The origin names the variable, and no other setting changes.
    """
    text, value = OTHER[name]
    for variable in (name, f"QUEUE_WORKER_{name.upper()}"):
        loaded = load({variable: text} | ({"queue_name": "q"} if name == "nats_stream" else {}))
        assert getattr(loaded.settings, name) == value
        assert type(getattr(loaded.settings, name)) is type(value) or name == "backoff"
        assert loaded.origins[name] == f"environment {variable}"
        assert loaded.warnings == ()
        others = [each for each in SETTING_FIELDS if each not in (name, "queue_name")]
        assert [getattr(loaded.settings, each) for each in others] == [
            getattr(load({}).settings, each) for each in others
        ]


@pytest.mark.parametrize("name", OTHER)
def test_load_ignores_names_in_other_cases(name: str) -> None:
    """Upper case without the prefix, and mixed case, is no setting, because other programs may use such names."""
    text, _ = OTHER[name]
    variables = (name.upper(), name.title(), f"queue_worker_{name}", f"QUEUE_WORKER_{name}", f"Queue_Worker_{name}")
    assert load(dict.fromkeys(variables, text)).settings == load({}).settings


@pytest.mark.parametrize("name", sorted(SETTING_FIELDS))
def test_load_empty_value_counts_as_unset(name: str) -> None:
    """An empty value counts as unset for any type, because the charts set some settings so."""
    for variable in (name, f"QUEUE_WORKER_{name.upper()}"):
        assert load({variable: ""}) == load({})
    value = OTHER.get(name, ("", None))[0]
    assert load({name: "", f"QUEUE_WORKER_{name.upper()}": value}).settings == load({name: value}).settings


@pytest.mark.parametrize("name", OTHER)
def test_load_a_setting_under_both_names_is_rejected(name: str) -> None:
    """A setting under both of its names is rejected, also with the same value."""
    text, _ = OTHER[name]
    upper = f"QUEUE_WORKER_{name.upper()}"
    assert refused({name: text, upper: text}).splitlines()[1:] == [
        f"  {name} is set twice, by {name} and {upper}: keep one"
    ]


# Variables of other programs.

KUBERNETES = {
    "{}_SERVICE_HOST": "10.0.0.7",
    "{}_SERVICE_PORT": "4222",
    "{}_SERVICE_PORT_CLIENT": "4222",
    "{}_PORT": "tcp://10.0.0.7:4222",
    "{}_PORT_4222_TCP": "tcp://10.0.0.7:4222",
    "{}_PORT_4222_TCP_PROTO": "tcp",
    "{}_PORT_4222_TCP_PORT": "4222",
    "{}_PORT_4222_TCP_ADDR": "10.0.0.7",
    "{}_PORT_53_UDP_ADDR": "10.0.0.7",
}


@pytest.mark.parametrize("service", ["NATS", "HTTP", "QUEUE_WORKER", "QUEUE_WORKER_NATS", "QUEUE_WORKER_HTTP"])
def test_load_ignores_the_variables_of_kubernetes_services(service: str) -> None:
    """NATS_PORT=tcp://… and the like change nothing and are no typos, even of a service called queue-worker-nats."""
    assert load({name.format(service): value for name, value in KUBERNETES.items()}) == load({})


def test_load_a_port_of_an_operator_is_not_taken_for_kubernetes_s() -> None:
    """A number, or an address in a lower-case variable, is an operator's value and not Kubernetes' variable."""
    assert load({"QUEUE_WORKER_NATS_PORT": "4223"}).settings.nats_port == 4223
    assert "not a port" in refused({"nats_port": "tcp://10.0.0.7:4222"})
    assert load({"QUEUE_WORKER_NATZ_PORT": "4223"}).warnings == (
        "QUEUE_WORKER_NATZ_PORT is not a setting; did you mean nats_port?",
    )


@pytest.mark.parametrize(
    ("variable", "warnings"),
    [
        ("max_infligth", ("max_infligth is not a setting; did you mean max_inflight?",)),
        ("max_in_flight", ("max_in_flight is not a setting; did you mean max_inflight?",)),
        ("nats_strem", ("nats_strem is not a setting; did you mean nats_stream?",)),
        ("ackwait", ("ackwait is not a setting; did you mean ack_wait?",)),
        ("nats_tokn_file", ("nats_tokn_file is not a setting; did you mean nats_token_file?",)),
        ("QUEUE_WORKER_MAX_INFLIGT", ("QUEUE_WORKER_MAX_INFLIGT is not a setting; did you mean max_inflight?",)),
        ("QUEUE_WORKER_COLOUR", ("QUEUE_WORKER_COLOUR is not a setting",)),
        ("http_proxy", ()),
        ("https_proxy", ()),
        ("no_proxy", ()),
        ("colour", ()),
        ("path", ()),
        ("MAX_INFLIGTH", ()),
        ("_", ()),
        ("", ()),
    ],
)
def test_load_warns_of_names_that_look_like_typos(variable: str, warnings: tuple[str, ...]) -> None:
    """A warning names a variable that is close to a setting's name, or has the prefix.

    Other programs' variables are ignored.
    """
    assert load({variable: "1"}).warnings == warnings


def test_load_warnings_show_no_values() -> None:
    """A warning shows no value, because it may be a secret that was meant for another setting."""
    assert "s3cret" not in "".join(load({"nats_tokn": "s3cret", "QUEUE_WORKER_NATS_TOKE": "s3cret"}).warnings)


# Accepted values.

WORDS: dict[str, tuple[str, list[str]]] = {
    "nats_port": (
        "not a port: write a whole number from 0 to 65535",
        ["-1", "65536", "4222.0", "9" * 5000, "x", "tcp://h:1", " 1"],
    ),
    "http_port": ("not a port: write a whole number from 0 to 65535", ["99999999999", "\u0664", "+1", "1_0"]),
    "nats_host": (
        "not a host: write a name or an IP address, with no port",
        ["a b", "h:4222", "nats://h", "h/x", "::g", "[::1", "h\n", "\u00e9", "[::1]:4222", "a,b"],
    ),
    "max_inflight": (
        "not a whole number from 1 to 1000000",
        ["0", "-1", "1000001", "1.5", "1e3", "many", "-", "00000000050"],
    ),
    "nats_stream_replicas": ("not a whole number from 1 to 5", ["0", "6"]),
    "function_minimums": (
        "not a list of minimums: write functions and slots with commas, as checkout=5,billing.shop=2",
        ["checkout", "checkout=0", "checkout=-1", "Checkout=1", "a.b.c=1", "a=1,", ",", "a=1;b=2", "a=9999999999"],
    ),
    "processes": ("not a whole number from 1 to 128", ["0", "129", "auto"]),
    "max_waiting": ("not a whole number from 1 to 2147483647", ["0", "2147483648", "-1"]),
    "max_response_bytes": ("not a whole number from 0 to 2147483647", ["-1", "10MB"]),
    "max_results_bytes": ("not a whole number from 0 to 2147483647", ["-1", "10MB"]),
    "consumer_pull_max_messages": ("not a whole number from 1 to 2147483647", ["0", "-1"]),
    "callback_attempts": ("not a whole number from 1 to 100", ["0", "101"]),
    "max_ack_pending": ("not a limit: write a whole number from 1, or -1 for none", ["0", "-2", "x", "2147483648"]),
    "max_retry_attempts": (
        "not a number of attempts: write a whole number from 1 to 1000000",
        ["0", "-1", "1000001", "x"],
    ),
    "retry_http_codes": (
        "not a list of HTTP status codes: write them with commas, as 408,429,503, or none",
        ["429,", "5xx", "600", "99", "429;503", "None", "none,429"],
    ),
    "ack_wait": (
        "not a duration: write a number and a unit, as 300ms, 1.5s, 2m or 1h30m",
        ["60", "1 m", "one minute", "60S", "1d"],
    ),
    "nats_stream_storage": ("not one of file, memory", ["disk", "File", "file "]),
    "log_encoding": ("not one of console, json", ["text", "JSON"]),
    "backoff": ("not one of exponential, full, equal", ["linear", "Full"]),
    "debug": ("not a switch: write true or false", ["yes", "on", "2", "t", " true"]),
    "scaling_mode": ("not one of static, function", ["auto", "Function"]),
    "retry_strategy": ("this version supports only nak", ["schedule"]),
    "queue_partitions": ("not a whole number from 1 to 1024", ["0", "1025", "-1"]),
    "filter_partition": ("not a whole number from 0 to 1023, or ordinal", ["-1", "1024", "Ordinal", "last"]),
    "queue_name": (
        "not a queue's name: lower-case letters, digits, - and _, a letter or digit first and last",
        ["Slow", "a.b", "-a", "a_", "a b", ">", "*"],
    ),
    "nats_stream": (
        "not a name for JetStream: ASCII, at most 255, no spaces, and none of . * > / \\ %",
        ["a.b", "a b", "a*", ">", "a/b", "a\\b", "a%", "\u00e9", "a\n", "a" * 256],
    ),
    "gateway_url": (
        "not the URL of a web server: write http://host:port",
        [
            *("gateway:8080", "ftp://h", "http://", "http://h:x", "http://h:65536", "http://h:0", "http://[::1"),
            *("http://[::1]]", "http://[::1]x", "http://h:", "http://a;b", "http://a<b", "http://a\\b"),
            *(
                "http://h/?x",
                "http://h?",
                "http://h/#x",
                "http://h#",
                "http://h/a b",
                "http://h\n",
                "http://\u00e9",
                "/",
            ),
        ],
    ),
    "nats_url": (
        "not a list of NATS servers: write nats://host:port (or tls, ws, wss), with commas between",
        [
            "h:4222",
            "http://h",
            "nats://",
            "nats://h:x",
            "nats://a,",
            ",nats://a",
            "nats://a nats://b",
            "nats://a;tls://b",
        ],
    ),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (_, values) in WORDS.items() for value in values])
def test_load_an_invalid_value_is_rejected(name: str, value: str) -> None:
    """The message has the setting's name, its value, its origin, and the accepted values."""
    assert only_problem(name, value) == WORDS[name][0]


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ack_wait", "999ms", "too short: at least 1s"),
        ("ack_wait", "-1s", "negative: write a duration of nothing or more, as 300ms, 1.5s, 2m or 1h30m"),
        ("ack_wait", "2562048h", "longer than 292 years"),
        ("upstream_timeout", "0s", "too short: at least 1ms"),
        ("upstream_timeout", "999us", "too short: at least 1ms"),
        ("dead_letter_max_age", "0s", "too short: at least 1s"),
        ("callback_timeout", "0s", "too short: at least 1ms"),
        ("callback_initial_wait", "0s", "too short: at least 1ms"),
        ("callback_max_wait", "0s", "too short: at least 1ms"),
        ("nats_creds_file", "/nowhere/at/all", "cannot be read: No such file or directory"),
        ("nats_tls_ca_file", "/", "cannot be read: Is a directory"),
        ("nats_tls_ca_file", "a\x00b", "not the path of a file"),
    ],
)
def test_load_invalid_durations_and_files_are_rejected_with_the_reason(name: str, value: str, words: str) -> None:
    """A duration is a Go duration within bounds; a file exists and can be read."""
    assert only_problem(name, value) == words


@pytest.mark.parametrize(
    ("name", "value", "parsed"),
    [
        ("ack_wait", "1s", 1.0),
        ("upstream_timeout", "1ms", 0.001),
        ("upstream_timeout", "1h30m", 5400.0),
        ("shutdown_timeout", "0", 0.0),
        ("shutdown_timeout", ".5s", 0.5),
        ("debug", "1", True),
        ("debug", "0", False),
        ("debug", "true", True),
        ("debug", "false", False),
        ("debug", "True", True),
        ("dead_letter", "0", False),
        ("max_inflight", "1", 1),
        ("max_inflight", "1000000", 1_000_000),
        ("max_inflight", "0000000050", 50),
        ("nats_stream_replicas", "5", 5),
        ("callback_attempts", "100", 100),
        ("nats_port", "65535", 65535),
        ("max_ack_pending", "-1", -1),
        ("max_ack_pending", "1", 1),
        ("backoff", "full", "full"),
        ("backoff", "exponential", "exponential"),
        ("retry_http_codes", "429, 503", frozenset({429, 503})),
        ("retry_http_codes", "none", frozenset()),
        ("gateway_url", "http://gateway:8080/", "http://gateway:8080"),
        ("gateway_url", "https://h//", "https://h"),
        ("gateway_url", "http://[::1]:8080", "http://[::1]:8080"),
        ("nats_host", "[::1]", "::1"),
        ("nats_host", "nats_1.a-b", "nats_1.a-b"),
        ("nats_url", "nats://a, tls://b:1 ,ws://c,wss://d", "nats://a, tls://b:1 ,ws://c,wss://d"),
        ("nats_durable", "a" * 255, "a" * 255),
        ("queue_name", "a", "a"),
    ],
)
def test_load_a_valid_value_is_parsed(name: str, value: str, parsed: Any) -> None:
    """The cases are the ends of each range, and the less usual ways to write a value."""
    assert getattr(load({name: value}).settings, name) == parsed


# Settings that belong together.


@pytest.mark.parametrize(
    ("stream", "name"), [("faas-request", "faas-request"), ("OF_slow", "slow"), ("slow_OF_", None), ("a_OF_b", None)]
)
def test_load_queue_name_unset_is_the_stream_s_name(stream: str, name: str | None) -> None:
    """A leading ``OF_`` is removed; where the rest can name no queue, an operator must set one."""
    if name:
        loaded = load({"nats_stream": stream})
        assert (loaded.settings.queue_name, loaded.origins["queue_name"]) == (name, "nats_stream")
    else:
        assert refused({"nats_stream": stream}) == (
            "1 setting cannot be used:\n"
            f"  queue_name is not set, and {stream!r}, after nats_stream = {stream!r}, cannot name a queue: set it"
        )
    assert load({"nats_stream": stream, "queue_name": "q"}).settings.queue_name == "q"


@pytest.mark.parametrize(
    ("given_", "servers"),
    [
        ({}, ("nats://127.0.0.1:4222",)),
        ({"nats_host": "nats", "nats_port": "1"}, ("nats://nats:1",)),
        ({"nats_host": "::1"}, ("nats://[::1]:4222",)),
        ({"nats_url": "tls://a:1, ws://b"}, ("tls://a:1", "ws://b")),
        ({"nats_url": "nats://a", "nats_host": "b", "nats_port": "9"}, ("nats://a",)),
    ],
)
def test_load_nats_servers_come_from_nats_url_or_host_and_port(
    given_: dict[str, str], servers: tuple[str, ...]
) -> None:
    """``nats_url`` overrides host and port."""
    assert load(given_).settings.nats_servers == servers


def test_load_half_a_pair_is_rejected(tmp_path: Path) -> None:
    """A user needs a password, and a certificate its key."""
    readable = tmp_path / "pem"
    readable.touch()
    for one, other, value in (
        ("nats_user", "nats_password", "x"),
        ("nats_tls_cert_file", "nats_tls_key_file", str(readable)),
    ):
        expected = f"1 setting cannot be used:\n  {one} and {other} go together: set both or neither"
        assert refused({one: value}) == refused({other: value}) == expected
        assert getattr(load({one: value, other: value}).settings, one) == value


def test_load_two_ways_to_authenticate_are_rejected(tmp_path: Path) -> None:
    """Two ways to authenticate are rejected, and both are named."""
    creds = tmp_path / "creds"
    creds.touch()
    everything = {
        "nats_token": "t",
        "nats_user": "u",
        "nats_password": "p",
        "nats_nkey_seed": "SU",
        "nats_creds_file": str(creds),
    }
    assert refused(everything) == (
        "1 setting cannot be used:\n  nats_token and nats_user and nats_nkey_seed and nats_creds_file "
        "are different ways to authenticate: keep one"
    )


@pytest.mark.parametrize(("processes", "slots"), [(51, 50), (2, 1)])
def test_load_more_processes_than_slots_is_rejected(processes: int, slots: int) -> None:
    """As many processes as slots are accepted."""
    assert refused({"processes": str(processes), "max_inflight": str(slots)}) == (
        f"1 setting cannot be used:\n  processes = {processes} is more than max_inflight = {slots}, "
        "which they share: each runs one at least"
    )
    assert load({"processes": str(processes), "max_inflight": str(processes)}).settings.processes == processes


@pytest.mark.parametrize(("partition", "partitions"), [("0", 1), ("3", 4), ("1023", 1024)])
def test_load_a_partition_outside_the_queue_is_rejected(partition: str, partitions: int) -> None:
    """Partitions are counted from 0, so the last is one less than their number."""
    given_ = {"filter_partition": partition, "queue_partitions": str(partitions)}
    assert load(given_).settings.filter_partition == int(partition)
    if partitions > 1:
        assert refused(given_ | {"queue_partitions": str(partitions - 1)}) == (
            f"1 setting cannot be used:\n  filter_partition = {partition} (environment filter_partition) is none of "
            f"queue_partitions = {partitions - 1}: they are counted from 0"
        )


@pytest.mark.parametrize(("pod", "partition"), [("queue-worker-0", 0), ("queue-worker-13", 13), ("a-2-3", 3)])
def test_load_ordinal_is_the_number_of_the_pod(pod: str, partition: int) -> None:
    """``ordinal`` is the number at the end of the pod's name, and ``queue-worker config`` shows both."""
    loaded = load({"filter_partition": "ordinal", "queue_partitions": "14", "HOSTNAME": pod})
    assert loaded.settings.filter_partition == partition
    origin = f"environment filter_partition, HOSTNAME={pod}"
    assert ("filter_partition", str(partition), origin) in describe(loaded)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, "HOSTNAME is not set"),
        ({"HOSTNAME": "my-machine"}, "HOSTNAME is 'my-machine', which ends in no -number"),
        ({"HOSTNAME": "queue7"}, "HOSTNAME is 'queue7', which ends in no -number"),
        ({"HOSTNAME": "q-\u0664"}, "HOSTNAME is 'q-\u0664', which ends in no -number"),
    ],
)
def test_load_ordinal_without_a_numbered_pod_is_rejected(environment: dict[str, str], named: str) -> None:
    """``ordinal`` is rejected where the pod has no number, because it must not become partition 0."""
    assert refused({"filter_partition": "ordinal"} | environment) == (
        f"1 setting cannot be used:\n  filter_partition = 'ordinal' (environment filter_partition): {named}, as the "
        "name of a StatefulSet's pod does: set the partition's number"
    )


def test_load_ordinal_above_the_partitions_is_rejected() -> None:
    """A StatefulSet with more replicas than partitions gets a message that names the pod."""
    assert refused({"filter_partition": "ordinal", "queue_partitions": "2", "HOSTNAME": "queue-worker-2"}) == (
        "1 setting cannot be used:\n  filter_partition = 2 (environment filter_partition, HOSTNAME=queue-worker-2) is "
        "none of queue_partitions = 2: they are counted from 0"
    )


def test_load_minimums_above_the_slots_are_rejected() -> None:
    """Minimums may take all slots and not more, and a function named twice is rejected."""
    minimums = {"function_minimums": "checkout=30, billing.shop=20"}
    assert load(minimums | {"max_inflight": "50"}).settings.minimums == {"checkout.openfaas-fn": 30, "billing.shop": 20}
    assert refused(minimums | {"max_inflight": "49"}) == (
        "1 setting cannot be used:\n  function_minimums are 50 slots in all, and max_inflight = 49 has fewer"
    )
    assert only_problem("function_minimums", "a=1,b=2,a=3") == "a has two minimums: keep one"
    assert load({}).settings.minimums == {}


# Secrets.


@pytest.mark.parametrize("name", sorted(SECRETS))
@pytest.mark.parametrize("upper", [False, True])
def test_load_reads_a_secret_from_its_file(name: str, upper: bool, tmp_path: Path) -> None:
    """``x_file`` names a file that contains x; white space around it, such as a line end, is removed."""
    file = tmp_path / "secret"
    file.write_text(" s3 cret\n", "utf-8")
    variable = f"QUEUE_WORKER_{name.upper()}_FILE" if upper else f"{name}_file"
    environment = {variable: str(file)} | ({"nats_user": "u"} if name == "nats_password" else {})
    loaded = load(environment)
    assert getattr(loaded.settings, name) == "s3 cret"
    assert loaded.origins[name] == f"file {file}"
    assert loaded.warnings == ()
    assert load({f"{name}_file": ""}) == load({})


def test_load_a_secret_s_file_without_text_is_rejected(tmp_path: Path) -> None:
    """A file that is missing, empty, or no text is named with the reason."""
    empty, binary = tmp_path / "empty", tmp_path / "binary"
    empty.write_text(" \n", "utf-8")
    binary.write_bytes(b"\xff\xfe")
    for path, words in (
        (str(tmp_path / "none"), "cannot be read: No such file or directory"),
        (str(tmp_path), "cannot be read: Is a directory"),
        (str(binary), "cannot be read: it is not text"),
        ("a\x00b", "cannot be read: it is not text"),
        (str(empty), "is empty"),
    ):
        assert refused({"nats_token_file": path}) == f"1 setting cannot be used:\n  nats_token_file = {path!r} {words}"


def test_load_a_secret_set_twice_is_rejected(tmp_path: Path) -> None:
    """A secret may have one value or one file, under one name; anything more is rejected."""
    file = tmp_path / "secret"
    file.write_text("s3cret", "utf-8")
    names = ["nats_token", "QUEUE_WORKER_NATS_TOKEN", "nats_token_file", "QUEUE_WORKER_NATS_TOKEN_FILE"]
    text = refused({name: "s3cret" if name.lower().endswith("token") else str(file) for name in names})
    assert text == f"1 setting cannot be used:\n  nats_token is set twice, by {' and '.join(names)}: keep one"


def shown_texts(environment: dict[str, str]) -> str:
    """Return all texts of loading these settings that a person can read."""
    try:
        loaded = load(environment)
    except InvalidSettingsError as error:
        return str(error)
    return repr(loaded) + "".join(map(repr, describe(loaded))) + "".join(loaded.warnings)


SECRET = "hunter2"


@given(st.text(), st.text(), st.booleans())
@example("", "", True)
def test_load_never_shows_secrets(before: str, after: str, broken: bool) -> None:
    """A secret is in no message about this or another setting, in no description, and in no repr."""
    secret = f"{before}{SECRET}{after}"
    for name in SECRETS:
        environment = {name: secret} | ({"nats_user": "u"} if name == "nats_password" else {})
        shown = shown_texts(environment | ({"max_inflight": "0"} if broken else {}))
        assert SECRET not in shown
        assert "********" in shown or broken


@given(
    st.sampled_from(["nats_url", "gateway_url", "nats_host"]),
    st.sampled_from(["nats://user:", "nats://", "http://user:", "https://", "", "user:", "nats://a:b@c,tls://u:"]),
    st.text() | st.text("/?#@:, %[]\\"),
    st.text() | st.text("/?#@:, %[]\\"),
    st.sampled_from(["host:4222", "host", "host:x", "", "h,nats://a", "h, nats://a:b@c"]),
)
@example("nats_url", "nats://user:", "p@", "", "host:4222")
@example("nats_url", "nats://user:", "p/", "", "host:4222")
@example("nats_url", "nats://user:", "", ",p", "host:4222")
@example("nats_url", "nats://user:p", "#", "", "host:4222")
@example("nats_url", "user:", "", "", "host:4222")
@example("nats_host", "user:", "", "", "host")
@example("gateway_url", "http://user:", "", "", "gateway:8080")
def test_load_never_shows_passwords_in_urls(name: str, scheme: str, before: str, after: str, where: str) -> None:
    """A password in a URL is never shown, with any characters, escaped or not, in a valid or an invalid URL."""
    assume(not re.search(r",\s*\w+://", before + after))
    assert SECRET not in shown_texts({name: f"{scheme}{before}{SECRET}{after}@{where}"})


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("nats://host:4222", "nats://host:4222"),
        ("nats://user:word@host:4222", "nats://********@host:4222"),
        ("nats://token@host", "nats://********@host"),
        ("nats://u:p@a:1,tls://b, ws://u:p@c", "nats://********@a:1,tls://b, ws://********@c"),
        ("nats://u:p@ss@host", "nats://********@host"),
        ("nats://u:p/q@host", "nats://********@host"),
        ("nats://u:p,q@host", "nats://********@host"),
        ("u:p@host", "********@host"),
        ("", ""),
    ],
)
def test_without_password_masks_only_user_and_password(url: str, shown: str) -> None:
    """User and password of a URL are masked, and the server stays readable."""
    assert without_password(url) == shown


# All settings.


def test_load_names_all_invalid_settings_at_once() -> None:
    """One message has every invalid setting with value, origin and the accepted values."""
    assert refused(
        {
            "nats_port": "tcp://10.0.0.7:4222",
            "QUEUE_WORKER_ACK_WAIT": "60",
            "nats_user": "u",
            "nats_token": "t",
            "debug": "1",
            "QUEUE_WORKER_DEBUG": "1",
            "nats_url": "nats://me:word@h:x",
        }
    ).splitlines() == [
        "6 settings cannot be used:",
        "  nats_port = 'tcp://10.0.0.7:4222' (environment nats_port): not a port: write a whole number from 0 to 65535",
        f"  nats_url = 'nats://********@h:x' (environment nats_url): {WORDS['nats_url'][0]}",
        f"  ack_wait = '60' (environment QUEUE_WORKER_ACK_WAIT): {WORDS['ack_wait'][0]}",
        "  debug is set twice, by debug and QUEUE_WORKER_DEBUG: keep one",
        "  nats_user and nats_password go together: set both or neither",
        "  nats_token and nats_user are different ways to authenticate: keep one",
    ]


def test_describe_loaded_again_gives_the_same_settings() -> None:
    """Each setting is described with its value, as an operator would write it, and its origin."""
    given_ = {name: text for name, (text, _) in OTHER.items() if name not in ("nats_token", "nats_nkey_seed")}
    loaded = load(given_)
    rows = describe(loaded)
    assert [name for name, _, _ in rows] == list(SETTING_FIELDS)
    assert {origin for name, _, origin in rows if name in given_} == {f"environment {name}" for name in given_}
    assert load({name: value for name, value, _ in rows}).settings == loaded.settings
    secret = {name: value for name, value, _ in describe(load({"nats_token": "t", "queue_name": "q"}))}
    assert (secret["nats_token"], secret["nats_password"], secret["queue_name"]) == ("********", "", "q")


def test_settings_are_frozen() -> None:
    """Settings cannot be changed, because they are read once."""
    with pytest.raises(AttributeError):
        load({}).settings.debug = True  # type: ignore[misc]  # that is the test


VARIABLES = sorted({each for name in SETTING_FIELDS for each in (name, f"QUEUE_WORKER_{name.upper()}", f"{name}_file")})
VALUES = st.text() | st.sampled_from(sorted({text for text, _ in OTHER.values()} | set(CONTRACT.values()) | {""}))


@given(st.dictionaries(st.sampled_from(VARIABLES) | st.text(), VALUES | st.text(st.characters(codec=None))))
@example({"nats_token_file": "\ud800"})
@example({"nats_creds_file": "\ud800"})
@example({"gateway_url": "http://[::1"})
@example({"nats_url": "nats://[::1].com"})
def test_load_any_environment_returns_settings_or_raises(environment: dict[str, str]) -> None:
    """No environment raises another error than InvalidSettingsError."""
    try:
        loaded = load(environment)
    except InvalidSettingsError as error:
        shown = str(error)
        assert shown
        return
    assert isinstance(loaded, LoadedSettings)
    assert isinstance(loaded.settings, Settings)
    assert len(describe(loaded)) == len(SETTING_FIELDS)
