"""What is made at the broker, and what is thought of what is found there."""

from __future__ import annotations

from typing import Any

import pytest

from worker.config import Settings, load
from worker.nats import topology


def _settings(**environment: str) -> Settings:
    return load(environment).settings


def test_the_stream_is_made_exactly_as_the_contract_has_it() -> None:
    """Contract section 3: subjects, work-queue, discard old, no limits, duplicate window of two minutes."""
    assert topology.stream_config(_settings()) == {
        "name": "faas-request",
        "subjects": ["faas-request", "faas-request.>"],
        "retention": "workqueue",
        "discard": "old",
        "storage": "file",
        "num_replicas": 1,
        "max_consumers": -1,
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msg_size": -1,
        "max_msgs_per_subject": -1,
        "duplicate_window": 120_000_000_000,
    }


def test_the_consumer_is_made_exactly_as_the_contract_has_it() -> None:
    """Contract section 3: durable, pull, deliver all, ack explicit, no filter, the mode in its metadata."""
    assert topology.consumer_config(_settings(ack_wait="90s", max_waiting="7")) == {
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


def test_a_stream_named_after_openfaas_has_the_queue_without_its_prefix() -> None:
    """OF_slow-queue serves the queue slow-queue."""
    assert topology.stream_config(_settings(nats_stream="OF_slow-queue"))["subjects"] == ["slow-queue", "slow-queue.>"]


def test_what_we_make_has_no_faults_and_no_surprises() -> None:
    """A second start finds what the first made, and says nothing."""
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
def test_faults_of_a_stream_are_named(change: dict[str, Any], named: str) -> None:
    """Each property of a found stream that cannot work is named."""
    settings = _settings()
    faults, _ = topology.stream_faults(topology.stream_config(settings) | change, settings)
    assert len(faults) == 1
    assert named in faults[0]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ack_policy": "none"}, "ack_policy"),
        ({"ack_policy": "all"}, "ack_policy"),
        ({"deliver_subject": "x"}, "push consumer"),
        ({"max_deliver": 5}, "max_deliver"),
        ({"backoff": [1, 2]}, "backoff"),
    ],
)
def test_faults_of_a_consumer_are_named(change: dict[str, Any], named: str) -> None:
    """Each property of a found consumer that cannot work is named."""
    settings = _settings()
    faults, _ = topology.consumer_faults(
        topology.consumer_config(settings) | change, topology.consumer_config(settings)
    )
    assert len(faults) == 1
    assert named in faults[0]


def test_all_faults_are_named_together() -> None:
    """An operator mends all of them at once, not one a restart."""
    settings = _settings()
    found = {"ack_policy": "none", "deliver_subject": "x", "max_deliver": 3}
    assert len(topology.consumer_faults(found, topology.consumer_config(settings))[0]) == 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_replicas": 3}, "num_replicas is 3, not 1"),
        ({"storage": "memory"}, "storage is memory, not file"),
        ({"max_msgs": 100}, "max_msgs is 100"),
        ({"max_age": 60}, "max_age is 60"),
        ({"subjects": ["faas-request"]}, "leave out 'faas-request.>'"),
        ({"subjects": ["faas-request.*"]}, "leave out 'faas-request'"),
    ],
)
def test_surprises_of_a_stream_are_told(change: dict[str, Any], named: str) -> None:
    """What merely surprises is told, and not a fault."""
    settings = _settings()
    faults, surprises = topology.stream_faults(topology.stream_config(settings) | change, settings)
    assert faults == []
    assert any(named in surprise for surprise in surprises)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ack_wait": 30_000_000_000}, "ack_wait is 30s, not 1m"),
        ({"max_ack_pending": 1000}, "max_ack_pending is 1000, not -1"),
        ({"filter_subject": "faas-request.x"}, "faas-request.x"),
        ({"filter_subjects": ["faas-request.x"]}, "faas-request.x"),
    ],
)
def test_surprises_of_a_consumer_are_told(change: dict[str, Any], named: str) -> None:
    """The same for consumers."""
    settings = _settings()
    faults, surprises = topology.consumer_faults(
        topology.consumer_config(settings) | change, topology.consumer_config(settings)
    )
    assert faults == []
    assert any(named in surprise for surprise in surprises)


def test_dead_letters_collide_with_no_queue() -> None:
    """Their subjects begin in capitals, and names of queues have none."""
    settings = _settings(nats_stream="OF_q")
    config = topology.dead_letter_config(settings)
    assert config["name"] == "OF_q-dead-letters"
    assert config["subjects"] == ["DEAD-LETTERS.q.>"]
    assert config["max_age"] == 168 * 3600 * 10**9
