"""Bodies that are too large for a message: stored beside the queue, streamed to the function, deleted afterwards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.e2e.stack import Queue, StartWorker, message
from tests.functions import Functions, Reply
from tests.gateway import gateway_on
from tests.servers import Program, run_program, wait_until

LARGE = b"".join(b"%07d\n" % n for n in range(300_000))
"""2.4 MB that are the same nowhere."""


def submit(queue: Queue, tmp_path: Path, function: str, call_id: str) -> None:
    """Submit an invocation with a large body."""
    if not queue.nats.state(queue.name):
        queue.nats.make_stream(queue.name)
    settings = {"nats_port": queue.nats.port, "nats_stream": queue.name}
    arguments = ("worker.cli", "submit", function, "--call-id", call_id)
    code, _, errors = run_program(*arguments, stdin=LARGE, tmp_path=tmp_path, settings=settings)
    assert (code, errors) == (0, "")


def stored(queue: Queue) -> int:
    """Return the number of messages in the queue's bucket."""
    return int(queue.nats.state(f"OBJ_{queue.name}-bodies").get("messages", 0))


def test_large_body_is_sent_again_at_each_attempt_and_then_deleted(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """Each attempt gets the whole body, with its length; once the message has left the queue, so has the body."""
    functions.answer("retried", Reply(503), Reply(503), Reply(200))
    with start():
        submit(queue, tmp_path, "retried", "a")
        wait_until(lambda: len(functions.of("a")) == 3, "three attempts")
        queue.wait_empty()
        wait_until(lambda: stored(queue) == 0, "the body to be deleted")
    assert [request.body == LARGE for request in functions.of("a")] == [True] * 3
    assert all((b"Content-Length", b"%d" % len(LARGE)) in request.headers for request in functions.of("a"))
    assert not functions.protocol_errors


def test_large_body_of_a_dead_letter_is_kept_and_can_be_replayed(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """A dead letter keeps its body. Published again, it is invoked with it, and the body stays with the letter."""
    functions.answer("failing", Reply(500))
    with start(max_retry_attempts=1):
        submit(queue, tmp_path, "failing", "b")
        wait_until(queue.dead_letters, "the dead letter")
        queue.wait_empty()
        functions.answer("failing", Reply(200))
        queue.put(queue.dead_letters()[0].data)
        wait_until(lambda: len(functions.of("b")) == 2, "the replay")
        queue.wait_empty()
    assert [request.body == LARGE for request in functions.of("b")] == [True] * 2
    assert stored(queue) == 20


def test_large_body_without_dead_letters_is_deleted(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """Where dead letters are switched off, a message that is given up leaves no body."""
    functions.answer("failing", Reply(500))
    with start(max_retry_attempts=1, dead_letter="false"):
        submit(queue, tmp_path, "failing", "c")
        queue.wait_empty()
        wait_until(lambda: stored(queue) == 0, "the body to be deleted")


def test_large_body_that_is_lost_ends_as_a_dead_letter(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """A message whose body is gone is given up at once, with the reason; its function gets no whole request."""
    submit(queue, tmp_path, "echo", "d")
    bucket = f"OBJ_{queue.name}-bodies"
    queue.nats.api(f"STREAM.PURGE.{bucket}", filter=f"$O.{queue.name}-bodies.C.>", keep=5)
    with start():
        wait_until(queue.dead_letters, "the dead letter")
        queue.wait_empty()
    (letter,) = queue.dead_letters()
    assert "bytes of the body are not stored" in letter.headers["X-Dead-Letter-Reason"]
    assert not [request for request in functions.of("d") if request.reply]


def test_reference_of_another_body_reads_and_deletes_nothing(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """A hand-made message gets no body that it cannot describe, whatever its reference contains, and deletes none."""
    submit(queue, tmp_path, "echo", "victim")
    real = queue.nats.messages(queue.name)[0].json["BodyObject"]
    queue.nats.api(f"STREAM.PURGE.{queue.name}")  # its message waits nowhere
    before = stored(queue)
    forged = [
        real | {"Digest": "SHA-256=" + "A" * 43 + "="},
        real | {"Size": 5},
        real | {"Name": "0" * 42},
        real | {"Name": "*"},
        real | {"Name": f"../{real['Name']}"},
        real | {"Size": -1},
        real | {"Size": "2400000"},
        real | {"Digest": None},
        "text",
        [],
    ]
    with start():
        queue.put(*(message("echo", f"forged-{n}", BodyObject=each) for n, each in enumerate(forged)))
        queue.put(message("echo", "both", b"body", BodyObject=real))
        wait_until(lambda: len(queue.dead_letters()) == len(forged) + 1, "all dead letters")
        queue.wait_empty()
    assert [request for request in functions.to("echo") if request.reply] == []
    assert stored(queue) == before


@pytest.mark.slow
@pytest.mark.parametrize("function", ["taken", "slow"])
def test_large_body_takes_little_memory(
    queue: Queue, functions: Functions, start: StartWorker, tmp_path: Path, function: str
) -> None:
    """A body of 100 MB raises the peak memory of producer and worker by at most 30 MB each."""
    functions.answer("slow", Reply(after=1.0))
    worker = start()
    with gateway_on(queue.nats, tmp_path, nats_stream=queue.name) as gateway:
        for body in (LARGE, b"x" * 104_857_600):  # the first one loads what any large body needs
            before = {each: peak_memory(each) for each in (worker, gateway)}
            answer = gateway.queue(function, body)
            assert answer.status == 202
            wait_until(queue.empty, "the invocation to end")
            wait_until(lambda: stored(queue) == 0, "the body to be deleted")
            (request,) = functions.of(answer.headers["X-Call-Id"])
            assert len(request.body) == len(body)
        for each, peak in before.items():
            assert peak_memory(each) - peak < 30 * 2**20


def peak_memory(program: Program) -> int:
    """Return the peak of a process's resident memory (bytes)."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024
