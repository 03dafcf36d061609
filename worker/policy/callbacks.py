"""The meaning of a callback's result: the response's status, or a text that explains why there was no response."""

from __future__ import annotations

_PASSING = frozenset({408, 425, 429})
"""Client errors after which a retry may succeed."""


def is_delivered(result: int | str) -> bool:
    """Return whether the callback was delivered. A redirect counts: the worker posts to no other URL."""
    return isinstance(result, int) and result < 400


def is_retriable(result: int | str) -> bool:
    """Return whether a retry may succeed."""
    return isinstance(result, str) or result >= 500 or result in _PASSING
