"""Small pieces of text that many formats share: whole numbers, and the tokens of HTTP."""

from __future__ import annotations

import re

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A method's or a header's name (RFC 9110, section 5.6.2)."""


def whole_number(text: str, low: int = 0, high: int = 2**31 - 1, *, digits: int = 10) -> int | None:
    """Return the whole number that *text* writes, or None if it is none within the bounds.

    Args:
        text: ASCII digits alone, at most *digits* with zeros in front: the time of int() grows with its input.
        low: the lowest number.
        high: the highest number.
        digits: most digits.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= digits):
        return None
    number = int(text)
    return number if low <= number <= high else None
