"""Durable callbacks with a real worker, server and sockets: a result arrives although its receiver was away."""

from __future__ import annotations

from tests.e2e.stack import Queue, StartWorker, go_url, message
from tests.functions import Functions, Reply
from tests.servers import wait_until
from worker.dev.stack import free_port

QUICK: dict[str, object] = {"callback_retry_initial_wait": "100ms", "callback_retry_max_wait": "1s"}


def stored(queue: Queue) -> int:
    """Return the number of stored callbacks, 0 without their stream."""
    if f"{queue.name}-callbacks" not in (queue.nats.api("STREAM.NAMES")["streams"] or ()):
        return 0
    return int(queue.nats.state(f"{queue.name}-callbacks")["messages"])


def put(queue: Queue, receiver: Functions, calls: list[str]) -> None:
    """Store messages whose results go to the receiver."""
    queue.put(*(message("echo", call, CallbackUrl=go_url(f"{receiver.url}/{call}")) for call in calls))


def test_callback_to_a_failing_receiver_is_stored_and_arrives(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """Its message is settled while the receiver still fails; then it arrives, with the same headers and body."""
    receiver.answer("a", *[Reply(503)] * 4, Reply(200))
    worker = start(**QUICK)
    put(queue, receiver, ["a"])
    wait_until(lambda: len(receiver.to("a")) == 5, "the callback to arrive")
    wait_until(lambda: stored(queue) == 0, "the callback to leave the stream")
    assert functions.calls() == {"a": 1}
    assert len({(request.body, request.header("X-Duration-Seconds")) for request in receiver.to("a")}) == 1
    assert queue.dead_letters() == []
    assert worker.metric("queue_worker_callbacks_kept_total", result="stored") == 1
    wait_until(lambda: worker.samples("queue_worker_stored_callbacks") != {}, "the stream to be counted")


def test_callbacks_survive_a_drain_while_their_receiver_is_away(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """After SIGTERM while their receiver fails, or holds them, ten of ten callbacks arrive from the next worker."""
    calls = [f"call-{number}" for number in range(10)]
    for number, call in enumerate(calls):
        receiver.answer(call, Reply(503) if number % 2 else Reply(held=True), Reply(200))
    worker = start(shutdown_timeout="1s", callback_retry_initial_wait="5s")
    put(queue, receiver, calls)
    wait_until(lambda: {request.target for request in receiver.requests} == {f"/{call}" for call in calls}, "the posts")
    worker.terminate()
    worker.wait()
    assert queue.empty()
    assert stored(queue) == 10
    start(**QUICK)
    wait_until(lambda: stored(queue) == 0, "the callbacks to arrive")
    assert functions.calls() == dict.fromkeys(calls, 1)
    assert all(len(receiver.to(call)) >= 2 for call in calls)


def test_callbacks_survive_the_death_of_their_worker(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """A worker that is killed costs no stored callback."""
    calls = [f"call-{number}" for number in range(20)]
    for call in calls:
        receiver.answer(call, Reply(503), Reply(200))
    worker = start(callback_retry_initial_wait="20s")
    put(queue, receiver, calls)
    queue.wait_empty()
    worker.kill()
    worker.wait()
    assert stored(queue) == 20
    start(**QUICK)
    wait_until(lambda: stored(queue) == 0, "the callbacks to arrive")
    assert functions.calls() == dict.fromkeys(calls, 1)
    assert all(len(receiver.to(call)) == 2 for call in calls)


def test_refused_callback_becomes_a_dead_letter_that_can_be_sent_again(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """A refused callback is a dead letter of kind callback; its payload on the callbacks' subject sends it again."""
    receiver.answer("a", Reply(410), Reply(200))
    receiver.answer("b", Reply(500), Reply(410))
    start(**QUICK)
    put(queue, receiver, ["a", "b"])
    wait_until(lambda: len(queue.dead_letters()) == 2, "both dead letters")
    letters = {letter.headers["X-Call-Id"]: letter for letter in queue.dead_letters()}
    assert {letter.headers["X-Dead-Letter-Kind"] for letter in letters.values()} == {"callback"}
    assert letters["b"].headers["X-Dead-Letter-Stream"] == f"{queue.name}-callbacks"
    queue.nats.publish_many([(f"CALLBACKS.{queue.name}", letters["a"].data, {})])
    wait_until(lambda: len(receiver.to("a")) == 2, "the callback to be sent again")
    first, again = receiver.to("a")
    assert (first.body, first.call_id) == (again.body, again.call_id)
    wait_until(lambda: stored(queue) == 0, "it to leave the stream")
    assert functions.calls() == {"a": 1, "b": 1}


def test_callback_past_its_age_becomes_a_dead_letter(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A callback to a receiver that stays away becomes a dead letter after callback_max_age."""
    start(callback_max_age="2s", **QUICK)
    queue.put(message("echo", "a", CallbackUrl=go_url(f"http://127.0.0.1:{free_port()}/x")))
    queue.wait_empty()
    wait_until(lambda: len(queue.dead_letters()) == 1, "the dead letter")
    wait_until(lambda: stored(queue) == 0, "the callback to leave the stream")
    assert functions.calls() == {"a": 1}


def test_large_callback_that_is_refused_at_once_becomes_a_dead_letter_in_parts(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """A result that no message can hold, and that is given up before it was stored, is kept in parts."""
    functions.answer("echo", Reply(200, bytes(1_100_000)))
    receiver.answer("a", Reply(410))
    start(**QUICK)
    put(queue, receiver, ["a"])
    queue.wait_empty()
    assert len(receiver.to("a")) == 1
    assert [letter.headers["X-Dead-Letter-Part"] for letter in queue.dead_letters()] == ["1/2", "2/2"]


def test_callbacks_that_are_not_durable_are_given_up_from_memory(
    queue: Queue, receiver: Functions, start: StartWorker
) -> None:
    """With callback_durable=false a callback has its tries from memory, and nothing is stored."""
    receiver.answer("a", Reply(503))
    start(callback_durable="false")
    put(queue, receiver, ["a"])
    queue.wait_empty()
    assert len(receiver.to("a")) == 3
    assert stored(queue) == 0
    assert queue.dead_letters() == []
