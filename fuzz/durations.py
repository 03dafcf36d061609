"""Any text is the duration that Go's ``time.ParseDuration`` returns for it, or is rejected as by Go.

The oracle is Go's parser, written here character by character as in Go's source, in whole numbers and the floats that
it uses. If it cuts no fraction, a sum of exact fractions agrees. And a duration that was read, written and read
again stays the same.
"""

from __future__ import annotations

import re
from fractions import Fraction

from worker.policy.durations import format_duration, parse_duration

WORDS = ("ns", "us", "\u00b5s", "\u03bcs", "ms", "s", "m", "h", "9223372036854775807", "0.", ".5", "1h2m3s")
_UNITS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,
    "\u03bcs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_MAX = 2**63
_NO_UNIT = re.compile(r"[0-9.]")


def check(data: bytes) -> None:
    """Read *data* as a duration and check the law above."""
    text = data.decode("utf-8", "replace")
    expected = nanoseconds_of_go(text)
    try:
        seconds = parse_duration(text)
    except ValueError:
        assert expected is None or expected < 0, (text, expected)
        return
    assert expected is not None
    assert seconds == expected / 10**9, (text, seconds, expected)
    _check_near_exact(text, expected)
    again = parse_duration(format_duration(seconds)) if expected < _MAX - 2**10 else seconds  # above, floats round up
    assert again == seconds, (text, seconds, again)


def nanoseconds_of_go(text: str) -> int | None:
    """Return the nanoseconds of ``time.ParseDuration`` of Go 1.23, with its variable names; None for an error."""
    neg = text.startswith("-")
    s = text[1:] if text.startswith(("-", "+")) else text
    if s == "0":
        return 0
    if not s:
        return None
    d = 0
    while s:
        part = _go_part(s)
        if part is None:
            return None
        v, s = part
        d += v
        if d > _MAX:
            return None
    if neg:
        return -d
    return None if d > _MAX - 1 else d


def _go_part(s: str) -> tuple[int, str] | None:
    """Return a number with its unit in nanoseconds, and the text behind them."""
    whole = _digits(s)
    s, fraction, point = s[len(whole) :], "", s[len(whole) :].startswith(".")
    if point:
        fraction = _digits(s[1:])
        s = s[1 + len(fraction) :]
    if not whole and not fraction:
        return None
    end = _NO_UNIT.search(s)
    unit = _UNITS.get(s[: end.start()] if end else s)
    v = _leading_int(whole)
    if unit is None or v is None or v > _MAX // unit:
        return None
    v *= unit
    f, scale = _leading_fraction(fraction)
    if f > 0:
        v += int(float(f) * (float(unit) / scale))
        if v > _MAX:
            return None
    return v, s[end.start() :] if end else ""


def _digits(s: str) -> str:
    end = next((at for at, character in enumerate(s) if not "0" <= character <= "9"), len(s))
    return s[:end]


def _leading_int(digits: str) -> int | None:
    x = 0
    for digit in digits:
        if x > _MAX // 10:
            return None
        x = x * 10 + int(digit)
        if x > _MAX:
            return None
    return x


def _leading_fraction(digits: str) -> tuple[int, float]:
    x, scale, overflow = 0, 1.0, False
    for digit in digits:
        if overflow:
            continue
        if x > (_MAX - 1) // 10 or x * 10 + int(digit) > _MAX:
            overflow = True
            continue
        x, scale = x * 10 + int(digit), scale * 10
    return x, scale


def _check_near_exact(text: str, nanoseconds: int) -> None:
    """Check that floats and cut fractions lose less than a nanosecond and its rounding in each part."""
    parts = re.findall(r"([0-9]*)\.?([0-9]*)(ns|us|\u00b5s|\u03bcs|ms|s|m|h)", text)
    if all(len(whole) + len(fraction) < 1000 for whole, fraction, _ in parts):  # Python refuses longer numbers
        exact = Fraction(0)
        for whole, fraction, unit in parts:
            exact += Fraction(int(f"{whole}{fraction}"), 10 ** len(fraction)) * _UNITS[unit]
        assert abs(exact - nanoseconds) <= 1 + len(parts), (text, exact, nanoseconds)
