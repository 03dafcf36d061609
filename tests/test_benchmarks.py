"""The benchmark: its arithmetic, its report, and the work of its peers and programs.

Tests that need the packages of the bench extra are skipped where `make bench` has not installed them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import pytest

from benchmarks import plot, report
from benchmarks.contenders import OURS, PYTHON, Contender
from benchmarks.figures import FIGURES, cpu, growth, latency
from benchmarks.functions import FixedAnswer
from benchmarks.machine import ALL, MEASURED, REST, memory
from benchmarks.machine import cpu as cpu_of
from benchmarks.model import Samples
from benchmarks.queue import message
from benchmarks.stage import Sample, between, run_contender
from benchmarks.statistics import Spread, percentile, ratios
from tests.cases import check_each
from tests.functions import Connection
from tests.servers import NatsServer
from worker.model import Delivery, Malformed
from worker.policy.decode import decode

DOCS = Path(__file__).parent.parent / "docs"
INSTALLED = all(importlib.util.find_spec(name) for name in ("uvloop", "faststream", "taskiq_nats"))


# Arithmetic.


def test_spread_is_the_median_and_both_ends() -> None:
    """A spread has the minimum, the median and the maximum."""
    assert Spread.of([9.0, 1.0, 2.0]) == Spread(1.0, 2.0, 9.0)
    assert f"{Spread(1.0, 2.0, 9.0)}" == "2.00 (1.00-9.00)"


def test_ratios_are_computed_pair_by_pair() -> None:
    """Ratios compare the samples of one round, because a slow machine delays both of a pair."""
    assert ratios([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == Spread(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_percentile_is_the_nearest_rank(share: float, expected: int) -> None:
    """A percentile is the sample of the nearest rank."""
    assert percentile([float(n) for n in range(100, 0, -1)], share) == expected


def test_between_two_samples_divides_by_the_messages() -> None:
    """The cost of a message is the CPU time between two samples, divided by the messages between them."""
    first = Sample(at=10.0, served=100, worker=1.0, functions=2.0, broker=3.0, running=7)
    last = Sample(at=12.0, served=1100, worker=1.5, functions=2.25, broker=3.125, running=9)
    span = between(first, last)
    assert (span.messages, span.rate, span.running) == (1000, 500.0, 9)
    assert (span.cpu, span.functions, span.broker) == (0.0005, 0.00025, 0.000125)


# The report.


def lines_of(name: str, samples: Samples) -> list[tuple[str, bool | None]]:
    return [(line.measured, line.reached) for line in FIGURES[name].assess(samples)]


def cpu_samples(worker: float, rate: float, others: Mapping[str, tuple[float, float]]) -> Samples:
    values = {"ours": (worker, rate), **others}
    return {
        "CPU a message (µs)": {contender: [each] * 3 for contender, (each, _) in values.items()},
        "messages a second": {contender: [each] * 3 for contender, (_, each) in values.items()},
    }


def test_cpu_figure_is_compared_with_both_peers_and_the_best_rate() -> None:
    """The CPU time is compared with both peers, and the rate with the Python peer of the highest rate."""
    peers = {"uvloop_aiohttp": (100.0, 1000.0), "taskiq_nats": (50.0, 2000.0), "go": (50.0, 9000.0)}
    assert [reached for _, reached in lines_of("cpu", cpu_samples(75.0, 2600.0, peers))] == [True, True, True]
    assert [reached for _, reached in lines_of("cpu", cpu_samples(81.0, 2599.0, peers))] == [False, False, False]


def test_cpu_figure_without_go_omits_its_line() -> None:
    """Where Go was not measured, its line is omitted, and the others remain."""
    assessed = cpu.assess(cpu_samples(75.0, 2600.0, {"uvloop_aiohttp": (100.0, 1000.0)}))
    assert [line.figure for line in assessed if "Go" in line.figure] == []
    assert len(assessed) == 2


def test_latency_figure_is_compared_to_two_decimals() -> None:
    """A latency of 1.004 of the bare loop's is no worse, and one of 1.006 is."""
    samples = {
        quantity: {"ours": [1004.0, 1004.0], latency.BARE.name: [1000.0, 1000.0]}
        for quantity in ("p50 of a turn (µs)", "p99 of a turn (µs)")
    }
    assert [reached for _, reached in lines_of("latency", samples)] == [True, True]
    samples["p99 of a turn (µs)"]["ours"] = [1006.0, 1006.0]
    assert [reached for _, reached in lines_of("latency", samples)] == [True, False]


def test_growth_figure_compares_the_first_sample_with_the_last() -> None:
    """Growth is the difference between the first and the last sample, without those in between."""
    samples = {"memory every 50,000 messages (MB)": {"ours": [60.0, 65.0, 60.9]}}
    assert growth.assess(samples)[0].reached
    samples["memory every 50,000 messages (MB)"]["ours"].append(61.1)
    assert not growth.assess(samples)[0].reached


def test_between_markers_replaces_only_the_marked_text() -> None:
    """Only the text between a figure's markers is replaced, and a missing marker is an error."""
    text = "before\n<!-- measured: cpu -->\nold\n<!-- its end -->\nafter <!-- measured: all -->x<!-- its end -->"
    new = report.between_markers(text, "cpu", "new\n")
    assert new == text.replace("\nold\n", "\n\nnew\n\n")
    with pytest.raises(ValueError, match="measured: drain"):
        report.between_markers(text, "drain", "new")


def test_report_table_has_a_row_for_each_contender() -> None:
    """The table has a row for each contender, the ratio of the worker's value to it, and significant digits only."""
    samples = {"CPU (µs)": {"ours": [50.0, 60.0, 70.0], "go": [100.0, 100.0, 1400.0]}}
    assert report.table(samples).splitlines()[2:] == [
        "| CPU (µs) | ours | 60.0 | 50.0 | 70.0 |  |",
        "| CPU (µs) | go | 100.0 | 100.0 | 1,400 | 0.50 (0.05-0.60) |",
    ]


def test_performance_document_has_markers_of_each_figure() -> None:
    """The document has markers of each figure, because a run of hours could otherwise not be stored at its end."""
    text = (DOCS / "performance.md").read_text()
    for name in ("all", *FIGURES):
        report.between_markers(text, name, "")


def test_performance_document_matches_the_stored_samples(tmp_path: Path) -> None:
    """Tables and plots are those that the stored samples give."""
    for file in DOCS.glob("performance*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    report.write(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text() == (DOCS / file.name).read_text(), "write it again: make bench BENCH=--again"


def test_plots_are_valid_svg() -> None:
    """Plots are well-formed with any names, and the worker of this project stands out."""
    bars = ET.fromstring(plot.bars("CPU <µs>", {"ours": [1.0, 2.0], "a & b": [3.0]}))
    assert [each.get("class") for each in bars.findall(".//{*}rect")] == ["ours", "other"]
    line = ET.fromstring(plot.line("memory", [50.0, 100.0], [1.0, 2.0], "MB"))
    assert len(line.findall(".//{*}path")) == 2


# The function server.


class FakeTransport:
    """A transport that records the written bytes."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True


REQUEST = b"POST /function/echo HTTP/1.1\r\nHost: x\r\ncontent-length: 3\r\n\r\nabc"


def connected() -> tuple[FixedAnswer, FakeTransport, Connection]:
    shared, transport = FixedAnswer(delay=0.0), FakeTransport()
    connection = Connection(shared)
    connection.connection_made(cast(asyncio.Transport, transport))
    return shared, transport, connection


def test_function_server_finds_the_end_of_requests() -> None:
    """Two requests have two answers, however their bytes are divided."""

    def check(size: int) -> None:
        shared, transport, connection = connected()
        stream = REQUEST * 2
        for start in range(0, len(stream), size):
            connection.data_received(stream[start : start + size])
        assert shared.served == transport.written.count(b"HTTP/1.1 200 OK") == 2
        assert shared.refused == 0

    check_each(range(1, len(REQUEST) + 1), check)


@pytest.mark.parametrize(
    "request_", [REQUEST.replace(b"content-length: 3", b"transfer-encoding: chunked"), REQUEST.replace(b"POST", b"PUT")]
)
def test_function_server_refuses_other_requests(request_: bytes) -> None:
    """A request without a Content-Length or of another method is refused and not counted as served."""
    shared, transport, connection = connected()
    connection.data_received(request_)
    assert (shared.served, shared.refused, transport.closed) == (0, 1, True)


# The machine, and whole runs.


def test_machine_reads_cpu_memory_and_cores() -> None:
    """CPU time and memory of a process are read, and the measured process has a core of its own where there are two."""
    spent = cpu_of(os.getpid())
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass
    assert cpu_of(os.getpid()) - spent > 0.015  # the kernel brings it up to date at its ticks, which are 4 ms apart
    assert memory(os.getpid()) > 1_000_000
    assert REST | MEASURED == ALL
    assert len(ALL) == 1 or not REST & MEASURED


def test_benchmark_message_is_decoded_by_the_worker() -> None:
    """The worker decodes a benchmark message to its function, with a body of 256 bytes."""
    delivery = Delivery((7, 0), "token", 1, 0.0, "faas-request", message(7, "echo-1"))
    decoded = decode(delivery, namespace="openfaas-fn", user_agent="")
    assert not isinstance(decoded, Malformed)
    assert (decoded[0].function, len(decoded[0].body)) == ("echo-1", 256)


@pytest.mark.skipif(not INSTALLED, reason="the bench extra is not installed: make bench")
@pytest.mark.parametrize("contender", [OURS, *PYTHON], ids=lambda contender: contender.name)
def test_contender_processes_the_queue(contender: Contender, tmp_path: Path) -> None:
    """Each contender reads its settings from the environment, invokes the function, and acks the messages."""
    with NatsServer(tmp_path) as nats:
        span = run_contender(contender, tmp_path, nats, warm=50, count=200, inflight=10)
        assert span.cpu > 0
        # 1,250 were filled in, 250 at least were answered, and ten of those may not have been acknowledged yet.
        assert nats.state()["messages"] <= 1010
