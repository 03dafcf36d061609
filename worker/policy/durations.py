"""Go's durations, the way settings and annotations write time. The law is Go's ``time.ParseDuration``."""

from __future__ import annotations

import re

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "μs": 1_000, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_LONGEST = 2**63 - 1
"""Nanoseconds in Go's ``time.Duration``, about 292 years."""


def parse_duration(text: str) -> float:
    """Seconds in a Go duration: ``300ms``, ``1.5s``, ``1h30m``.

    Raises:
        ValueError: it is not one, it is negative, or it is longer than Go can hold. A bare number is refused, save ``0``.
    """
    if text == "0":
        return 0.0
    nanoseconds, position = 0, 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None:
            break
        whole, _, fraction = part[1].partition(".")
        unit = _UNITS[part[2]]
        # More than nine digits of a fraction cannot reach a nanosecond that matters, and would cost as they grow.
        fraction = fraction[:18]
        if len(whole) > 19:
            raise ValueError("longer than 292 years")
        nanoseconds += int(whole or "0") * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
        if nanoseconds > _LONGEST:
            raise ValueError("longer than 292 years")
        position = part.end()
    if position < len(text) or not text:
        raise ValueError("not a duration: write a number and a unit, as 300ms, 1.5s, 2m or 1h30m")
    return nanoseconds / 10**9


def format_duration(seconds: float) -> str:
    """The shortest Go duration for *seconds*, exact to the nanosecond: ``90.0`` is ``1m30s``."""
    nanoseconds = round(seconds * 10**9)
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 10**9:
        for unit in ("ms", "us", "ns"):
            if nanoseconds % _UNITS[unit] == 0:
                return f"{nanoseconds // _UNITS[unit]}{unit}"
    hours, rest = divmod(nanoseconds, _UNITS["h"])
    minutes, rest = divmod(rest, _UNITS["m"])
    whole, fraction = divmod(rest, _UNITS["s"])
    digits = f"{fraction:09d}".rstrip("0")
    said = f"{whole}.{digits}s" if digits else f"{whole}s" if whole else ""
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if minutes else "") + said
