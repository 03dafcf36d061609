"""Contract, section 2: `max_inflight`, the order of static mode, and `ack_wait` as a lease."""

from __future__ import annotations

import pytest

from tests.e2e.stack import LEASE, Queue, StartWorker, go_url, message, wait_quietly
from tests.functions import Functions, Reply
from tests.servers import wait_until


@pytest.mark.parametrize("pull", [None, 3])
def test_max_inflight_bounds_running_invocations(
    queue: Queue, functions: Functions, start: StartWorker, pull: int | None
) -> None:
    """The worker runs `max_inflight` invocations at once, for any number of messages in a pull request."""
    functions.answer("echo", Reply(held=True))
    start(max_inflight=7, **({"consumer_pull_max_messages": pull} if pull else {}))
    calls = queue.put_calls("echo", [f"call-{number}" for number in range(40)])
    wait_until(lambda: functions.running == 7, "seven invocations to run")
    wait_quietly()
    assert len(functions.requests) == 7
    assert (
        queue.consumer()["num_ack_pending"] == 7
    )  # the worker requests no message that it cannot run, so that another worker can run it
    functions.release("echo")
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)
    assert functions.max_running == 7


def test_max_inflight_holds_with_failures_and_retries(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The worker keeps to `max_inflight` with failures, retries and malformed messages, and frees every slot."""
    functions.answer("echo", Reply(after=0.01))
    functions.answer("flaky", Reply(500, after=0.01), Reply(raw=b"", reset=True), Reply(200))
    start(max_inflight=5)
    for batch in range(5):
        queue.put_calls("echo", [f"echo-{batch}-{number}" for number in range(60)])
        queue.put_calls("flaky", [f"flaky-{batch}-{number}" for number in range(20)])
        queue.put(b"malformed")
    queue.wait_empty()
    assert functions.max_running == 5
    assert queue.consumer()["delivered"]["consumer_seq"] == len(functions.requests) + 5
    counts = functions.calls()
    assert {counts[call] for call in counts if call.startswith("echo")} == {1}
    assert {counts[call] for call in counts if call.startswith("flaky")} == {3}
    functions.answer("held", Reply(held=True))
    queue.put_calls("held", [f"held-{number}" for number in range(10)])
    wait_until(lambda: functions.running == 5, "all five slots to be in use again")
    functions.release("held")
    queue.wait_empty()


def test_max_inflight_of_one_runs_messages_in_stream_order(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """With `max_inflight=1`, messages of all subjects are invoked one after the other, in the order of the stream."""
    start(max_inflight=1)
    subjects = [queue.name, f"{queue.name}.0.b.openfaas-fn", f"{queue.name}.0.a.openfaas-fn"]
    calls = [f"call-{number}" for number in range(200)]
    queue.nats.publish_many(
        (subjects[number % 3], message("ba"[number % 2], call), {}) for number, call in enumerate(calls)
    )
    queue.wait_empty()
    assert [request.call_id for request in functions.requests] == calls
    assert functions.max_running == 1


def test_message_waiting_for_a_retry_uses_no_slot(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A message that waits for its next attempt uses no slot, so that other messages run with `max_inflight=1`."""
    functions.answer("broken", Reply(500), Reply(200))
    start(max_inflight=1, initial_retry_wait="10m", max_retry_wait="10m")
    queue.put(message("broken", "broken"), *(message("echo", f"call-{number}") for number in range(20)))
    wait_until(lambda: len(functions.requests) == 21, "the other messages to run")
    assert functions.requests[0].call_id == "broken"
    assert len(functions.of("broken")) == 1


def test_lease_is_extended_during_invocations_and_callbacks(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """An invocation, a callback or a retried callback that takes three times `ack_wait` runs once.

    A second worker would receive the message if its lease expired.
    """
    functions.answer("slow", Reply(after=3.0 * LEASE))
    receiver.answer("slow", Reply(after=3.0 * LEASE))
    receiver.answer("flaky", Reply(500), Reply(500), Reply(200))
    wait = f"{1.5 * LEASE:g}s"
    settings = {
        "ack_wait": f"{LEASE}s",
        "callback_timeout": f"{30 * LEASE}s",
        "callback_initial_wait": wait,
        "callback_max_wait": wait,
    }
    workers = start(**settings), start(**settings)
    queue.put(message("slow", "slow"))
    queue.put(message("echo", "slow callback", CallbackUrl=go_url(f"{receiver.url}/slow")))
    queue.put(message("echo", "flaky callback", CallbackUrl=go_url(f"{receiver.url}/flaky")))
    queue.wait_empty()
    assert functions.calls() == {"slow": 1, "slow callback": 1, "flaky callback": 1}
    assert receiver.calls() == {"slow callback": 1, "flaky callback": 3}
    assert sum(worker.metric("queue_worker_leases_lost_total") for worker in workers) == 0
    assert sum(worker.metric("queue_worker_lease_extensions_total") for worker in workers) >= 6


def test_message_of_a_killed_worker_runs_again_after_ack_wait(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """A message that a killed worker was running is redelivered to another worker after `ack_wait`."""
    functions.answer("echo", Reply(held=True))
    first = start(ack_wait=f"{LEASE}s")
    queue.put_calls("echo", ["one"])
    wait_until(lambda: functions.running == 1, "the message to run")
    second = start(ack_wait=f"{LEASE}s")
    first.kill()
    wait_until(lambda: len(functions.requests) == 2, "the message to run again")
    functions.release("echo")
    queue.wait_empty()
    assert functions.calls() == {"one": 2}
    assert second.logged("Invoked")
