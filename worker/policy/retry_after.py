"""The Retry-After header (RFC 9110, section 10.2.3): a number of seconds, or a date."""

from __future__ import annotations

import re
from datetime import UTC
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]+")
_MAX_DATE = 64
"""Characters of a date: the longest of RFC 9110 has 33. More is not parsed, because the time grows with it."""


def parse_retry_after(value: str, *, now: float) -> float | None:
    """Return seconds from *now* (s since the epoch), at least 0 and possibly infinite; None if *value* is not valid."""
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
