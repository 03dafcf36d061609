"""What is read from the consumers that the server lists, and what is thought of it."""

from __future__ import annotations

from typing import Any

import pytest

from worker.nats.layout import FUNCTION, ConsumerSet, consumer_state, retired_config, static

QUEUE, DURABLE = "q", "w"


def consumer(name: str, *filters: str, kept: int = 0, at: int = 0, **metadata: str) -> dict[str, Any]:
    """As the server lists one that has handed out up to *at*."""
    config: dict[str, Any] = {"name": name, "ack_wait": 30_000_000_000, "metadata": {}}
    if len(filters) == 1:
        config["filter_subject"] = filters[0]
    elif filters:
        config["filter_subjects"] = [*filters]
    config["metadata"] = {f"queue-worker.{key}": value for key, value in metadata.items()}
    return {
        "name": name,
        "config": config,
        "delivered": {"consumer_seq": at, "stream_seq": at},
        "num_ack_pending": kept,
        "num_pending": 0,
    }


def retired(info: dict[str, Any], layout: str, now: int, kept: int = 0) -> dict[str, Any]:
    """What the server lists once it has been retired."""
    return info | {"config": retired_config(QUEUE, info, layout, now), "num_ack_pending": kept}


SHARED = consumer("w", mode="static", at=10)
ECHO = consumer("w-echo", "q.0.echo.ns", mode="function", at=7)


def test_openfaas_s_own_consumer_is_static() -> None:
    """It says nothing of a mode, and has no filter."""
    assert consumer_state(consumer("w")).layout == static(1)
    assert ConsumerSet.of([consumer("w")], DURABLE).current == static(1)


def test_partitions_are_a_layout_each() -> None:
    """By their number."""
    found = consumer_state(consumer("w-p1", "q.1.>", mode="static", partitions="3"))
    assert found.layout == static(3)
    assert found.covers("q.1.echo.ns")
    assert not found.covers("q.2.echo.ns")


def test_what_others_made_is_left_alone() -> None:
    """A consumer that is neither named as ours are nor says that it is one is no part of any layout."""
    layout = ConsumerSet.of([SHARED, consumer("theirs", "q.x")], DURABLE)
    assert [each.name for each in layout.foreign] == ["theirs"]
    assert layout.current == static(1)
    assert layout.misplaced(static(1), DURABLE, QUEUE) == []


def test_a_retired_consumer_knows_what_it_was() -> None:
    """Its filter matches nothing of the queue; mark, former filters and what it was retired for are in its metadata."""
    info = retired(ECHO, static(1), 5)
    assert info["config"]["filter_subject"] == "RETIRED.q.w-echo"
    found = consumer_state(info)
    assert (found.layout, found.mark, found.subjects, found.retired_for, found.retired_at) == (
        "retired",
        7,
        ("q.0.echo.ns",),
        static(1),
        5,
    )
    assert consumer_state(retired(SHARED, FUNCTION, 5)).subjects == ()


def test_the_rest_of_its_configuration_stays() -> None:
    """What we do not know of is not ours to change; that it stands still is over by itself."""
    info = consumer("w", mode="static", other="kept")
    info["config"] |= {"max_ack_pending": 7, "pause_until": "2026-01-01T00:00:00Z"}
    config = retired_config(QUEUE, info, FUNCTION, 0)
    assert config["max_ack_pending"] == 7
    assert config["metadata"]["queue-worker.other"] == "kept"
    assert "pause_until" not in config


def test_what_it_has_handed_out_is_held() -> None:
    """Up to its mark, of what it covered: nobody else is to run that."""
    layout = ConsumerSet.of([retired(ECHO, static(1), 5)], DURABLE)
    assert layout.is_held("q.0.echo.ns", 7, by="w")
    assert not layout.is_held("q.0.echo.ns", 8, by="w")
    assert not layout.is_held("q.0.other.ns", 7, by="w")
    assert not layout.is_held("q.0.echo.ns", 7, by="w-echo")


def test_what_an_older_one_holds_is_not_a_younger_one_s() -> None:
    """What two have handed out is the business of the first."""
    layout = ConsumerSet.of([retired(ECHO, static(1), 5), retired(SHARED, FUNCTION, 9)], DURABLE)
    assert layout.is_held("q.0.echo.ns", 7, by="w")
    assert not layout.is_held("q.0.echo.ns", 8, by="w")
    assert not layout.is_held("q.0.echo.ns", 7, by="w-echo")


def test_over_is_what_keeps_nothing() -> None:
    """And of whose messages no older one keeps any: these wait for it."""
    echo = retired(ECHO, static(1), 5, kept=1)
    other = retired(consumer("w-other", "q.0.other.ns", mode="function", at=3), static(1), 5)
    shared = retired(SHARED, FUNCTION, 9)
    assert [each.name for each in ConsumerSet.of([echo, other, shared], DURABLE).finished] == ["w-other"]
    echo["num_ack_pending"] = 0
    assert len(ConsumerSet.of([echo, other, shared], DURABLE).finished) == 3


def test_a_change_that_was_begun_is_what_counts() -> None:
    """Whoever was killed in between left consumers of both."""
    other = consumer("w-other", "q.0.other.ns", mode="function")
    assert ConsumerSet.of([retired(ECHO, static(1), 5), other], DURABLE).current == static(1)
    assert (
        ConsumerSet.of([retired(ECHO, static(1), 5), retired(SHARED, FUNCTION, 9), other], DURABLE).current == FUNCTION
    )


def test_a_queue_without_consumers_is_in_no_layout() -> None:
    """Whoever comes first decides."""
    assert ConsumerSet().current is None


@pytest.mark.parametrize(
    ("layout", "strangers"),
    [
        (FUNCTION, ["w", "w-p0"]),
        (static(1), ["w-echo", "w-p0", "w-far"]),
        (static(2), ["w", "w-echo"]),
        (static(3), ["w", "w-echo", "w-p0"]),
    ],
)
def test_what_has_no_place(layout: str, strangers: list[str]) -> None:
    """Shared consumers where each function has its own; any other where one is for all; what partitions cover."""
    part = consumer("w-p0", "q", "q.0.>", mode="static", partitions="2")
    far = consumer("w-far", "q.far", mode="function")
    found = ConsumerSet.of([SHARED, ECHO, part, far], DURABLE).misplaced(layout, DURABLE, QUEUE)
    assert [each.name for each in found] == strangers
