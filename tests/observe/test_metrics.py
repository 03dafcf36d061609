"""Metrics of events."""

from __future__ import annotations

import re

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from worker import events as e
from worker.config import load
from worker.model import Ack, Backlog, DeadLetter, Delivery, Interrupted, Invocation, Nak, Refused, Responded, Term
from worker.observe import function_metrics as module
from worker.observe.metrics import Metrics

INVOCATION = Invocation("c", "echo", "echo.fn", "POST", b"/function/echo", (), b"", {}, None, "1")
DELIVERY = Delivery((7, 1), "token", 2, 0.0, "q", b"")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(load({"queue_name": "q"}).settings, "pod-1")


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return the value of one series in the text, which the library's own parser reads."""
    families = text_string_to_metric_families("".join(metrics.slices()))
    found = [
        sample.value
        for family in families
        for sample in family.samples
        if (sample.name, sample.labels) == (name, labels)
    ]
    return found[0] if found else None


def test_settled_event_counts_removed_messages(metrics: Metrics) -> None:
    """An ack or a term counts, and a nak does not."""
    for verdict in (Ack(), Term("x"), Nak(1.0), Ack()):
        metrics(e.Settled(verdict))
    assert _value(metrics, "queue_worker_messages_processed_total", queue_name="q", kubernetes_pod_name="pod-1") == 3


def test_inflight_gauge_counts_running_invocations(metrics: Metrics) -> None:
    """The gauge rises at each start and falls at each end with any outcome; only responses have a duration."""
    labels = {"queue_name": "q", "function_name": "echo.fn"}
    for _ in range(3):
        metrics(e.InvocationStarted(INVOCATION, 1, 0.5))
    metrics(e.InvocationEnded(INVOCATION, 1, 3, Responded(200), Ack(), 0.1))
    metrics(e.InvocationEnded(INVOCATION, 1, 3, Interrupted(), Nak(), 0.1))
    assert _value(metrics, "queue_worker_function_invocation_inflight", **labels) == 1
    assert _value(metrics, "queue_worker_invocations_total", **labels, code="200") == 1
    assert _value(metrics, "queue_worker_invocations_total", **labels, code="none") == 1
    assert _value(metrics, "queue_worker_invocation_duration_seconds_count", **labels) == 1
    assert _value(metrics, "queue_worker_retries_total", **labels) is None, "an interrupted invocation is no retry"


def test_queue_wait_counts_first_attempts_only(metrics: Metrics) -> None:
    """The wait in the queue is counted at first attempts only, because later waits are backoffs."""
    metrics(e.InvocationStarted(INVOCATION, 1, 0.5))
    metrics(e.InvocationStarted(INVOCATION, 2, 10.5))
    assert _value(metrics, "queue_worker_queue_wait_seconds_sum", queue_name="q", function_name="echo.fn") == 0.5


def test_backlog_sets_pending_messages_by_function(metrics: Metrics) -> None:
    """Partitions are added up, the bare subject has an empty name, and a function without messages falls to 0."""
    metrics(e.BacklogRead(Backlog(9, {"q": 1, "q.0.echo.fn": 2, "q.1.echo.fn": 3, "q.other": 4})))

    def pending(function: str) -> float | None:
        return _value(metrics, "queue_worker_pending_messages", queue_name="q", function_name=function)

    assert [pending(name) for name in ("", "echo.fn", "other")] == [1, 5, 4]
    metrics(e.BacklogRead(Backlog(9, {"q.0.echo.fn": 1})))
    assert [pending(name) for name in ("", "echo.fn", "other")] == [0, 1, 0]
    assert _value(metrics, "queue_worker_messages_submitted_total", queue_name="q", kubernetes_pod_name="pod-1") == 9


def test_connected_event_counts_reconnects_only(metrics: Metrics) -> None:
    """The first connection is not counted as a reconnect."""
    metrics(e.Connected("s", False))
    assert _value(metrics, "queue_worker_nats_reconnect_total") == 0
    metrics(e.Disconnected())
    assert _value(metrics, "queue_worker_nats_connected") == 0
    metrics(e.Connected("s", True))
    assert _value(metrics, "queue_worker_nats_reconnect_total") == 1
    assert _value(metrics, "queue_worker_nats_connected") == 1


def test_functions_beyond_the_limit_share_one_series(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions beyond MAX_FUNCTIONS share a series, because their names come from messages."""
    monkeypatch.setattr(module, "MAX_FUNCTIONS", 2)
    metrics(e.BacklogRead(Backlog(9, {f"q.0.f{number}.fn": 1 for number in range(5)})))
    text = "".join(metrics.slices())
    assert text.count("queue_worker_pending_messages{") == 3
    assert _value(metrics, "queue_worker_pending_messages", queue_name="q", function_name="other") == 3


@pytest.mark.parametrize(("attempts", "kind"), [(3, "exhausted"), (0, "undecodable")])
def test_dead_letter_event_counts_by_kind(metrics: Metrics, attempts: int, kind: str) -> None:
    """A message that used up its attempts counts separately from one that cannot be decoded."""
    metrics(e.DeadLettered(DeadLetter(DELIVERY, "x", attempts, "c", "f.ns", None), True))
    assert _value(metrics, "queue_worker_dead_letters_total", queue_name="q", kind=kind) == 1


def test_callback_event_counts_by_result(metrics: Metrics) -> None:
    """A callback is delivered, retried, failed, or refused by the rules."""
    metrics(e.CallbackPosted("a", "echo.fn", "http://h", 500, False, 1.0, 0.1))
    metrics(e.CallbackPosted("a", "echo.fn", "http://h", 200, True, None, 0.1))
    metrics(e.CallbackPosted("a", "echo.fn", "http://h", 400, False, None, 0.1))
    metrics(e.CallbackPosted("a", "echo.fn", "http://h", Refused("a rule"), False, None, 0.1))
    for result in ("retried", "delivered", "failed", "refused"):
        assert _value(metrics, "queue_worker_callbacks_total", queue_name="q", result=result) == 1


def test_invocation_event_counts_redirects_by_result(metrics: Metrics) -> None:
    """A redirect that was followed, and one that is the answer, count separately; other answers count as neither."""
    for outcome in (Responded(200), Responded(200, redirected=True), Responded(302), Responded(301, redirected=True)):
        metrics(e.InvocationStarted(INVOCATION, 1, 0.0))
        metrics(e.InvocationEnded(INVOCATION, 1, 3, outcome, Ack(), 0.1))
    for result, count in (("followed", 1), ("final", 2)):
        assert _value(metrics, "queue_worker_redirects_total", queue_name="q", result=result) == count


def test_series_of_functions_are_what_the_library_would_write(metrics: Metrics) -> None:
    """A histogram has the series of prometheus_client's, also with names that must be escaped."""
    library = CollectorRegistry()
    labels = ["queue_name", "function_name"]
    name = "queue_worker_invocation_duration_seconds"
    histogram = Histogram(name, "Duration of invocations", labels, buckets=module._DURATION_BOUNDS, registry=library)
    for function in ("echo.fn", 'a"b\\c\nd'):
        invocation = replace(INVOCATION, label=function)
        for duration in (0.001, 0.25, 1e3):
            metrics(e.InvocationEnded(invocation, 1, 3, Responded(200), Ack(), duration))
            histogram.labels("q", function).observe(duration)
    (expected,) = text_string_to_metric_families(generate_latest(library).decode())
    written = {family.name: family for family in text_string_to_metric_families("".join(metrics.slices()))}[name]
    assert (written.documentation, written.type) == (expected.documentation, expected.type)
    assert sorted(written.samples, key=repr) == sorted(expected.samples, key=repr)


def test_slices_of_many_functions_are_small(metrics: Metrics) -> None:
    """No slice has the series of more than SLICE functions in one family, so none takes long."""
    for number in range(module.MAX_FUNCTIONS):
        invocation = replace(INVOCATION, label=f"f{number}.fn")
        metrics(e.InvocationStarted(invocation, 1, 0.5))
        metrics(e.InvocationEnded(invocation, 1, 3, Responded(200), Ack(), 0.1))
    slices = list(metrics.slices())
    assert max(len(set(re.findall('function_name="(.*?)"', each))) for each in slices) == module.SLICE
    assert len(slices) > 4 * module.MAX_FUNCTIONS / module.SLICE


def test_function_that_appears_during_a_rendering_is_in_the_next_one(metrics: Metrics) -> None:
    """Counting goes on between the slices."""
    metrics(e.InvocationStarted(INVOCATION, 1, 0.5))
    slices = metrics.slices()
    next(slices)
    metrics(e.InvocationStarted(replace(INVOCATION, label="new.fn"), 1, 0.5))
    assert "echo.fn" in "".join(slices)
    assert "new.fn" in "".join(metrics.slices())
