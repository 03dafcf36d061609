"""Contract, section 5: the waits between attempts, Retry-After, and what a function's annotations change."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from tests.e2e.case import ATTEMPTS, WAITS, Case
from tests.e2e.stack import Queue, StartWorker, wait_quietly
from tests.functions import Functions, Reply
from tests.servers import wait_until


def is_not_early(case: Case) -> bool:
    """Return whether no attempt arrived before the end of its logged wait."""
    return all(gap >= wait for gap, wait in zip(case.gaps, case.waits, strict=False))


def test_backoff_doubles_up_to_max_retry_wait(case: Case) -> None:
    """Attempt n waits min(initial * 2^(n-1), max) before the next one."""
    assert case.run(Reply(500), annotations={"com.openfaas.retry.attempts": "6"}) == 6
    assert case.waits == [*WAITS, 0.2, 0.2]
    assert is_not_early(case)


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_replaces_the_backoff(case: Case, status: int) -> None:
    """After a 429 or 503 the worker waits the seconds of Retry-After, also if they exceed `max_retry_wait`."""
    assert case.run(Reply(status, headers=(("Retry-After", "1"),)), Reply(200)) == 2
    assert case.gaps[0] >= 1


def test_retry_after_with_a_date_is_waited_for(case: Case) -> None:
    """A Retry-After with an HTTP date delays the next attempt until that second."""
    due = int(time.time()) + 2
    assert case.run(Reply(503, headers=(("Retry-After", formatdate(due, usegmt=True)),)), Reply(200)) == 2
    arrived = time.time() - (time.monotonic() - case.requests[1].began)
    assert arrived >= due


@pytest.mark.parametrize("value", ["0", "Thu, 01 Jan 1970 00:00:00 GMT"])
def test_retry_after_below_initial_retry_wait_is_raised_to_it(case: Case, value: str) -> None:
    """A Retry-After of 0, or of a past date, causes a wait of `initial_retry_wait`."""
    reply = Reply(429, headers=(("Retry-After", value),))
    assert case.run(reply, reply, Reply(200)) == 3
    assert case.waits == [WAITS[0], WAITS[0]]
    assert is_not_early(case)


@pytest.mark.parametrize("value", ["soon", "-5", "1.5", "", "1, 2"])
def test_retry_after_with_an_invalid_value_is_ignored(case: Case, value: str) -> None:
    """A Retry-After that is neither seconds nor a date does not change the backoff."""
    reply = Reply(429, headers=(("Retry-After", value),))
    assert case.run(reply, reply, Reply(200)) == 3
    assert case.waits == WAITS[:2]


@pytest.mark.parametrize("status", [408, 500, 502, 504])
def test_retry_after_with_another_status_is_ignored(case: Case, status: int) -> None:
    """A Retry-After with a status other than 429 and 503 does not change the backoff."""
    assert case.run(Reply(status, headers=(("Retry-After", "3600"),)), Reply(200)) == 2
    assert case.waits == WAITS[:1]


@pytest.mark.parametrize(("retry_after", "waits"), [("600", 600), ("3600", 3_600), ("86400", 3_600), ("9" * 40, 3_600)])
def test_retry_after_is_bounded_by_an_hour(case: Case, retry_after: str, waits: int) -> None:
    """A Retry-After above `max_retry_wait` is applied, but no response delays a message by more than an hour."""
    case.answer(Reply(429, headers=(("Retry-After", retry_after),)))
    case.put()
    wait_until(lambda: case.waits, "the attempt to be logged")
    assert case.waits == [waits]
    wait_quietly()
    assert len(case.requests) == 1
    assert not case.queue.empty()


def test_jitter_stays_in_its_range(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """`backoff=full` waits 0-100 % of the backoff, `equal` 50-100 %: not always the same, and never more."""
    functions.answer("echo", Reply(500), Reply(200))
    for backoff, minimum in (("full", 0.0), ("equal", 0.1)):
        worker = start(backoff=backoff, initial_retry_wait="200ms")
        queue.put_calls("echo", [f"{backoff}-{number}" for number in range(40)])
        queue.wait_empty()
        waits = [line["retry_in"] for line in worker.lines() if "retry_in" in line]
        assert len(waits) == 40
        assert all(minimum <= wait <= 0.2 for wait in waits)
        assert len(set(waits)) > 10
        worker.terminate()
        assert worker.wait() == 0


# Annotations.


def test_annotation_of_attempts_lowers_the_setting(case: Case) -> None:
    """`com.openfaas.retry.attempts` lowers the number of attempts below the setting."""
    assert case.run(Reply(500), annotations={"com.openfaas.retry.attempts": "2"}) == 2
    assert case.dead_letter.headers["X-Dead-Letter-Attempts"] == "2"


def test_annotation_of_codes_replaces_the_setting(case: Case) -> None:
    """`com.openfaas.retry.codes` replaces the list of statuses for its function."""
    annotations = {"com.openfaas.retry.codes": "418,425"}
    assert case.run(Reply(418), Reply(425), Reply(500), annotations=annotations) == 3


def test_annotation_of_waits_replaces_the_settings(case: Case) -> None:
    """`com.openfaas.retry.min_wait` and `max_wait` replace the first and the longest wait."""
    annotations = {"com.openfaas.retry.min_wait": "150ms", "com.openfaas.retry.max_wait": "250ms"}
    assert case.run(Reply(500), annotations=annotations) == ATTEMPTS
    assert case.waits == [0.15, 0.25, 0.25]
    assert is_not_early(case)


def test_annotation_of_min_wait_bounds_retry_after(case: Case) -> None:
    """The shortest wait after a Retry-After is the first wait of the function's annotation."""
    annotations = {"com.openfaas.retry.min_wait": "300ms", "com.openfaas.retry.max_wait": "1s"}
    assert case.run(Reply(429, headers=(("Retry-After", "0"),)), Reply(200), annotations=annotations) == 2
    assert case.waits == [0.3]
    assert is_not_early(case)


def test_annotation_with_an_invalid_value_is_ignored(case: Case) -> None:
    """Each invalid annotation is ignored with one warning for all attempts; the valid one beside them is applied."""
    annotations = {
        "com.openfaas.retry.attempts": "3",
        "com.openfaas.retry.codes": "429,abc",
        "com.openfaas.retry.min_wait": "5",
        "com.openfaas.retry.max_wait": "-1m",
        "topic": "payments",
    }
    assert case.run(Reply(500), annotations=annotations) == 3
    assert case.waits == WAITS[:2]
    ignored = [line["annotation"] for line in case.warnings]
    assert sorted(ignored) == [f"com.openfaas.retry.{each}" for each in ("codes", "max_wait", "min_wait")]


def test_annotation_of_one_message_does_not_affect_the_next(case: Case) -> None:
    """An annotation applies to its own message, and not to the next message of the same function."""
    assert case.run(Reply(500), annotations={"com.openfaas.retry.attempts": "1"}) == 1
    case.call_id += "-2"
    assert case.run() == ATTEMPTS
