"""The Retry-After header (RFC 9110, section 10.2.3): a number of seconds, or a date."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]+")
_LONGEST = 64
"""Characters: the longest date of RFC 9110 has 33. A bound, since the date parser's time grows with its input."""


def parse_retry_after(value: str, *, now: float) -> float | None:
    """Seconds from *now* (s since the epoch), never negative, perhaps infinite; None where *value* is not valid."""
    value = value.strip(" \t")
    if _SECONDS.fullmatch(value):
        return float(value)
    if len(value) > _LONGEST:
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:  # an RFC 850 or asctime date, which is in GMT
        date = date.replace(tzinfo=UTC)
    return max(0.0, date.timestamp() - now)
