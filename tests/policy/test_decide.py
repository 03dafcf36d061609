from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate
from math import inf

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.cases import check_each
from worker.model import (
    Abandon,
    Ack,
    Crashed,
    Headers,
    Interrupted,
    LeaseLost,
    Malformed,
    Nak,
    NoResponse,
    Outcome,
    Responded,
    Term,
    TimedOut,
    Verdict,
)
from worker.policy.decide import decide, describe, header, parse_retry_after, status_of
from worker.policy.limiter import LONGEST_REST
from worker.policy.retry import Backoff, Jitter, Retry

NOW = 1_700_000_000.0
LISTED = (408, 429, 500, 502, 503, 504)
INTERNAL: Headers = ((b"X-OpenFaaS-Internal", b"gateway"),)
RETRY = Retry()


def verdict(outcome: Outcome, attempt: int = 1, retry: Retry = RETRY, draw: float = 0.0) -> Verdict:
    return decide(outcome, attempt=attempt, retry=retry, draw=draw, now=NOW)[0]


# The contract's table, row by row


def test_decide_unlisted_status_acks() -> None:
    """A status that is not in the retry list, and without X-OpenFaaS-Internal, is acked at any attempt."""

    def check(status: int) -> None:
        for attempt in (1, 99, 100, 101):
            assert verdict(Responded(status), attempt) == Ack()

    check_each((code for code in range(100, 600) if code not in LISTED), check)


@pytest.mark.parametrize("status", LISTED)
def test_decide_listed_status_retries(status: int) -> None:
    """A status in the retry list is retried, with an X-OpenFaaS-Internal header or without."""
    assert verdict(Responded(status)) == Nak(10.0)
    assert verdict(Responded(status, INTERNAL)) == Nak(10.0)


@pytest.mark.parametrize("status", [200, 204, 302, 404])
def test_decide_listed_success_retries(status: int) -> None:
    """A status in the retry list is retried even where it means success."""
    assert verdict(Responded(status), retry=Retry(codes=frozenset({status}))) == Nak(10.0)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 418, 499, 501, 505, 599])
@pytest.mark.parametrize("name", [b"X-OpenFaaS-Internal", b"x-openfaas-internal", b"X-OPENFAAS-INTERNAL"])
def test_decide_internal_error_retries_unlisted_status(status: int, name: bytes) -> None:
    """A status from 400 with X-OpenFaaS-Internal is retried, because OpenFaaS failed and not the function."""
    headers = ((b"Content-Type", b"text/plain"), (name, b""))
    assert verdict(Responded(status, headers)) == Nak(10.0)
    assert verdict(Responded(status, headers), retry=Retry(codes=frozenset({503}))) == Nak(10.0)
    assert verdict(Responded(status, headers), 100) == Term(f"gave up after 100 of 100 attempts: status {status}")


@pytest.mark.parametrize("status", [200, 202, 301, 399])
def test_decide_internal_header_below_400_acks(status: int) -> None:
    """X-OpenFaaS-Internal names the origin of an error, so below 400 it changes nothing."""
    assert verdict(Responded(status, INTERNAL)) == Ack()


def test_decide_no_response_retries_as_502() -> None:
    """An attempt without a response counts as 502, and is retried even where 502 is not listed."""
    outcome = NoResponse("connection refused")
    assert status_of(outcome) == 502
    assert verdict(outcome) == Nak(10.0)
    assert verdict(outcome, retry=Retry(codes=frozenset({503}))) == Nak(10.0)


def test_decide_timeout_retries_as_504() -> None:
    """An attempt that exceeded ``upstream_timeout`` counts as 504, and is retried even where 504 is not listed."""
    outcome = TimedOut(60.0)
    assert status_of(outcome) == 504
    assert verdict(outcome) == Nak(10.0)
    assert verdict(outcome, retry=Retry(codes=frozenset({503}))) == Nak(10.0)


RETRIED: list[tuple[Outcome, str]] = [
    (Responded(503), "status 503"),
    (Responded(418, INTERNAL), "status 418"),
    (NoResponse("reset by peer"), "no response: reset by peer"),
    (TimedOut(1.5), "no response within 1.5 s"),
    (Crashed(ValueError("x")), "a bug in the worker: ValueError('x')"),
]


@pytest.mark.parametrize(("outcome", "why"), RETRIED)
@pytest.mark.parametrize("attempts", [1, 2, 100])
def test_decide_last_attempt_terms(outcome: Outcome, why: str, attempts: int) -> None:
    """A failure at attempt ``max_retry_attempts`` or later terms the message, with the reason."""
    retry = Retry(attempts=attempts)
    if attempts > 1:
        assert isinstance(verdict(outcome, attempts - 1, retry), Nak)
    for attempt in (attempts, attempts + 1, 10**6):
        expected = f"gave up after {attempt} of {attempts} attempts: {why}"
        assert verdict(outcome, attempt, retry) == Term(expected)


def test_decide_malformed_terms_at_once() -> None:
    """A message that cannot be decoded is termed at its first delivery, because no retry can decode it."""
    assert verdict(Malformed("not a QueueRequest: x")) == Term("not a QueueRequest: x")


@pytest.mark.parametrize("attempt", [1, 100, 101])
def test_decide_interrupted_naks_without_delay(attempt: int) -> None:
    """The drain naks what it interrupts without a delay, and never terms it, because the function did not fail."""
    assert verdict(Interrupted(), attempt) == Nak(0.0)


@pytest.mark.parametrize("attempt", [1, 100])
def test_decide_lease_lost_abandons(attempt: int) -> None:
    """A message whose lease is lost is not settled, because another worker may run it."""
    assert verdict(LeaseLost(), attempt) == Abandon()


@pytest.mark.parametrize("outcome", [Malformed("x"), Interrupted(), LeaseLost(), Crashed(ValueError())])
def test_status_of_no_attempt_is_none(outcome: Outcome) -> None:
    """An invocation that was not sent, or not finished, has no status."""
    assert status_of(outcome) is None


@given(st.integers(100, 599))
def test_status_of_response_is_its_own(status: int) -> None:
    """The status of a response is the outcome's status."""
    assert status_of(Responded(status)) == status


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        *RETRIED,
        (Responded(200), "status 200"),
        (TimedOut(60.0), "no response within 60 s"),
        (Malformed("not a function's name: ''"), "not a function's name: ''"),
        (Interrupted(), "given back to shut down"),
        (LeaseLost(), "lease lost"),
    ],
)
def test_describe_names_each_outcome(outcome: Outcome, words: str) -> None:
    """Each outcome has a text for a reason or a log line."""
    assert describe(outcome) == words


# The wait


@pytest.mark.parametrize("outcome", [outcome for outcome, _ in RETRIED])
def test_decide_retry_waits_for_the_backoff(outcome: Outcome) -> None:
    """Attempts 1 to 6 wait 10, 20, 40, 80, 120, 120 s; with jitter, the part that *draw* selects."""
    assert [verdict(outcome, attempt) for attempt in range(1, 7)] == [Nak(s) for s in (10, 20, 40, 80, 120, 120)]
    for jitter, waits in ((Jitter.FULL, (2.5, 5, 10)), (Jitter.EQUAL, (6.25, 12.5, 25))):
        retry = replace(RETRY, backoff=replace(RETRY.backoff, jitter=jitter))
        assert [verdict(outcome, attempt, retry, 0.25) for attempt in (1, 2, 3)] == [Nak(s) for s in waits]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("retry_after", "wait"),
    [
        (b"0", 10.0),
        (b"1", 10.0),
        (b"9", 10.0),
        (b"10", 10.0),
        (b"11", 11.0),
        (b"60", 60.0),
        (b"120", 120.0),
        (b"121", 121.0),
        (b"3599", 3599.0),
        (b"3600", 3600.0),
        (b"3601", 3600.0),
        (b"86400", 3600.0),
        (b"99999999999999999999", 3600.0),
        (b"9" * 400, 3600.0),
        (formatdate(NOW + 90, usegmt=True).encode(), 90.0),
        (formatdate(NOW + 90_000, usegmt=True).encode(), 3600.0),
        (formatdate(NOW - 90, usegmt=True).encode(), 10.0),
        (b"Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),
        (b"Tue Nov 14 22:14:20 2023", 60.0),
        (b" 60 ", 60.0),
    ],
)
def test_decide_retry_after_replaces_the_wait(status: int, retry_after: bytes, wait: float) -> None:
    """On 429 and 503 Retry-After replaces wait and jitter: at least the first wait, at most an hour."""
    for name in (b"Retry-After", b"retry-after"):
        outcome = Responded(status, ((b"Content-Type", b"text/plain"), (name, retry_after)))
        for attempt in (1, 3, 99):
            for jitter in Jitter:
                retry = replace(RETRY, backoff=replace(RETRY.backoff, jitter=jitter))
                assert verdict(outcome, attempt, retry, 0.25) == Nak(wait)


@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_decide_retry_after_on_other_status_is_ignored(status: int) -> None:
    """Retry-After has no effect on other statuses that are retried."""
    assert verdict(Responded(status, ((b"Retry-After", b"60"),))) == Nak(10.0)


@pytest.mark.parametrize("retry_after", [b"", b"soon", b"-60", b"60.5", b"\xff", b"\xb2", b"60 seconds", b"\x00"])
def test_decide_invalid_retry_after_is_ignored(retry_after: bytes) -> None:
    """An invalid Retry-After does not change the wait."""
    for attempt, wait in ((1, 10.0), (3, 40.0), (9, 120.0)):
        assert verdict(Responded(429, ((b"Retry-After", retry_after),)), attempt) == Nak(wait)


def test_decide_several_retry_after_use_the_first() -> None:
    """Where a response has two Retry-After headers, the first one applies."""
    assert verdict(Responded(429, ((b"Retry-After", b"60"), (b"Retry-After", b"90")))) == Nak(60.0)


def test_decide_retry_after_does_not_cause_a_retry() -> None:
    """Retry-After does not retry the last attempt, nor a status that is not retried."""
    headers = ((b"Retry-After", b"60"),)
    assert isinstance(verdict(Responded(503, headers), 100), Term)
    assert verdict(Responded(503, headers), retry=Retry(codes=frozenset({500}))) == Ack()
    assert verdict(Responded(503, headers + INTERNAL), retry=Retry(codes=frozenset({500}))) == Nak(60.0)


def test_decide_first_wait_above_an_hour_is_the_minimum() -> None:
    """A configured or annotated first wait is not cut by the limit of an hour for Retry-After."""
    retry = Retry(backoff=Backoff(7200.0, 14400.0))
    assert verdict(Responded(429, ((b"Retry-After", b"1"),)), retry=retry) == Nak(7200.0)
    assert verdict(Responded(429, ((b"Retry-After", b"9000"),)), retry=retry) == Nak(7200.0)


# Any outcome

names = st.sampled_from([b"Retry-After", b"X-OpenFaaS-Internal", b"x-other"])
answers = st.builds(
    Responded,
    st.integers(100, 599),
    st.lists(st.tuples(names, st.binary(max_size=40) | st.integers().map(lambda n: b"%d" % n)), max_size=3).map(tuple),
)
outcomes = (
    answers
    | st.builds(NoResponse, st.text())
    | st.builds(TimedOut, st.floats(0, 1e6))
    | st.builds(Malformed, st.text())
    | st.sampled_from([Interrupted(), LeaseLost(), Crashed(ValueError())])
)
retries = st.builds(
    Retry,
    st.integers(1, 10**6),
    st.frozensets(st.integers(100, 599)),
    st.builds(Backoff, st.floats(0.001, 1e6), st.floats(0.001, 1e6), st.sampled_from(Jitter)),
)


@given(outcomes, st.integers(1, 10**6), retries, st.floats(0, 1, exclude_max=True))
@example(Responded(429, ((b"Retry-After", b"9" * 400),)), 1, RETRY, 0.0)
def test_decide_any_outcome_has_a_bounded_verdict(outcome: Outcome, attempt: int, retry: Retry, draw: float) -> None:
    """Every outcome gets a verdict, every wait is bounded, and only a final failure is termed."""
    result = verdict(outcome, attempt, retry, draw)
    if isinstance(result, Nak):
        assert 0 <= result.delay <= max(retry.backoff.first_wait, retry.backoff.max_wait, 3600) < inf
        assert attempt < retry.attempts or outcome == Interrupted()
    if isinstance(result, Term):
        assert attempt >= retry.attempts or isinstance(outcome, Malformed)
    if isinstance(result, Ack):
        assert isinstance(outcome, Responded)
        assert outcome.status not in retry.codes
    assert isinstance(result, Abandon) == isinstance(outcome, LeaseLost)


def test_header_is_found_in_any_case() -> None:
    """A lookup in lower case finds a header in any case, and the first one, even where it is empty."""
    headers = ((b"A", b"1"), (b"X-Some", b""), (b"x-some", b"2"))
    assert header(headers, b"x-some") == b""
    assert header(headers, b"a") == b"1"
    assert header(headers, b"b") is None
    assert header((), b"a") is None


# Probes: invocations that the limiter sent to measure how many a function accepts


@pytest.mark.parametrize(
    ("retry_after", "wait"),
    [
        *((None, 0.2), (b"0", 0.2), (b"7", 7.0), (b"30", 30.0), (b"31", None), (b"3600", None)),
        (formatdate(NOW + 7, usegmt=True).encode(), 7.0),
    ],
)
def test_decide_refused_probe_is_no_attempt(retry_after: bytes | None, wait: float | None) -> None:
    """A refused probe is retried after the limiter's wait or Retry-After; above 30 s it counts as an attempt."""
    headers = ((b"Retry-After", retry_after),) if retry_after else ()
    refused = Responded(429, headers)
    for number in (1, 100):
        last = decide(refused, attempt=number, retry=RETRY, draw=0.0, now=NOW)
        probe = decide(refused, attempt=number, retry=RETRY, draw=0.0, now=NOW, probe_wait=0.2)
        assert probe == (last if wait is None else (Nak(wait), False))
    assert LONGEST_REST == 30.0


@pytest.mark.parametrize("outcome", [Responded(200), Responded(404), Malformed("x"), LeaseLost()])
def test_decide_probe_not_refused_is_as_any_other(outcome: Outcome) -> None:
    """The limiter's wait changes no verdict where the outcome is not retried."""
    plain = decide(outcome, attempt=1, retry=RETRY, draw=0.0, now=NOW)
    assert decide(outcome, attempt=1, retry=RETRY, draw=0.0, now=NOW, probe_wait=0.2) == plain


def test_decide_interrupted_is_no_attempt() -> None:
    """An attempt that the drain cancelled is made again; every other outcome counts as an attempt."""
    outcomes: list[Outcome] = [
        Responded(200),
        Responded(503),
        NoResponse("x"),
        TimedOut(1.0),
        Malformed("x"),
        Crashed(ValueError()),
        LeaseLost(),
        Responded(503, ((b"Retry-After", b"7"),)),
    ]
    for outcome in outcomes:
        for attempt in (1, RETRY.attempts):
            assert decide(outcome, attempt=attempt, retry=RETRY, draw=0.0, now=NOW)[1]
    assert decide(Interrupted(), attempt=1, retry=RETRY, draw=0.0, now=NOW) == (Nak(), False)


# Retry-After

RFC_NOW = 784_111_777.0
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
    assert parse_retry_after(value, now=RFC_NOW) == seconds


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:51:37 GMT", "Sunday, 06-Nov-94 08:51:37 GMT", "Sun Nov  6 08:51:37 1994"]
)
def test_retry_after_of_a_date_is_the_time_until_then(date: str) -> None:
    """Each of HTTP's three kinds of date (RFC 9110, section 5.6.7) is read as GMT."""
    assert parse_retry_after(date, now=RFC_NOW) == 120.0
    assert parse_retry_after(f" {date} ", now=RFC_NOW) == 120.0
    assert parse_retry_after(date, now=RFC_NOW + 119.5) == 0.5
    assert parse_retry_after(date, now=RFC_NOW + 120) == 0.0


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_retry_after_of_a_date_ignores_the_local_time_zone(date: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same header is the same wait on every machine."""
    with monkeypatch.context() as there:
        there.setenv("TZ", "JST-9")
        time.tzset()
        assert parse_retry_after(date, now=RFC_NOW - 120) == 120.0
    time.tzset()


@pytest.mark.parametrize(
    "date", ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
)
def test_retry_after_of_a_past_date_is_zero(date: str) -> None:
    """A wait is never negative."""
    assert parse_retry_after(date, now=RFC_NOW + 3600) == 0.0


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
    assert parse_retry_after(date, now=RFC_NOW) == 120.0


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
    assert parse_retry_after(value, now=RFC_NOW) is None


def test_retry_after_of_a_date_longer_than_the_limit_is_none() -> None:
    """A date may have 64 characters, spaces included."""
    date = "Sun, 06 Nov 1994 08:51:37" + " " * 36 + "GMT"
    assert len(date) == 64
    assert parse_retry_after(date, now=RFC_NOW) == 120.0
    assert parse_retry_after(date.replace("  ", "   ", 1), now=RFC_NOW) is None


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
