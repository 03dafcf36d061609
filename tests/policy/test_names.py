from __future__ import annotations

from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.policy.names import covers, fnv1a, is_name, label_of, partition_of, split_function, subject_of

ENDS = "abcdefghijklmnopqrstuvwxyz0123456789"
names = st.from_regex(r"[a-z0-9]([-a-z0-9_]{0,20}[a-z0-9])?", fullmatch=True)


@given(st.text(ENDS + "-_.AZ /\n\u00e9\u0661\uff41", max_size=6) | st.text())
@example("")
@example("a" * 253)
@example("a" * 254)
@example("a\n")
@example("-")
def test_a_name_is_what_the_contract_says(text: str) -> None:
    """Lower-case letters, digits, - and _, the first and last a letter or digit, at most 253 of them."""
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
def test_a_function_is_a_name_and_perhaps_a_namespace(text: str, parts: tuple[str, str] | None) -> None:
    """``name`` stands in the namespace given, ``name.namespace`` in its own; anything else is no function."""
    assert split_function(text, "fn") == parts


@given(names, names, names)
def test_parts_of_a_function_are_names(name: str, namespace: str, standing_in: str) -> None:
    """Joining two names by a dot and splitting them gives both."""
    assert split_function(f"{name}.{namespace}", standing_in) == (name, namespace)
    assert split_function(name, standing_in) == (name, standing_in)


def test_subjects_have_partition_function_and_namespace() -> None:
    """Producers publish on ``<queue>.<partition>.<function>.<namespace>``."""
    assert subject_of("faas-request", 3, "echo", "fn") == "faas-request.3.echo.fn"


@given(names, st.integers(0, 99), names, names)
def test_labels_name_the_function_of_our_subjects(queue: str, partition: int, name: str, namespace: str) -> None:
    """What waits on one of our own subjects is labelled ``name.namespace``, as running invocations are."""
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
def test_other_subjects_are_labelled_by_what_they_say(subject: str, label: str) -> None:
    """The bare subject tells no function; of a scheme not ours, everything below the queue is shown."""
    assert label_of("q", subject) == label


def taken_by(pattern: str, subject: str) -> bool:
    """NATS's rule, for a subject without wildcards."""
    wide, narrow = pattern.split("."), subject.split(".")
    if wide[-1] == ">":
        wide = wide[:-1]
        if len(narrow) <= len(wide):
            return False
        narrow = narrow[: len(wide)]
    return len(wide) == len(narrow) and all(one in ("*", other) for one, other in zip(wide, narrow, strict=True))


def meant_by(subject: str) -> list[str]:
    """Subjects that *subject* stands for: all that could tell patterns of at most three tokens apart."""
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
def test_covers_is_inclusion(pattern: list[str], open_pattern: bool, subject: list[str], open_subject: bool) -> None:
    """A pattern covers a subject where it takes every message that can come on it, by NATS's rules."""
    pattern += [">"] * (open_pattern or not pattern)
    subject += [">"] * (open_subject or not subject)
    wide, narrow = ".".join(pattern), ".".join(subject)
    assert covers(wide, narrow) is all(taken_by(wide, each) for each in meant_by(narrow))


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
def test_covers_what_streams_are_checked_for(pattern: str, subject: str, yes: bool) -> None:
    """A stream serves a queue where its subjects cover both the bare subject and all below it."""
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
def test_a_subject_names_its_partition(subject: str, partition: int) -> None:
    """The number behind the queue's name, modulo the partitions; what is on the bare subject belongs to the first."""
    assert partition_of("q", subject, 4) == partition


@pytest.mark.parametrize("subject", ["q.echo", "q.3", "q.echo.3", "q.-1.x", "q.\u0663.x", "q.1234567890.x", "q.1e3.x"])
def test_a_subject_without_a_partition_has_one_all_the_same(subject: str) -> None:
    """A hash decides, the same for every worker of every version: FNV-1a of the subject, 32 bits."""
    assert partition_of("q", subject, 4) == fnv1a(subject.encode()) % 4


def test_fnv1a_as_published() -> None:
    """Test vectors of draft-eastlake-fnv."""
    assert fnv1a(b"") == 0x811C9DC5
    assert fnv1a(b"a") == 0xE40C292C
    assert fnv1a(b"foobar") == 0xBF9CF968


@given(st.text(), st.integers(1, 1024))
def test_every_subject_is_in_one_of_the_partitions(tail: str, partitions: int) -> None:
    """And where there is one, in that."""
    assert 0 <= partition_of("q", f"q.{tail}", partitions) < partitions
    assert partition_of("q", f"q.{tail}", 1) == 0
