"""Reading the settings: from the environment and from files, checked together, with the origin of each."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .model import Rate
from .policy.community import REPLACEMENTS, community_warning
from .policy.durations import format_duration
from .policy.names import is_name
from .policy.parse import host, http_url, nats_urls, without_password
from .policy.quota import write_rate
from .policy.retry import NO_CODES
from .settings import ORDINAL, SETTING_FIELDS, Settings

_UPPER = "QUEUE_WORKER_"
_FOREIGN = frozenset({"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy", *REPLACEMENTS})
"""Lower-case variables of other programs."""
_TYPO_RATIO = 0.8
"""The similarity (``difflib``'s ratio) from which a name is taken for a typo of a setting's: 8 letters in 10."""
_KUBERNETES = re.compile(
    r"\w+_(SERVICE_HOST=.*|SERVICE_PORT(_\w+)?=.*|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?=.*|PORT=(tcp|udp|sctp)://.*)",
    re.ASCII,
)
"""Variables that Kubernetes sets for a service: for queue-worker-nats, QUEUE_WORKER_NATS_PORT=tcp://..."""


class InvalidSettingsError(Exception):
    """One or more settings are invalid. The text names each one, its value and the accepted values."""


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
    pairs = (
        ("nats_user", "nats_password"),
        ("nats_tls_cert_file", "nats_tls_key_file"),
        ("basic_auth_user_file", "basic_auth_password_file"),
    )
    for one, other in pairs:
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
    warnings = [warning] if (warning := community_warning(environment)) else []
    for variable in filter(_is_text, sorted(environment)):
        prefixed, name = variable.startswith(_UPPER), variable.removeprefix(_UPPER).lower()
        if name in known or not (prefixed or (variable.islower() and variable not in _FOREIGN)):
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
    Rate: write_rate,
    tuple: lambda value: ",".join(f"{name}={slots}" for name, slots in value),
}
