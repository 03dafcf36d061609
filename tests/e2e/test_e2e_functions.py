"""Contract, sections 2 and 3: function mode, on real processes."""

from __future__ import annotations

from collections import Counter

from tests.e2e.stack import Queue, StartWorker, message
from tests.functions import Functions, Reply
from tests.servers import wait_until


def put(queue: Queue, function: str, count: int, prefix: str = "") -> list[str]:
    """Store messages on the subjects of this project's producers, and return their call ids."""
    calls = [f"{prefix or function}-{number}" for number in range(count)]
    queue.nats.publish_many((f"{queue.name}.0.{function}.openfaas-fn", message(function, call), {}) for call in calls)
    return calls


def consumers(queue: Queue) -> dict[str, str]:
    """Return the names of the consumers by filter subject."""
    found = queue.nats.api(f"CONSUMER.LIST.{queue.name}")["consumers"] or []
    return {str(each["config"].get("filter_subject", "")): each["name"] for each in found}


def test_function_mode_creates_a_consumer_for_each_subject(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """Each subject with messages has its own consumer, in any subject scheme, and so has the bare subject."""
    worker = start(scaling_mode="function", max_inflight=10)
    calls = put(queue, "one", 50) + put(queue, "two", 50)
    calls += queue.put_calls("three", ["bare"])
    queue.nats.publish(f"{queue.name}.four", message("four", "odd"))
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys([*calls, "odd"], 1)
    assert consumers(queue).keys() == {
        queue.name,
        f"{queue.name}.0.one.openfaas-fn",
        f"{queue.name}.0.two.openfaas-fn",
        f"{queue.name}.four",
    }
    assert all(name.startswith("faas-workers-") for name in consumers(queue).values())
    worker.terminate()
    assert worker.wait() == 0


def test_idle_consumer_is_deleted_and_recreated(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A function's consumer is deleted after `consumer_inactive_threshold`, and recreated with the next message."""
    start(scaling_mode="function", consumer_inactive_threshold="2s")
    put(queue, "one", 3)
    queue.wait_empty()
    wait_until(lambda: not consumers(queue), "the consumer to be deleted")
    put(queue, "one", 3, "again")
    queue.wait_empty()
    assert sum(functions.calls().values()) == 6


def test_slots_are_shared_evenly_between_functions(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Freed slots of one function go to another function with a backlog, until both run equally many invocations."""
    start(scaling_mode="function", max_inflight=10, limiter_enabled="false")
    functions.answer("one", Reply(held=True))
    functions.answer("two", Reply(held=True))
    put(queue, "one", 20)
    wait_until(lambda: functions.running_of("one") == 10, "function one to have all slots")
    put(queue, "two", 20)
    while functions.running_of("two") < 5:  # the first slots may go to one: the worker has not discovered two yet
        before = len(functions.requests)
        functions.release("one", 1)
        wait_until(lambda: len(functions.requests) > before, "the slot to be used")  # noqa: B023 -- called here
    assert functions.running_of("one") == 5
    functions.release("one")
    functions.release("two")
    queue.wait_empty()
    assert Counter(functions.calls().values()) == {1: 40}


def test_migration_to_function_mode_and_back_loses_no_message(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """A queue with a backlog changes to function mode and back; no message is lost, and none runs twice."""
    functions.answer("slow", Reply(after=0.02))
    calls = []
    for turn, mode in enumerate(["static", "function", "static"]):
        worker = start(scaling_mode=mode, max_inflight=5)
        for name in ("slow", "other"):
            calls += put(queue, name, 150, f"{turn}-{name}")
        wait_until(lambda: len(functions.calls()) > len(calls) - 200, "some messages to be done")  # noqa: B023 -- called here
        worker.terminate()
        assert worker.wait() == 0
    start(scaling_mode="function")
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)


def test_rolling_update_to_function_mode_loses_no_message(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """While workers of both modes run, all of them take messages; no message is lost, and none runs twice."""
    functions.answer("slow", Reply(after=0.01))
    old = [start(scaling_mode="static", max_inflight=5) for _ in range(2)]
    calls = put(queue, "slow", 300, "a")
    new = [start(scaling_mode="function", max_inflight=5)]
    calls += put(queue, "slow", 300, "b")
    old[0].terminate()
    new.append(start(scaling_mode="function", max_inflight=5))
    calls += put(queue, "other", 300, "c")
    old[1].terminate()
    for worker in old:
        assert worker.wait() == 0
    calls += put(queue, "slow", 300, "d")
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)
    wait_until(
        lambda: put(queue, "last", 1) and f"{queue.name}.0.last.openfaas-fn" in consumers(queue),
        "the new mode to be applied",
    )


def test_rejected_invocations_are_not_counted_as_attempts(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """A rejected message is redelivered soon, and is not counted as an attempt; the metric has the learned limit."""
    worker = start(
        scaling_mode="function", max_inflight=50, initial_retry_wait="30s", max_retry_wait="30s", max_retry_attempts=2
    )
    functions.limit("busy", 4)
    functions.answer("busy", Reply(after=0.05))
    calls = put(queue, "busy", 200)
    queue.wait_empty()
    assert functions.calls().keys() == set(calls)
    assert queue.dead_letters() == []
    assert 1 <= worker.metric("queue_worker_concurrency_limit", function_name="busy.openfaas-fn") <= 50
