from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.policy.durations import format_duration, parse_duration

UNITS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,
    "\u03bcs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 6 * 10**10,
    "h": 36 * 10**11,
}
LONGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("0", 0),
        ("+0", 0),
        ("-0", 0),
        ("-0s", 0),
        ("300ms", 300 * 10**6),
        ("1.5s", 1_500_000_000),
        ("2m", 120 * 10**9),
        ("1h30m", 5400 * 10**9),
        ("+5s", 5 * 10**9),
        ("1.s", 10**9),
        (".5s", 500 * 10**6),
        (".125s", 125 * 10**6),
        ("1.0040s", 1_004_000_000),
        ("100.00100s", 100_001_000_000),
        ("11us", 11_000),
        ("12\u00b5s", 12_000),
        ("12\u03bcs", 12_000),
        ("7ns", 7),
        ("0.9ns", 0),
        ("10.5s4m", 250_500_000_000),
        ("1s1s", 2 * 10**9),
        ("1h2m3s4ms5us6ns", 3_723_004_005_006),
        ("00000000000000000000001s", 10**9),
        # Go cuts a fraction where 63 bits end and goes on in floats; its own tests have these three.
        ("0.3333333333333333333h", 1200 * 10**9),
        ("0.100000000000000000000h", 360 * 10**9),
        ("0.830103483285477580700h", 2_988_372_539_827),
        # The same arithmetic, where another digit would make it a nanosecond more.
        ("0.54970924026777777779h", 1_978_953_264_963),
        ("0.98035198357277777777h", 3_529_267_140_861),
        ("9223372036854775807ns", LONGEST),
        ("9223372036854775.807us", LONGEST),
        ("9223372036s854ms775us807ns", LONGEST),
    ],
)
def test_parse_duration_returns_what_go_returns(text: str, nanoseconds: int) -> None:
    """A Go duration gives the seconds that ``time.ParseDuration`` gives."""
    assert parse_duration(text) == nanoseconds / 10**9


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "00",
        "0.0",
        "-",
        "+",
        "--0",
        "+-5s",
        "s",
        ".",
        "-.",
        ".s",
        "+.s",
        "1d",
        "1S",
        "1 s",
        " 1s",
        "1s ",
        "1s\n",
        "1e3s",
        "1_000s",
        "1,5s",
        "1..5s",
        "1.5.5s",
        "1h30",
        "30h1",
        "1hm",
        "1sm",
        "1mns",
        "\u0661s",
        "\uff11s",
        "1\u00b5",
        "\x00",
        "1s\x00",
        "hello",
        "inf",
        "0x1s",
        "\ufffd",
    ],
)
def test_parse_duration_rejects_what_go_rejects(text: str) -> None:
    """The error of an invalid duration, above all of a bare number, shows valid ones."""
    with pytest.raises(ValueError, match=r"^not a duration: write a number and a unit, as 300ms, 1\.5s, 2m or 1h30m$"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["-1ns", "-5s", "-2m3.4s", "-.5h", "-9223372036854775807ns"])
def test_parse_duration_negative_is_rejected(text: str) -> None:
    """A negative duration is rejected, although Go has them, because no setting can be negative."""
    with pytest.raises(ValueError, match=r"^negative: "):
        parse_duration(text)


@pytest.mark.parametrize(
    "text",
    [
        "9223372036854775808ns",
        "-9223372036854775809ns",
        "9223372036854776us",
        "9223372036854775.808us",
        "3000000h",
        "9223372036s854ms775us808ns",
        "99999999999999999999ns",
        "2562048h",
        f"{'9' * 5000}s",
        "1000000h" * 3,
    ],
    ids=lambda text: text[:30],
)
def test_parse_duration_above_go_s_range_is_rejected(text: str) -> None:
    """More than 2**63 - 1 nanoseconds exceed Go's range, in one part or in their sum."""
    with pytest.raises(ValueError, match=r"^longer than 292 years$"):
        parse_duration(text)


def test_parse_duration_long_fraction_is_cut() -> None:
    """A fraction is read as far as it can matter, so the time for it is bounded."""
    assert parse_duration("1." + "0" * 1_000_000 + "1h") == 3600.0
    assert parse_duration("0." + "9" * 1_000_000 + "s") == 1.0  # 18 nines, rounded to a float


parts_of_durations = st.tuples(st.integers(0, 10**5), st.text("0123456789", max_size=9), st.sampled_from(sorted(UNITS)))


@given(st.lists(parts_of_durations, max_size=20))
def test_parse_duration_adds_its_parts_up(parts: list[tuple[int, str, str]]) -> None:
    """A duration is the sum of its parts, in any order, each to the nanosecond."""
    exact = [(whole, digits if 10 ** len(digits) <= UNITS[unit] else "", unit) for whole, digits, unit in parts]
    total = sum(Fraction(f"{whole}.{digits or 0}") * UNITS[unit] for whole, digits, unit in exact)
    text = "".join(f"{whole}.{digits}{unit}" for whole, digits, unit in exact)
    assert parse_duration(text or "0") == int(total) / 10**9


@given(st.integers(0, LONGEST))
@example(98_889_493_605_796_684)
def test_format_duration_is_read_again(nanoseconds: int) -> None:
    """Writing and reading returns any duration that can be read, up to the longest."""
    seconds = nanoseconds / 10**9
    if seconds < LONGEST / 10**9:
        assert parse_duration(format_duration(seconds)) == seconds


@given(st.text() | st.text("0123456789.hmsun+-\u00b5"))
def test_parse_duration_any_text_returns_a_duration_or_raises(text: str) -> None:
    """No text raises another error than ValueError, or exceeds Go's range."""
    try:
        seconds = parse_duration(text)
    except ValueError:
        return
    assert 0 <= seconds <= LONGEST / 10**9


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (1e-10, "0s"),
        (1e-9, "1ns"),
        (0.0015, "1500us"),
        (0.3, "300ms"),
        (0.999999999, "999999999ns"),
        (1.0, "1s"),
        (1.5, "1.5s"),
        (59.0, "59s"),
        (60.0, "1m"),
        (90.0, "1m30s"),
        (3600.0, "1h"),
        (3600.5, "1h0.5s"),
        (5400.0, "1h30m"),
        (604800.0, "168h"),
    ],
)
def test_format_duration_writes_the_shortest_form(seconds: float, text: str) -> None:
    """A part of zero is omitted, and no unit is longer than the duration."""
    assert format_duration(seconds) == text
