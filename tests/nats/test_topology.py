"""The configurations of streams and consumers, and the check of those that are found."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from worker.config import load
from worker.nats import dead_letters, topology
from worker.nats.layout import static
from worker.nats.wire import ConsumerConfig
from worker.settings import Settings


def _settings(**environment: str) -> Settings:
    return load(environment).settings


def test_stream_config_is_as_in_the_contract() -> None:
    """Contract section 3: subjects, work-queue, discard old, no limits, duplicate window of two minutes."""
    assert msgspec.to_builtins(topology.stream_config(_settings())) == {
        "name": "faas-request",
        "subjects": ("faas-request", "faas-request.>"),
        "retention": "workqueue",
        "discard": "old",
        "storage": "file",
        "num_replicas": 1,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": 120_000_000_000,
    }


def test_consumer_config_is_as_in_the_contract() -> None:
    """Contract section 3: durable, pull, deliver all, ack explicit, no filter, the mode in its metadata."""
    assert msgspec.to_builtins(topology.consumer_config(_settings(ack_wait="90s", max_waiting="7"))) == {
        "durable_name": "faas-workers",
        "name": "faas-workers",
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "max_deliver": -1,
        "max_ack_pending": -1,
        "max_waiting": 7,
        "ack_wait": 90_000_000_000,
        "metadata": {"queue-worker.mode": "static"},
    }


def test_stream_config_openfaas_prefix_is_removed_from_the_queue() -> None:
    """The stream OF_slow-queue serves the queue slow-queue."""
    assert topology.stream_config(_settings(nats_stream="OF_slow-queue")).subjects == ("slow-queue", "slow-queue.>")


def test_faults_of_created_stream_and_consumer_are_none() -> None:
    """A second start finds what the first created, and reports nothing."""
    settings = _settings()
    assert topology.stream_faults(topology.stream_config(settings), settings) == ([], [])
    assert topology.consumer_faults(topology.consumer_config(settings), topology.consumer_config(settings)) == ([], [])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"retention": "limits"}, "retention"),
        ({"retention": "interest"}, "retention"),
        ({"sealed": True}, "sealed"),
        ({"no_ack": True}, "no_ack"),
    ],
)
def test_stream_faults_unusable_property_is_named(change: dict[str, Any], named: str) -> None:
    """Each property that makes a stream unusable is named."""
    settings = _settings()
    faults, _ = topology.stream_faults(replace(topology.stream_config(settings), **change), settings)
    assert len(faults) == 1
    assert named in faults[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ack_policy": "none"}, "ack_policy"),
        ({"ack_policy": "all"}, "ack_policy"),
        ({"deliver_subject": "x"}, "push consumer"),
        ({"max_deliver": 5}, "max_deliver"),
        ({"backoff": (1, 2)}, "backoff"),
        ({"headers_only": True}, "headers_only"),
        ({"priority_groups": ("a",)}, "priority_groups"),
    ],
)
def test_consumer_faults_unusable_property_is_named(change: dict[str, Any], named: str) -> None:
    """Each property that makes a consumer unusable is named."""
    settings = _settings()
    faults, _ = topology.consumer_faults(
        replace(topology.consumer_config(settings), **change), topology.consumer_config(settings)
    )
    assert len(faults) == 1
    assert named in faults[0]


def test_consumer_faults_are_all_named_together() -> None:
    """All faults are named in one message, so that an operator can fix them before one restart."""
    settings = _settings()
    found = ConsumerConfig(ack_policy="none", deliver_subject="x", max_deliver=3)
    assert len(topology.consumer_faults(found, topology.consumer_config(settings))[0]) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_replicas": 3}, "num_replicas is 3, not 1"),
        ({"storage": "memory"}, "storage is memory, not file"),
        ({"max_msgs": 100}, "max_msgs is 100"),
        ({"max_age": 60}, "max_age is 60"),
        ({"subjects": ("faas-request",)}, "leave out 'faas-request.>'"),
        ({"subjects": ("faas-request.*",)}, "leave out 'faas-request'"),
        ({"deny_delete": True}, "deny_delete"),
    ],
)
def test_stream_faults_difference_is_reported(change: dict[str, Any], named: str) -> None:
    """A difference from the settings is reported, and is no fault."""
    settings = _settings()
    faults, differences = topology.stream_faults(replace(topology.stream_config(settings), **change), settings)
    assert faults == []
    assert any(named in difference for difference in differences)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ack_wait": 30_000_000_000}, "ack_wait is 30s, not 1m"),
        ({"max_ack_pending": 1000}, "max_ack_pending is 1000, not -1"),
        ({"max_batch": 10}, "max_batch is 10"),
        ({"max_expires": 5_000_000_000}, "max_expires is 5s"),
        ({"inactive_threshold": 5_000_000_000}, "inactive_threshold is 5s"),
        ({"filter_subject": "faas-request.x"}, "faas-request.x"),
        ({"filter_subjects": ("faas-request.x",)}, "faas-request.x"),
    ],
)
def test_consumer_faults_difference_is_reported(change: dict[str, Any], named: str) -> None:
    """A consumer's difference from the settings is reported, and is no fault."""
    settings = _settings()
    faults, differences = topology.consumer_faults(
        replace(topology.consumer_config(settings), **change), topology.consumer_config(settings)
    )
    assert faults == []
    assert any(named in difference for difference in differences)


def test_dead_letter_config_overlaps_with_no_queue() -> None:
    """The subjects of dead letters begin in capitals, which no queue's name has."""
    settings = _settings(nats_stream="OF_q")
    config = dead_letters.stream_config(settings)
    assert config.name == "OF_q-dead-letters"
    assert config.subjects == ("DEAD-LETTERS.q.>",)
    assert config.max_age == 168 * 3600 * 10**9


def test_flow_config_differs_in_name_filter_and_mode() -> None:
    """A function's consumer differs from the shared one in its name, its filter and its mode only."""
    settings = _settings(ack_wait="90s")
    subject = "faas-request.0.echo.openfaas-fn"
    config = topology.flow_config(settings, subject, topology.flow_consumer(settings, subject))
    assert config.name == config.durable_name
    assert re.fullmatch("faas-workers-0-echo-openfaas-fn-[0-9a-f]{12}", config.name)
    shared = topology.consumer_config(settings)
    different = {each: getattr(config, each) for each in ("name", "durable_name", "filter_subject", "metadata")}
    assert config == replace(shared, **different)
    assert config.filter_subject == subject
    assert config.metadata == {"queue-worker.mode": "function"}
    assert topology.consumer_faults(config, config) == ([], [])


def test_consumer_faults_other_filter_is_a_fault() -> None:
    """A function's consumer with another filter would deliver other messages, or leave out its own."""
    config = topology.flow_config(_settings(), "faas-request.0.echo.ns", "echo")
    for change in ({"filter_subject": "faas-request.0.other.ns"}, {"filter_subject": ""}):
        faults, _ = topology.consumer_faults(replace(config, **change), config)
        assert len(faults) == 1
        assert "filter" in faults[0]


@pytest.mark.parametrize(
    "subject",
    [
        "faas-request",
        "faas-request.a b",
        "faas-request.%",
        "faas-request.\u00e9",
        "faas-request." + 300 * "x",
        "faas-request./",
    ],
    ids=lambda subject: subject[:20],
)
def test_flow_consumer_names_are_valid(subject: str) -> None:
    """Names have letters, digits, dash and underscore, a limited length, and differ between subjects."""
    settings = _settings(nats_durable="w" * 200)
    name = topology.flow_consumer(settings, subject)
    assert re.fullmatch("[A-Za-z0-9_-]{1,255}", name)
    assert name != topology.flow_consumer(settings, subject + ".")


def test_consumer_config_partition_has_its_subjects() -> None:
    """Each partition has a shared consumer for its subjects; the first also has the bare subject."""
    settings = _settings(queue_partitions="3", filter_partition="1")
    config = topology.consumer_config(settings, static(3))
    assert config.name == "faas-workers-p1"
    assert config.filter_subjects == ("faas-request.1.>",)
    assert config.metadata == {"queue-worker.mode": "static", "queue-worker.partitions": "3"}
    first = topology.consumer_config(_settings(queue_partitions="3"), static(3))
    assert first.filter_subjects == ("faas-request", "faas-request.0.>")


def test_consumer_config_beside_others_has_filters() -> None:
    """The server accepts none without filters beside others; they cover the queue, and are no difference."""
    beside = topology.consumer_config(_settings(), alone=False)
    assert beside.filter_subjects == ("faas-request", "faas-request.>")
    assert topology.consumer_faults(beside, beside) == ([], [])
    assert topology.consumer_faults(topology.consumer_config(_settings()), beside) == ([], [])
