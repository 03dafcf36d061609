"""Contract, sections 1, 3 and 7: from the queue to the functions, without any failure."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.e2e.stack import Queue, StartWorker, Worker, message
from tests.functions import Functions, Reply
from tests.servers import wait_until

# Copied from section 3, not from the code. Values that the server adds by itself are left out.
STREAM = {
    "subjects": ["<queue>", "<queue>.>"],
    "retention": "workqueue",
    "discard": "old",
    "storage": "file",
    "num_replicas": 1,
    "max_msgs_per_subject": -1,
    "max_consumers": -1,
    "max_msgs": -1,
    "max_bytes": -1,
    "max_msg_size": -1,
    "duplicate_window": 120_000_000_000,
}
CONSUMER = {
    "durable_name": "faas-workers",
    "deliver_policy": "all",
    "ack_policy": "explicit",
    "ack_wait": 60_000_000_000,
    "replay_policy": "instant",
    "max_deliver": -1,
    "max_ack_pending": -1,
    "max_waiting": 512,
}


def written(config: dict[str, Any]) -> dict[str, Any]:
    """Drop from a configuration its name, all empty values, and the notes of the server and of the worker."""
    neutral = ("name", "metadata", "compression", "consumer_limits", "allow_direct", "mirror_direct", "first_seq")
    return {name: value for name, value in config.items() if value and name not in neutral}


def test_messages_in_thousands_run_once_each(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The worker invokes each of 3,000 messages exactly once; then the queue is empty, and all metrics agree."""
    worker = start(max_inflight=50, HOSTNAME="pod-1")
    calls = [f"call-{number}" for number in range(3_000)]
    for at in range(0, len(calls), 500):
        queue.put_calls("echo", calls[at : at + 500], body=b"x" * 200)
    queue.wait_empty()

    assert functions.calls() == dict.fromkeys(calls, 1)
    assert functions.max_running <= 50
    info = queue.consumer()
    assert (info["num_pending"], info["num_ack_pending"], info["num_redelivered"]) == (0, 0, 0)
    assert info["delivered"]["consumer_seq"] == 3_000  # every delivered message was run
    assert queue.dead_letters() == []
    by_pod = {"queue_name": queue.name, "kubernetes_pod_name": "pod-1"}
    assert worker.samples("queue_worker_messages_processed_total") == {tuple(sorted(by_pod.items())): 3_000}
    wait_until(
        lambda: worker.samples("queue_worker_messages_submitted_total") == {tuple(sorted(by_pod.items())): 3_000},
        "the number submitted to be read",
    )
    wait_until(lambda: worker.metric("queue_worker_pending_messages") == 0, "the number of pending messages to be read")
    by_function = {"queue_name": queue.name, "function_name": "echo.openfaas-fn"}
    assert worker.samples("queue_worker_function_invocation_inflight") == {tuple(sorted(by_function.items())): 0}
    assert worker.samples("queue_worker_nats_reconnect_total") == {(): 0}


def test_stream_and_consumer_are_created_as_documented(queue: Queue, start: StartWorker) -> None:
    """The worker creates a missing stream and consumer exactly as section 3 defines them."""
    start()
    stream = queue.nats.api(f"STREAM.INFO.{queue.name}")["config"]
    subjects = [subject.replace("<queue>", queue.name) for subject in STREAM["subjects"]]  # type: ignore[attr-defined]  # a list
    assert written(stream) == STREAM | {"subjects": subjects}
    consumer = queue.consumer()["config"]
    assert written(consumer) == CONSUMER
    assert [value for name, value in consumer["metadata"].items() if "mode" in name] == ["static"]
    names = queue.nats.api(f"CONSUMER.NAMES.{queue.name}")["consumers"]
    assert names == ["faas-workers"]


def test_stream_and_consumer_are_created_with_the_settings(queue: Queue, start: StartWorker) -> None:
    """The worker creates stream and consumer with the settings that section 2 offers for them."""
    start(
        queue_name="jobs-" + queue.name,
        nats_durable="my-workers",
        nats_stream_storage="memory",
        ack_wait="90s",
        max_ack_pending=1_000,
        max_waiting=64,
    )
    stream = queue.nats.api(f"STREAM.INFO.{queue.name}")["config"]
    subjects = [f"jobs-{queue.name}", f"jobs-{queue.name}.>"]
    assert written(stream) == STREAM | {"subjects": subjects, "storage": "memory"}
    changed = {"durable_name": "my-workers", "ack_wait": 90 * 10**9, "max_ack_pending": 1_000, "max_waiting": 64}
    assert written(queue.consumer("my-workers")["config"]) == CONSUMER | changed


def test_existing_stream_and_consumer_are_not_changed(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The worker does not change an existing stream and consumer, and warns about each unusual setting of them."""
    queue.nats.make_stream(queue.name, storage="memory", max_msgs=10_000)
    config = {"durable_name": "faas-workers", "ack_policy": "explicit", "ack_wait": 30 * 10**9, "max_deliver": -1}
    subject = f"CONSUMER.DURABLE.CREATE.{queue.name}.faas-workers"
    queue.nats.api(subject, stream_name=queue.name, config=config)
    before = queue.nats.api(f"STREAM.INFO.{queue.name}")["config"], queue.consumer()["config"]
    worker = start()
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    assert functions.calls() == {"one": 1}
    assert (queue.nats.api(f"STREAM.INFO.{queue.name}")["config"], queue.consumer()["config"]) == before
    warnings = "\n".join(line["event"] for line in worker.lines() if line["level"] == "warning")
    for setting in ("storage", "max_msgs", "ack_wait"):
        assert setting in warnings


def test_subjects_below_the_queue_are_all_served(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The worker serves the bare subject, the producers' four tokens, and any subject below the queue."""
    start()
    subjects = [
        queue.name,
        f"{queue.name}.0.figlet.openfaas-fn",
        f"{queue.name}.7.figlet.other",
        f"{queue.name}.echo",
        f"{queue.name}.a.b.c.d.e.f",
    ]
    headers = {"Nats-Msg-Id": "one", "Status": "503", "X-Any": "thing"}  # NATS' own headers, which a worker ignores
    queue.nats.publish_many((subject, message("echo", subject), headers) for subject in subjects[:1])
    queue.nats.publish_many((subject, message("echo", subject), {}) for subject in subjects[1:])
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(subjects, 1)
    assert {request.line for request in functions.requests} == {b"POST /function/echo HTTP/1.1"}


def test_pending_messages_are_counted_by_function(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """`queue_worker_pending_messages` counts by `name.namespace`, and the inflight gauge counts running invocations."""
    functions.answer("slow", Reply(held=True))
    worker = start(max_inflight=1)
    subject = f"{queue.name}.0.slow.dev"
    queue.nats.publish_many((subject, message("slow.dev", f"call-{number}"), {}) for number in range(4))
    wait_until(lambda: functions.running == 1, "one invocation to run")
    labels = {"queue_name": queue.name, "function_name": "slow.dev"}
    wait_until(lambda: worker.metric("queue_worker_pending_messages", **labels) == 4, "four pending messages")
    assert worker.metric("queue_worker_function_invocation_inflight", **labels) == 1
    functions.release("slow")
    queue.wait_empty()
    wait_until(lambda: worker.metric("queue_worker_pending_messages", **labels) == 0, "no pending message")
    assert worker.metric("queue_worker_function_invocation_inflight", **labels) == 0
    assert worker.metric("queue_worker_messages_submitted_total") == 4


def test_http_port_serves_health_and_metrics(start: StartWorker) -> None:
    """The worker serves `/healthz`, `/readyz` and `/metrics`, the last with every promised metric."""
    worker = start()
    assert worker.get("/healthz")[0] == 200
    assert worker.get("/readyz")[0] == 200
    status, text = worker.get("/metrics")
    assert status == 200
    types = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE queue_worker_"))
    assert (
        types.items()
        >= {
            "queue_worker_pending_messages": "gauge",
            "queue_worker_messages_processed_total": "counter",
            "queue_worker_messages_submitted_total": "gauge",
            "queue_worker_function_invocation_inflight": "gauge",
            "queue_worker_nats_reconnect_total": "counter",
        }.items()
    )
    assert worker.get("/nothing")[0] == 404


def test_two_workers_share_the_messages(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Two workers share the messages of a queue: both run some, and no message runs in both."""
    functions.answer("echo", Reply(after=0.02))
    workers = start(max_inflight=5), start(max_inflight=5)
    calls = queue.put_calls("echo", [f"call-{number}" for number in range(300)])
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)
    assert functions.max_running <= 10
    done = [worker.metric("queue_worker_messages_processed_total") for worker in workers]
    assert sum(done) == 300
    assert min(done) > 0
    logged = Counter(line["call_id"] for worker in workers for line in worker.logged("Invoked"))
    assert logged == dict.fromkeys(calls, 1)


def test_workers_started_together_create_one_consumer(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """The first of several workers creates the stream and its consumer; no other fails or creates different ones."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(queue, functions, tmp_path=tmp_path)) for _ in range(4)]
        for worker in workers:
            worker.wait_ready()
        calls = queue.put_calls("echo", [f"call-{number}" for number in range(100)])
        queue.wait_empty()
        assert functions.calls() == dict.fromkeys(calls, 1)
        for worker in workers:
            worker.terminate()
        assert [worker.wait() for worker in workers] == [0] * 4
        assert [worker.stderr for worker in workers] == [""] * 4
