"""Go's durations, the format of times in settings and annotations, by the rules of ``time.ParseDuration``."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST = 2**63 - 1
"""Nanoseconds in Go's ``time.Duration``, about 292 years."""


def parse_duration(text: str) -> float:
    """Return the seconds of a Go duration, as ``1h1.5s``; raise ValueError if it is none, negative or out of range."""
    magnitude = text[1:] if text.startswith(("+", "-")) else text
    nanoseconds = 0 if magnitude == "0" else _nanoseconds(magnitude)
    if nanoseconds and text.startswith("-"):
        raise ValueError("negative: write a duration of nothing or more, as 300ms, 1.5s, 2m or 1h30m")
    return nanoseconds / 10**9


def format_duration(seconds: float) -> str:
    """Return the Go duration of *seconds*, at least 0: ``90.0`` is ``1m30s``. Parsing it returns *seconds*."""
    # A product of floats would be off by some nanoseconds from a few months on.
    nanoseconds = round(Fraction(seconds) * 10**9)
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 10**9:
        unit = next(unit for unit in ("ms", "us", "ns") if nanoseconds % _UNITS[unit] == 0)
        return f"{nanoseconds // _UNITS[unit]}{unit}"
    hours, rest = divmod(nanoseconds, _UNITS["h"])
    minutes, rest = divmod(rest, _UNITS["m"])
    last = Decimal(rest).scaleb(-9).normalize()
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "") + (f"{last:f}s" if last else "")


def _nanoseconds(text: str) -> int:
    nanoseconds, position = 0, 0
    while part := _PART.match(text, position):
        whole, _, fraction = part[1].partition(".")
        whole, unit = whole.lstrip("0"), _UNITS[part[2]]
        nanoseconds += int(whole[:20] or "0") * unit + _fraction(
            fraction, unit
        )  # 20 digits are too many, whatever follows
        if nanoseconds > _LONGEST:
            raise ValueError("longer than 292 years")
        position = part.end()
    if position < len(text) or not text:
        raise ValueError("not a duration: write a number and a unit, as 300ms, 1.5s, 2m or 1h30m")
    return nanoseconds


def _fraction(digits: str, unit: int) -> int:
    """Return the nanoseconds of the digits after a point, by Go's arithmetic: as many as 63 bits hold."""
    value, scale = 0, 1.0
    for digit in digits[:64]:  # later digits are less than a nanosecond, and would cost time
        longer = value * 10 + int(digit)
        if longer > 2**63:
            break
        value, scale = longer, scale * 10
    return int(value * (unit / scale))
