"""Partitions of the producers, which are the same as those of nats-server."""

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


def random_functions(count: int) -> list[tuple[str, str]]:
    """Return pairs of a function and a namespace, with all valid characters, short and long."""
    rng = random.Random(7)

    def name() -> str:
        middle = "".join(rng.choices(LETTERS + "-_", k=rng.choice((0, 3, 10, 60))))
        return rng.choice(LETTERS) + (middle + rng.choice(LETTERS) if middle else "")

    return [(name(), rng.choice(("openfaas-fn", name()))) for _ in range(count)]


def test_partition_of_a_function_is_the_one_of_nats_server(tmp_path: Path) -> None:
    """For 1,000 names and several numbers of partitions, ``{{partition(n,...)}}`` of a real server gives the same."""
    functions = random_functions(1000)
    for partitions in (2, 7, 1024):
        mapped = f'"q.*.*.*": "q.{{{{partition({partitions},2,3)}}}}.{{{{wildcard(2)}}}}.{{{{wildcard(3)}}}}"'
        with NatsServer(tmp_path / str(partitions), config=f"mappings = {{ {mapped} }}") as nats:
            nats.make_stream("q")
            nats.publish_many([(subject_of("q", 0, *function), b"", {}) for function in functions])
            stored = set(nats.api("STREAM.INFO.q", subjects_filter=">")["state"]["subjects"])
        assert stored == {subject_of("q", partition_for(*each, partitions), *each) for each in functions}


def test_mapping_in_the_documents_divides_a_queue(tmp_path: Path) -> None:
    """A server with the mapping of docs/scaling.md replaces any published partition by the function's own."""
    (block,) = re.findall(r"(?ms)^```\n(mappings = .*?)^```$", SCALING.read_text())
    with NatsServer(tmp_path, config=block) as nats:
        nats.make_stream()
        nats.publish_many([(subject_of("faas-request", number, "echo", "fn"), b"", {}) for number in (0, 3)])
        nats.publish("faas-request", b"")
        (_, *subjects) = sorted(nats.api("STREAM.INFO.faas-request", subjects_filter=">")["state"]["subjects"])
    assert subjects == [subject_of("faas-request", partition_for("echo", "fn", 4), "echo", "fn")]


def test_partitions_have_about_equally_many_functions() -> None:
    """Of 10,000 functions each of 8 partitions has an eighth, within a tenth."""
    counts = Counter(partition_for(f"function-{number}", "openfaas-fn", 8) for number in range(10_000))
    assert set(counts) == set(range(8))
    assert all(1125 < count < 1375 for count in counts.values())


def test_partition_of_an_undivided_queue_is_0() -> None:
    """In a queue that is not divided, every function has partition 0."""
    assert {partition_for(*each, 1) for each in random_functions(100)} == {0}


def test_producers_publish_to_the_function_s_partition(tmp_path: Path) -> None:
    """With ``queue_partitions``, the gateway and ``queue-worker submit`` publish to the function's partition."""
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
