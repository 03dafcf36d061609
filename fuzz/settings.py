"""Any environment gives valid settings, or one error that names the invalid ones; and no secret is shown.

The input is an environment, one ``name=value`` per line; the byte 1 in a value is a line break. A marker is put into
every secret: values of secret settings, and the part of a URL before the ``@``. The error names the settings that are
invalid alone, too; and the description of valid settings, loaded again, gives the same settings.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from worker.config import InvalidSettingsError, LoadedSettings, describe, load
from worker.settings import SETTING_FIELDS

SECRET = "hunter2"  # noqa: S105 -- made up
URLS = ("gateway_url", "nats_url", "nats_host", "http_host", "listen_host")
PLACES = [*SETTING_FIELDS, *(f"{name}_file" for name, field in SETTING_FIELDS.items() if field.metadata["secret"])]
WORDS = (
    *PLACES, *(f"QUEUE_WORKER_{name.upper()}" for name in PLACES), "=true", "=1h30m", "=http://u:p@h:80", "=nats://u@h",
    "=-1", "=[::1%a]", ",tls://", "_SERVICE_HOST", "tcp://10.0.0.7:4222", "%25", "{files}/secret", "{files}/none",
)  # fmt: skip
"""Names are looked up in dictionaries, which a fuzzer cannot instrument."""
_PAIRS = (("nats_user", "nats_password"), ("nats_tls_cert_file", "nats_tls_key_file"))
_FILES = Path(tempfile.mkdtemp(prefix="fuzz-settings-"))
(_FILES / "directory").mkdir()
(_FILES / "secret").write_text(f" {SECRET}\n")
(_FILES / "empty").write_text(" \n")
(_FILES / "binary").write_bytes(b"\xff\xfe" + SECRET.encode())


def check(data: bytes) -> None:
    """Load *data* as an environment and check the law above."""
    environment = read(data)
    loaded = _load(environment)
    if isinstance(loaded, str):
        _check_no_secret(loaded)
        assert loaded.splitlines()[0] == f"{_count(loaded)} cannot be used:"
        assert named_settings(loaded) == _named_alone(environment), (environment, loaded)
        return
    assert not _named_alone(environment)
    _check_no_secret("\n".join([*loaded.warnings, *(text for row in describe(loaded) for text in row)]))
    _check_usable(loaded)
    _check_round_trip(loaded)


def read(data: bytes) -> dict[str, str]:
    """Return the environment as Python reads it: invalid UTF-8 becomes lone surrogates."""
    environment = {}
    for line in data.replace(SECRET.encode(), b"").split(b"\n"):
        name, _, value = line.decode("utf-8", "surrogateescape").replace("\0", "").partition("=")
        value = value.replace("\1", "\n").replace("{files}", str(_FILES))
        setting = name.removeprefix("QUEUE_WORKER_").lower()
        if setting.endswith("_file") and not value.startswith(str(_FILES)):
            value = value and f"{_FILES}/{value.replace('..', '')}"  # any other file may be a device
        field = SETTING_FIELDS.get(setting)
        if field and field.metadata["secret"] and value:
            value += SECRET
        elif setting in URLS and "@" in value:
            user, _, where = value.rpartition("@")
            value = f"{user}{SECRET}@{where}"
        environment[name] = value
    return environment


def _load(environment: dict[str, str]) -> LoadedSettings | str:
    try:
        return load(environment)
    except InvalidSettingsError as invalid:
        return str(invalid)


def _count(error: str) -> str:
    problems = len(error.split("\n  ")) - 1
    return "1 setting" if problems == 1 else f"{problems} settings"


def named_settings(error: str) -> set[str]:
    """Return the settings that an error names, without those that are invalid only together."""
    found = set()
    for line in error.split("\n  ")[1:]:
        first = re.match(r"(QUEUE_WORKER_)?(\w+?)(_file|_FILE)?( = | is set twice| is not text)", line)
        together = (
            " go together: " in line or " are different ways " in line or line.startswith("queue_name is not set")
        )
        assert first or together, line
        if first:
            name = first[2].lower() + (first[3] or "").lower()
            found.add(name if name in SETTING_FIELDS else first[2].lower())
    return found


def _named_alone(environment: dict[str, str]) -> set[str]:
    found = set()
    for name, field in SETTING_FIELDS.items():
        places = [name, f"QUEUE_WORKER_{name.upper()}"]
        if field.metadata["secret"]:
            places += [f"{name}_file", f"QUEUE_WORKER_{name.upper()}_FILE"]
        alone = {place: environment[place] for place in places if place in environment}
        if alone and isinstance(error := _load(alone), str):
            found |= named_settings(error)
    return found


def _check_no_secret(text: str) -> None:
    assert SECRET not in text, text
    assert text.encode()  # it can be printed


def _check_usable(loaded: LoadedSettings) -> None:
    settings = loaded.settings
    assert httpx.URL(settings.gateway_url).host
    for host in (settings.nats_host, settings.http_host, settings.listen_host):
        assert re.fullmatch(r"[A-Za-z0-9_.-]+|[0-9a-f:.]+", host), host
    for url in settings.nats_servers:
        parts = urlsplit(url)
        assert parts.scheme in ("nats", "tls", "ws", "wss")
        assert parts.hostname
        assert parts.port is None or parts.port >= 0
    assert settings.max_inflight >= 1
    assert settings.ack_wait >= 1
    assert all(
        value >= 0 for value in (settings.initial_retry_wait, settings.max_retry_wait, settings.shutdown_timeout)
    )
    assert settings.nats_stream
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9_]*[a-z0-9])?", settings.queue_name)
    for one, other in _PAIRS:
        assert (getattr(settings, one) is None) == (getattr(settings, other) is None)
    assert (
        sum(getattr(settings, f"nats_{way}") is not None for way in ("token", "user", "nkey_seed", "creds_file")) <= 1
    )


def _check_round_trip(loaded: LoadedSettings) -> None:
    values = {name: getattr(loaded.settings, name) for name in SETTING_FIELDS}
    printed = {name: value for name, value, _ in describe(loaded) if "********" not in value and name != "nats_user"}
    for name, value in values.items():
        if isinstance(value, float) and value > 292 * 365 * 86400:  # a float near Go's longest may round above it
            del printed[name]
    again = load(printed).settings
    assert {name: getattr(again, name) for name in printed} == {name: values[name] for name in printed}
