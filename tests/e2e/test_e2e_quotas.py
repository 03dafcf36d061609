"""Caps and rates of single functions, enforced by several real workers together."""

from __future__ import annotations

import time

from tests.e2e.stack import LEASE, Queue, StartWorker, Worker, message, wait_quietly
from tests.functions import Functions, Reply
from tests.servers import wait_until

CAP, RATE = "com.openfaas.queue.max_inflight", "com.openfaas.queue.rate"


def put(queue: Queue, function: str, count: int, annotations: dict[str, str]) -> list[str]:
    """Publish messages of a function with annotations, and return their call ids."""
    calls = [f"{function}-{number}" for number in range(count)]
    subject = f"{queue.name}.0.{function}.openfaas-fn"
    queue.nats.publish_many((subject, message(function, call, Annotations=annotations), {}) for call in calls)
    return calls


def store_quota(queue: Queue, function: str, annotations: dict[str, str]) -> None:
    """Run one message, and wait until its annotations are stored in the stream from which all workers read them."""
    put(queue, function, 1, annotations)
    wait_until(lambda: queue.nats.state(f"{queue.name}-functions").get("messages"), "the quota to be stored")
    queue.wait_empty()


def start_with_quota(
    start: StartWorker, queue: Queue, function: str, annotations: dict[str, str], **more: object
) -> list[Worker]:
    """Start three workers that have read a function's quota, which each worker does before it is ready."""
    first = start(scaling_mode="function", max_inflight=10, **more)
    store_quota(queue, function, annotations)
    return [first, *(start(scaling_mode="function", max_inflight=10, **more) for _ in range(2))]


def test_cap_bounds_the_invocations_of_all_workers(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Three workers never run more than 5 invocations of a function with a cap of 5 at once, and lose no message."""
    annotations = {CAP: "5"}
    start_with_quota(start, queue, "capped", annotations)
    functions.answer("capped", Reply(after=0.05))
    calls = put(queue, "capped", 200, annotations)
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1) | {"capped-0": 2}
    assert functions.max_running_of["capped"] == 5


def test_rate_bounds_the_starts_of_all_workers(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Three workers take at least 3 s to start 80 invocations of a function with a rate of 20/s.

    Between the start of an invocation and the start of the 20th after it there is a second. Arrivals prove less: a
    busy machine delays some more than others. tests/nats/test_quotas.py compares the starts themselves.
    """
    annotations = {RATE: "20/s"}
    start_with_quota(start, queue, "paced", annotations)
    began = time.monotonic()
    calls = put(queue, "paced", 80, annotations)
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1) | {"paced-0": 2}
    assert functions.requests[-1].began - began >= 3


def test_tokens_of_a_killed_worker_return_after_ack_wait(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """A killed worker's tokens of a cap are missing for an ack wait; two workers never have the same token."""
    annotations = {CAP: "4"}
    workers = start_with_quota(start, queue, "capped", annotations, ack_wait=f"{LEASE}s")
    functions.answer("capped", Reply(after=0.1))
    put(queue, "capped", 150, annotations)
    wait_until(lambda: len(functions.requests) > 30, "some invocations to end")
    workers[0].kill()
    queue.wait_empty()
    assert functions.max_running_of["capped"] <= 4 + 4  # requests of the killed worker may still run at the function


def test_cap_lowered_by_later_messages_is_applied(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """If later messages lower a cap from 10 to 2, all workers together run two at once, and cancel no invocation."""
    start_with_quota(start, queue, "capped", {CAP: "10"})
    functions.answer("capped", Reply(held=True, after=0.02))  # long enough that two run at once
    earlier = put(queue, "capped", 60, {CAP: "10"})
    wait_until(lambda: functions.running_of("capped") == 10, "ten invocations to run")
    later = [f"few-{number}" for number in range(60)]
    queue.nats.publish_many(
        (f"{queue.name}.0.capped.openfaas-fn", message("capped", call, Annotations={CAP: "2"}), {}) for call in later
    )

    def only_two_run() -> bool:
        """Return whether two run and no worker starts a third, which proves that all workers have the new cap."""
        if functions.running_of("capped") > 2:
            functions.release("capped", 1)
            return False
        if functions.running_of("capped") < 2:
            return False
        wait_quietly()
        return functions.running_of("capped") == 2

    # A worker reads the new cap when it starts the first later message, after most earlier messages have ended.
    wait_until(
        lambda: only_two_run() and any(call in functions.calls() for call in later), "all workers to apply the new cap"
    )
    functions.max_running_of.clear()
    functions.release("capped")
    queue.wait_empty()
    assert functions.max_running_of["capped"] == 2
    assert functions.calls() == dict.fromkeys([*earlier, *later], 1) | {"capped-0": 2}


def test_cap_holds_after_a_nats_restart(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A restart of NATS gives no token of a running invocation to another worker, and loses none.

    The tokens here were extended well before. An extension that the server confirms while it stops may be lost.
    """
    annotations = {CAP: "4"}
    workers = start_with_quota(start, queue, "limited", annotations)
    functions.answer("limited", Reply(held=True, after=0.02))
    calls = put(queue, "limited", 60, annotations)
    wait_until(lambda: functions.running_of("limited") == 4, "four invocations to run")
    wait_quietly()
    queue.nats.restart()
    for worker in workers:
        worker.wait_for("Reconnected")
    wait_quietly()
    assert functions.running_of("limited") == 4
    functions.release("limited")
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1) | {"limited-0": 2}
    assert functions.max_running_of["limited"] == 4


def test_rate_holds_after_a_nats_restart(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A restart of NATS exceeds a rate by a window and a second at most, and its tokens are all used again.

    Tokens return up to a second early, and an extension that the server confirms while it stops may be lost. Returned
    tokens that no worker had received before the restart are redelivered after the ack wait.
    """
    annotations = {RATE: "20/s"}
    start_with_quota(start, queue, "limited", annotations, ack_wait=f"{LEASE}s")
    began = time.monotonic()
    calls = put(queue, "limited", 120, annotations)
    wait_until(lambda: len(functions.requests) > 40, "some invocations to end")
    queue.nats.restart()
    queue.wait_empty()
    assert set(functions.calls()) == {*calls}
    assert functions.requests[-1].began - began >= 5 - 2  # six windows of 20, one window and a second early
