"""Caps and rates of single functions, over several real workers."""

from __future__ import annotations

from math import inf

from tests.e2e.functions import Functions, Reply
from tests.e2e.stack import Queue, StartWorker, look_on, message
from tests.servers import wait_until

CAP, RATE = "com.openfaas.queue.max_inflight", "com.openfaas.queue.rate"


def put(queue: Queue, function: str, count: int, annotations: dict[str, str]) -> list[str]:
    """Store messages of a function that has annotations; their call ids."""
    calls = [f"{function}-{number}" for number in range(count)]
    subject = f"{queue.name}.0.{function}.openfaas-fn"
    queue.nats.publish_many((subject, message(function, call, Annotations=annotations), {}) for call in calls)
    return calls


def agree(queue: Queue, function: str, annotations: dict[str, str]) -> None:
    """One message, so that all workers know what the function may have."""
    put(queue, function, 1, annotations)
    wait_until(
        lambda: queue.nats.state(f"{queue.name}-functions").get("messages"), "the workers to agree on what is said"
    )
    queue.wait_empty()
    look_on(1.5)  # the others hear of it a moment later (a quarter of a second, measured)


def test_a_cap_over_all_workers(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Of a function with a cap of 5, three workers never run more than 5 at once, and nothing is lost."""
    for _ in range(3):
        start(scaling_mode="function", max_inflight=10, ack_wait="5s")
    annotations = {CAP: "5"}
    agree(queue, "capped", annotations)
    functions.answer("capped", Reply(after=0.05))
    calls = put(queue, "capped", 200, annotations)
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1) | {"capped-0": 2}
    assert functions.peaks["capped"] == 5


def test_a_rate_over_all_workers(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Of a function with a rate of 20/s, no second has more than 20 starts, over three workers."""
    for _ in range(3):
        start(scaling_mode="function", max_inflight=10)
    annotations = {RATE: "20/s"}
    agree(queue, "paced", annotations)
    put(queue, "paced", 80, annotations)
    queue.wait_empty()
    began = sorted(request.began for request in functions.to("paced"))[1:]
    # What counts is when it was sent, and a request is read a little later, not always as much.
    assert all(later - one > 0.9 for one, later in zip(began, began[20:], strict=False))


def test_what_a_killed_worker_held(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A killed worker's share of a cap is missing for an ack wait, and never given twice."""
    workers = [start(scaling_mode="function", max_inflight=10, ack_wait="3s") for _ in range(2)]
    annotations = {CAP: "4"}
    agree(queue, "capped", annotations)
    functions.answer("capped", Reply(after=0.1))
    put(queue, "capped", 150, annotations)
    wait_until(lambda: len(functions.requests) > 30, "some to be done")
    workers[0].kill()
    queue.wait_empty()
    assert functions.peaks["capped"] <= 4 + 4  # what the killed one had sent may still run at the function


def test_a_cap_that_is_lowered(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Messages that say 2 where others said 10 have all workers run two at once, and what runs is not cancelled."""
    for _ in range(2):
        start(scaling_mode="function", max_inflight=10)
    agree(queue, "capped", {CAP: "10"})
    functions.answer("capped", Reply(after=0.2))
    many = put(queue, "capped", 60, {CAP: "10"})
    few = [f"few-{number}" for number in range(60)]
    queue.nats.publish_many(
        (f"{queue.name}.0.capped.openfaas-fn", message("capped", call, Annotations={CAP: "2"}), {}) for call in few
    )
    queue.wait_empty()
    assert functions.peaks["capped"] == 10
    assert functions.calls() == dict.fromkeys([*many, *few], 1) | {"capped-0": 2}
    heard = min(request.began for request in functions.requests if request.call_id in few) + 1.5
    late = [request for request in functions.to("capped") if request.began > heard]
    assert late, "some were started when all knew of it"
    assert max(sum(one.began <= each.began < (one.ended or inf) for one in late) for each in late) == 2


def test_the_server_restarts_under_limits(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A cap holds all the time; a rate does but for once, where its tokens come back up to a second early.

    Tokens that had been given back, and nobody had taken yet, come after the ack wait.
    """
    for _ in range(2):
        start(scaling_mode="function", max_inflight=10, ack_wait="3s")
    agree(queue, "limited", {CAP: "4", RATE: "20/s"})
    functions.answer("limited", Reply(after=0.1))
    calls = put(queue, "limited", 120, {CAP: "4", RATE: "20/s"})
    wait_until(lambda: len(functions.requests) > 40, "some to be done")
    queue.nats.restart()
    queue.wait_empty()
    assert set(functions.calls()) == {*calls}
    assert functions.peaks["limited"] <= 4
    began = sorted(request.began for request in functions.to("limited"))[1:]
    early = sum(later - one <= 0.9 for one, later in zip(began, began[20:], strict=False))
    assert early <= 20
