"""What an outcome means. The table of docs/guarantees.md is tested against this module."""

from __future__ import annotations

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
    Outcome,
    Responded,
    Term,
    TimedOut,
    Verdict,
)
from .limiter import LONGEST_REST
from .retry import Retry
from .retry_after import parse_retry_after

LONGEST_RETRY_AFTER = 3600.0
"""Seconds. A function may ask for more patience than ``max_retry_wait``, but one answer must not park a message for
days."""


def decide(outcome: Outcome, *, attempt: int, retry: Retry, draw: float, now: float) -> Verdict:  # noqa: PLR0911 -- a return is a row of the table
    """The verdict on attempt number *attempt* (from 1).

    Args:
        outcome: what happened.
        attempt: which attempt it was.
        retry: the policy for this function.
        draw: a uniform random number in [0, 1).
        now: wall-clock time (s since the epoch), which a Retry-After date is read against.
    """
    match outcome:
        case Malformed(reason):
            return Term(reason)
        case Interrupted():
            return Nak()
        case LeaseLost():
            return Abandon()
        case Responded(status, headers) if not _must_retry(status, headers, retry):
            return Ack()
        case Responded() | NoResponse() | TimedOut() | Crashed():
            if attempt >= retry.attempts:
                return Term(f"gave up after {attempt} of {retry.attempts} attempts: {describe(outcome)}")
            asked = _asked_wait(outcome, now)
            if asked is None:
                return Nak(retry.backoff.delay(attempt, draw=draw))
            return Nak(max(retry.backoff.first_wait, min(asked, LONGEST_RETRY_AFTER)))


def sooner(outcome: Outcome, wait: float, *, now: float) -> Nak | None:
    """The verdict on what was turned away because we sent more than the function takes: back after *wait* (s).

    That is no failure of the message, so no back-off and no last attempt. A function that says when it wants to be
    asked again is heard. Where that is longer than we leave any function alone, it is no matter of room: None, it is an
    attempt like any other. (Uncounted, a message that is told to come again in an hour would be tried for a day more.)
    """
    asked = _asked_wait(outcome, now) or 0.0
    return Nak(max(wait, asked)) if asked <= LONGEST_REST else None


def status_of(outcome: Outcome) -> int | None:
    """The HTTP status that an outcome counts as; None where nothing was sent, or we stopped it."""
    match outcome:
        case Responded(status):
            return status
        case NoResponse():
            return 502
        case TimedOut():
            return 504
        case _:
            return None


def describe(outcome: Outcome) -> str:  # noqa: PLR0911 -- the same
    """An outcome in a few words, for a reason or a log line."""
    match outcome:
        case Responded(status):
            return f"status {status}"
        case NoResponse(reason):
            return f"no response: {reason}"
        case TimedOut(after):
            return f"no response within {after:g} s"
        case Malformed(reason):
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
    """The first value of a header; *name* in lower case."""
    for key, value in headers:
        if key.lower() == name:
            return value
    return None
