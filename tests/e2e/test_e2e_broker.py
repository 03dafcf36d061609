"""Contract, sections 2, 3 and 7: outages, deletions and misconfigurations of NATS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.e2e.stack import Queue, StartWorker, Worker, message
from tests.functions import Functions, Reply
from tests.servers import NatsServer, until, wait_until
from worker.config import load
from worker.nats.queue import open_queue
from worker.ports import BrokerUnavailableError


def fatal(queue: Queue, tmp_path: Path, **settings: object) -> str:
    """Return the message with which a worker ends at once, with exit 1 and no traceback."""
    with Worker(queue, tmp_path=tmp_path, **settings) as worker:
        assert worker.wait() == 1
        assert "Traceback" not in worker.output
        (line,) = worker.stderr.splitlines()
        return line


# NATS or JetStream is absent; stream or consumer is deleted.


def test_worker_started_before_nats_becomes_ready(own_nats: NatsServer, functions: Functions, tmp_path: Path) -> None:
    """A worker that starts before NATS is alive and not ready until NATS runs; then it works without a restart."""
    queue = Queue(own_nats)
    own_nats.stop()
    with Worker(queue, functions, tmp_path=tmp_path) as worker:
        worker.wait_for("Trouble with NATS")
        assert worker.get("/healthz")[0] == 200
        assert worker.get("/readyz")[0] == 503
        assert worker.get("/metrics")[0] == 200
        own_nats.start()
        worker.wait_ready()
        queue.put_calls("echo", ["one"])
        queue.wait_empty()
        assert functions.calls() == {"one": 1}
        assert worker.metric("queue_worker_nats_reconnect_total") == 0


def test_worker_started_before_jetstream_becomes_ready(tmp_path: Path, functions: Functions) -> None:
    """A worker that starts before JetStream is enabled is alive and not ready until JetStream is; then it works."""
    with NatsServer(tmp_path, jetstream=False) as nats, Worker(Queue(nats), functions, tmp_path=tmp_path) as worker:
        worker.wait_for("looking for the stream")
        assert (worker.get("/healthz")[0], worker.get("/readyz")[0]) == (200, 503)
        nats.stop()
        repaired = NatsServer(tmp_path)
        repaired.port = nats.port
        with repaired:
            worker.wait_ready()
            queue = Queue(repaired)
            queue.put_calls("echo", ["one"])
            queue.wait_empty()
            assert functions.calls() == {"one": 1}


async def test_request_fails_when_its_connection_is_lost(own_nats: NatsServer) -> None:
    """A request fails as soon as its connection is lost, because an answer could arrive on that connection only."""
    settings = load({"nats_port": str(own_nats.port)}).settings
    failures: list[str] = []

    async def request_backlog() -> None:
        try:
            await queue.backlog()
        except BrokerUnavailableError as error:
            failures.append(str(error))

    async with open_queue(settings, lambda _: None) as queue, trio.open_nursery() as nursery:
        await queue.consume()
        own_nats.pause()
        nursery.start_soon(request_backlog)
        await trio.testing.wait_all_tasks_blocked()
        own_nats.kill()
        await until(lambda: failures, "the request to end")
    assert failures == [f"no answer on $JS.API.STREAM.INFO.{settings.nats_stream}: the connection was lost"]


async def test_backlog_before_the_first_connection_raises(own_nats: NatsServer) -> None:
    """A request for the backlog before the first connection raises BrokerUnavailableError, and no other error."""
    settings = load({"nats_port": str(own_nats.port)}).settings
    async with open_queue(settings, lambda _: None) as queue:
        with pytest.raises(BrokerUnavailableError):
            await queue.backlog()


@pytest.mark.parametrize("what", ["consumer", "stream"])
def test_deleted_stream_or_consumer_is_recreated(
    queue: Queue, functions: Functions, start: StartWorker, what: str
) -> None:
    """The worker recreates a stream or consumer that is deleted while it runs, logs a warning, and continues."""
    worker = start()
    config = queue.nats.api(f"STREAM.INFO.{queue.name}")["config"], queue.consumer()["config"]
    queue.put_calls("echo", ["before"])
    queue.wait_empty()
    for time in range(2):
        if what == "stream":
            queue.nats.api(f"STREAM.DELETE.{queue.name}")
        else:
            queue.nats.api(f"CONSUMER.DELETE.{queue.name}.faas-workers")
        wait_until(queue.has_consumer, "the consumer to be recreated")
        queue.put_calls("echo", [f"after-{time}"])
        queue.wait_empty()
    assert functions.calls() == {"before": 1, "after-0": 1, "after-1": 1}
    assert (queue.nats.api(f"STREAM.INFO.{queue.name}")["config"], queue.consumer()["config"]) == config
    warnings = [line for line in worker.logged("Recreated the missing") if line["level"] == "warning" and what in line]
    assert len(warnings) == 2
    wait_until(lambda: worker.get("/readyz")[0] == 200, "the worker to be ready again")


@pytest.mark.parametrize("slots", [3, 5], ids=["no free slots", "free slots"])
def test_consumer_deleted_during_invocations_repeats_no_message(
    queue: Queue, functions: Functions, start: StartWorker, slots: int
) -> None:
    """If the consumer is deleted, running invocations end and are settled with the new one; no message runs twice."""
    functions.answer("held", Reply(held=True))
    worker = start(max_inflight=slots)
    calls = queue.put_calls("held", ["call-1", "call-2", "call-3"])
    wait_until(lambda: functions.running == 3, "three invocations to run")
    queue.nats.api(f"CONSUMER.DELETE.{queue.name}.faas-workers")
    if slots > 3:  # a worker without free slots sends no request, so it detects the loss at its next settlement
        wait_until(lambda: worker.logged("Recreated the missing"), "the new consumer")
        wait_until(lambda: queue.consumer()["delivered"]["consumer_seq"] >= 3, "the messages to be redelivered")
    calls += queue.put_calls("echo", [f"later-{number}" for number in range(6)])
    functions.release("held")
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)
    assert not [request for request in functions.requests if request.disconnected]
    assert len(worker.logged("Recreated the missing")) == 1


def test_stream_deleted_during_invocations_keeps_new_messages(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """Invocations of a deleted stream end, and settle none of the new stream's messages with the same numbers."""
    functions.answer("held", Reply(held=True))
    worker = start(max_inflight=4)
    queue.put_calls("held", ["old-1", "old-2"])
    wait_until(lambda: functions.running == 2, "both invocations to run")
    queue.nats.api(f"STREAM.DELETE.{queue.name}")
    wait_until(lambda: worker.logged("Recreated the missing"), "the new stream")
    wait_until(queue.has_consumer, "the new consumer")
    functions.answer("later", Reply(held=True))
    assert queue.put(message("later", "new-1"), message("later", "new-2")) == [1, 2]
    wait_until(lambda: functions.running == 4, "the new invocations to run too")
    functions.release("held")
    wait_until(lambda: len(worker.logged("Invoked")) == 2, "the old invocations to end")
    assert queue.nats.state(queue.name)["messages"] == 2
    functions.release("later")
    queue.wait_empty()
    assert functions.calls() == {"old-1": 1, "old-2": 1, "new-1": 1, "new-2": 1}


def test_purged_messages_do_not_run_again(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The worker continues after running messages were purged, and runs none of the purged messages again."""
    functions.answer("held", Reply(held=True))
    worker = start(max_inflight=2)
    queue.put_calls("held", [f"call-{number}" for number in range(5)])
    wait_until(lambda: functions.running == 2, "two invocations to run")
    queue.nats.api(f"STREAM.PURGE.{queue.name}")
    functions.release("held")
    queue.put_calls("echo", ["after"])
    queue.wait_empty()
    wait_until(lambda: functions.calls() == {"call-0": 1, "call-1": 1, "after": 1}, "the later message to run")
    wait_until(lambda: worker.metric("queue_worker_pending_messages") == 0, "no pending message")


# All problems of a configuration are reported together.


def make_consumer(queue: Queue, **changes: Any) -> None:
    config = {"durable_name": "faas-workers", "ack_policy": "explicit", "max_deliver": -1} | changes
    config = {name: value for name, value in config.items() if value is not None}
    subject = f"CONSUMER.DURABLE.CREATE.{queue.name}.{config['durable_name']}"
    queue.nats.api(subject, stream_name=queue.name, config=config)


def test_stream_with_limits_retention_ends_the_worker(queue: Queue, tmp_path: Path) -> None:
    """A stream whose retention is not work-queue ends the worker with exit 1; the message names problem and fix."""
    queue.nats.make_stream(queue.name, retention="limits")
    line = fatal(queue, tmp_path)
    assert queue.name in line
    assert "retention" in line
    assert "workqueue" in line


def test_invalid_configuration_has_every_problem_named(queue: Queue, tmp_path: Path) -> None:
    """One message names every problem: wrong retention, wrong ack policy, a push consumer, and max-deliver."""
    queue.nats.make_stream(queue.name, retention="limits")
    make_consumer(queue, ack_policy="all", deliver_subject="push.there", max_deliver=5)
    line = fatal(queue, tmp_path)
    for fault in ("retention", "ack_policy", "push", "max_deliver"):
        assert fault in line, line


@pytest.mark.parametrize(
    ("config", "word"),
    [({"max_deliver": 3}, "max_deliver"), ({"deliver_subject": "push.there"}, "push")],
    ids=["max-deliver", "push"],
)
def test_consumer_that_drops_or_pushes_ends_the_worker(
    queue: Queue, tmp_path: Path, config: dict[str, Any], word: str
) -> None:
    """A consumer of a work queue that drops messages (max-deliver) or pushes them ends the worker with exit 1."""
    queue.nats.make_stream(queue.name)
    make_consumer(queue, **config)
    line = fatal(queue, tmp_path)
    assert word in line
    assert "faas-workers" in line


def test_subjects_of_another_stream_end_the_worker(queue: Queue, tmp_path: Path) -> None:
    """A subject that another stream already has ends the worker with a message that names the overlap."""
    queue.nats.make_stream(f"{queue.name}-other", queue.name)
    line = fatal(queue, tmp_path)
    assert "overlap" in line
    assert queue.name in line


def test_overlapping_consumer_ends_the_worker(queue: Queue, tmp_path: Path) -> None:
    """Another consumer of the same messages ends the worker, because a work queue allows one consumer per message."""
    queue.nats.make_stream(queue.name)
    make_consumer(queue, durable_name="other", filter_subject=f"{queue.name}.0.*.*")
    line = fatal(queue, tmp_path)
    assert "faas-workers" in line
    assert "consumer" in line
