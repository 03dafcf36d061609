from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from worker import events as e
from worker.config import load
from worker.model import Backlog
from worker.observe.metrics import Metrics
from worker.parent.merge import COUNTER_TYPES, GAUGE_MERGES, Merge, parse
from worker.parent.processes import MergedStatus, Processes


def values(text: str) -> dict[tuple[str, ...], float]:
    """Return each sample by its name and labels, as Prometheus's own parser reads it."""
    return {
        (sample.name, *map(":".join, sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sums(texts: list[str]) -> dict[str, float]:
    """Add up the counts in *texts*."""
    return {
        name: sum(each)
        for family in parse(texts)
        if family.kind in COUNTER_TYPES
        for name, each in family.series.items()
    }


class Process:
    """A process with counters, and the last text that the parent received from it."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has it so
        self.registry = CollectorRegistry()
        self.calls = Counter("calls", "Calls", ["function"], registry=self.registry)
        self.took = Histogram("took", "How long", buckets=(1, 2), registry=self.registry)
        self.busy = Gauge("queue_worker_function_invocation_inflight", "Running", registry=self.registry)
        self.received = self.text

    @property
    def text(self) -> str:
        return generate_latest(self.registry).decode()


FUNCTIONS = ("a", "b b", 'c"d', "e\u2028f", "g\nh")
steps = st.tuples(
    st.integers(0, 2),
    st.one_of(
        st.tuples(st.just("call"), st.sampled_from(FUNCTIONS)),
        st.tuples(st.just("take"), st.floats(0, 1e6)),
        st.tuples(st.sampled_from(("answer", "end", "answer and end")), st.none()),
    ),
)


@given(st.lists(steps, max_size=60))
def test_merge_counts_never_decrease_and_are_complete(history: list[tuple[int, tuple[str, object]]]) -> None:
    """Processes count, answer or not, end and are replaced: no count decreases, and the sum has every received one."""
    processes, merge, before = [Process() for _ in range(3)], Merge(), dict[str, float]()
    ended: list[str] = []
    for number, (action, value) in history:
        process = processes[number]
        match action:
            case "call":
                process.calls.labels(value).inc()
            case "take":
                process.took.observe(float(str(value)))
            case "answer":
                process.received = process.text
            case _:
                last = process.text if action == "answer and end" else process.received
                merge.add_ended(last)
                ended.append(last)
                processes[number] = Process()
        shown = sums([merge.text([each.received for each in processes])])
        assert all(shown[name] >= value for name, value in before.items())
        before = shown
    expected = sums([*ended, *(each.received for each in processes)])
    # A sum of floats depends on its order, by a few units in the last place.
    assert before in ({}, pytest.approx(expected, rel=1e-12))


def test_merge_rounding_does_not_lower_a_count() -> None:
    """0.1 + 0.2 + 0.3 is less in another order, by the last bit; the value that was shown stays."""
    merge = Merge()
    texts = [f"# HELP t T\n# TYPE t counter\nt {value}\n" for value in (0.1, 0.2, 0.3)]
    shown = merge.text(texts)
    merge.add_ended(texts[2])
    merge.add_ended(texts[1])
    assert 0.1 + (0.3 + 0.2) < 0.1 + 0.2 + 0.3
    assert merge.text(texts[:1]) == shown


def test_merge_of_one_process_is_its_own_text() -> None:
    """The merged text of one process has the same names, types, help, labels and order as its own."""
    metrics = Metrics(load({}).settings, "pod")
    metrics(e.BacklogRead(Backlog(9, {"faas-request.0.echo.fn": 2, "faas-request.odd \u2028name": 4})))
    metrics(e.Connected("s", reconnected=True))
    text = "".join(metrics.slices())
    shown = Merge().text([text])
    same = [line for line in text.splitlines() if not line.startswith("process_")]
    assert [line for line in shown.splitlines() if not line.startswith("process_")] == same


def test_merge_gauges_by_their_meaning() -> None:
    """Gauges of each process are added up; gauges that all processes share are not."""
    texts = [
        "".join(
            f"# HELP {name} ?\n# TYPE {name} gauge\n{name} {value}\n"
            for name, value in {
                "queue_worker_pending_messages": backlog,
                "queue_worker_messages_submitted_total": backlog,
                "queue_worker_function_invocation_inflight": running,
                "queue_worker_nats_connected": connected,
                "queue_worker_draining": 1 - connected,
                "queue_worker_build_info": 1,
                "process_resident_memory_bytes": 50e6,
                "process_start_time_seconds": 1e9 + backlog,
            }.items()
        )
        for backlog, running, connected in ((7, 2, 1), (8, 3, 0))
    ]
    assert values(Merge().text(texts)) == {
        ("queue_worker_pending_messages",): 8,
        ("queue_worker_messages_submitted_total",): 8,
        ("queue_worker_function_invocation_inflight",): 5,
        ("queue_worker_nats_connected",): 0,
        ("queue_worker_draining",): 1,
        ("queue_worker_build_info",): 1,
        ("process_resident_memory_bytes",): 100e6,
        ("process_start_time_seconds",): 1e9 + 7,
    }


def test_merge_with_a_missing_process_is_not_connected() -> None:
    """With a missing process the parent is not connected; other gauges are those of the running processes."""
    text = "# HELP queue_worker_{0} ?\n# TYPE queue_worker_{0} gauge\nqueue_worker_{0} 1.0\n"
    texts = text.format("nats_connected") + text.format("draining")
    assert set(values(Merge().text([texts])).values()) == {1.0}
    assert values(Merge().text([texts], missing=1)) == {
        ("queue_worker_nats_connected",): 0.0,
        ("queue_worker_draining",): 1.0,
    }


def test_merge_of_an_ended_process_keeps_counts_only() -> None:
    """After a process has ended, its counts stay and its gauges disappear."""
    process, merge = Process(), Merge()
    process.busy.inc()
    process.calls.labels("a").inc(3)
    merge.add_ended(process.text)
    shown = values(merge.text([]))
    assert shown["calls_total", "function:a"] == 3
    assert not [name for name in shown if "inflight" in name[0]]


def test_gauge_merges_name_every_gauge() -> None:
    """GAUGE_MERGES has a merge function for each gauge, and no others."""
    mine = MergedStatus(Processes([], {}, count=1, timeout=0, log=lambda *_: None)).registry
    texts = ["".join(Metrics(load({}).settings, "pod").slices()), generate_latest(mine).decode()]
    assert {family.name for family in parse(texts) if family.kind not in COUNTER_TYPES} == GAUGE_MERGES.keys()
