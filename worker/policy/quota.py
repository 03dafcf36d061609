"""The quota of a function: its weight, its cap (invocations at once) and its rate (starts in a window).

All workers keep caps and rates together by *tokens*: messages of a stream of their own, each held by one worker at a
time. A worker that runs an invocation of a function with a cap holds a token for it, and returns the token when the
invocation has ended. To start an invocation of a function with a rate the worker uses up a token, and returns it with
a delay of the window. No worker receives the token before the window is over, so no window has more uses than there
are tokens.

A token of a large rate has several uses, so that there are at most a hundred tokens. The delay begins with the last
use. So a whole window lies between the uses of one round and those of the next, and the rate holds for every window.
Uses that expire are lost for a window: fewer invocations start then, never more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise

from ..model import Quota, Rate
from .names import split_function
from .parse import whole, whole_number
from .retry import IgnoredAnnotation, Parsers, read_annotations

CAP, RATE = "cap", "rate"
"""The kinds of tokens."""
MOST_TOKENS = 100
"""Most tokens of a rate: a percent of the rate is fine enough."""
MOST_WEIGHT = 1_000
MOST_INFLIGHT = 100_000
MOST_STARTS = 1_000_000
"""Limits far above the needs of one function: a higher number is a mistake."""
RATE_WAIT = 10.0
"""Seconds beyond the window after which the server redelivers a token of a rate whose worker died."""
USABLE = RATE_WAIT / 2
"""Seconds in which a token of a rate may be used, from when its extension was sent. So no worker receives it earlier
than a window after its last use, even if this worker or its nak is lost. The other half of :data:`RATE_WAIT` covers
clocks that differ and a process that stands still."""
_DIGITS = 7
"""Most digits of a number in an annotation, including leading zeros."""
_FLOWS = "quota/"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def token_flow(kind: str, label: str) -> str:
    """Return the name of the flow of a function's tokens: ``quota/cap/echo.fn``. No subject of a queue has a slash."""
    return f"{_FLOWS}{kind}/{label}"


def is_token_flow(flow: str) -> bool:
    return flow.startswith(_FLOWS)


def split_token_flow(flow: str) -> tuple[str, str]:
    """Return the kind of a flow's tokens, and the function's label."""
    kind, _, label = flow.removeprefix(_FLOWS).partition("/")
    return kind, label


def token_number(subject: str) -> int:
    """Return the number of the token with this subject, among those of its flow."""
    return int(subject.rpartition(".")[2])


def needs_tokens(quota: Quota) -> bool:
    return quota.max_inflight is not None or quota.rate is not None


def token_count(quota: Quota, kind: str) -> int:
    """Return the number of tokens of a kind; 0 without a limit."""
    if kind == CAP:
        return quota.max_inflight or 0
    return -(-quota.rate.starts // uses_per_token(quota.rate)) if quota.rate else 0


def uses_per_token(rate: Rate) -> int:
    """Return the uses of each token of a rate; the last token may have fewer."""
    return -(-rate.starts // MOST_TOKENS)


def uses_of_token(quota: Quota, kind: str, number: int) -> int:
    """Return the uses of the token with this number; 0 for a token of an earlier quota, which is to be deleted."""
    if kind == CAP:
        return int(number < (quota.max_inflight or 0))
    if not quota.rate:
        return 0
    each = uses_per_token(quota.rate)
    return max(0, min(each, quota.rate.starts - number * each))


def parse_rate(text: str) -> Rate:
    """Parse a rate: ``10/s``, ``100/m``, ``5/h``. A ValueError explains what else the text is."""
    if not (found := re.fullmatch(r"([0-9]{1,7})/([smh])", text, re.ASCII)) or not 1 <= int(found[1]) <= MOST_STARTS:
        raise ValueError(f"not a rate: write a whole number from 1 to {MOST_STARTS}, a / and s, m or h, as 10/s")
    return Rate(int(found[1]), _UNITS[found[2]])


def write_rate(rate: Rate) -> str:
    """Write a rate as :func:`parse_rate` reads it."""
    return f"{rate.starts}/{next(unit for unit, window in _UNITS.items() if window == rate.window)}"


def parse_minimums(text: str) -> tuple[tuple[str, int], ...]:
    """Parse the minimum of slots of each function: ``checkout=5,billing.shop=2``."""
    entries = [entry.strip().partition("=") for entry in text.split(",")]
    if not all(
        split_function(name, "any") and whole_number(slots, 1, MOST_INFLIGHT, digits=_DIGITS)
        for name, _, slots in entries
    ):
        raise ValueError("not a list of minimums: write functions and slots with commas, as checkout=5,billing.shop=2")
    names = sorted(name for name, _, _ in entries)
    if twice := [one for one, other in pairwise(names) if one == other]:
        raise ValueError(f"{twice[0]} has two minimums: keep one")
    return tuple((name, int(slots)) for name, _, slots in entries)


parse_max_inflight = whole(1, MOST_INFLIGHT, digits=_DIGITS)
_ANNOTATIONS: Parsers = {
    "com.openfaas.queue.weight": ("weight", whole(1, MOST_WEIGHT, digits=_DIGITS)),
    "com.openfaas.queue.max_inflight": ("max_inflight", parse_max_inflight),
    "com.openfaas.queue.rate": ("rate", parse_rate),
}
QUOTA_ANNOTATIONS = frozenset(_ANNOTATIONS)
"""The names of the annotations that make a quota."""


def parse_quota(annotations: Mapping[str, str]) -> tuple[Quota, tuple[IgnoredAnnotation, ...]]:
    """Return the quota in a function's annotations, and the annotations that are ignored because they are invalid."""
    values, ignored = read_annotations(annotations, _ANNOTATIONS)
    return Quota(**values), ignored
