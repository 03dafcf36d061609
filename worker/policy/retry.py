"""The retry policy: which outcomes are retried, how often, after how long, and how annotations change that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .backoff import Backoff
from .durations import parse_duration
from .syntax import whole_number

DEFAULT_CODES = frozenset({408, 429, 500, 502, 503, 504})
_MOST_ATTEMPTS = 10**6
"""Most attempts that a setting or annotation may allow: with the longest default wait between them, four years."""
_LONGEST = 2048
"""Most characters in an annotation: enough for every code. A bound, because each message has annotations."""
_SHOWN = 80
"""Characters of an ignored annotation that are logged."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The policy for one function."""

    attempts: int = 100
    codes: frozenset[int] = DEFAULT_CODES
    backoff: Backoff = field(default_factory=Backoff)


@dataclass(frozen=True, slots=True)
class IgnoredAnnotation:
    """An annotation that is invalid."""

    annotation: str
    value: str
    """The value, or its beginning if it is long."""
    reason: str


def parse_codes(text: str) -> frozenset[int]:
    """Parse a comma-separated list of HTTP statuses.

    Raises:
        ValueError: an entry is not one, or there is none.
    """
    entries = [entry.strip() for entry in text.split(",")]
    if not all(len(entry) == 3 and entry.isascii() and entry.isdigit() and entry[0] in "12345" for entry in entries):
        raise ValueError("not a list of HTTP status codes: write them with commas, as 408,429,503")
    return frozenset(map(int, entries))


def parse_attempts(text: str) -> int:
    """Parse a number of attempts.

    Raises:
        ValueError: it is not a whole number from 1 to a million.
    """
    if (attempts := whole_number(text, 1, _MOST_ATTEMPTS, digits=7)) is None:
        raise ValueError("not a number of attempts: write a whole number from 1 to 1000000")
    return attempts


def _bounded(text: str) -> str:
    if len(text) > _LONGEST:
        raise ValueError(f"longer than {_LONGEST} characters")
    return text


def _backoff(**change: float) -> Callable[[Retry], Retry]:
    return lambda retry: replace(retry, backoff=replace(retry.backoff, **change))  # type: ignore[arg-type]  # mypy cannot see which float


_ANNOTATIONS: Mapping[str, Callable[[str], Callable[[Retry], Retry]]] = {
    "com.openfaas.retry.attempts": lambda text: _with(attempts=parse_attempts(text)),
    "com.openfaas.retry.codes": lambda text: _with(codes=parse_codes(text)),
    "com.openfaas.retry.min_wait": lambda text: _backoff(first_wait=parse_duration(text)),
    "com.openfaas.retry.max_wait": lambda text: _backoff(max_wait=parse_duration(text)),
}


def _with(**change: Any) -> Callable[[Retry], Retry]:
    return lambda retry: replace(retry, **change)


def apply_annotations(retry: Retry, annotations: Mapping[str, str]) -> tuple[Retry, tuple[IgnoredAnnotation, ...]]:
    """Return the policy as a function's annotations change it, and the annotations that are invalid and ignored."""
    ignored: tuple[IgnoredAnnotation, ...] = ()
    if not annotations:
        return retry, ignored
    for annotation, parse in _ANNOTATIONS.items():
        value = annotations.get(annotation, "").strip()
        if not value:
            continue
        try:
            retry = parse(_bounded(value))(retry)
        except ValueError as error:
            ignored += (IgnoredAnnotation(annotation, value[:_SHOWN], str(error)),)
    return retry, ignored
