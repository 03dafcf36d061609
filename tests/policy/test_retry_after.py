from __future__ import annotations

import time
from datetime import UTC, datetime
from email.utils import format_datetime
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.policy.retry_after import parse_retry_after

NOW = 784_111_777.0
"""Sun, 06 Nov 1994 08:49:37 GMT, RFC 9110's own example."""


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("1", 1.0),
        ("120", 120.0),
        (" 120\t", 120.0),
        ("007", 7.0),
        ("9999999999", 9999999999.0),
        ("100000000000", 100000000000.0),
        pytest.param("9" * 400, inf, id="400 digits"),
        pytest.param("1" * 100_000, inf, id="100,000 digits"),
    ],
)
def test_retry_after_of_digits_is_seconds(value: str, seconds: float) -> None:
    """Any number of digits is a number of seconds."""
    assert parse_retry_after(value, now=NOW) == seconds


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:51:37 GMT", "Sunday, 06-Nov-94 08:51:37 GMT", "Sun Nov  6 08:51:37 1994"]
)
def test_retry_after_of_a_date_is_the_time_until_then(date: str) -> None:
    """Each of HTTP's three kinds of date (RFC 9110, section 5.6.7) is read as GMT."""
    assert parse_retry_after(date, now=NOW) == 120.0
    assert parse_retry_after(f" {date} ", now=NOW) == 120.0
    assert parse_retry_after(date, now=NOW + 119.5) == 0.5
    assert parse_retry_after(date, now=NOW + 120) == 0.0


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_retry_after_of_a_date_ignores_the_local_time_zone(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same header is the same wait on every machine."""
    with monkeypatch.context() as there:
        there.setenv("TZ", "JST-9")
        time.tzset()
        assert parse_retry_after(date, now=NOW - 120) == 120.0
    time.tzset()


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_retry_after_of_a_past_date_is_zero(date: str) -> None:
    """A wait is never negative."""
    assert parse_retry_after(date, now=NOW + 3600) == 0.0


@pytest.mark.parametrize(
    "date",
    [
        "Sun, 06 Nov 1994 09:51:37 +0100",
        "Sun, 06 Nov 1994 06:21:37 -0230",
        "Sun, 06 Nov 1994 08:51:37 -0000",
        "06 Nov 1994 08:51:37 UTC",
    ],
)
def test_retry_after_of_a_mail_date_is_accepted(date: str) -> None:
    """Dates in the format of mail, with zones, are accepted, because some servers send them."""
    assert parse_retry_after(date, now=NOW) == 120.0


@pytest.mark.parametrize(
    "value",
    [
        "",
        " ",
        "soon",
        "-1",
        "+5",
        "1.5",
        "1e3",
        "0x10",
        "1_0",
        "12 0",
        "120s",
        "120 seconds",
        "120, 120",
        "120;",
        "X120",
        "\u0661\u0662",
        "\u00b2",
        "\uff11",
        "\xa0120",
        "\x00",
        "120\n",
        "2030-01-01T00:00:00Z",
        "Sun, 31 Feb 1994 08:49:37 GMT",
        "Sun, 06 Nov 1994 25:00:00 GMT",
        "Sun, 06 Nov 1994 08:49:61 GMT",
        "Sun, 06 Xyz 1994 08:49:37 GMT",
        "Sun, 06 Nov 99999 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 +9999",
        "Sun, 06 Nov 1994 08:49:37 +99999999999999999",
        "06 Nov 1994",
        "(" * 64,
        "Sun, 06 Nov 1994 08:49:37 GMT" + " " * 40 + "x",
    ],
)
def test_retry_after_of_garbage_is_none(value: str) -> None:
    """A value that is neither seconds nor a date is not guessed at."""
    assert parse_retry_after(value, now=NOW) is None


def test_retry_after_of_a_date_longer_than_the_limit_is_none() -> None:
    """A date may have 64 characters, spaces included."""
    date = "Sun, 06 Nov 1994 08:51:37" + " " * 36 + "GMT"
    assert len(date) == 64
    assert parse_retry_after(date, now=NOW) == 120.0
    assert parse_retry_after(date.replace("  ", "   ", 1), now=NOW) is None


@given(st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)), st.integers(0, 2**35))  # noqa: DTZ001 -- zoned below
def test_retry_after_of_any_http_date_is_exact(when: datetime, now: int) -> None:
    """Any second that an HTTP date can express is read exactly."""
    when = when.replace(microsecond=0, tzinfo=UTC)
    seconds = parse_retry_after(format_datetime(when, usegmt=True), now=now)
    assert seconds == max(0.0, when.timestamp() - now)


@given(
    st.text()
    | st.lists(
        st.sampled_from(
            ["Sun,", "Sunday,", "06", "06-Nov-94", "Nov", "1994", "08:49:37", "GMT", "+9999", "-", "(", "0"]
        )
    ).map(" ".join),
    st.floats(0, 1e11),
)
@example("Sun, 06 Nov 0001 08:49:37 +2359", 0.0)
@example("Fri, 31 Dec 9999 23:59:59 -2359", 0.0)
def test_retry_after_of_any_text_is_none_or_not_negative(value: str, now: float) -> None:
    """No text makes it raise or return a negative wait."""
    seconds = parse_retry_after(value, now=now)
    assert seconds is None or seconds >= 0
