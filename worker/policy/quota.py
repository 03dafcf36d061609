"""How much of the workers one function may have: its weight, how many invocations at once, how many in a window.

Kept across all workers by *tokens*, messages of a queue of their own, of which each is in one hand at a time. Who runs
an invocation of a function that has a cap holds a token for it, and gives it back when that has ended. Who starts one
of a function that has a rate uses up a token, and gives it back with a delay of the window: it comes to nobody before
the window is over, so in no window are more uses than tokens.

A token of a large rate is worth several uses, so that there are at most a hundred. The last of them is the one that
counts: the delay begins with it. So between the uses of one round and those of the next a whole window lies, and the
law holds for every window, not only for those that begin with a full one. What is not used in time is lost for a
window, which makes less start, never more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from ..model import Quota, Rate
from .names import split_function
from .retry import IgnoredAnnotation

CAP, RATE = "cap", "rate"
"""The kinds of tokens."""
MOST_TOKENS = 100
"""Tokens of a rate: each use that is granted moves one, so a percent is as fine as it needs to be."""
MOST_WEIGHT = 1_000
MOST_INFLIGHT = 100_000
MOST_STARTS = 1_000_000
"""Far above what one function can be sent; what is more is a mistake."""
RATE_WAIT = 10.0
"""Seconds above the window that a token of a rate stays away when nothing was heard of it: whoever has it may die."""
USABLE = RATE_WAIT / 2
"""Seconds in which a token of a rate may be used, from when we asked to keep it. So nobody gets it again earlier than
a window after its last use, whatever happens to us and to what we say; the other half is for clocks, and for us when we
stand still."""
_FLOWS = "quota/"
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_SHOWN = 80
"""Characters of an ignored annotation that are told on."""


def token_flow(kind: str, label: str) -> str:
    """The flow of a function's tokens: ``quota/cap/echo.fn``. No subject of a queue begins so, as it has no slash."""
    return f"{_FLOWS}{kind}/{label}"


def is_token_flow(flow: str) -> bool:
    """Whether a flow is one of tokens."""
    return flow.startswith(_FLOWS)


def split_token_flow(flow: str) -> tuple[str, str]:
    """Kind and label of a flow of tokens."""
    kind, _, label = flow.removeprefix(_FLOWS).partition("/")
    return kind, label


def token_number(subject: str) -> int:
    """Which of its flow's tokens it is that has this subject."""
    return int(subject.rpartition(".")[2])


def needs_tokens(quota: Quota) -> bool:
    """Whether it takes tokens to run one."""
    return quota.max_inflight is not None or quota.rate is not None


def token_count(quota: Quota, kind: str) -> int:
    """How many tokens of a kind there are; without a limit, none."""
    if kind == CAP:
        return quota.max_inflight or 0
    return -(-quota.rate.starts // uses_per_token(quota.rate)) if quota.rate else 0


def uses_per_token(rate: Rate) -> int:
    """Uses of a token; the last one may have fewer."""
    return -(-rate.starts // MOST_TOKENS)


def uses_of_token(quota: Quota, kind: str, number: int) -> int:
    """Uses of the token of that number; none where it is of an earlier quota, and is to be taken off the queue."""
    if kind == CAP:
        return int(number < (quota.max_inflight or 0))
    return (
        max(0, min(uses_per_token(quota.rate), quota.rate.starts - number * uses_per_token(quota.rate)))
        if quota.rate
        else 0
    )


def parse_rate(text: str) -> Rate:
    """``10/s``, ``100/m``, ``5/h``.

    Raises:
        ValueError: it is none.
    """
    if not (found := re.fullmatch(r"([0-9]{1,7})/([smh])", text, re.ASCII)) or not 1 <= int(found[1]) <= MOST_STARTS:
        raise ValueError(f"not a rate: write a whole number from 1 to {MOST_STARTS}, a / and s, m or h, as 10/s")
    return Rate(int(found[1]), _UNITS[found[2]])


def write_rate(rate: Rate) -> str:
    """The text that :func:`parse_rate` reads."""
    return f"{rate.starts}/{next(unit for unit, window in _UNITS.items() if window == rate.window)}"


def parse_minimums(text: str) -> tuple[tuple[str, int], ...]:
    """Slots that functions have before others have more than theirs: ``checkout=5,billing.shop=2``.

    Raises:
        ValueError: it is no such list, or names a function twice.
    """
    entries = [entry.strip().partition("=") for entry in text.split(",")]
    for name, _, slots in entries:
        if split_function(name, "any") is None or not _is_whole(slots, MOST_INFLIGHT):
            raise ValueError(
                "not a list of minimums: write functions and slots with commas, as checkout=5,billing.shop=2"
            )
    names = [name for name, _, _ in entries]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{twice[0]} has two minimums: keep one")
    return tuple((name, int(slots)) for name, _, slots in entries)


def _is_whole(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 7 and 1 <= int(text) <= most


def _whole(most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not _is_whole(text, most):
            raise ValueError(f"not a whole number from 1 to {most}")
        return int(text)

    return parse


parse_max_inflight = _whole(MOST_INFLIGHT)
"""A cap.

Raises:
    ValueError: it is none.
"""
_ANNOTATIONS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "com.openfaas.queue.weight": ("weight", _whole(MOST_WEIGHT)),
    "com.openfaas.queue.max_inflight": ("max_inflight", parse_max_inflight),
    "com.openfaas.queue.rate": ("rate", parse_rate),
}


def parse_quota(annotations: Mapping[str, str]) -> tuple[Quota, tuple[IgnoredAnnotation, ...]]:
    """What a function's annotations say, each used or ignored on its own, and those that were ignored."""
    quota, ignored = Quota(), ()  # type: tuple[Quota, tuple[IgnoredAnnotation, ...]]
    if not annotations:
        return quota, ignored
    for annotation, (name, parse) in _ANNOTATIONS.items():
        if not (value := annotations.get(annotation, "").strip()):
            continue
        try:
            quota = msgspec.structs.replace(quota, **{name: parse(value)})
        except ValueError as error:
            ignored += (IgnoredAnnotation(annotation, value[:_SHOWN], str(error)),)
    return quota, ignored
