"""Changes of a live stream or consumer, and refusals of the server: each is shown, and work continues after it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import Queue, StartWorker, Worker, message, wait_quietly
from tests.functions import Functions, Reply
from tests.servers import NatsServer, server_version, wait_until


def edit_consumer(queue: Queue, durable: str = "faas-workers", **changes: Any) -> None:
    """Change a consumer as ``nats consumer edit`` does."""
    config = queue.consumer(durable)["config"] | changes
    body = {"stream_name": queue.name, "config": config, "action": "update"}
    queue.nats.api(f"CONSUMER.CREATE.{queue.name}.{durable}", **body)


def pause_consumer(queue: Queue, seconds: float, durable: str = "faas-workers") -> None:
    """Pause a consumer, or resume it with 0 seconds."""
    until = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")
    queue.nats.api(f"CONSUMER.PAUSE.{queue.name}.{durable}", **({"pause_until": until} if seconds else {}))


def put_on_subject(queue: Queue, function: str, call_id: str, **fields: Any) -> None:
    """Store a message on its function's subject."""
    queue.nats.publish(f"{queue.name}.0.{function}.openfaas-fn", message(function, call_id, **fields))


def wait_refused(worker: Worker, *words: str) -> None:
    """Wait until /readyz is 503 with these words, and check that a log line and a metric show the same."""

    def refused() -> bool:
        status, text = worker.get("/readyz")
        return status == 503 and all(word in text for word in words)

    wait_until(refused, f"/readyz to be 503 with {words}")
    (line,) = [line for line in worker.logged("cannot be used") if all(word in line["error"] for word in words)]
    assert line["level"] == "error"
    assert worker.metric("queue_worker_nats_unusable") == 1


def wait_usable(worker: Worker) -> None:
    """Wait until the worker is ready again, and check that a log line and the metric show the same."""
    worker.wait_ready()
    assert len(worker.logged("can be used again")) == 1
    assert worker.metric("queue_worker_nats_unusable") == 0


UNUSABLE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "max_deliver is 2": ({"max_deliver": 2}, {"max_deliver": -1}),
    "headers_only": ({"headers_only": True}, {"headers_only": False}),
    "backoff": ({"max_deliver": 4, "backoff": [10**9, 2 * 10**9]}, {"max_deliver": -1, "backoff": []}),
    "priority_groups": (
        {"priority_groups": ["a"], "priority_policy": "overflow"},
        {"priority_groups": [], "priority_policy": "none"},
    ),
}
"""Changes that make a consumer unusable, and the changes back, by the words that name them."""


@pytest.mark.parametrize(
    "named", [each for each in UNUSABLE if each != "priority_groups" or server_version() >= (2, 12)]
)
def test_consumer_unusable_is_not_pulled_from_until_it_is_usable(
    queue: Queue, start: StartWorker, functions: Functions, named: str
) -> None:
    """A live consumer that becomes unusable is not pulled from: no payload and no attempt gets lost. It continues."""
    change, back = UNUSABLE[named]
    worker = start()
    queue.put_calls("echo", ["before"])
    queue.wait_empty()
    edit_consumer(queue, **change)
    queue.put_calls("echo", [f"call-{number}" for number in range(20)])
    wait_refused(worker, "faas-workers", named)
    edit_consumer(queue, **back)
    queue.wait_empty()
    wait_usable(worker)
    assert queue.dead_letters() == []
    assert len(functions.requests) == 21


def test_max_deliver_of_a_live_consumer_loses_no_attempt_later(
    queue: Queue, start: StartWorker, functions: Functions
) -> None:
    """A function that fails is attempted as often as set, although max_deliver was lower for a while."""
    worker = start(max_retry_attempts=5)
    edit_consumer(queue, max_deliver=2)
    wait_refused(worker, "max_deliver")
    functions.answer("fails", *[Reply(500)] * 5)
    queue.put_calls("fails", ["one"])
    wait_quietly()
    edit_consumer(queue, max_deliver=-1)
    queue.wait_empty()
    assert len(functions.requests) == 5
    assert len(queue.dead_letters()) == 1


needs_pauses = pytest.mark.skipif(server_version() < (2, 11), reason="nats-server 2.10 cannot pause a consumer")


@needs_pauses
def test_consumer_paused_by_an_operator_is_named_until_it_continues(
    queue: Queue, start: StartWorker, functions: Functions
) -> None:
    """A pause makes the worker not ready, with its end; when it ends, the worker continues."""
    worker = start()
    pause_consumer(queue, 3600)
    queue.put_calls("echo", ["one"])
    wait_refused(worker, "faas-workers", "is paused until")
    pause_consumer(queue, 0)
    queue.wait_empty()
    wait_usable(worker)
    assert len(functions.requests) == 1


def test_stream_sealed_while_running_is_named(queue: Queue, start: StartWorker) -> None:
    """A stream that is sealed while the worker runs makes it not ready; what it stores is worked off."""
    worker = start()
    queue.put_calls("echo", ["one", "two"])
    config = queue.nats.api(f"STREAM.INFO.{queue.name}")["config"] | {"sealed": True}
    queue.nats.api(f"STREAM.UPDATE.{queue.name}", **config)
    wait_refused(worker, queue.name, "sealed")
    queue.wait_empty()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_batch": 3}, "max_batch is 3"),
        ({"max_expires": 2 * 10**9}, "max_expires is 2s"),
        ({"max_expires": 10**7}, "max_expires is 10ms"),
        ({"max_batch": 1, "max_expires": 10**9}, "max_batch is 1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_request_limits_of_a_consumer_are_kept(
    queue: Queue, start: StartWorker, functions: Functions, change: dict[str, Any], named: str
) -> None:
    """A consumer's limits of requests are kept, whether the worker finds them or they are set while it runs."""
    for calls in (["a", "b", "c", "d", "e"], ["f", "g", "h", "i", "j"]):
        worker = start()
        edit_consumer(queue, **change)
        queue.put_calls("echo", calls)
        queue.wait_empty()
        worker.wait_for(f"{named}:")
        assert worker.get("/readyz")[0] == 200
        worker.terminate()
        assert worker.wait() == 0
    assert len(functions.requests) == 10


def test_request_limit_of_the_server_is_kept(tmp_path: Path, functions: Functions) -> None:
    """A server's max_request_batch below max_inflight is kept, also by the consumers of functions."""
    limits = f'jetstream {{ store_dir: "{tmp_path}/js", limits {{ max_request_batch: 10 }} }}'
    with NatsServer(tmp_path, jetstream=False, config=limits) as nats:
        for mode in ("static", "function"):
            queue = Queue(nats, f"queue-{mode}")
            settings = {"max_inflight": 500, "scaling_mode": mode}
            with Worker(queue, functions, tmp_path=tmp_path, **settings) as worker:
                worker.wait_ready()
                queue.put_calls("echo", [f"{mode}-{number}" for number in range(40)])
                queue.wait_empty()
                assert worker.get("/readyz")[0] == 200
    assert len(functions.requests) == 80


def test_max_waiting_of_another_client_is_named(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """A worker whose requests are all refused, because others wait, is not ready; it continues when it may."""
    with (
        Worker(queue, functions, tmp_path=tmp_path, max_waiting=1) as first,
        Worker(queue, functions, tmp_path=tmp_path, max_waiting=1) as second,
    ):
        workers = [first, second]
        wait_until(lambda: {worker.get("/readyz")[0] for worker in workers} == {200, 503}, "one to be refused")
        refused, served = sorted(workers, key=lambda worker: -worker.get("/readyz")[0])
        wait_refused(refused, "faas-workers", "max_waiting is too small")
        served.terminate()
        assert served.wait() == 0
        wait_usable(refused)
        queue.put_calls("echo", ["one"])
        queue.wait_empty()


def test_function_consumer_unusable_is_named_and_others_are_served(
    queue: Queue, start: StartWorker, functions: Functions
) -> None:
    """In function mode one function's consumer that becomes unusable is named, and the other functions are served."""
    worker = start(scaling_mode="function", consumer_inactive_threshold="1h")
    put_on_subject(queue, "echo", "one")
    put_on_subject(queue, "other", "two")
    queue.wait_empty()
    names = queue.nats.api(f"CONSUMER.NAMES.{queue.name}")["consumers"]
    (echo,) = [name for name in names if "echo" in name]
    edit_consumer(queue, echo, headers_only=True)
    put_on_subject(queue, "echo", "three")
    put_on_subject(queue, "other", "four")
    wait_refused(worker, echo, "headers_only")
    wait_until(lambda: functions.of("four"), "the other function's invocation")
    assert not functions.of("three")
    edit_consumer(queue, echo, headers_only=False)
    queue.wait_empty()
    wait_usable(worker)
    assert len(functions.requests) == 4


@needs_pauses
def test_token_consumer_unusable_is_named(queue: Queue, start: StartWorker, functions: Functions) -> None:
    """A paused consumer of a cap's tokens makes the worker not ready, because its function's messages wait."""
    worker = start(scaling_mode="function")
    annotations = {"com.openfaas.queue.max_inflight": "1"}
    put_on_subject(queue, "capped", "one", Annotations=annotations)
    queue.wait_empty()
    tokens = Queue(queue.nats, f"{queue.name}-quotas")
    wait_until(lambda: queue.nats.state(tokens.name).get("messages"), "the token")
    (name,) = queue.nats.api(f"CONSUMER.NAMES.{tokens.name}")["consumers"]
    pause_consumer(tokens, 3600, name)
    wait_refused(worker, name, "is paused until")
    pause_consumer(tokens, 0, name)
    put_on_subject(queue, "capped", "two", Annotations=annotations)
    queue.wait_empty()
    wait_usable(worker)
    assert len(functions.requests) == 2


def test_message_that_looks_stripped_is_a_dead_letter_as_it_is(
    queue: Queue, start: StartWorker, functions: Functions
) -> None:
    """An empty message whose publisher wrote Nats-Msg-Size does not stop the queue."""
    worker = start()
    queue.nats.publish(queue.name, b"", {"Nats-Msg-Size": "5"})
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    assert len(queue.dead_letters()) == 1
    assert len(functions.requests) == 1
    assert worker.get("/readyz")[0] == 200
