"""What an answer to a callback means. An answer is a status, or text saying why there was none."""

from __future__ import annotations

_PASSING = frozenset({408, 425, 429})
"""Client errors that say "later", not "never"."""


def is_delivered(result: int | str) -> bool:
    """Whether the receiver took it. A redirect counts as taken: results go only where the caller asked for them."""
    return isinstance(result, int) and result < 400


def is_retriable(result: int | str) -> bool:
    """Whether sending it again may help."""
    return isinstance(result, str) or result >= 500 or result in _PASSING
