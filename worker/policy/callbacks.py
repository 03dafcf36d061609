"""What the result of a callback means: a status, or a text that explains why there was none."""

from __future__ import annotations

_PASSING = frozenset({408, 425, 429})
"""Client errors that mean "later", not "never"."""


def is_delivered(result: int | str) -> bool:
    """Return whether the receiver took it. A redirect counts: results are sent only to the URL that the caller gave."""
    return isinstance(result, int) and result < 400


def is_retriable(result: int | str) -> bool:
    """Return whether another try may help."""
    return isinstance(result, str) or result >= 500 or result in _PASSING
