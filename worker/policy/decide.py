"""From an outcome to a verdict. The table of docs/guarantees.md is tested against this module."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

from ..model import (
    Abandon,
    Ack,
    Crashed,
    Headers,
    Interrupted,
    LeaseLost,
    Malformed,
    Nak,
    NoResponse,
    NotSent,
    Outcome,
    Responded,
    Term,
    TimedOut,
    Verdict,
)
from .limiter import LONGEST_REST
from .retry import Retry

_STATUS = {NoResponse: 502, TimedOut: 504}
LONGEST_RETRY_AFTER = 3600.0
"""Seconds that a Retry-After may ask for. It may exceed ``max_retry_wait``, but must not park a message for days."""
_SECONDS = re.compile(r"[0-9]+")
_MAX_DATE = 64
"""Characters of a date: the longest of RFC 9110 has 33. More is not parsed, because the time grows with it."""


def decide(  # noqa: PLR0911 -- a return is a row of the table
    outcome: Outcome, *, attempt: int, retry: Retry, draw: float, now: float, probe_wait: float | None = None
) -> tuple[Verdict, bool]:
    """Return the verdict on attempt number *attempt* (from 1), and whether it counts as an attempt.

    *retry* is the policy for this function, *draw* a random number in [0, 1), and *now* the wall-clock time (s since
    the epoch), which a Retry-After date is compared with. *probe_wait* is the limiter's answer. It has seconds if more
    was sent than the function takes, to find its limit; then the message should return after so long.
    """
    match outcome:
        case Malformed(reason):
            return Term(reason), True
        case Interrupted():
            return Nak(), False
        case NotSent():
            return Nak(retry.backoff.delay(1, draw=draw)), False
        case LeaseLost():
            return Abandon(), True
        case Responded(status, headers) if not _must_retry(status, headers, retry):
            return Ack(), True
    if probe_wait is not None and (asked := _asked_wait(outcome, now) or 0.0) <= LONGEST_REST:
        # A refused probe is no failure of the message: no back-off, and no attempt is used up. But a function that asks
        # for a longer wait than the limiter's longest rest does not lack room. Uncounted, that could go on for days.
        return Nak(max(probe_wait, asked)), False
    if attempt >= retry.attempts:
        return Term(f"gave up after {attempt} of {retry.attempts} attempts: {describe(outcome)}"), True
    if (wait := _asked_wait(outcome, now)) is None:
        return Nak(retry.backoff.delay(attempt, draw=draw)), True
    return Nak(max(retry.backoff.first_wait, min(wait, LONGEST_RETRY_AFTER))), True


def status_of(outcome: Outcome) -> int | None:
    """Return the HTTP status that an outcome counts as; None where nothing was sent, or the worker cancelled it."""
    return outcome.status if isinstance(outcome, Responded) else _STATUS.get(type(outcome))


def describe(outcome: Outcome) -> str:  # noqa: PLR0911 -- a table
    """Describe an outcome in a few words, for a reason or a log line."""
    match outcome:
        case Responded(status):
            return f"status {status}"
        case NoResponse(reason):
            return f"no response: {reason}"
        case TimedOut(after):
            return f"no response within {after:g} s"
        case Malformed(reason) | NotSent(reason):
            return reason
        case Interrupted():
            return "given back to shut down"
        case LeaseLost():
            return "lease lost"
        case Crashed(error):
            return f"a bug in the worker: {error!r}"


def _must_retry(status: int, headers: Headers, retry: Retry) -> bool:
    return status in retry.codes or (status >= 400 and header(headers, b"x-openfaas-internal") is not None)


def _asked_wait(outcome: Outcome, now: float) -> float | None:
    match outcome:
        case Responded(429 | 503, headers) if (value := header(headers, b"retry-after")) is not None:
            return parse_retry_after(value.decode("latin-1"), now=now)
        case _:
            return None


def header(headers: Headers, name: bytes) -> bytes | None:
    """Return the first value of a header; *name* in lower case."""
    return next((value for key, value in headers if key.lower() == name), None)


def parse_retry_after(value: str, *, now: float) -> float | None:
    """Return the seconds that a Retry-After header (RFC 9110, section 10.2.3) asks for; None if it is not valid.

    The number, at least 0 and possibly infinite, counts from *now* (s since the epoch).
    """
    value = value.strip(" \t")
    if _SECONDS.fullmatch(value):
        return float(value)
    if len(value) > _MAX_DATE:
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:  # an RFC 850 or asctime date, which is in GMT
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)
