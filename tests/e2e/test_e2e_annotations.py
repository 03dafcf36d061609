"""Calls over HTTP obey the annotations that a function has in OpenFaaS's gateway: producer and workers together."""

from __future__ import annotations

from pathlib import Path

from tests.e2e.stack import Queue, StartWorker, Worker
from tests.functions import Functions, Reply
from tests.gateway import Gateway, gateway_on
from tests.servers import wait_until


def test_attempts_in_the_gateway_bound_the_retries_of_a_call(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """With ``retry.attempts`` 2 a call has two attempts; a change to 4 counts for calls within seconds."""
    functions.answer("broken", Reply(500))
    functions.deploy("broken", retry_attempts="2", retry_min_wait="10ms")
    start()
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name, gateway_url=functions.url) as gateway:
        assert gateway.queue("broken", X_Call_Id="first").status == 202
        queue.wait_empty()
        assert len(functions.of("first")) == 2
        assert len(queue.dead_letters_of("first")) == 1
        functions.deploy("broken", retry_attempts="4", retry_min_wait="10ms")
        numbers = iter(range(10**6))

        def attempts() -> int:
            call = f"later-{next(numbers)}"
            assert gateway.queue("broken", X_Call_Id=call).status == 202
            queue.wait_empty()
            return len(functions.of(call))

        wait_until(lambda: attempts() == 4, "the change")


def test_cap_in_the_gateway_bounds_the_invocations_at_once(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """With ``queue.max_inflight`` 2, two workers never run more than two of forty calls at once."""
    functions.deploy("capped", queue_max_inflight="2")
    for _ in range(2):
        start(scaling_mode="function", max_inflight=10)
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name, gateway_url=functions.url) as gateway:
        _agree(queue, gateway, "capped")
        functions.answer("capped", Reply(after=0.02))
        for _ in range(40):
            assert gateway.queue("capped").status == 202
        queue.wait_empty()
    assert len(functions.to("capped")) == 41
    assert functions.max_running_of["capped"] == 2


def test_rate_in_the_gateway_bounds_the_starts(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """With ``queue.rate`` 10/s, forty calls take at least three seconds."""
    functions.deploy("paced", queue_rate="10/s")
    start(scaling_mode="function", max_inflight=10)
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name, gateway_url=functions.url) as gateway:
        _agree(queue, gateway, "paced")
        for _ in range(40):
            assert gateway.queue("paced").status == 202
        queue.wait_empty()
    requests = functions.to("paced")[1:]
    assert requests[-1].began - requests[0].began >= 2.9  # the server may return tokens some milliseconds early


def test_weight_in_the_gateway_divides_the_slots(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """With ``queue.weight`` 3 beside 1, a function has six of eight slots while both have work."""
    functions.deploy("heavy", queue_weight="3")
    functions.deploy("light", queue_weight="1")
    for name in ("heavy", "light"):
        functions.answer(name, Reply(held=True))
    start(scaling_mode="function", max_inflight=8, limiter_enabled="false")
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name, gateway_url=functions.url) as gateway:
        for _ in range(60):
            assert {gateway.queue(name).status for name in ("heavy", "light")} == {202}

        def divided() -> bool:
            running = functions.running_of("heavy"), functions.running_of("light")
            if sum(running) == 8 and running != (6, 2):
                functions.release("heavy" if running[0] > 6 else "light", 1)
            return running == (6, 2)

        wait_until(divided, "the slots to be divided")
        for name in ("heavy", "light"):
            functions.release(name)
        queue.wait_empty()


def test_queue_in_the_gateway_selects_the_workers(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """With ``com.openfaas.queue`` the workers of that queue invoke the function, and no other."""
    slow = Queue(queue.nats, f"slow-{queue.name}")
    functions.deploy("slow", queue=slow.name)
    functions.deploy("fast")
    worker = start()
    with (
        gateway_on(queue.nats, tmp_path, nats_stream=queue.name, gateway_url=functions.url) as gateway,
        Worker(slow, functions, tmp_path=tmp_path) as other,
    ):
        other.wait_ready()
        for name in ("slow", "fast"):
            assert gateway.queue(name, X_Call_Id=f"call-{name}").status == 202
        queue.wait_empty()
        slow.wait_empty()
        assert (len(worker.lines_of("call-slow")), len(worker.lines_of("call-fast"))) == (0, 1)
        assert (len(other.lines_of("call-slow")), len(other.lines_of("call-fast"))) == (1, 0)


def _agree(queue: Queue, gateway: Gateway, function: str) -> None:
    """Make one call, and wait until its annotations are stored in the stream from which all workers read them."""
    assert gateway.queue(function).status == 202
    wait_until(lambda: queue.nats.state(f"{queue.name}-functions").get("messages"), "the quota to be stored")
    queue.wait_empty()
