from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.model import Quota, Rate
from worker.policy.quota import (
    CAP,
    MOST_STARTS,
    MOST_TOKENS,
    RATE,
    needs_tokens,
    parse_minimums,
    parse_quota,
    parse_rate,
    token_count,
    uses_of_token,
    uses_per_token,
    write_rate,
)
from worker.policy.retry import IgnoredAnnotation

WEIGHT, MOST, RATED = (f"com.openfaas.queue.{name}" for name in ("weight", "max_inflight", "rate"))
NO_RATE = "not a rate: write a whole number from 1 to 1000000, a / and s, m or h, as 10/s"


def test_without_annotations_nothing_is_limited() -> None:
    """A function weighs one, and may have all there is."""
    quota, ignored = parse_quota({})
    assert (quota, ignored) == (Quota(), ())
    assert (quota.weight, needs_tokens(quota), token_count(quota, CAP), token_count(quota, RATE)) == (1, False, 0, 0)


def test_each_annotation_is_used() -> None:
    """Weight, cap and rate, and what is no annotation of ours is left alone; space around a value is."""
    annotations = {WEIGHT: "1000", MOST: " 5 ", RATED: "10/s", "com.openfaas.scale.min": "x"}
    assert parse_quota(annotations) == (Quota(1000, 5, Rate(10, 1.0)), ())


@pytest.mark.parametrize(
    ("annotation", "value", "accepted"),
    [
        *((WEIGHT, value, "not a whole number from 1 to 1000") for value in ("0", "1001", "-1", "1.5", "a lot", "٤")),
        *((MOST, value, "not a whole number from 1 to 100000") for value in ("0", "100001", "none")),
        *((RATED, value, NO_RATE) for value in ("0/s", "10", "10/d", "1000001/s", "0.5/s", "10/ s", "-1/s", "10/S")),
    ],
)
def test_what_cannot_be_used_is_ignored_on_its_own(annotation: str, value: str, accepted: str) -> None:
    """It is told of with what is accepted, and the others are used."""
    others = {WEIGHT: "2", MOST: "3", RATED: "4/m"}
    quota, ignored = parse_quota(others | {annotation: value})
    assert ignored == (IgnoredAnnotation(annotation, value, accepted),)
    assert quota == parse_quota({name: text for name, text in others.items() if name != annotation})[0]


def test_what_is_told_of_a_long_annotation_is_short() -> None:
    """Annotations come with each message, and go into log lines."""
    (ignored,) = parse_quota({RATED: "1" * 10_000})[1]
    assert len(ignored.value) == 80


rates = st.builds(Rate, st.integers(1, MOST_STARTS), st.sampled_from((1.0, 60.0, 3600.0)))


@given(rates)
@example(Rate(1, 1.0))
@example(Rate(100, 1.0))
@example(Rate(101, 1.0))
@example(Rate(MOST_STARTS, 1.0))
def test_the_tokens_of_a_rate_are_worth_it(rate: Rate) -> None:
    """At most a hundred, each of some worth, all but the last of the same, and together exactly the rate."""
    quota = Quota(rate=rate)
    worths = [uses_of_token(quota, RATE, number) for number in range(token_count(quota, RATE))]
    assert sum(worths) == rate.starts
    assert 1 <= len(worths) <= MOST_TOKENS
    assert set(worths[:-1]) <= {uses_per_token(rate)}
    assert 1 <= worths[-1] <= uses_per_token(rate)
    assert uses_of_token(quota, RATE, len(worths)) == 0
    assert parse_rate(write_rate(rate)) == rate


@given(st.integers(1, 100_000), st.integers(0, 200_000))
def test_a_token_past_the_cap_is_worth_nothing(most: int, number: int) -> None:
    """So whoever gets one after the cap was lowered takes it off the queue."""
    assert uses_of_token(Quota(max_inflight=most), CAP, number) == (number < most)
    assert uses_of_token(Quota(max_inflight=most), RATE, number) == 0
    assert uses_of_token(Quota(), CAP, number) == 0


@given(st.text(max_size=30))
def test_any_text_is_a_rate_or_refused(text: str) -> None:
    """Whatever else it is, it raises nothing else."""
    try:
        rate = parse_rate(text)
    except ValueError as error:
        assert str(error) == NO_RATE  # noqa: PT017 -- both may be
    else:
        assert write_rate(rate).removeprefix("0") in text


def test_minimums() -> None:
    """Functions, with a namespace or without, and slots."""
    assert parse_minimums("a=1") == (("a", 1),)
    assert parse_minimums("checkout=5, billing.shop=2") == (("checkout", 5), ("billing.shop", 2))
