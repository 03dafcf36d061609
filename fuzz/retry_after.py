"""Any Retry-After header is the seconds or the date that RFC 9110 reads in it, or none, and never a negative wait.

The three kinds of date are also parsed here, by the grammar of RFC 9110, section 5.6.7. Other texts may still be dates
in the format of mail. Then the result, written in HTTP's own format, must be read as the same date.
"""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from math import inf, isnan

from worker.policy.decide import parse_retry_after

NOW = 784_111_777
"""Sun, 06 Nov 1994 08:49:37 GMT."""
WORDS = (
    *calendar.day_name, *(f"{day}, " for day in calendar.day_abbr), *calendar.month_abbr[1:],
    "Sun, 06 Nov 1994 08:51:37 GMT", "Sunday, 06-Nov-94 08:51:37 GMT", "Sun Nov  6 08:51:37 1994",
    " GMT", "+0100", "-0000", "EST", "99999999999999999999", "(", "+9999",
)  # fmt: skip
_MONTHS = "Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec"
_SHORT, _LONG = "Mon|Tue|Wed|Thu|Fri|Sat|Sun", "Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DATES = [
    re.compile(rf"({_SHORT}), (?P<day>\d\d) (?P<month>{_MONTHS}) (?P<year>\d{{4}}) {_TIME} GMT", re.ASCII),
    re.compile(rf"({_LONG}), (?P<day>\d\d)-(?P<month>{_MONTHS})-(?P<year>\d\d) {_TIME} GMT", re.ASCII),
    re.compile(rf"({_SHORT}) (?P<month>{_MONTHS}) (?P<day>\d\d| \d) {_TIME} (?P<year>\d{{4}})", re.ASCII),
]


def check(data: bytes) -> None:
    """Read *data* as a Retry-After header and check the law above."""
    value = data.decode("utf-8", "replace")
    wait = parse_retry_after(value, now=NOW)
    bare = re.fullmatch(r"[ \t]*(.*?)[ \t]*", value, re.DOTALL)
    assert bare
    assert wait is None or (wait >= 0 and not isnan(wait))
    assert wait == parse_retry_after(f"\t {bare[1]} ", now=NOW)
    if re.fullmatch(r"[0-9]+", bare[1]):
        digits = bare[1].lstrip("0")
        assert wait == (inf if len(digits) > 400 else float(f"{digits or 0}.0"))
    elif date := next(filter(None, (pattern.fullmatch(bare[1]) for pattern in _DATES)), None):
        when = _seconds(date.groupdict())
        assert wait == (None if when is None else max(0.0, when - NOW)), value
    elif wait is not None:
        assert len(bare[1]) <= 64
        _check_http_date(wait)
    if wait is not None and wait < 10**9 and not bare[1].isdigit():
        assert wait - min(wait, 60) == max(0.0, parse_retry_after(value, now=NOW + 60) or 0.0), value


def _check_http_date(wait: float) -> None:
    when = datetime.fromtimestamp(NOW, UTC) + timedelta(seconds=min(wait, 200 * 10**9))
    assert (
        parse_retry_after(format_datetime(when, usegmt=True), now=NOW)
        == (when - datetime.fromtimestamp(NOW, UTC)).total_seconds()
    )


def _seconds(date: dict[str, str]) -> float | None:
    """Return the seconds since the epoch, or None for an invalid date. Years below 100 are POSIX's: 1969 to 2068."""
    year, month = int(date["year"]), _MONTHS.split("|").index(date["month"]) + 1
    if year < 100:
        year += 1900 if year > 68 else 2000
    day, hour, minute, second = (int(date[name]) for name in ("day", "hour", "minute", "second"))
    if not (1 <= day <= calendar.monthrange(year, month)[1] and hour < 24 and minute < 60 and second < 60):
        return None
    return float(calendar.timegm((year, month, day, hour, minute, second)))
