"""The layout of a queue is read from the consumers that the server lists."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.nats.layout import (
    FUNCTION,
    ConsumerSet,
    ConsumerState,
    consumer_state,
    overlap,
    partitions_of,
    retirement,
    static,
    undelivered,
)
from worker.nats.wire import ConsumerInfo, decode_answer

QUEUE, DURABLE = "q", "w"


def consumer(name: str, *filters: str, at: int = 0, other: Any = None, **metadata: str) -> ConsumerInfo:
    """Return the info of a consumer that has delivered up to *at*."""
    config: dict[str, Any] = {"name": name, "ack_wait": 30_000_000_000, "metadata": {}}
    if len(filters) == 1:
        config["filter_subject"] = filters[0]
    elif filters:
        config["filter_subjects"] = [*filters]
    config["metadata"] = {f"queue-worker.{key}": value for key, value in metadata.items()}
    return info_of({"name": name, "config": config | (other or {}), "delivered": {"stream_seq": at}})


def info_of(answer: dict[str, Any]) -> ConsumerInfo:
    return decode_answer(json.dumps({"num_ack_pending": 0, "num_pending": 0} | answer).encode(), ConsumerInfo)


def retired(info: ConsumerInfo, layout: str, now: int) -> ConsumerInfo:
    """Return the info of the consumer once it is retired."""
    fields = info.sent | retirement(QUEUE, info, layout, now)
    config = {key: value for key, value in fields.items() if value is not None}
    return info_of({"name": info.name, "config": config, "delivered": {"stream_seq": info.delivered.stream_seq}})


SHARED = consumer("w", mode="static", at=10)
ECHO = consumer("w-echo", "q.0.echo.ns", mode="function", at=7)


def test_consumer_state_without_a_mode_and_a_filter_is_static() -> None:
    """A consumer without mode and filter is static, because OpenFaaS's own worker creates it so."""
    assert consumer_state(consumer("w")).layout == static(1)
    assert ConsumerSet.of([consumer("w")], DURABLE).current == static(1)


@pytest.mark.parametrize(
    ("filters", "layout"),
    [
        (["q.0.echo.ns"], FUNCTION),
        (["q"], FUNCTION),
        (["q.*"], static(1)),
        (["q.0.>"], static(1)),
        (["q", "q.0.echo.ns"], static(1)),
    ],
)
def test_consumer_state_without_a_mode_follows_its_filters(filters: list[str], layout: str) -> None:
    """A consumer without a mode is a function's if its only filter is one subject; any other is static."""
    assert consumer_state(consumer("w", *filters)).layout == layout


def test_consumer_state_has_the_server_s_counts() -> None:
    """Pending acks, pending messages and the ack wait are the server's; what only retired consumers have is empty."""
    answer = {"name": "w", "config": {"ack_wait": 30_000_000_000}, "delivered": {"stream_seq": 2}}
    info = info_of(answer | {"num_ack_pending": 3, "num_pending": 4})
    found = consumer_state(info)
    assert (found.num_ack_pending, found.num_pending, found.ack_wait) == (3, 4, 30.0)
    assert (found.mark, found.retired_for, found.retired_at) == (0, "", 0)
    assert consumer_state(consumer("w", mode="retired")).subjects == ()


@pytest.mark.parametrize(
    ("some", "others", "expected"),
    [
        ((), ("q.a",), True),
        (("q.a",), (), True),
        (("q.a",), ("q.b",), False),
        (("q.>",), ("q.a",), True),
        (("q.a",), ("q.>",), True),
        (("q.x", "q.a"), ("q.b", "q.*"), True),
    ],
)
def test_overlap_of_filters_is_a_common_subject(some: tuple[str, ...], others: tuple[str, ...], expected: bool) -> None:
    """Two sets of filters overlap if a filter of one covers a filter of the other, or if one set is empty."""
    assert overlap(some, others) is expected


def test_partitions_of_a_layout_is_its_number() -> None:
    """A layout without a number, as that of function mode, has one partition."""
    assert [partitions_of(layout) for layout in (static(1), static(7), FUNCTION)] == [1, 7, 1]


def test_consumer_state_of_a_partition_has_their_number() -> None:
    """Each number of partitions is a layout of its own."""
    found = consumer_state(consumer("w-p1", "q.1.>", mode="static", partitions="3"))
    assert found.layout == static(3)
    assert found.covers("q.1.echo.ns")
    assert not found.covers("q.2.echo.ns")


def test_consumer_set_leaves_foreign_consumers_apart() -> None:
    """A consumer without the workers' metadata and name belongs to no layout."""
    layout = ConsumerSet.of([SHARED, consumer("theirs", "q.x"), consumer("w-theirs", "q.y")], DURABLE)
    assert [each.name for each in layout.foreign] == ["theirs", "w-theirs"]
    assert layout.current == static(1)


def test_retirement_records_filter_and_mark() -> None:
    """A retired consumer has a filter without messages, and mark, former filters and new layout in its metadata."""
    info = retired(ECHO, static(1), 5)
    assert info.config.filters == ("RETIRED.q.w-echo",)
    found = consumer_state(info)
    assert (found.layout, found.mark, found.subjects, found.retired_for, found.retired_at) == (
        "retired",
        7,
        ("q.0.echo.ns",),
        static(1),
        5,
    )
    assert consumer_state(retired(SHARED, FUNCTION, 5)).subjects == ()


def test_retirement_leaves_the_other_fields() -> None:
    """Retirement changes no other fields and metadata, except that it ends a pause."""
    info = consumer("w", mode="static", other={"max_ack_pending": 7, "pause_until": "2026-01-01T00:00:00Z"})
    config = retired(info, FUNCTION, 0).sent
    assert config["max_ack_pending"] == 7
    assert config["metadata"].keys() >= {"queue-worker.mode"}
    assert "pause_until" not in config


def test_is_held_covers_messages_up_to_the_mark() -> None:
    """A retired consumer holds the messages of its former filter up to its mark: no other delivery of them runs."""
    layout = ConsumerSet.of([retired(ECHO, static(1), 5)], DURABLE)
    assert layout.is_held("q.0.echo.ns", 7, by="w")
    assert not layout.is_held("q.0.echo.ns", 8, by="w")
    assert not layout.is_held("q.0.other.ns", 7, by="w")
    assert not layout.is_held("q.0.echo.ns", 7, by="w-echo")


def test_is_held_by_the_retired_consumer_that_is_older() -> None:
    """A message that two retired consumers have delivered is held by the one that was retired first."""
    layout = ConsumerSet.of([retired(ECHO, static(1), 5), retired(SHARED, FUNCTION, 9)], DURABLE)
    assert layout.is_held("q.0.echo.ns", 7, by="w")
    assert not layout.is_held("q.0.echo.ns", 8, by="w")
    assert not layout.is_held("q.0.echo.ns", 7, by="w-echo")


def test_current_is_the_last_change_that_was_begun() -> None:
    """Of two layouts, the last migration's applies, because a killed worker may have left consumers of both."""
    other = consumer("w-other", "q.0.other.ns", mode="function")
    assert ConsumerSet.of([retired(ECHO, static(1), 5), other], DURABLE).current == static(1)
    assert (
        ConsumerSet.of([retired(ECHO, static(1), 5), retired(SHARED, FUNCTION, 9), other], DURABLE).current == FUNCTION
    )


def test_current_without_consumers_is_none() -> None:
    """Without consumers there is no layout, so the first worker chooses one."""
    assert ConsumerSet().current is None


def test_undelivered_counts_what_no_consumer_holds() -> None:
    """Stored messages that are neither pending nor waiting for an ack are never delivered; others are."""
    shared = ConsumerState("w", static(1), (), 9, 2, 3, 30.0)
    echo = ConsumerState("e", FUNCTION, ("q.0.echo.fn",), 9, 1, 0, 30.0)
    stored = {"q": 3, "q.0.echo.fn": 3}
    assert undelivered(ConsumerSet(live=(shared,)), stored) == {"w": 1}
    assert undelivered(ConsumerSet(live=(echo,)), stored) == {"e": 2}
    assert undelivered(ConsumerSet(live=(echo,)), {"q": 3, "q.0.echo.fn": 1}) == {}
