from __future__ import annotations

from dataclasses import replace
from email.utils import formatdate
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
from worker.policy.backoff import Backoff, Jitter
from worker.policy.decide import decide, describe, header, status_of
from worker.policy.limiter import LONGEST_REST
from worker.policy.retry import Retry

NOW = 1_700_000_000.0
LISTED = (408, 429, 500, 502, 503, 504)
INTERNAL: Headers = ((b"X-OpenFaaS-Internal", b"gateway"),)
RETRY = Retry()


def verdict(outcome: Outcome, attempt: int = 1, retry: Retry = RETRY, dice: float = 0.0) -> Verdict:
    return decide(outcome, attempt=attempt, retry=retry, draw=dice, now=NOW)[0]


# The contract's table, row by row.


def test_a_code_that_is_not_listed_is_done() -> None:
    """A code not in the retry list, below 400 or not, with no X-OpenFaaS-Internal header: done, at any attempt."""

    def check(status: int) -> None:
        for attempt in (1, 99, 100, 101):
            assert verdict(Responded(status), attempt) == Ack()

    check_each((code for code in range(100, 600) if code not in LISTED), check)


@pytest.mark.parametrize("status", LISTED)
def test_a_listed_code_is_retried(status: int) -> None:
    """A code in the retry list: retry."""
    assert verdict(Responded(status)) == Nak(10.0)
    assert verdict(Responded(status, INTERNAL)) == Nak(10.0)


@pytest.mark.parametrize("status", [200, 204, 302, 404])
def test_any_code_can_be_listed(status: int) -> None:
    """The list rules, even over success."""
    assert verdict(Responded(status), retry=Retry(codes=frozenset({status}))) == Nak(10.0)


@pytest.mark.parametrize("status", [400, 401, 404, 413, 418, 499, 501, 505, 599])
@pytest.mark.parametrize("name", [b"X-OpenFaaS-Internal", b"x-openfaas-internal", b"X-OPENFAAS-INTERNAL"])
def test_an_internal_error_is_retried_whatever_the_list(status: int, name: bytes) -> None:
    """A code of 400 or more with an X-OpenFaaS-Internal header comes from OpenFaaS, not the function: retry."""
    headers = ((b"Content-Type", b"text/plain"), (name, b""))
    assert verdict(Responded(status, headers)) == Nak(10.0)
    assert verdict(Responded(status, headers), retry=Retry(codes=frozenset({503}))) == Nak(10.0)
    assert verdict(Responded(status, headers), 100) == Term(f"gave up after 100 of 100 attempts: status {status}")


@pytest.mark.parametrize("status", [200, 202, 301, 399])
def test_below_400_the_internal_header_does_not_matter(status: int) -> None:
    """The header tells whose error it is; without an error it tells nothing."""
    assert verdict(Responded(status, INTERNAL)) == Ack()


def test_no_response_is_retried_as_502() -> None:
    """Refused, reset, DNS, TLS, malformed: 502, and retried even where 502 is not listed."""
    outcome = NoResponse("connection refused")
    assert status_of(outcome) == 502
    assert verdict(outcome) == Nak(10.0)
    assert verdict(outcome, retry=Retry(codes=frozenset({503}))) == Nak(10.0)


def test_a_timeout_is_retried_as_504() -> None:
    """``upstream_timeout`` passed: 504, and retried even where 504 is not listed."""
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
def test_the_last_attempt_is_given_up(outcome: Outcome, why: str, attempts: int) -> None:
    """Retry, and this was attempt ``max_retry_attempts`` or later: given up, with the reason."""
    retry = Retry(attempts=attempts)
    if attempts > 1:
        assert isinstance(verdict(outcome, attempts - 1, retry), Nak)
    for attempt in (attempts, attempts + 1, 10**6):
        expected = f"gave up after {attempt} of {attempts} attempts: {why}"
        assert verdict(outcome, attempt, retry) == Term(expected)


def test_what_cannot_be_decoded_is_given_up_at_once() -> None:
    """It will not be decodable the next time either."""
    assert verdict(Malformed("not a QueueRequest: x")) == Term("not a QueueRequest: x")


@pytest.mark.parametrize("attempt", [1, 100, 101])
def test_what_we_interrupted_goes_back_at_once(attempt: int) -> None:
    """A drain gives back without a wait, and never gives up, since it was not the function that failed."""
    assert verdict(Interrupted(), attempt) == Nak(0.0)


@pytest.mark.parametrize("attempt", [1, 100])
def test_nothing_is_said_about_what_is_no_longer_ours(attempt: int) -> None:
    """Another worker may have the message."""
    assert verdict(LeaseLost(), attempt) == Abandon()


@pytest.mark.parametrize("outcome", [Malformed("x"), Interrupted(), LeaseLost(), Crashed(ValueError())])
def test_where_nothing_answered_there_is_no_status(outcome: Outcome) -> None:
    """What was not sent, or not seen through, has no status."""
    assert status_of(outcome) is None


@given(st.integers(100, 599))
def test_an_answer_counts_as_what_it_says(status: int) -> None:
    """A response's status is its own."""
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
def test_outcomes_in_words(outcome: Outcome, words: str) -> None:
    """Each outcome has words for a reason or a log line."""
    assert describe(outcome) == words


# The wait.


@pytest.mark.parametrize("outcome", [outcome for outcome, _ in RETRIED])
def test_each_attempt_waits_as_the_back_off_says(outcome: Outcome) -> None:
    """Attempts 1 to 6 wait 10, 20, 40, 80, 120, 120 s; with jitter, the share that the die gives."""
    assert [verdict(outcome, attempt) for attempt in range(1, 7)] == [Nak(s) for s in (10, 20, 40, 80, 120, 120)]
    for jitter, waits in ((Jitter.FULL, (2.5, 5, 10)), (Jitter.EQUAL, (6.25, 12.5, 25))):
        retry = replace(RETRY, backoff=replace(RETRY.backoff, jitter=jitter))
        assert [verdict(outcome, attempt, retry, 0.25) for attempt in (1, 2, 3)] == [Nak(s) for s in waits]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("asked", "wait"),
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
def test_retry_after_replaces_the_wait(status: int, asked: bytes, wait: float) -> None:
    """On 429 and 503 it replaces wait and jitter: not below the first wait, and above the longest up to an hour."""
    for name in (b"Retry-After", b"retry-after"):
        outcome = Responded(status, ((b"Content-Type", b"text/plain"), (name, asked)))
        for attempt in (1, 3, 99):
            for jitter in Jitter:
                retry = replace(RETRY, backoff=replace(RETRY.backoff, jitter=jitter))
                assert verdict(outcome, attempt, retry, 0.25) == Nak(wait)


@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_retry_after_counts_on_429_and_503_only(status: int) -> None:
    """On any other code that is retried it is not looked at."""
    assert verdict(Responded(status, ((b"Retry-After", b"60"),))) == Nak(10.0)


@pytest.mark.parametrize("asked", [b"", b"soon", b"-60", b"60.5", b"\xff", b"\xb2", b"60 seconds", b"\x00"])
def test_an_invalid_retry_after_does_not_count(asked: bytes) -> None:
    """Garbage leaves the wait as it would have been."""
    for attempt, wait in ((1, 10.0), (3, 40.0), (9, 120.0)):
        assert verdict(Responded(429, ((b"Retry-After", asked),)), attempt) == Nak(wait)


def test_the_first_of_several_retry_afters_counts() -> None:
    """Two are one too many; the first is taken."""
    assert verdict(Responded(429, ((b"Retry-After", b"60"), (b"Retry-After", b"90")))) == Nak(60.0)


def test_retry_after_does_not_outlast_the_attempts() -> None:
    """The last attempt is given up, whatever it asks for; what is not retried is not made to wait."""
    headers = ((b"Retry-After", b"60"),)
    assert isinstance(verdict(Responded(503, headers), 100), Term)
    assert verdict(Responded(503, headers), retry=Retry(codes=frozenset({500}))) == Ack()
    assert verdict(Responded(503, headers + INTERNAL), retry=Retry(codes=frozenset({500}))) == Nak(60.0)


def test_a_first_wait_of_more_than_an_hour_is_still_the_least() -> None:
    """An operator's or a function's own first wait is not cut by the bound on what an answer may ask for."""
    retry = Retry(backoff=Backoff(7200.0, 14400.0))
    assert verdict(Responded(429, ((b"Retry-After", b"1"),)), retry=retry) == Nak(7200.0)
    assert verdict(Responded(429, ((b"Retry-After", b"9000"),)), retry=retry) == Nak(7200.0)


# Whatever comes.

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
def test_every_outcome_has_a_verdict(outcome: Outcome, attempt: int, retry: Retry, dice: float) -> None:
    """Every outcome is settled, every wait is finite and within bounds, and only what failed for good is given up."""
    result = verdict(outcome, attempt, retry, dice)
    if isinstance(result, Nak):
        assert 0 <= result.delay <= max(retry.backoff.first_wait, retry.backoff.max_wait, 3600) < inf
        assert attempt < retry.attempts or outcome == Interrupted()
    if isinstance(result, Term):
        assert attempt >= retry.attempts or isinstance(outcome, Malformed)
    if isinstance(result, Ack):
        assert isinstance(outcome, Responded)
        assert outcome.status not in retry.codes
    assert isinstance(result, Abandon) == isinstance(outcome, LeaseLost)


def test_headers_are_found_in_any_case() -> None:
    """A header is looked up in lower case, as it is written in any; the first counts, an empty one is there."""
    headers = ((b"A", b"1"), (b"X-Some", b""), (b"x-some", b"2"))
    assert header(headers, b"x-some") == b""
    assert header(headers, b"a") == b"1"
    assert header(headers, b"b") is None
    assert header((), b"a") is None


# What was sent to learn how many a function takes.


@pytest.mark.parametrize(
    ("asked", "wait"), [(None, 0.2), (b"0", 0.2), (b"7", 7.0), (b"30", 30.0), (b"31", None), (b"3600", None)]
)
def test_sent_to_learn(asked: bytes | None, wait: float | None) -> None:
    """It is back after the limiter's wait, or when the function asks for it; what asks for long is an attempt."""
    headers = ((b"Retry-After", asked),) if asked else ()
    refused = Responded(429, headers)
    for number in (1, 100):
        last = decide(refused, attempt=number, retry=RETRY, draw=0.0, now=NOW)
        probe = decide(refused, attempt=number, retry=RETRY, draw=0.0, now=NOW, probe_wait=0.2)
        assert probe == (last if wait is None else (Nak(wait), False))
    assert LONGEST_REST == 30.0


@pytest.mark.parametrize("outcome", [Responded(200), Responded(404), Malformed("x"), LeaseLost()])
def test_decide_probe_that_was_not_refused_is_as_any_other(outcome: Outcome) -> None:
    """What the limiter answers changes nothing where the outcome is not retried."""
    plain = decide(outcome, attempt=1, retry=RETRY, draw=0.0, now=NOW)
    assert decide(outcome, attempt=1, retry=RETRY, draw=0.0, now=NOW, probe_wait=0.2) == plain


def test_decide_counts_all_but_what_the_drain_cancelled() -> None:
    """An attempt that the drain cancelled is made again; every other outcome uses one up."""
    outcomes: list[Outcome] = [
        Responded(200),
        Responded(503),
        NoResponse("x"),
        TimedOut(1.0),
        Malformed("x"),
        Crashed(ValueError()),
    ]
    for outcome in outcomes:
        assert decide(outcome, attempt=1, retry=RETRY, draw=0.0, now=NOW)[1]
    assert decide(Interrupted(), attempt=1, retry=RETRY, draw=0.0, now=NOW) == (Nak(), False)
