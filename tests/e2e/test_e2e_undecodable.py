"""Contract, section 4, last sentence: a message that cannot be decoded is never invoked and never lost."""

from __future__ import annotations

import gzip
import json
import random
from typing import Any

from tests.e2e.stack import Queue, StartWorker, message
from tests.functions import Functions, Reply
from tests.wire import StoredMessage

MAX_SIZE = 1_048_576
"""Size of the largest message that nats-server accepts by default (bytes)."""


def request_with(**fields: Any) -> bytes:
    """Return a QueueRequest that is valid except for *fields*."""
    return json.dumps({"Function": "echo", "Method": "POST", "Body": ""} | fields).encode()


MALFORMED = {
    "nothing": b"",
    "a blank": b" ",
    "text": b"hello",
    "noise": random.Random(1).randbytes(2_000),
    "compressed": gzip.compress(message("echo")),
    "cut off": message("echo", body=b"x" * 100)[:-20],
    "followed by more": message("echo") + b"{}",
    "two requests": message("echo") + message("echo"),
    "after a byte order mark": b"\xef\xbb\xbf" + message("echo"),
    "not UTF-8 outside of strings": request_with(Path="/abc").replace(b"{", b"{\xff\xfe"),
    "in UTF-16": message("echo").decode().encode("utf-16"),
    "null": b"null",
    "a number": b"1e400",
    "a string": b'"echo"',
    "an array": b'[{"Function": "echo"}]',
    "an empty object": b"{}",
    "nested without end": b'{"Function": "echo", "CallbackUrl": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    "deep and unclosed": b"[" * 500_000,
    "no function": request_with(Function=None),
    "an empty function": request_with(Function=""),
    "a function that is a number": request_with(Function=5),
    "a function of slashes": request_with(Function="///"),
    "a function with a slash": request_with(Function="echo/../../system/functions"),
    "a function of dots": request_with(Function=".."),
    "a function with a query": request_with(Function="echo?x=1"),
    "a function with a space": request_with(Function="echo HTTP/1.1"),
    "a function with a line": request_with(Function="echo\r\nX-Evil: 1"),
    "a function with two dots": request_with(Function="echo.a.b"),
    "a function that ends in a dash": request_with(Function="echo-"),
    "a function of other letters": request_with(Function="échø"),
    "a very long function": request_with(Function="a" * 1_000),
    "a method with a space": request_with(Method="GET /evil"),
    "a method with a line": request_with(Method="GET\r\nX-Evil: 1"),
    "a method that is a number": request_with(Method=1),
    "a path out of the function": request_with(Path="/../../system/functions"),
    "a path out of it, escaped": request_with(Path="/%2e%2e/%2e%2e/system/functions"),
    "a path that is a number": request_with(Path=7),
    "a query that is an object": request_with(QueryString={"a": "b"}),
    "a header that is an array": request_with(Header=[["X-A", "b"]]),
    "a header that is a string": request_with(Header="X-A: b"),
    "a header of strings": request_with(Header={"X-A": "b"}),
    "a header of numbers": request_with(Header={"X-A": [1]}),
    "a header's name with a space": request_with(Header={"X A": ["b"]}),
    "a header's name with a line": request_with(Header={"X-A\r\nX-Evil": ["b"]}),
    "a header's name that is empty": request_with(Header={"": ["b"]}),
    "a header's value with a line": request_with(Header={"X-A": ["b\r\nX-Evil: 1"]}),
    "a header's value with a bare line feed": request_with(Header={"X-A": ["b\nX-Evil: 1"]}),
    "a header's value with a null": request_with(Header={"X-A": ["b\x00c"]}),
    "half a surrogate in the function": b'{"Function":"echo\\ud800"}',
    "a body that is not base64": request_with(Body="***"),
    "a body cut off": request_with(Body="YWJ"),
    "a body that is a number": request_with(Body=5),
    "a body that is an array": request_with(Body=[1, "b"]),
    "annotations of numbers": request_with(Annotations={"com.openfaas.retry.attempts": 3}),
    "annotations that are an array": request_with(Annotations=[]),
}


def test_malformed_message_of_each_kind_becomes_a_dead_letter(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """Each malformed message becomes a dead letter with a reason, byte for byte; it is counted, and never invoked."""
    worker = start(max_inflight=4)
    calls = [f"call-{number}" for number in range(len(MALFORMED))]
    queue.put(
        *(each for bad, call in zip(MALFORMED.values(), calls, strict=True) for each in (bad, message("echo", call)))
    )
    queue.wait_empty()

    invoked = {request.call_id for request in functions.requests}
    assert functions.calls() == dict.fromkeys(calls, 1), sorted(invoked - set(calls))
    letters = {letter.data: letter for letter in queue.dead_letters()}
    missing = [name for name, payload in MALFORMED.items() if payload not in letters]
    assert missing == []
    assert len(letters) == len(MALFORMED)
    for name, payload in MALFORMED.items():
        headers = letters[payload].headers
        assert headers["X-Dead-Letter-Reason"], name
        assert headers["X-Dead-Letter-Attempts"] == "0", name
        assert headers["X-Dead-Letter-Subject"] == queue.name
        assert "X-Function-Status" not in headers
        assert letters[payload].subject == f"DEAD-LETTERS.{queue.name}.undecodable"
    assert worker.metric("queue_worker_dead_letters_total") == len(MALFORMED)
    assert worker.metric("queue_worker_messages_processed_total") == 2 * len(MALFORMED)
    assert worker.metric("queue_worker_nats_reconnect_total") == 0
    assert len(worker.logged("Dead letter")) == len(MALFORMED)
    assert queue.consumer()["num_redelivered"] == 0


def test_message_with_changed_bytes_ends_exactly_once(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Each message with randomly changed bytes is invoked once or becomes one dead letter, and the worker continues."""
    rng = random.Random(7)
    good = message("echo", "call", b"body" * 20, Path="/a", QueryString="b=c", CallbackUrl="")
    payloads = []
    for _ in range(500):
        changed = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 5))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        payloads.append(bytes(changed))
    worker = start()
    queue.put(*payloads, message("echo", "last"))
    queue.wait_empty()
    assert len(functions.requests) + len(queue.dead_letters()) == len(payloads) + 1
    assert len(functions.of("last")) == 1
    assert worker.logged("bug") == []


def assembled(letters: list[StoredMessage]) -> dict[str, bytes]:
    """Join the parts of each dead letter, and return the messages by their sequences."""
    whole: dict[str, list[StoredMessage]] = {}
    for letter in letters:
        whole.setdefault(letter.headers["X-Dead-Letter-Sequence"], []).append(letter)
    for parts in whole.values():
        numbers = [letter.headers.get("X-Dead-Letter-Part", "1/1") for letter in parts]
        assert numbers == [f"{number}/{len(parts)}" for number in range(1, len(parts) + 1)]
    return {sequence: b"".join(part.data for part in parts) for sequence, parts in whole.items()}


def test_largest_messages_become_dead_letters_in_parts(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Malformed or given-up messages of the largest size become dead letters too, in parts, without a reconnect."""
    functions.answer("broken", Reply(500))
    worker = start(max_retry_attempts=1)
    smallest = len(message("broken", "call-0000", Padding=""))
    payloads = {}
    for short_by in (0, 1, 500, 8_191, 8_192, 8_193):
        payloads[f"malformed-{short_by}"] = b"x" * (MAX_SIZE - short_by)
        padding = "y" * (MAX_SIZE - short_by - smallest)
        payloads[f"given up-{short_by}"] = message("broken", f"call-{short_by:04}", Padding=padding)
        assert len(payloads[f"given up-{short_by}"]) == MAX_SIZE - short_by
    sequences = queue.put(*payloads.values(), message("echo", "last"))
    queue.wait_empty()
    letters = assembled(queue.dead_letters())
    assert letters == {str(number): payload for number, payload in zip(sequences, payloads.values(), strict=False)}
    assert len(functions.of("last")) == 1
    assert worker.metric("queue_worker_nats_reconnect_total") == 0
    assert worker.logged("Disconnected") == []


def test_dead_letter_reason_is_one_printable_line(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The reason of a dead letter is one printable header line, for any text that it quotes."""
    special = ["\r\nX-Evil: 1", "\x00\x1b[31m", "ü" * 500, "\u2028", "🚀" * 200, "a: b"]
    start()
    queue.put(*(request_with(Function=text) for text in special), *(request_with(Method=text) for text in special))
    queue.put(*(request_with(Header={text: ["x"]}) for text in special))
    queue.wait_empty()
    letters = queue.dead_letters()
    assert len(letters) == 3 * len(special)
    assert functions.requests == []
    for letter in letters:
        assert "X-Evil" not in letter.headers
        assert letter.headers["X-Dead-Letter-Reason"].isprintable()
