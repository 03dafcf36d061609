"""The retry policy: which outcomes are retried, how often, after how long, and how annotations change that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import inf
from typing import Any

from .durations import parse_duration
from .parse import whole

DEFAULT_CODES = frozenset({408, 429, 500, 502, 503, 504})
NO_CODES = "none"
"""The list of no code. An empty setting counts as not set, so it cannot be that list."""
MAX_ATTEMPTS = 10**6
"""The most attempts take four years, with the longest default wait between them."""
_NO_ATTEMPTS = "not a number of attempts: write a whole number"
Parsers = Mapping[str, tuple[str, Callable[[str], Any]]]
"""For each annotation a field, and the parser of its value."""
LONGEST = 2048
"""Most characters in an annotation: enough for every code. A bound, because each message has annotations."""
_SHOWN = 80
"""Characters of an ignored annotation that are logged."""


class Jitter(StrEnum):
    """The random part of a wait, named as OpenFaaS documents its ``backoff`` setting."""

    EXPONENTIAL = "exponential"
    """No random part."""
    FULL = "full"
    """0-100 % of the wait."""
    EQUAL = "equal"
    """50-100 % of the wait."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Doubling waits (s), from *first_wait* to at most *max_wait*."""

    first_wait: float = 10.0
    max_wait: float = 120.0
    jitter: Jitter = Jitter.EXPONENTIAL

    def ceiling(self, attempt: int) -> float:
        """Return the wait (s) after failed attempt number *attempt* (from 1), before jitter."""
        # 2.0**64 seconds is past any cap; the bound keeps the power finite at attempt 10**6.
        return float(min(self.max_wait, self.first_wait * 2.0 ** min(attempt - 1, 64)))

    def delay(self, attempt: int, *, draw: float) -> float:
        """Return the wait (s) after jitter; *draw* is a random number in [0, 1)."""
        part = {Jitter.EXPONENTIAL: 1.0, Jitter.FULL: draw, Jitter.EQUAL: (1 + draw) / 2}[self.jitter]
        return self.ceiling(attempt) * part


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
    """Parse a comma-separated list of HTTP statuses, or ``none``; a ValueError explains what else it is."""
    if text == NO_CODES:
        return frozenset()
    entries = [entry.strip() for entry in text.split(",")]
    if not all(len(entry) == 3 and entry.isascii() and entry.isdigit() and entry[0] in "12345" for entry in entries):
        raise ValueError("not a list of HTTP status codes: write them with commas, as 408,429,503, or none")
    return frozenset(map(int, entries))


parse_attempts = whole(1, MAX_ATTEMPTS, digits=7, error=f"{_NO_ATTEMPTS} from 1 to {MAX_ATTEMPTS}")
"""Parse a number of attempts."""
_parse_attempts_or_0 = whole(0, MAX_ATTEMPTS, digits=7, error=f"{_NO_ATTEMPTS} from 0 to {MAX_ATTEMPTS}")
_CODES = "com.openfaas.retry.codes"
_ANNOTATIONS: Parsers = {
    # A function that asks for no retry writes 0. It is sent once even so.
    "com.openfaas.retry.attempts": ("attempts", lambda text: max(1, _parse_attempts_or_0(text))),
    _CODES: ("codes", lambda text: parse_codes(text or NO_CODES)),
    "com.openfaas.retry.min_wait": ("first_wait", parse_duration),
    "com.openfaas.retry.max_wait": ("max_wait", parse_duration),
}
RETRY_ANNOTATIONS = frozenset(_ANNOTATIONS)
"""The names of the annotations that change the policy."""


def apply_annotations(retry: Retry, annotations: Mapping[str, str]) -> tuple[Retry, tuple[IgnoredAnnotation, ...]]:
    """Return the policy as a function's annotations change it, and the annotations that are invalid and ignored."""
    if not annotations:
        return retry, ()
    values, ignored = read_annotations(annotations, _ANNOTATIONS, LONGEST)
    if not values:
        return retry, ignored
    waits = {name: values.pop(name) for name in ("first_wait", "max_wait") if name in values}
    return replace(retry, backoff=replace(retry.backoff, **waits), **values), ignored


def _bounded(text: str, longest: float) -> str:
    if len(text) > longest:
        raise ValueError(f"longer than {longest} characters")
    return text


def read_annotations(
    annotations: Mapping[str, str], parsers: Parsers, longest: float = inf
) -> tuple[dict[str, Any], tuple[IgnoredAnnotation, ...]]:
    """Return the values of a function's annotations by field, and the annotations that are invalid and ignored."""
    values: dict[str, Any] = {}
    ignored: tuple[IgnoredAnnotation, ...] = ()
    if parsers.keys().isdisjoint(annotations):
        return values, ignored
    for annotation, (name, parse) in parsers.items():
        text = annotations.get(annotation, "").strip()
        if not text and (annotation != _CODES or annotation not in annotations):
            continue  # an empty one counts as not set, except that an empty list of codes is a list
        try:
            values[name] = parse(_bounded(text, longest))
        except ValueError as error:
            ignored += (IgnoredAnnotation(annotation, text[:_SHOWN], str(error)),)
    return values, ignored
