"""A cache of what the gateway has about functions: which copies are used, and when they are requested again.

Unknown functions and failures are kept apart from functions that exist, so that invented names evict only each other.
An outage of the gateway is noticed once, for all functions: until it ends, no call waits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import msgspec

from .freshness import Step, step
from .quota import QUOTA_ANNOTATIONS
from .retry import LONGEST, RETRY_ANNOTATIONS

QUEUE_ANNOTATION = "com.openfaas.queue"
"""OpenFaaS's annotation that names a function's queue."""
_TRAVEL = sorted(RETRY_ANNOTATIONS | QUOTA_ANNOTATIONS)
"""The annotations that a worker reads from the message."""
FRESH, USABLE = 5.0, 30.0
"""Ages of a copy (s): a change arrives within :data:`FRESH`; above :data:`USABLE` a call waits for a new copy."""
MISSING = 2.0
"""Seconds for which a function is taken as missing: it may have been deployed since."""
_FAILED = 5.0
"""Seconds after a failure for one function before it is requested again."""
_FIRST_WAIT, _MAX_WAIT = 1.0, 10.0
"""Seconds between two requests during an outage, doubling."""
_MOST = 10_000
"""Functions that are remembered, of each kind. A copy takes some hundred bytes."""


@dataclass(frozen=True, slots=True)
class FunctionRecord:
    """The gateway's data about one function."""

    exists: bool
    annotations: Mapping[str, str] | None
    """The annotations that a worker reads; None if they are not known."""
    queue: str = ""
    """The annotation that names its queue; empty without one."""


UNKNOWN = FunctionRecord(exists=True, annotations=None)
"""A function about which nothing is known: it may exist, and have annotations."""
NO_FUNCTION = FunctionRecord(exists=False, annotations=None)


class _Status(msgspec.Struct):
    """The one field of OpenFaaS's ``FunctionStatus`` that is read."""

    name: str
    annotations: dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(_Status)


def parse_record(body: bytes) -> FunctionRecord:
    """Return the record in a gateway's ``FunctionStatus``; a ValueError explains why there is none.

    A value is cut where a worker would ignore it as too long, so that the worker can report it.
    """
    try:
        status = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a function's status: {error}") from None
    texts = {name: text for name, text in (status.annotations or {}).items() if isinstance(text, str)}
    kept = {name: texts[name][: LONGEST + 1] for name in _TRAVEL if name in texts}
    return FunctionRecord(True, kept, texts.get(QUEUE_ANNOTATION, "").strip()[:LONGEST])


class FunctionRecords:
    """The copies, by function as callers write it. All times are of one monotonic clock (s)."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._found: dict[str, tuple[float, FunctionRecord]] = {}
        """Time of reading and record; the one that was read first is the first."""
        self._missing: dict[str, float] = {}
        """The time at which the gateway had no such function."""
        self._failed: dict[str, float] = {}
        """The time before which the function is not requested again."""
        self._wait = 0.0
        """Seconds between requests during the outage; 0 without one."""
        self._probe_at = -inf
        self._probing = False

    @property
    def in_outage(self) -> bool:
        """Whether the gateway did not answer the last request."""
        return self._wait > 0

    def find(self, function: str, now: float) -> tuple[FunctionRecord | None, Step]:
        """Return the copy that may be used, and the step before that."""
        if found := self._found.get(function):
            read_at, record = found
            chosen = step(now - read_at, FRESH, USABLE)
            if chosen is Step.USE:
                return record, chosen
        elif (read_at := self._missing.get(function, -inf)) + MISSING > now:
            return NO_FUNCTION, Step.USE
        else:
            record, chosen = None, Step.WAIT
        if self.in_outage:
            return record, self._probe(now)
        return record, Step.USE if self._failed.get(function, -inf) > now else chosen

    def _probe(self, now: float) -> Step:
        """Return the step during an outage: one request after each wait, for which no call waits."""
        if now < self._probe_at:
            return Step.USE
        self._probe_at, self._probing = now + self._wait, True
        return Step.REFRESH

    def store(self, function: str, record: FunctionRecord, now: float) -> None:
        """Store the gateway's answer about a function."""
        self._wait = 0.0
        for copies in (self._found, self._missing, self._failed):
            copies.pop(function, None)
        if record.exists:
            self._found[function] = now, record
            _trim(self._found, self._most)
        else:
            self._missing[function] = now
            _trim(self._missing, self._most)

    def fail(self, function: str, now: float) -> None:
        """Note that the gateway answered, but not with what it has about the function."""
        self._wait = 0.0
        self._failed.pop(function, None)
        self._failed[function] = now + _FAILED
        _trim(self._failed, self._most)

    def fail_all(self, now: float) -> bool:
        """Note that the gateway did not answer; return whether an outage begins with that."""
        if not self.in_outage:
            self._wait, self._probe_at, self._probing = _FIRST_WAIT, now + _FIRST_WAIT, False
            return True
        if self._probing:  # else it is one of several requests that the outage met
            self._wait = min(_MAX_WAIT, self._wait * 2)
            self._probe_at, self._probing = now + self._wait, False
        return False


def _trim(copies: dict[str, Any], most: int) -> None:
    if len(copies) > most:
        del copies[next(iter(copies))]
