"""Events as metrics."""

from __future__ import annotations

import pytest

from worker import events as e
from worker.config import load
from worker.model import Ack, Backlog, Delivery, Interrupted, Invocation, Nak, Responded, Term
from worker.observe import function_metrics as module
from worker.observe.metrics import Metrics

INVOCATION = Invocation("c", "echo", "echo.fn", "POST", b"/function/echo", (), b"", {}, None, "1")
DELIVERY = Delivery((7, 1), "token", 2, 0.0, "q", b"")


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(load({"queue_name": "q"}).settings, "pod-1")


def _value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_messages_processed_are_those_taken_off(metrics: Metrics) -> None:
    """An ack or a term counts; a give-back does not."""
    for verdict in (Ack(), Term("x"), Nak(1.0), Ack()):
        metrics(e.Settled(verdict))
    assert _value(metrics, "queue_worker_messages_processed_total", queue_name="q", kubernetes_pod_name="pod-1") == 3


def test_inflight_is_what_runs(metrics: Metrics) -> None:
    """Up at the start, down at the end, however it ends."""
    labels = {"queue_name": "q", "function_name": "echo.fn"}
    for _ in range(3):
        metrics(e.InvocationStarted(INVOCATION, 1, 0.5))
    metrics(e.InvocationEnded(INVOCATION, 1, 3, Responded(200), Ack(), 0.1))
    metrics(e.InvocationEnded(INVOCATION, 1, 3, Interrupted(), Nak(), 0.1))
    assert _value(metrics, "queue_worker_function_invocation_inflight", **labels) == 1
    assert _value(metrics, "queue_worker_invocations_total", **labels, code="200") == 1
    assert _value(metrics, "queue_worker_invocations_total", **labels, code="none") == 1
    assert _value(metrics, "queue_worker_invocation_duration_seconds_count", **labels) == 1
    assert _value(metrics, "queue_worker_retries_total", **labels) is None, "handing back is no retry"


def test_queue_wait_is_told_of_first_attempts(metrics: Metrics) -> None:
    """Between attempts the wait would be the back-off."""
    metrics(e.InvocationStarted(INVOCATION, 1, 0.5))
    metrics(e.InvocationStarted(INVOCATION, 2, 10.5))
    assert _value(metrics, "queue_worker_queue_wait_seconds_sum", queue_name="q", function_name="echo.fn") == 0.5


def test_pending_is_told_by_function(metrics: Metrics) -> None:
    """Partitions are added up, the bare subject has no name, and what has gone falls to nothing."""
    metrics(e.BacklogRead(Backlog(9, {"q": 1, "q.0.echo.fn": 2, "q.1.echo.fn": 3, "q.other": 4})))

    def pending(function: str) -> float | None:
        return _value(metrics, "queue_worker_pending_messages", queue_name="q", function_name=function)

    assert [pending(name) for name in ("", "echo.fn", "other")] == [1, 5, 4]
    metrics(e.BacklogRead(Backlog(9, {"q.0.echo.fn": 1})))
    assert [pending(name) for name in ("", "echo.fn", "other")] == [0, 1, 0]
    assert _value(metrics, "queue_worker_messages_submitted_total", queue_name="q", kubernetes_pod_name="pod-1") == 9


def test_reconnects_count_from_the_second_connection(metrics: Metrics) -> None:
    """The first connection is none."""
    metrics(e.Connected("s", False))
    assert _value(metrics, "queue_worker_nats_reconnect_total") == 0
    metrics(e.Disconnected())
    assert _value(metrics, "queue_worker_nats_connected") == 0
    metrics(e.Connected("s", True))
    assert _value(metrics, "queue_worker_nats_reconnect_total") == 1
    assert _value(metrics, "queue_worker_nats_connected") == 1


def test_the_number_of_functions_is_bounded(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names come from messages: past the bound they share one series."""
    monkeypatch.setattr(module, "MAX_FUNCTIONS", 2)
    metrics(e.BacklogRead(Backlog(9, {f"q.0.f{number}.fn": 1 for number in range(5)})))
    text = metrics.render_text().decode()
    assert text.count("queue_worker_pending_messages{") == 3
    assert _value(metrics, "queue_worker_pending_messages", queue_name="q", function_name="other") == 3


@pytest.mark.parametrize(("attempts", "kind"), [(3, "exhausted"), (0, "undecodable")])
def test_dead_letters_are_told_apart(metrics: Metrics, attempts: int, kind: str) -> None:
    """What was tried and what could not be read."""
    metrics(e.DeadLettered(DELIVERY, "c", "f.ns", "x", attempts, True))
    assert _value(metrics, "queue_worker_dead_letters_total", queue_name="q", kind=kind) == 1


def test_callbacks_by_result(metrics: Metrics) -> None:
    """Delivered, to be sent again, given up."""
    metrics(e.CallbackPosted(INVOCATION, 500, False, 1.0, 0.1))
    metrics(e.CallbackPosted(INVOCATION, 200, True, None, 0.1))
    metrics(e.CallbackPosted(INVOCATION, 400, False, None, 0.1))
    for result in ("retried", "delivered", "failed"):
        assert _value(metrics, "queue_worker_callbacks_total", queue_name="q", result=result) == 1
