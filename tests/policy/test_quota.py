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
    is_token_flow,
    needs_tokens,
    parse_minimums,
    parse_quota,
    parse_rate,
    split_token_flow,
    token_count,
    token_flow,
    uses_of_token,
    uses_per_token,
    write_rate,
)
from worker.policy.retry import IgnoredAnnotation

WEIGHT, CAPPED, RATED = (f"com.openfaas.queue.{name}" for name in ("weight", "max_inflight", "rate"))
NO_RATE = "not a rate: write a whole number from 1 to 1000000, a / and s, m or h, as 10/s"


def test_parse_quota_without_annotations_limits_nothing() -> None:
    """Without annotations a function has weight one, no cap, no rate, and needs no tokens."""
    quota, ignored = parse_quota({})
    assert (quota, ignored) == (Quota(), ())
    assert (quota.weight, needs_tokens(quota), token_count(quota, CAP), token_count(quota, RATE)) == (1, False, 0, 0)


def test_parse_quota_reads_each_annotation() -> None:
    """Weight, cap and rate are read, without the space around them; other annotations are ignored."""
    annotations = {WEIGHT: "1000", CAPPED: " 5 ", RATED: "10/s", "com.openfaas.scale.min": "x"}
    assert parse_quota(annotations) == (Quota(1000, 5, Rate(10, 1.0)), ())


@pytest.mark.parametrize(
    ("annotation", "value", "accepted"),
    [
        *((WEIGHT, value, "not a whole number from 1 to 1000") for value in ("0", "1001", "-1", "1.5", "a lot", "٤")),
        *((CAPPED, value, "not a whole number from 1 to 100000") for value in ("0", "100001", "none")),
        *((RATED, value, NO_RATE) for value in ("0/s", "10", "10/d", "1000001/s", "0.5/s", "10/ s", "-1/s", "10/S")),
    ],
)
def test_parse_quota_invalid_annotation_is_ignored_alone(annotation: str, value: str, accepted: str) -> None:
    """An invalid annotation is reported with the accepted values, and the other annotations apply."""
    others = {WEIGHT: "2", CAPPED: "3", RATED: "4/m"}
    quota, ignored = parse_quota(others | {annotation: value})
    assert ignored == (IgnoredAnnotation(annotation, value, accepted),)
    assert quota == parse_quota({name: text for name, text in others.items() if name != annotation})[0]


def test_parse_quota_reported_value_is_cut() -> None:
    """The reported value is cut to 80 characters, because annotations are foreign text in each message."""
    (ignored,) = parse_quota({RATED: "1" * 10_000})[1]
    assert len(ignored.value) == 80


rates = st.builds(Rate, st.integers(1, MOST_STARTS), st.sampled_from((1.0, 60.0, 3600.0)))


@given(rates)
@example(Rate(1, 1.0))
@example(Rate(100, 1.0))
@example(Rate(101, 1.0))
@example(Rate(MOST_STARTS, 1.0))
def test_uses_of_token_sum_to_the_rate(rate: Rate) -> None:
    """A rate has at most 100 tokens, all but the last with equally many uses, and together exactly the rate."""
    quota = Quota(rate=rate)
    uses = [uses_of_token(quota, RATE, number) for number in range(token_count(quota, RATE))]
    assert sum(uses) == rate.starts
    assert 1 <= len(uses) <= MOST_TOKENS
    assert set(uses[:-1]) <= {uses_per_token(rate)}
    assert 1 <= uses[-1] <= uses_per_token(rate)
    assert uses_of_token(quota, RATE, len(uses)) == 0
    assert parse_rate(write_rate(rate)) == rate


@given(st.integers(1, 100_000), st.integers(0, 200_000))
def test_uses_of_token_above_the_cap_is_zero(cap: int, number: int) -> None:
    """A token above a lowered cap has no uses, so the worker that receives it deletes it."""
    assert uses_of_token(Quota(max_inflight=cap), CAP, number) == (number < cap)
    assert uses_of_token(Quota(max_inflight=cap), RATE, number) == 0
    assert uses_of_token(Quota(), CAP, number) == 0


@given(st.text(max_size=30))
def test_parse_rate_any_text_is_read_or_refused(text: str) -> None:
    """Any text is a rate, or raises ValueError with the accepted form."""
    try:
        rate = parse_rate(text)
    except ValueError as error:
        assert str(error) == NO_RATE  # noqa: PT017 -- both may be
    else:
        assert write_rate(rate).removeprefix("0") in text


def test_parse_minimums_reads_functions_and_slots() -> None:
    """Minimums are pairs of a function, with a namespace or without, and a number of slots."""
    assert parse_minimums("a=1") == (("a", 1),)
    assert parse_minimums("checkout=5, billing.shop=2") == (("checkout", 5), ("billing.shop", 2))


@pytest.mark.parametrize(
    "text",
    [
        *("", "checkout", "checkout=", "=5", "checkout=0", "checkout=-1", "checkout=100001", "checkout=00000001"),
        *("checkout=5,", "checkout=5=6", "che ckout=5", "checkout=1.5", "a.b.c=1"),
    ],
)
def test_parse_minimums_other_text_raises_with_the_form(text: str) -> None:
    """Anything but functions with 1 to 100,000 slots raises ValueError with the accepted form."""
    expected = "not a list of minimums: write functions and slots with commas, as checkout=5,billing.shop=2"
    with pytest.raises(ValueError, match="minimums") as raised:
        parse_minimums(text)
    assert str(raised.value) == expected


def test_parse_minimums_function_with_two_raises_with_its_name() -> None:
    """A function with two minimums raises ValueError with its name."""
    with pytest.raises(ValueError, match="minimums") as raised:
        parse_minimums("a=1,checkout=5,b=1,checkout=6")
    assert str(raised.value) == "checkout has two minimums: keep one"
    assert parse_minimums("checkout=100000,a=0000001") == (("checkout", 100_000), ("a", 1))


@pytest.mark.parametrize("kind", [CAP, RATE])
def test_token_flow_has_kind_and_function(kind: str) -> None:
    """The flow of a function's tokens differs from each flow of messages, and has the kind and the function."""
    flow = token_flow(kind, "echo.fn")
    assert flow == f"quota/{kind}/echo.fn"
    assert is_token_flow(flow)
    assert split_token_flow(flow) == (kind, "echo.fn")
    for other in ("", "faas-request", "faas-request.echo", "quota"):
        assert not is_token_flow(other)
