"""The benchmark: its arithmetic, its report, and the work of its peers and programs.

What needs the packages of the bench extra is skipped where `make bench` has not installed them.
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


def test_spread() -> None:
    """The median, not the mean, and the ends."""
    assert Spread.of([9.0, 1.0, 2.0]) == Spread(1.0, 2.0, 9.0)
    assert f"{Spread(1.0, 2.0, 9.0)}" == "2.00 (1.00-9.00)"


def test_ratios_are_of_pairs() -> None:
    """What slowed both of a pair down does not show."""
    assert ratios([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == Spread(0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("share", "expected"), [(0.0, 1), (0.5, 50), (0.99, 99), (0.991, 100), (1.0, 100)])
def test_percentile(share: float, expected: int) -> None:
    """The nearest rank: always a sample."""
    assert percentile([float(n) for n in range(100, 0, -1)], share) == expected


def test_between() -> None:
    """What a message took is what was spent between two samples, by the messages between them."""
    first = Sample(at=10.0, served=100, worker=1.0, functions=2.0, broker=3.0, running=7)
    last = Sample(at=12.0, served=1100, worker=1.5, functions=2.25, broker=3.125, running=9)
    span = between(first, last)
    assert (span.messages, span.rate, span.running) == (1000, 500.0, 9)
    assert (span.cpu, span.functions, span.broker) == (0.0005, 0.00025, 0.000125)


# The report.


def lines_of(name: str, samples: Samples) -> list[tuple[str, bool | None]]:
    return [(line.measured, line.reached) for line in FIGURES[name].assess(samples)]


def cpu_samples(ours: float, rate: float, others: Mapping[str, tuple[float, float]]) -> Samples:
    both = {"ours": (ours, rate), **others}
    return {
        "CPU a message (µs)": {contender: [each] * 3 for contender, (each, _) in both.items()},
        "messages a second": {contender: [each] * 3 for contender, (_, each) in both.items()},
    }


def test_cpu_is_judged_against_both_peers_and_the_rate_against_the_best_python() -> None:
    """Go is no Python peer; of those the one with the highest rate counts."""
    peers = {"uvloop_aiohttp": (100.0, 1000.0), "taskiq_nats": (50.0, 2000.0), "go": (50.0, 9000.0)}
    assert [reached for _, reached in lines_of("cpu", cpu_samples(75.0, 2600.0, peers))] == [True, True, True]
    assert [reached for _, reached in lines_of("cpu", cpu_samples(81.0, 2599.0, peers))] == [False, False, False]


def test_without_go_there_is_no_line_about_it() -> None:
    """Where Go could not be compiled the other lines stand."""
    assessed = cpu.assess(cpu_samples(75.0, 2600.0, {"uvloop_aiohttp": (100.0, 1000.0)}))
    assert [line.figure for line in assessed if "Go" in line.figure] == []
    assert len(assessed) == 2


def test_latency_is_no_worse_to_two_places() -> None:
    """1.004 of the bare loop is no worse; 1.006 is."""
    samples = {
        quantity: {"ours": [1004.0, 1004.0], latency.BARE.name: [1000.0, 1000.0]}
        for quantity in ("p50 of a turn (µs)", "p99 of a turn (µs)")
    }
    assert [reached for _, reached in lines_of("latency", samples)] == [True, True]
    samples["p99 of a turn (µs)"]["ours"] = [1006.0, 1006.0]
    assert [reached for _, reached in lines_of("latency", samples)] == [True, False]


def test_growth_is_from_the_first_50_000_to_the_end() -> None:
    """What was higher in between is not growth."""
    held = {"memory every 50,000 messages (MB)": {"ours": [60.0, 65.0, 60.9]}}
    assert growth.assess(held)[0].reached
    held["memory every 50,000 messages (MB)"]["ours"].append(61.1)
    assert not growth.assess(held)[0].reached


def test_what_stands_around_the_tables_stays() -> None:
    """Only what is between a figure's markers is replaced."""
    text = "before\n<!-- measured: cpu -->\nold\n<!-- its end -->\nafter <!-- measured: all -->x<!-- its end -->"
    new = report.between_markers(text, "cpu", "new\n")
    assert new == text.replace("\nold\n", "\n\nnew\n\n")
    with pytest.raises(ValueError, match="measured: drain"):
        report.between_markers(text, "drain", "new")


def test_table() -> None:
    """The table has a row for each, the worker's share of the others' value, and only digits that mean something."""
    samples = {"CPU (µs)": {"ours": [50.0, 60.0, 70.0], "go": [100.0, 100.0, 1400.0]}}
    assert report.table(samples).splitlines()[2:] == [
        "| CPU (µs) | ours | 60.0 | 50.0 | 70.0 |  |",
        "| CPU (µs) | go | 100.0 | 100.0 | 1,400 | 0.50 (0.05-0.60) |",
    ]


def test_every_figure_has_its_place() -> None:
    """In the document, so that a run of hours is not lost at its end."""
    text = (DOCS / "performance.md").read_text()
    for name in ("all", *FIGURES):
        report.between_markers(text, name, "")


def test_document_says_what_was_measured(tmp_path: Path) -> None:
    """Tables and plots are those of the samples that lie beside them."""
    for file in DOCS.glob("performance*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    report.write(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text() == (DOCS / file.name).read_text(), "write it again: make bench BENCH=--again"


def test_plots_are_svg() -> None:
    """Plots are well-formed with any names, and the worker of this project stands out."""
    bars = ET.fromstring(plot.bars("CPU <µs>", {"ours": [1.0, 2.0], "a & b": [3.0]}))
    assert [each.get("class") for each in bars.findall(".//{*}rect")] == ["ours", "other"]
    line = ET.fromstring(plot.line("memory", [50.0, 100.0], [1.0, 2.0], "MB"))
    assert len(line.findall(".//{*}path")) == 2


# The function server.


class Wire:
    """A transport that remembers."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closed = True


REQUEST = b"POST /function/echo HTTP/1.1\r\nHost: x\r\ncontent-length: 3\r\n\r\nabc"


def connected() -> tuple[FixedAnswer, Wire, Connection]:
    shared, wire = FixedAnswer(delay=0.0), Wire()
    connection = Connection(shared)
    connection.connection_made(cast(asyncio.Transport, wire))
    return shared, wire, connection


def test_function_server_finds_the_end_of_requests() -> None:
    """Two requests have two answers, however their bytes are divided."""

    def check(size: int) -> None:
        shared, wire, connection = connected()
        stream = REQUEST * 2
        for start in range(0, len(stream), size):
            connection.data_received(stream[start : start + size])
        assert shared.served == wire.written.count(b"HTTP/1.1 200 OK") == 2
        assert shared.refused == 0

    check_each(range(1, len(REQUEST) + 1), check)


@pytest.mark.parametrize(
    "request_", [REQUEST.replace(b"content-length: 3", b"transfer-encoding: chunked"), REQUEST.replace(b"POST", b"PUT")]
)
def test_function_server_refuses_what_it_cannot_count(request_: bytes) -> None:
    """A peer that sends something else must not look fast."""
    shared, wire, connection = connected()
    connection.data_received(request_)
    assert (shared.served, shared.refused, wire.closed) == (0, 1, True)


# The machine, and whole runs.


def test_machine() -> None:
    """CPU grows while we work; memory is there; the measured process has a core of its own where there are two."""
    spent = cpu_of(os.getpid())
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass
    assert cpu_of(os.getpid()) - spent > 0.015  # the kernel brings it up to date at its ticks, which are 4 ms apart
    assert memory(os.getpid()) > 1_000_000
    assert REST | MEASURED == ALL
    assert len(ALL) == 1 or not REST & MEASURED


def test_message_is_one_that_the_worker_reads() -> None:
    """Of the function that is named, with 256 bytes."""
    delivery = Delivery((7, 0), "token", 1, 0.0, "faas-request", message(7, "echo-1"))
    decoded = decode(delivery, namespace="openfaas-fn", user_agent="")
    assert not isinstance(decoded, Malformed)
    assert (decoded[0].function, len(decoded[0].body)) == ("echo-1", 256)


@pytest.mark.skipif(not INSTALLED, reason="the bench extra is not installed: make bench")
@pytest.mark.parametrize("contender", [OURS, *PYTHON], ids=lambda contender: contender.name)
def test_contender_works_the_queue_off(contender: Contender, tmp_path: Path) -> None:
    """Every contender takes its settings from the environment, invokes, and acknowledges."""
    with NatsServer(tmp_path) as nats:
        span = run_contender(contender, tmp_path, nats, warm=50, count=200, inflight=10)
        assert span.cpu > 0
        # 1,250 were filled in, 250 at least were answered, and ten of those may not have been acknowledged yet.
        assert nats.state()["messages"] <= 1010
