"""Partitions: our producers' own, and NATS's, which are the same ones."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

from tests.gateway import gateway_on
from tests.servers import ROOT, NatsServer, run_program
from worker.policy.names import partition_for, subject_of

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
SCALING = ROOT / "docs" / "scaling.md"


def some_functions(count: int) -> list[tuple[str, str]]:
    """Names and namespaces, of all the characters that they can have, and of one or many."""
    chance = random.Random(7)

    def name() -> str:
        middle = "".join(chance.choices(LETTERS + "-_", k=chance.choice((0, 3, 10, 60))))
        return chance.choice(LETTERS) + (middle + chance.choice(LETTERS) if middle else "")

    return [(name(), chance.choice(("openfaas-fn", name()))) for _ in range(count)]


def test_a_function_s_partition_is_the_one_that_nats_gives_it(tmp_path: Path) -> None:
    """For 1,000 names and several numbers of partitions, ``{{partition(n,...)}}`` of a real server agrees."""
    functions = some_functions(1000)
    for partitions in (2, 7, 1024):
        mapped = f'"q.*.*.*": "q.{{{{partition({partitions},2,3)}}}}.{{{{wildcard(2)}}}}.{{{{wildcard(3)}}}}"'
        with NatsServer(tmp_path / str(partitions), config=f"mappings = {{ {mapped} }}") as nats:
            nats.make_stream("q")
            nats.publish_many([(subject_of("q", 0, *function), b"", {}) for function in functions])
            stored = set(nats.api("STREAM.INFO.q", subjects_filter=">")["state"]["subjects"])
        assert stored == {subject_of("q", partition_for(*each, partitions), *each) for each in functions}


def test_the_mapping_in_the_documents_is_one_that_nats_takes(tmp_path: Path) -> None:
    """What docs/scaling.md has for nats-server's configuration divides a queue, whatever partition was written."""
    (block,) = re.findall(r"(?ms)^```\n(mappings = .*?)^```$", SCALING.read_text())
    with NatsServer(tmp_path, config=block) as nats:
        nats.make_stream()
        nats.publish_many([(subject_of("faas-request", number, "echo", "fn"), b"", {}) for number in (0, 3)])
        nats.publish("faas-request", b"")
        (_, *subjects) = sorted(nats.api("STREAM.INFO.faas-request", subjects_filter=">")["state"]["subjects"])
    assert subjects == [subject_of("faas-request", partition_for("echo", "fn", 4), "echo", "fn")]


def test_partitions_are_about_equal() -> None:
    """Of 10,000 functions each of 8 partitions has an eighth, within a tenth."""
    counts = Counter(partition_for(f"function-{number}", "openfaas-fn", 8) for number in range(10_000))
    assert set(counts) == set(range(8))
    assert all(1125 < count < 1375 for count in counts.values())


def test_one_partition_is_partition_0() -> None:
    """A queue that is not divided is all partition 0."""
    assert {partition_for(*each, 1) for each in some_functions(100)} == {0}


def test_producers_publish_to_a_function_s_partition(tmp_path: Path) -> None:
    """``queue_partitions`` divides what the gateway and ``queue-worker submit`` publish, alike and by function."""
    names = [f"echo-{number}" for number in range(5)]
    with NatsServer(tmp_path) as nats:
        nats.make_stream()
        with gateway_on(nats, tmp_path, queue_partitions=16) as gateway:
            for name in names:
                assert gateway.queue(name).status == 202
        settings = {"nats_port": nats.port, "queue_partitions": 16}
        assert run_program("worker.cli", "submit", "echo-0", tmp_path=tmp_path, settings=settings)[0] == 0
        subjects = Counter(message.subject for message in nats.messages())
    expected = {
        subject_of("faas-request", partition_for(name, "openfaas-fn", 16), name, "openfaas-fn") for name in names
    }
    assert set(subjects) == expected
    assert sum(subjects.values()) == len(names) + 1
    assert len({subject.split(".")[1] for subject in subjects}) > 1
