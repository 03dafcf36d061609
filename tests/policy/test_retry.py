from __future__ import annotations

import random
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise, product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.cases import check_each
from worker.model import Ack, Nak, NoResponse, Responded, Term, Verdict
from worker.policy.decide import decide
from worker.policy.retry import (
    Backoff,
    IgnoredAnnotation,
    Jitter,
    Retry,
    apply_annotations,
    parse_attempts,
    parse_codes,
)

ATTEMPTS, CODES, MIN_WAIT, MAX_WAIT = (
    f"com.openfaas.retry.{name}" for name in ("attempts", "codes", "min_wait", "max_wait")
)
BASE = Retry(attempts=7, codes=frozenset({500, 503}), backoff=Backoff(1.0, 60.0, Jitter.EQUAL))
NO_CODES = "not a list of HTTP status codes: write them with commas, as 408,429,503, or none"
NO_ATTEMPTS = "not a number of attempts: write a whole number from 0 to 1000000"
NO_DURATION = "not a duration: write a number and a unit, as 300ms, 1.5s, 2m or 1h30m"
NEGATIVE = "negative: write a duration of nothing or more, as 300ms, 1.5s, 2m or 1h30m"


def test_retry_defaults_are_the_contract_s() -> None:
    """By default there are 100 attempts, waits of 10 s to 120 s without jitter, and OpenFaaS's six codes."""
    retry = Retry()
    assert (retry.attempts, retry.codes) == (100, frozenset({408, 429, 500, 502, 503, 504}))
    assert retry.backoff == Backoff(10.0, 120.0, Jitter.EXPONENTIAL)


USED = {
    ATTEMPTS: ("30", replace(BASE, attempts=30)),
    CODES: ("429, 418", replace(BASE, codes=frozenset({418, 429}))),
    MIN_WAIT: ("5s", replace(BASE, backoff=replace(BASE.backoff, first_wait=5.0))),
    MAX_WAIT: ("1m30s", replace(BASE, backoff=replace(BASE.backoff, max_wait=90.0))),
}


@pytest.mark.parametrize("annotation", USED)
def test_apply_annotations_each_changes_one_setting(annotation: str) -> None:
    """An annotation changes its setting, and no other one."""
    value, expected = USED[annotation]
    assert apply_annotations(BASE, {annotation: value, "topic": "x"}) == (expected, ())
    assert apply_annotations(BASE, {annotation: f" {value}\t"}) == (expected, ())


def test_apply_annotations_all_apply_together() -> None:
    """All four annotations of one message apply."""
    expected = Retry(30, frozenset({418, 429}), Backoff(5.0, 90.0, Jitter.EQUAL))
    assert apply_annotations(BASE, {annotation: value for annotation, (value, _) in USED.items()}) == (expected, ())


@pytest.mark.parametrize(
    ("changes", "schedule"),
    [
        ({}, [10, 20, 40, 80, 120, 120]),
        ({MIN_WAIT: "5s"}, [5, 10, 20, 40, 80, 120]),
        ({MAX_WAIT: "30s"}, [10, 20, 30, 30, 30, 30]),
        ({MIN_WAIT: "300ms", MAX_WAIT: "1s"}, [0.3, 0.6, 1.0, 1.0, 1.0, 1.0]),
        ({MIN_WAIT: "10m"}, [120, 120, 120, 120, 120, 120]),
        ({ATTEMPTS: "1"}, [10, 20, 40, 80, 120, 120]),
        ({MIN_WAIT: "0s"}, [0, 0, 0, 0, 0, 0]),
        ({MAX_WAIT: "0"}, [0, 0, 0, 0, 0, 0]),
    ],
)
def test_apply_annotations_waits_follow_the_formula(changes: dict[str, str], schedule: list[float]) -> None:
    """The first six waits are min(initial * 2^(n-1), max) with the annotated values."""
    retry, _ = apply_annotations(Retry(), changes)
    assert [retry.backoff.delay(attempt, draw=0.9) for attempt in range(1, 7)] == schedule


CHOICES: dict[str, dict[str, str]] = {
    ATTEMPTS: {"used": "3", "ignored": "-3"},
    CODES: {"used": "429, 418", "ignored": "429;418"},
    MIN_WAIT: {"used": "5s", "ignored": "5"},
    MAX_WAIT: {"used": "17s", "ignored": "-17s"},
}


def test_decide_every_combination_of_annotations_is_exact() -> None:
    """For each annotation unset, used or ignored, in all 81 ways, verdict and wait of each status are exact.

    The settings are seven attempts on 500 and 503, from 1 s to 60 s; *draw* selects the middle of ``equal``, three
    quarters.
    """
    check_each(product(("not set", "used", "ignored"), repeat=len(CHOICES)), check_combination)


def check_combination(choices: tuple[str, ...]) -> None:
    """Check the verdicts for an invocation with these choices, for several statuses and attempts."""
    chosen = dict(zip(CHOICES, choices, strict=True))
    attempts, codes, min_wait, max_wait = choices
    given_ = {name: CHOICES[name][choice] for name, choice in chosen.items() if choice != "not set"}
    retry, ignored = apply_annotations(BASE, given_)
    assert {each.annotation for each in ignored} == {name for name, choice in chosen.items() if choice == "ignored"}
    max_attempts = 3 if attempts == "used" else 7
    listed = {418, 429} if codes == "used" else {500, 503}
    initial, longest = 5 if min_wait == "used" else 1, 17 if max_wait == "used" else 60
    for status, attempt in product((200, 418, 429, 500, 503), range(1, 10)):
        expected: Verdict = Ack()
        if status in listed and attempt < max_attempts:
            expected = Nak(min(initial * 2 ** (attempt - 1), longest) * 0.75)
        elif status in listed:
            expected = Term(f"gave up after {attempt} of {max_attempts} attempts: status {status}")
        assert decide(Responded(status), attempt=attempt, retry=retry, draw=0.5, now=0.0)[0] == expected


nanoseconds = st.integers(0, 2**63 - 1) | st.integers(0, 10**12)


@given(nanoseconds, nanoseconds, st.integers(1, 10**6 - 1), st.sampled_from(Jitter), st.sampled_from([0.0, 0.25, 0.75]))
@example(1, 2**63 - 1, 10**6 - 1, Jitter.EXPONENTIAL, 0.0)
@example(2**63 - 1, 2**63 - 1, 10**6 - 1, Jitter.EXPONENTIAL, 0.0)
@example(0, 2**63 - 1, 10**6 - 1, Jitter.EXPONENTIAL, 0.0)
def test_decide_any_annotated_wait_is_exact(
    initial: int, longest: int, attempt: int, jitter: Jitter, draw: float
) -> None:
    """From 1 ns to 292 years, and up to a million attempts, waits are exact to the last bit of a float."""
    annotations = {ATTEMPTS: "1000000", MIN_WAIT: f"{initial}ns", MAX_WAIT: f"{longest}ns"}
    retry, ignored = apply_annotations(Retry(backoff=Backoff(jitter=jitter)), annotations)
    assert not ignored
    share = {Jitter.EXPONENTIAL: 1.0, Jitter.FULL: draw, Jitter.EQUAL: (1 + draw) / 2}[jitter]
    wait = min(initial << (attempt - 1), longest) / 10**9
    refused = NoResponse("refused")
    assert decide(refused, attempt=attempt, retry=retry, draw=draw, now=0.0)[0] == Nak(wait * share)
    assert isinstance(decide(refused, attempt=10**6, retry=retry, draw=draw, now=0.0)[0], Term)


@pytest.mark.parametrize(
    ("retry_after", "wait"), [(b"1", 7200), (b"7201", 7200), (b"5", 5), (b"9000", 3600), (b"soon", 5)]
)
def test_decide_retry_after_is_at_least_the_annotated_first_wait(retry_after: bytes, wait: float) -> None:
    """The annotated first wait is the minimum of what Retry-After can request."""
    changes = {MIN_WAIT: "2h" if wait == 7200 else "5s", MAX_WAIT: "10s"}
    retry, _ = apply_annotations(Retry(), changes)
    answer = Responded(429, ((b"Retry-After", retry_after),))
    assert decide(answer, attempt=1, retry=retry, draw=0.5, now=0.0)[0] == Nak(wait)


IGNORED = [
    *(
        (ATTEMPTS, value, NO_ATTEMPTS)
        for value in ("many", "-0", "-1", "1.5", "1000001", "1e3", "+5", "\u0665", "5\u0665", "00000001")
    ),
    *(
        (CODES, value, NO_CODES)
        for value in (
            "429,abc",
            ",",
            "429,",
            "42",
            "4290",
            "600",
            "099",
            "500;503",
            "5xx",
            "-429",
            "None",
            "none,429",
            "429,none",
        )
    ),
    *((CODES, value, NO_CODES) for value in ("4\u0662\u0669", "4\u00b29", "4 9")),
    *((wait, value, NO_DURATION) for wait in (MIN_WAIT, MAX_WAIT) for value in ("5", "soon", "1 s", "1h30")),
    *((wait, value, NEGATIVE) for wait in (MIN_WAIT, MAX_WAIT) for value in ("-1m", "-1ns")),
    *((wait, "2562048h", "longer than 292 years") for wait in (MIN_WAIT, MAX_WAIT)),
]


@pytest.mark.parametrize(("annotation", "value", "accepted"), IGNORED)
def test_apply_annotations_invalid_is_ignored_alone(annotation: str, value: str, accepted: str) -> None:
    """An invalid annotation is reported once and changes nothing, and the other annotations apply."""
    ignored = (IgnoredAnnotation(annotation, value, accepted),)
    assert apply_annotations(BASE, {annotation: value}) == (BASE, ignored)
    others = {other: text for other, (text, _) in USED.items() if other != annotation}
    assert apply_annotations(BASE, others | {annotation: value}) == (apply_annotations(BASE, others)[0], ignored)


def test_apply_annotations_all_invalid_are_reported() -> None:
    """Each of four invalid annotations is reported, and none applies."""
    values = {ATTEMPTS: "many", CODES: "429,abc", MAX_WAIT: "-1m", MIN_WAIT: "5"}
    retry, ignored = apply_annotations(BASE, values)
    assert retry == BASE
    assert {each.annotation: each.value for each in ignored} == values
    assert len(ignored) == 4


@pytest.mark.parametrize("annotation", sorted(set(USED) - {CODES}))
@pytest.mark.parametrize("value", ["", " ", "\t\n"])
def test_apply_annotations_empty_is_unset(annotation: str, value: str) -> None:
    """An empty annotation counts as unset, as an empty setting does."""
    assert apply_annotations(BASE, {annotation: value}) == (BASE, ())


@pytest.mark.parametrize("value", ["", " ", "none", " none\t"])
def test_apply_annotations_no_codes_retries_no_code(value: str) -> None:
    """An empty list of codes, or ``none``, retries no code; an invocation without a response is retried even so."""
    retry, ignored = apply_annotations(BASE, {CODES: value})
    assert (retry.codes, ignored) == (frozenset(), ())
    for status in range(100, 600):
        assert decide(Responded(status), attempt=1, retry=retry, draw=0.5, now=0.0)[0] == Ack()
    assert decide(NoResponse("refused"), attempt=1, retry=retry, draw=0.5, now=0.0)[0] == Nak(0.75)


@pytest.mark.parametrize("value", ["0", "00", " 0 ", "1"])
def test_apply_annotations_no_retry_means_one_attempt(value: str) -> None:
    """A function that asks for 0 attempts wants no retry: it is sent once, as with 1."""
    retry, ignored = apply_annotations(BASE, {ATTEMPTS: value})
    assert (retry.attempts, ignored) == (1, ())
    assert isinstance(decide(Responded(500), attempt=1, retry=retry, draw=0.5, now=0.0)[0], Term)


def test_apply_annotations_other_names_are_ignored() -> None:
    """Names are exact: another case, a prefix or a suffix is another annotation."""
    others = {"attempts": "1", "com.openfaas.retry": "1", f"{ATTEMPTS}.x": "1", ATTEMPTS.upper(): "1", "": "1"}
    assert apply_annotations(BASE, others) == (BASE, ())


ALL_CODES = ",".join(map(str, range(100, 600)))


def test_apply_annotations_long_value_is_ignored() -> None:
    """An annotation can list all statuses; above 2048 characters it is ignored, and reported in part."""
    assert len(ALL_CODES) == 1999
    assert apply_annotations(BASE, {CODES: ALL_CODES})[0].codes == frozenset(range(100, 600))
    fits, over = "500," * 511 + " 500", "500," * 512 + "5"
    assert (len(fits), len(over)) == (2048, 2049)
    assert apply_annotations(BASE, {CODES: fits})[1] == ()
    for annotation in USED:
        for value in (over, "9" * 10_000_000):
            assert apply_annotations(BASE, {annotation: value}) == (
                BASE,
                (IgnoredAnnotation(annotation, value[:80], "longer than 2048 characters"),),
            )


texts = st.text() | st.sampled_from([value for value, _ in USED.values()] + [value for _, value, _ in IGNORED])


@given(st.dictionaries(st.sampled_from(sorted(USED)) | st.text(), texts))
def test_apply_annotations_any_texts_apply_independently(annotations: dict[str, str]) -> None:
    """For any texts nothing raises, and the effect of an annotation does not depend on the others."""
    retry, ignored = apply_annotations(BASE, annotations)
    alone = {name: apply_annotations(BASE, {k: v for k, v in annotations.items() if k == name}) for name in USED}
    assert retry.attempts == alone[ATTEMPTS][0].attempts
    assert retry.codes == alone[CODES][0].codes
    assert retry.backoff.first_wait == alone[MIN_WAIT][0].backoff.first_wait
    assert retry.backoff.max_wait == alone[MAX_WAIT][0].backoff.max_wait
    assert retry.backoff.jitter == Jitter.EQUAL
    assert set(ignored) == {each for _, reported in alone.values() for each in reported}


@given(st.sets(st.integers(100, 599), min_size=1), st.sampled_from([",", ", ", " ,\t"]))
def test_parse_codes_reads_any_set(codes: set[int], comma: str) -> None:
    """Any set of statuses from 100 to 599 is read, in any order, with spaces and repetitions."""
    assert parse_codes(comma.join(map(str, [*codes, *codes]))) == codes


@given(st.integers(1, 10**6))
def test_parse_attempts_reads_any_number_up_to_a_million(attempts: int) -> None:
    """Any number from one to a million is read."""
    assert parse_attempts(str(attempts)) == attempts


def test_parse_attempts_and_codes_huge_number_is_refused() -> None:
    """Numbers of 5000 digits, which Python does not parse, are refused with the usual error."""
    with pytest.raises(ValueError, match="not a number of attempts: write a whole number from 1 to 1000000"):
        parse_attempts("9" * 5000)
    with pytest.raises(ValueError, match=NO_CODES):
        parse_codes("5" * 5000)


@given(st.text() | st.text("0123456789,- "))
def test_parse_attempts_and_codes_any_text_is_read_or_refused(text: str) -> None:
    """Any text raises ValueError, or gives values in the range."""
    with suppress(ValueError):
        assert 1 <= parse_attempts(text) <= 10**6
    with suppress(ValueError):
        codes = parse_codes(text)
        assert codes or text == "none"
        assert codes <= set(range(100, 600))


# The waits between attempts

waits = st.floats(1e-9, 2**33)
attempts = st.integers(1, 10**6)
draws = st.floats(0, 1, exclude_max=True)
backoffs = st.builds(Backoff, waits, waits, st.sampled_from(Jitter))
MAX_DRAW = 1 - 2**-53
"""The greatest number below one."""


def test_backoff_of_the_defaults_has_its_schedule() -> None:
    """The default waits double from 10 s to 120 s, without jitter; a hundred attempts wait for 3 h 12 min 30 s."""
    schedule = [Backoff().delay(attempt, draw=0.5) for attempt in range(1, 100)]
    assert schedule[:7] == [10, 20, 40, 80, 120, 120, 120]
    assert sum(schedule) == 11_550


@given(waits, waits, attempts)
@example(1e-9, 2.0**33, 64)
@example(1e-9, 2.0**33, 65)
@example(1e-9, 2.0**33, 66)
def test_backoff_ceiling_is_the_formula(initial: float, longest: float, attempt: int) -> None:
    """Attempt n waits min(initial * 2^(n-1), max) before jitter, to the last bit."""
    exact = initial * 2.0 ** min(attempt - 1, 900)
    assert Backoff(initial, longest).ceiling(attempt) == min(exact, longest)


@given(backoffs)
def test_backoff_ceiling_doubles_up_to_the_maximum(backoff: Backoff) -> None:
    """Each wait is twice the one before until the longest is reached, and the longest from then on."""
    schedule = [backoff.ceiling(attempt) for attempt in range(1, 80)]
    assert schedule[0] == min(backoff.first_wait, backoff.max_wait)
    assert all(later == min(2 * earlier, backoff.max_wait) for earlier, later in pairwise(schedule))
    assert schedule[-1] == backoff.max_wait


@given(backoffs, attempts, draws)
@example(Backoff(1e-9, 2.0**33), 64, 0.0)
def test_backoff_delay_of_a_later_attempt_is_not_shorter(backoff: Backoff, attempt: int, draw: float) -> None:
    """With the same draw, no attempt waits for less than the one before, with any jitter."""
    earlier, later = (backoff.delay(number, draw=draw) for number in (attempt, attempt + 1))
    assert 0 <= earlier <= later <= backoff.max_wait


@given(backoffs, draws)
def test_backoff_delay_of_the_millionth_attempt_does_not_overflow(backoff: Backoff, draw: float) -> None:
    """The millionth attempt waits as long as the hundredth, a float and no more than the longest."""
    assert backoff.delay(10**6, draw=draw) == backoff.delay(100, draw=draw) <= backoff.max_wait
    assert isinstance(backoff.delay(10**6, draw=draw), float)


SHARES = {Jitter.EXPONENTIAL: (1.0, 1.0), Jitter.FULL: (0.0, 1.0), Jitter.EQUAL: (0.5, 1.0)}


@given(backoffs, attempts, draws)
@example(Backoff(jitter=Jitter.EQUAL), 1, MAX_DRAW)
@example(Backoff(jitter=Jitter.FULL), 1, MAX_DRAW)
def test_jitter_shortens_the_wait_by_its_share(backoff: Backoff, attempt: int, draw: float) -> None:
    """Jitter leaves 100 %, 0-100 % or 50-100 % of the wait, by its kind."""
    min_share, max_share = SHARES[backoff.jitter]
    ceiling = backoff.ceiling(attempt)
    assert min_share * ceiling <= backoff.delay(attempt, draw=draw) <= max_share * ceiling


@pytest.mark.parametrize(
    ("jitter", "delays"),
    [
        ("exponential", [40.0, 40.0, 40.0, 40.0]),
        ("full", [0.0, 10.0, 20.0, 30.0]),
        ("equal", [20.0, 25.0, 30.0, 35.0]),
    ],
)
def test_jitter_of_each_draw_is_exact(jitter: str, delays: list[float]) -> None:
    """Jitter turns 40 s into exact delays for draws of 0, 1/4, 1/2 and 3/4."""
    backoff = Backoff(10.0, 120.0, Jitter(jitter))
    assert [backoff.delay(3, draw=quarter / 4) for quarter in range(4)] == delays


@pytest.mark.parametrize(("jitter", "min_share"), [(Jitter.FULL, 0.0), (Jitter.EQUAL, 0.5)])
def test_jitter_is_uniform(jitter: Jitter, min_share: float) -> None:
    """A hundred thousand delays are uniform over their range (chi-square, p = 0.001)."""
    rng = random.Random(20)
    backoff = Backoff(1.0, 1.0, jitter)
    tenths = Counter(
        int((backoff.delay(1, draw=rng.random()) - min_share) / (1 - min_share) * 10) for _ in range(100_000)
    )
    assert set(tenths) == set(range(10))
    assert sum((count - 10_000) ** 2 / 10_000 for count in tenths.values()) < 27.88
