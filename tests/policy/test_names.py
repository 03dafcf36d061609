from __future__ import annotations

from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.policy.names import (
    covers,
    fnv1a,
    is_name,
    label_of,
    parse_function,
    partition_for,
    partition_of,
    split_function,
    subject_of,
)

ENDS = "abcdefghijklmnopqrstuvwxyz0123456789"
names = st.from_regex(r"[a-z0-9]([-a-z0-9_]{0,20}[a-z0-9])?", fullmatch=True)


@given(st.text(ENDS + "-_.AZ /\n\u00e9\u0661\uff41", max_size=6) | st.text())
@example("")
@example("a" * 253)
@example("a" * 254)
@example("a\n")
@example("-")
def test_is_name_accepts_the_contract_s_names(text: str) -> None:
    """A name has 1 to 253 characters: lower-case letters, digits, - and _, and - and _ not at its ends."""
    expected = 1 <= len(text) <= 253 and set(text) <= set(ENDS + "-_") and text[0] in ENDS and text[-1] in ENDS
    assert is_name(text) is expected


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("echo", ("echo", "fn")),
        ("echo.openfaas-fn", ("echo", "openfaas-fn")),
        ("a_b-c.d", ("a_b-c", "d")),
        (f"{'a' * 253}.{'b' * 253}", ("a" * 253, "b" * 253)),
        ("a" * 254, None),
        (f"{'a' * 254}.b", None),
        (f"a.{'b' * 254}", None),
        ("", None),
        (".", None),
        ("echo.", None),
        (".fn", None),
        ("a.b.c", None),
        ("..", None),
        ("../system", None),
        ("a/b", None),
        ("a%2fb", None),
        ("Echo", None),
        ("echo ", None),
        ("echo\n", None),
        ("a..b", None),
    ],
)
def test_split_function_returns_name_and_namespace(text: str, parts: tuple[str, str] | None) -> None:
    """``name`` is in the given namespace, ``name.namespace`` in its own, and other text is no function."""
    assert split_function(text, "fn") == parts


@given(names, names, names)
def test_split_function_joined_parts_are_returned(name: str, namespace: str, default_namespace: str) -> None:
    """Joining two names by a dot and splitting the result gives both names."""
    assert split_function(f"{name}.{namespace}", default_namespace) == (name, namespace)
    assert split_function(name, default_namespace) == (name, default_namespace)


def test_subject_of_has_partition_function_and_namespace() -> None:
    """Producers publish on ``<queue>.<partition>.<function>.<namespace>``."""
    assert subject_of("faas-request", 3, "echo", "fn") == "faas-request.3.echo.fn"


@given(names, st.integers(0, 99), names, names)
def test_label_of_own_subject_is_function_and_namespace(queue: str, partition: int, name: str, namespace: str) -> None:
    """Messages on a subject of this project's producer have the label ``name.namespace``, as running invocations do."""
    assert label_of(queue, subject_of(queue, partition, name, namespace)) == f"{name}.{namespace}"


@pytest.mark.parametrize(
    ("subject", "label"),
    [
        ("q", ""),
        ("q.echo", "echo"),
        ("q.echo.fn", "echo.fn"),
        ("q.0.echo.fn", "echo.fn"),
        ("q.0.q.fn", "q.fn"),
        ("q.0.echo.fn.more", "0.echo.fn.more"),
        ("q.q.q", "q.q"),
    ],
)
def test_label_of_other_subject_is_the_rest_below_the_queue(subject: str, label: str) -> None:
    """The bare subject has an empty label; a subject of an unknown scheme shows all tokens below the queue."""
    assert label_of("q", subject) == label


def matches(pattern: str, subject: str) -> bool:
    """Return whether a pattern matches a subject without wildcards, by NATS's rule."""
    pattern_tokens, subject_tokens = pattern.split("."), subject.split(".")
    if pattern_tokens[-1] == ">":
        pattern_tokens = pattern_tokens[:-1]
        if len(subject_tokens) <= len(pattern_tokens):
            return False
        subject_tokens = subject_tokens[: len(pattern_tokens)]
    return len(pattern_tokens) == len(subject_tokens) and all(
        one in ("*", other) for one, other in zip(pattern_tokens, subject_tokens, strict=True)
    )


def examples_of(subject: str) -> list[str]:
    """Return subjects that *subject* matches: enough to distinguish patterns of at most three tokens."""
    if not subject.endswith(">"):
        return [subject]
    stem = subject.removesuffix(">")
    return [stem + ".".join(tail) for length in (1, 2, 3, 4) for tail in product("abx", repeat=length)]


@given(
    st.lists(st.sampled_from(["a", "b", "*"]), max_size=3),
    st.booleans(),
    st.lists(st.sampled_from(["a", "b"]), max_size=3),
    st.booleans(),
)
def test_covers_is_inclusion_of_subjects(
    pattern: list[str], open_pattern: bool, subject: list[str], open_subject: bool
) -> None:
    """A pattern covers a subject if it matches each message's subject that the other one matches, by NATS's rules."""
    pattern += [">"] * (open_pattern or not pattern)
    subject += [">"] * (open_subject or not subject)
    wide, narrow = ".".join(pattern), ".".join(subject)
    assert covers(wide, narrow) is all(matches(wide, each) for each in examples_of(narrow))


@pytest.mark.parametrize(
    ("pattern", "subject", "yes"),
    [
        ("faas-request", "faas-request", True),
        ("faas-request", "faas-request.>", False),
        ("faas-request.>", "faas-request", False),
        ("faas-request.>", "faas-request.>", True),
        ("faas-request.*.*.*", "faas-request.0.echo.fn", True),
        ("faas-request.*", "faas-request.0.echo.fn", False),
        ("faas-request.*.*.*", "faas-request.>", False),
        (">", "faas-request.>", True),
        ("*", "faas-request", True),
    ],
)
def test_covers_the_subjects_of_a_queue(pattern: str, subject: str, yes: bool) -> None:
    """A stream serves a queue if its subjects cover both the bare subject and all subjects below it."""
    assert covers(pattern, subject) is yes


@pytest.mark.parametrize(
    ("subject", "partition"),
    [
        ("q", 0),
        ("q.0.echo.ns", 0),
        ("q.3.echo.ns", 3),
        ("q.7.echo.ns", 3),
        ("q.7.anything", 3),
        ("q.00000007.x", 3),
    ],
)
def test_partition_of_numbered_subject_is_its_number(subject: str, partition: int) -> None:
    """The partition is the number after the queue's name, modulo the partitions; the bare subject is in the first."""
    assert partition_of("q", subject, 4) == partition


@pytest.mark.parametrize("subject", ["q.echo", "q.3", "q.echo.3", "q.-1.x", "q.\u0663.x", "q.1234567890.x", "q.1e3.x"])
def test_partition_of_unnumbered_subject_is_its_hash(subject: str) -> None:
    """Without a number, the 32-bit FNV-1a hash of the subject decides, equally in every worker of every version."""
    assert partition_of("q", subject, 4) == fnv1a(subject.encode()) % 4


def test_fnv1a_matches_published_vectors() -> None:
    """The hash matches the test vectors of draft-eastlake-fnv."""
    assert fnv1a(b"") == 0x811C9DC5
    assert fnv1a(b"a") == 0xE40C292C
    assert fnv1a(b"foobar") == 0xBF9CF968


@given(st.text(), st.integers(1, 1024))
def test_partition_of_any_subject_is_in_range(tail: str, partitions: int) -> None:
    """Every subject has a partition in the range, which is 0 where there is only one."""
    assert 0 <= partition_of("q", f"q.{tail}", partitions) < partitions
    assert partition_of("q", f"q.{tail}", 1) == 0


def test_parse_function_invalid_name_raises_with_advice() -> None:
    """The error quotes the first 80 characters of the text, and names the accepted form."""
    assert parse_function("echo", "fn") == ("echo", "fn")
    with pytest.raises(
        ValueError, match=r"^not a function's name: '(A){80}'; write name or name\.namespace, of lower-case"
    ):
        parse_function("A" * 90, "fn")


def test_partition_for_a_function_is_the_hash_of_its_tokens() -> None:
    """The partition is the hash of name and namespace without a dot between them, modulo the partitions."""
    assert [partition_for("echo", "fn", count) for count in (1, 4)] == [0, fnv1a(b"echofn") % 4]
