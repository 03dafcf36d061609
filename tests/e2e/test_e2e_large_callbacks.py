"""Results that are too large for a stored callback: their bodies are stored beside it, sent from there, and deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.stack import Queue, StartWorker
from tests.e2e.test_e2e_stored_callbacks import QUICK, put, stored
from tests.functions import Functions, Reply
from tests.servers import wait_until

RESULT = b"".join(b"%07d\n" % n for n in range(655_360))
"""5 MiB that are the same nowhere."""


def bodies(queue: Queue) -> int:
    """Return the number of messages in the queue's bucket."""
    return int(queue.nats.state(f"OBJ_{queue.name}-bodies").get("messages", 0))


@pytest.fixture
def large(functions: Functions) -> Functions:
    """Let the function answer with a large result."""
    functions.answer("echo", Reply(200, RESULT))
    return functions


def test_large_result_is_stored_and_arrives_with_the_same_headers(
    queue: Queue, large: Functions, receiver: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """It is sent from the store in each retry, byte for byte, and signed; once it is delivered, nothing is left."""
    key = tmp_path / "key"
    key.write_text("secret-of-this-test\n")
    receiver.answer("a", *[Reply(503)] * 3, Reply(200))
    start(callback_secret_file=key, **QUICK)
    put(queue, receiver, ["a"])
    wait_until(lambda: len(receiver.to("a")) == 4, "the callback to arrive")
    wait_until(lambda: (stored(queue), bodies(queue)) == (0, 0), "callback and body to be deleted")
    assert large.calls() == {"a": 1}
    assert [request.body == RESULT for request in receiver.to("a")] == [True] * 4
    for name in ("Content-Length", "X-Duration-Seconds", "webhook-id", "X-Openfaas-Signature-256"):
        assert len({request.header(name) for request in receiver.to("a")}) == 1, name
    assert queue.dead_letters() == []
    assert not receiver.protocol_errors


@pytest.mark.parametrize("end", ["killed", "drained"])
def test_large_result_survives_the_end_of_its_worker(
    queue: Queue, large: Functions, receiver: Functions, start: StartWorker, end: str
) -> None:
    """The next worker sends the result of one that was killed, or drained, while the receiver was away."""
    receiver.answer("a", Reply(503))
    worker = start(callback_retry_initial_wait="2s", ack_wait="3s")
    put(queue, receiver, ["a"])
    queue.wait_empty()
    if end == "killed":
        worker.kill()
    else:
        worker.terminate()
    worker.wait()
    assert stored(queue) == 1
    receiver.answer("a", Reply(200))
    start(**QUICK, ack_wait="3s")
    wait_until(lambda: (stored(queue), bodies(queue)) == (0, 0), "callback and body to be deleted")
    assert large.calls() == {"a": 1}
    assert receiver.to("a")[-1].body == RESULT


def test_large_result_of_a_dead_letter_is_kept_and_can_be_sent_again(
    queue: Queue, large: Functions, receiver: Functions, start: StartWorker
) -> None:
    """The dead letter of a stored callback keeps its body, also while and after it is sent again."""
    receiver.answer("a", Reply(503), Reply(410), Reply(200))
    start(**QUICK)
    put(queue, receiver, ["a"])
    wait_until(queue.dead_letters, "the dead letter")
    (letter,) = queue.dead_letters()
    assert letter.headers["X-Dead-Letter-Kind"] == "callback"
    wait_until(lambda: stored(queue) == 0, "the callback to leave the stream")
    queue.nats.publish_many([(f"CALLBACKS.{queue.name}", letter.data, {})])
    wait_until(lambda: len(receiver.to("a")) == 3, "the callback to be sent again")
    wait_until(lambda: stored(queue) == 0, "it to leave the stream")
    assert [request.body == RESULT for request in receiver.to("a")] == [True] * 3
    assert bodies(queue) > 0
    assert large.calls() == {"a": 1}


@pytest.mark.parametrize("signed", [True, False])
def test_large_result_that_is_lost_becomes_a_dead_letter(
    queue: Queue, large: Functions, receiver: Functions, start: StartWorker, tmp_path: Path, *, signed: bool
) -> None:
    """A callback whose body is gone is given up at its next try, with the reason; the receiver gets no whole body."""
    key = tmp_path / "key"
    key.write_text("secret-of-this-test\n")
    receiver.answer("a", Reply(503))
    worker = start(callback_retry_initial_wait="2s")
    put(queue, receiver, ["a"])
    queue.wait_empty()
    worker.terminate()
    worker.wait()
    before = len(receiver.to("a"))
    queue.nats.api(f"STREAM.PURGE.OBJ_{queue.name}-bodies", filter=f"$O.{queue.name}-bodies.C.>", keep=5)
    start(**QUICK, **({"callback_secret_file": key} if signed else {}))
    wait_until(queue.dead_letters, "the dead letter")
    (letter,) = queue.dead_letters()
    assert "bytes of the body are not stored" in letter.headers["X-Dead-Letter-Reason"]
    wait_until(lambda: stored(queue) == 0, "the callback to leave the stream")
    assert not [request for request in receiver.to("a")[before:] if request.reply]
    assert large.calls() == {"a": 1}
