"""Expected verdicts and waits, from docs/guarantees.md alone, without the worker's own policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime

from tests.world import EPOCH
from tests.world.simulation import Plan, PlannedMessage
from worker.model import Outcome, Responded, TimedOut

ANNOTATIONS: Mapping[tuple[str, str], Mapping[str, float | frozenset[int]]] = {
    ("com.openfaas.retry.attempts", "1"): {"attempts": 1},
    ("com.openfaas.retry.attempts", "5"): {"attempts": 5},
    ("com.openfaas.retry.attempts", "0"): {"attempts": 1},
    ("com.openfaas.retry.attempts", "many"): {},
    ("com.openfaas.retry.codes", "404, 503"): {"codes": frozenset({404, 503})},
    ("com.openfaas.retry.codes", "no"): {},
    ("com.openfaas.retry.min_wait", "500ms"): {"initial": 0.5},
    ("com.openfaas.retry.min_wait", "7"): {},
    ("com.openfaas.retry.max_wait", "3s"): {"longest": 3.0},
    ("com.openfaas.retry.max_wait", "-3s"): {},
}
"""Annotation -> settings that it changes; none where it is invalid."""
_AT = EPOCH + 60.0
RETRY_AFTER: Mapping[str, float | None] = {
    "0": 0.0,
    "4": 4.0,
    "45": 45.0,
    "90000": 90_000.0,
    "later": None,
    "-3": None,
    format_datetime(datetime.fromtimestamp(_AT, UTC), usegmt=True): None,
}
"""Value of Retry-After -> its seconds; None where it is invalid, or a date."""
MAX_RETRY_AFTER = 3600.0
CODES = frozenset({408, 429, 500, 502, 503, 504})


@dataclass(frozen=True, slots=True)
class Policy:
    """Retry policy of one message."""

    attempts: int
    initial: float
    longest: float
    backoff: str
    codes: frozenset[int] = CODES

    def final(self, outcome: Outcome) -> bool:
        """Return whether an outcome ends the message at any attempt."""
        if not isinstance(outcome, Responded):
            return False
        internal = any(name.lower() == b"x-openfaas-internal" for name, _ in outcome.headers)
        return outcome.status not in self.codes and not (outcome.status >= 400 and internal)

    def waits(self, outcome: Outcome, attempt: int, wall: float) -> tuple[float, float]:
        """Return the shortest and longest wait (s) after an outcome; *wall*: time of the worker's wall clock."""
        requested = _requested_wait(outcome, wall)
        if requested is not None:
            wait = max(self.initial, min(requested, MAX_RETRY_AFTER))
            return wait, wait
        ceiling = min(self.longest, self.initial * 2.0 ** (attempt - 1))
        return {"exponential": 1.0, "full": 0.0, "equal": 0.5}[self.backoff] * ceiling, ceiling


def policy_of(plan: Plan, planned: PlannedMessage) -> Policy:
    """Return the policy from the plan's settings and the message's annotations."""
    values = {"attempts": plan.attempts, "initial": plan.initial, "longest": plan.longest, "backoff": plan.backoff}
    for annotation in planned.annotations:
        values |= ANNOTATIONS[annotation]
    return Policy(**values)  # type: ignore[arg-type]  # a table of fields


def status_of(outcome: Outcome) -> int:
    """Return the status that a callback reports for an outcome."""
    match outcome:
        case Responded(status):
            return status
        case TimedOut():
            return 504
        case _:
            return 502


def _requested_wait(outcome: Outcome, wall: float) -> float | None:
    if not isinstance(outcome, Responded) or outcome.status not in (429, 503):
        return None
    value = next((value.decode() for name, value in outcome.headers if name.lower() == b"retry-after"), None)
    if value is None:
        return None
    if value.endswith("GMT"):
        return max(0.0, parsedate_to_datetime(value).timestamp() - wall)
    return RETRY_AFTER[value]
