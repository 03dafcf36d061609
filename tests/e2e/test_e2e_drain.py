"""Contract, section 8: a worker that drains after SIGTERM or SIGINT, and its messages.

`ack_wait` is a minute in most tests, so a message that another worker receives within the tests' time limits was
back.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.e2e.stack import LEASE, Queue, StartWorker, Worker, go_url, message, wait_quietly
from tests.functions import Functions, Reply
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, wait_until
from worker.dev.stack import free_port

SIGNALS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])


def wait_draining(worker: Worker) -> None:
    """Wait until the worker logs that it drains."""
    worker.wait_for('"event":"Draining"')


def hold(queue: Queue, functions: Functions, *calls: str) -> None:
    """Start one invocation for each call id, which runs until it is released."""
    functions.answer("held", Reply(held=True))
    queue.put_calls("held", calls)
    wait_until(lambda: functions.running == len(calls), "all invocations to run")


@SIGNALS
def test_drain_finishes_running_invocations(
    queue: Queue, functions: Functions, start: StartWorker, number: signal.Signals
) -> None:
    """A draining worker is alive and not ready, takes no new message, and ends and settles all running invocations."""
    worker = start(max_inflight=5)
    hold(queue, functions, "one", "two", "three")
    worker.process.send_signal(number)
    wait_until(lambda: worker.get("/readyz")[0] == 503, "the worker to be not ready")
    wait_draining(worker)
    assert worker.get("/healthz")[0] == 200
    assert worker.metric("queue_worker_draining") == 1
    queue.put_calls("echo", ["late-1", "late-2", "late-3"])
    wait_quietly()
    assert worker.process.poll() is None
    assert functions.calls() == {"one": 1, "two": 1, "three": 1}
    functions.release("held")
    assert worker.wait() == 0
    assert not [request for request in functions.requests if request.disconnected]
    info = queue.consumer()
    assert (info["num_ack_pending"], info["num_pending"], info["num_redelivered"]) == (0, 3, 0)
    assert queue.nats.state(queue.name)["messages"] == 3
    start()
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(("one", "two", "three", "late-1", "late-2", "late-3"), 1)


@SIGNALS
def test_drain_past_its_timeout_returns_messages(
    queue: Queue, functions: Functions, start: StartWorker, number: signal.Signals
) -> None:
    """After `shutdown_timeout` the worker cancels and returns running invocations; another worker runs them; exit 0."""
    leaving = start(max_inflight=3, shutdown_timeout="1s")
    hold(queue, functions, "one", "two", "three")
    start(max_inflight=3)
    leaving.process.send_signal(number)
    assert leaving.wait() == 0
    wait_until(lambda: all(request.disconnected for request in functions.requests[:3]), "the requests to be cancelled")
    wait_until(lambda: len(functions.requests) == 6, "the other worker to run them")
    functions.release("held")
    queue.wait_empty()
    assert functions.calls() == {"one": 2, "two": 2, "three": 2}


@SIGNALS
def test_second_signal_returns_messages_at_once(
    queue: Queue, functions: Functions, start: StartWorker, number: signal.Signals
) -> None:
    """After a second signal the worker returns its messages at once, for any `shutdown_timeout`; exit 0."""
    leaving = start(max_inflight=3, shutdown_timeout="10m")
    hold(queue, functions, "one", "two", "three")
    start(max_inflight=3)
    leaving.process.send_signal(signal.SIGTERM)
    wait_draining(leaving)
    wait_quietly()
    assert len(functions.requests) == 3
    leaving.process.send_signal(number)
    assert leaving.wait() == 0
    wait_until(lambda: len(functions.requests) == 6, "the other worker to run them")
    functions.release("held")
    queue.wait_empty()
    assert functions.calls() == {"one": 2, "two": 2, "three": 2}


def test_more_than_two_signals_act_as_two(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """More than two signals have the effect of two: the worker returns its messages, and its exit code is 0."""
    worker = start(shutdown_timeout="10m")
    hold(queue, functions, "one")
    for _ in range(20):
        worker.terminate()
        worker.interrupt()
    assert worker.wait() == 0
    info = queue.consumer()
    assert (info["num_ack_pending"], queue.nats.state(queue.name)["messages"]) in ((0, 1), (1, 1))
    start()
    wait_until(lambda: len(functions.requests) == 2, "the message to run again")


def test_signals_until_the_end_leave_exit_code_0(start: StartWorker) -> None:
    """A worker that receives signals until it has ended exits with 0, in each phase of its drain."""
    worker = start()
    while worker.process.poll() is None:
        worker.terminate()
        time.sleep(0.001)
    assert (worker.process.returncode, worker.stderr) == (0, "")


def test_drain_of_an_idle_worker_ends_at_once(queue: Queue, start: StartWorker) -> None:
    """An idle worker ends at once after SIGTERM, for any `shutdown_timeout`, and leaves no pull request."""
    worker = start(shutdown_timeout="10m")
    worker.terminate()
    assert worker.wait() == 0
    assert worker.stderr == ""
    assert queue.consumer()["num_waiting"] == 0


@pytest.mark.slow
def test_drain_longer_than_ack_wait_extends_leases(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A worker extends its leases during a drain longer than `ack_wait`, so no other worker receives the messages."""
    functions.answer("slow", Reply(after=3.0 * LEASE))
    leaving = start(ack_wait=f"{LEASE}s")
    queue.put_calls("slow", ["one", "two"])
    wait_until(lambda: functions.running == 2, "both invocations to run")
    start(ack_wait=f"{LEASE}s")
    leaving.terminate()
    assert leaving.wait() == 0
    assert queue.nats.state(queue.name)["messages"] == 0
    assert functions.calls() == {"one": 1, "two": 1}


def test_drain_settles_failed_invocations_without_a_retry(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """A draining worker settles invocations that end, naks or gives up failed ones, and does not wait for retries."""
    for name, status in (("fine", 200), ("flaky", 500), ("broken", 500)):
        functions.answer(name, Reply(status, held=True), Reply(200))
    leaving = start(initial_retry_wait="3s", max_retry_wait="3s")
    queue.put(
        message("fine", "fine"),
        message("flaky", "flaky"),
        message("broken", "broken", Annotations={"com.openfaas.retry.attempts": "1"}),
    )
    wait_until(lambda: functions.running == 3, "all invocations to run")
    leaving.terminate()
    wait_draining(leaving)
    for name in ("fine", "flaky", "broken"):
        functions.release(name)
    assert leaving.wait() == 0
    assert [letter.headers["X-Call-Id"] for letter in queue.dead_letters()] == ["broken"]
    assert queue.nats.state(queue.name)["messages"] == 1
    start()
    queue.wait_empty()
    assert functions.calls() == {"fine": 1, "flaky": 2, "broken": 1}
    assert next(functions.gaps("flaky")) >= 3


def test_drain_waits_for_a_running_callback(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """A draining worker waits for a running callback as for an invocation."""
    receiver.answer("callback", Reply(held=True))
    worker = start()
    queue.put(message("echo", "one", CallbackUrl=go_url(f"{receiver.url}/callback")))
    wait_until(lambda: receiver.running == 1, "the callback to arrive")
    worker.terminate()
    wait_draining(worker)
    wait_quietly()
    assert worker.process.poll() is None
    receiver.release("callback")
    assert worker.wait() == 0
    assert queue.nats.state(queue.name)["messages"] == 0
    assert (len(functions.requests), len(receiver.requests)) == (1, 1)


def test_drain_ends_the_retries_of_a_callback(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """If a drain ends before a failed callback is sent again, the message is acked: its function does not run again."""
    receiver.answer("callback", Reply(500))
    leaving = start(shutdown_timeout="300ms", callback_initial_wait="10m", callback_max_wait="10m")
    queue.put(message("echo", "one", CallbackUrl=f"{receiver.url}/callback"))
    wait_until(lambda: leaving.logged("Callback failed"), "the callback to fail")
    leaving.terminate()
    assert leaving.wait() == 0
    start()
    queue.put_calls("echo", ["two"])
    queue.wait_empty()
    assert functions.calls() == {"one": 1, "two": 1}


def test_drain_under_load_runs_each_message_once(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """If workers are stopped one after the other under load, each message runs once, without a wait for a lease."""
    functions.answer("echo", Reply(after=0.02))
    calls = [f"call-{number}" for number in range(400)]
    queue.nats.make_stream(queue.name)
    queue.put_calls("echo", calls)
    for reached in (80, 160, 240):
        worker = start(max_inflight=10)
        wait_until(lambda: len(functions.requests) >= reached, f"{reached} invocations")  # noqa: B023 -- called here
        worker.terminate()
        assert worker.wait() == 0
    start(max_inflight=10)
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)


@SIGNALS
def test_drain_before_the_first_connection_exits_with_0(tmp_path: Path, number: signal.Signals) -> None:
    """A worker that still waits for NATS ends with exit 0, without a traceback."""
    with Worker(None, tmp_path=tmp_path, nats_port=free_port(), shutdown_timeout="10m") as worker:
        worker.wait_for("Trouble with NATS")
        worker.process.send_signal(number)
        assert worker.wait() == 0
        assert "Traceback" not in worker.output


def test_drain_while_nats_does_not_answer_exits_with_0(own_nats: NatsServer, tmp_path: Path) -> None:
    """A worker ends with exit 0 while its server accepts connections and sends nothing."""
    queue = Queue(own_nats)
    own_nats.pause()
    with Worker(queue, tmp_path=tmp_path, shutdown_timeout="10m") as worker:
        assert worker.get("/readyz")[0] == 503
        worker.terminate()
        assert worker.wait() == 0
        assert "Traceback" not in worker.output


@pytest.mark.parametrize("how", ["stopped", "killed", pytest.param("frozen", marks=pytest.mark.slow)])
def test_drain_while_nats_is_down_exits_with_0(
    own_nats: NatsServer, functions: Functions, tmp_path: Path, how: str
) -> None:
    """With NATS down, an idle worker ends with exit 0, and a busy worker when its invocation has ended."""
    queue = Queue(own_nats)
    with (
        Worker(queue, functions, tmp_path=tmp_path, shutdown_timeout="10m") as busy,
        Worker(Queue(own_nats, "other"), functions, tmp_path=tmp_path, shutdown_timeout="10m") as idle,
    ):
        busy.wait_ready()
        idle.wait_ready()
        hold(queue, functions, "one")
        {"stopped": own_nats.stop, "killed": own_nats.kill, "frozen": own_nats.pause}[how]()
        if how != "frozen":
            busy.wait_for("Disconnected")
        idle.terminate()
        busy.terminate()
        wait_draining(busy)
        assert idle.wait() == 0
        assert busy.process.poll() is None
        functions.release("held")
        assert busy.wait() == 0
        assert "Traceback" not in busy.output + idle.output


@pytest.mark.parametrize("ended", ["after", "before"])
def test_drain_confirms_settlements_after_a_reconnect(
    own_nats: NatsServer, functions: Functions, tmp_path: Path, ended: str
) -> None:
    """A draining worker confirms the settlements of invocations that end before or just after it reconnects."""
    queue = Queue(own_nats)
    with Worker(queue, functions, tmp_path=tmp_path, shutdown_timeout="10m") as worker:
        worker.wait_ready()
        hold(queue, functions, "one", "two")
        own_nats.stop()
        worker.wait_for("Disconnected")
        worker.terminate()
        wait_draining(worker)
        own_nats.start()
        if ended == "after":
            worker.wait_for("Reconnected")
        functions.release("held")
        assert worker.wait() == 0
    assert functions.calls() == {"one": 1, "two": 1}
    assert own_nats.state()["messages"] == 0


def test_callback_after_a_hand_back_counts_no_retry(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """A worker that runs what another one's drain returned counts a first attempt: the callback has no X-Retry."""
    leaving = start(max_inflight=1, shutdown_timeout="0s")
    functions.answer("held", Reply(held=True))
    queue.put_calls("held", ["one"], CallbackUrl=go_url(f"{receiver.url}/result"))
    wait_until(lambda: functions.running == 1, "the invocation to run")
    staying = start(max_inflight=1)
    leaving.process.send_signal(signal.SIGTERM)
    assert leaving.wait() == 0
    wait_until(lambda: len(functions.requests) == 2, "the other worker to run it")
    functions.release("held")
    queue.wait_empty()
    (posted,) = receiver.requests
    assert (posted.header("X-Function-Status"), posted.header("X-Retry"), posted.header("X-Retry-Max")) == (
        "200",
        None,
        None,
    )
    assert [line["attempt"] for line in staying.lines_of("one") if "attempt" in line] == [1]


def test_drain_while_results_wait_for_memory_ends_in_time(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """Results that wait for memory show in metrics; at `shutdown_timeout` their messages return, and none is lost."""
    body = b"x" * 1_000_000
    functions.answer("large", Reply(body=body))
    receiver.answer("cb", Reply(held=True))
    leaving = start(max_inflight=3, max_results_bytes=1_000_000, shutdown_timeout="2s", callback_timeout="10m")
    calls = queue.put_calls("large", ("one", "two", "three"), CallbackUrl=f"{receiver.url}/cb")
    wait_until(lambda: leaving.metric("queue_worker_results_waiting") == 2, "two results to wait")
    assert leaving.metric("queue_worker_result_bytes") == 1_000_000
    (line,) = wait_until(lambda: leaving.logged("^Results wait for memory"), "the warning")
    assert (line["level"], line["waiting"], line["max_results_bytes"]) == ("warning", 2, 1_000_000)
    began = time.monotonic()
    leaving.terminate()
    assert leaving.wait() == 0
    assert time.monotonic() - began < LAST_RESORT
    (ended,) = leaving.logged("^Drain ended early")
    assert ended["running"] == 3
    receiver.release("cb")
    receiver.answer("cb", Reply())
    start(max_results_bytes=1_000_000)
    queue.wait_empty()
    assert {request.call_id for request in receiver.requests if request.body == body} == set(calls)
    assert queue.dead_letters() == []
