"""Contract, section 5: the decision table, row by row."""

from __future__ import annotations

import pytest

from tests.e2e.case import ATTEMPTS, TIMEOUT, Case
from tests.e2e.stack import Queue, StartWorker
from tests.functions import Functions, Reply
from tests.servers import wait_until
from worker.dev.stack import free_port

# Answers that end an invocation, and answers that are retried.


@pytest.mark.parametrize("status", [200, 201, 202, 204, 301, 302, 304, 400, 401, 403, 404, 409, 413, 418, 422, 501])
def test_status_not_in_retry_http_codes_is_final(case: Case, status: int) -> None:
    """A status that is not in `retry_http_codes` is final: one invocation, no dead letter, and no redirect followed."""
    elsewhere = f"{case.name}-elsewhere"
    reply = Reply(status, b"body", (("Location", f"{case.shared.functions.url}/function/{elsewhere}"),))
    if status in (204, 304):  # these have neither body nor length
        reply = Reply(raw=f"HTTP/1.1 {status} Whatever\r\n\r\n".encode())
    assert case.run(reply) == 1
    assert case.dead_letters == []
    assert case.shared.functions.to(elsewhere) == []


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_status_in_retry_http_codes_is_retried(case: Case, status: int) -> None:
    """The worker repeats the same request while its status is in `retry_http_codes`."""
    assert case.run(Reply(status), Reply(status), Reply(200)) == 3
    first, second, third = ((request.line, request.headers, request.body) for request in case.requests)
    assert first == second == third
    assert case.dead_letters == []


@pytest.mark.parametrize("status", [400, 401, 404, 418, 501])
def test_internal_error_of_openfaas_is_retried(case: Case, status: int) -> None:
    """An answer of 400 or more with an X-OpenFaaS-Internal header is retried, even if its status is not in the list."""
    internal = Reply(status, headers=(("x-openfaas-internal", "faas-netes"),))
    assert case.run(internal, Reply(status)) == 2


@pytest.mark.parametrize("status", [200, 302])
def test_internal_header_with_a_status_below_400_is_final(case: Case, status: int) -> None:
    """An answer below 400 with an X-OpenFaaS-Internal header is final."""
    assert case.run(Reply(status, headers=(("X-OpenFaaS-Internal", "gateway"),))) == 1


NO_ANSWER = {
    "reset at once": Reply(raw=b"", reset=True),
    "closed at once": Reply(raw=b""),
    "reset in the header": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Le", reset=True),
    "closed in the header": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Le"),
    "shorter than its length": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"),
    "reset in the body": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", reset=True),
    "no last chunk": Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
    "a bad chunk": Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n"),
    "not HTTP": Reply(raw=b"SSH-2.0-OpenSSH_9.6\r\n"),
    "noise": Reply(raw=bytes(range(256)) * 20),
    "a bad status": Reply(raw=b"HTTP/1.1 abc OK\r\nContent-Length: 0\r\n\r\n"),
    "endless header": Reply(raw=b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 50_000),
    "two lengths": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
}


@pytest.mark.parametrize("reply", NO_ANSWER.values(), ids=list(NO_ANSWER))
def test_invalid_response_counts_as_502(case: Case, reply: Reply) -> None:
    """A reset, malformed or truncated response is retried, and given up, with the status 502."""
    again = Case(case.shared)
    assert case.run(reply, annotations={"com.openfaas.retry.attempts": "2"}) == 2
    assert case.dead_letter.headers["X-Function-Status"] == "502"
    assert again.run(reply, Reply(200)) == 2
    assert again.dead_letters == []


TOO_LATE = {
    "never": Reply(raw=b"", stall=True),
    "in the header": Reply(raw=b"HTTP/1.1 200 OK\r\n", stall=True),
    "in the body": Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", stall=True),
    "only informational": Reply(raw=b"HTTP/1.1 102 Processing\r\n\r\n", stall=True),
}


@pytest.mark.parametrize("reply", TOO_LATE.values(), ids=list(TOO_LATE))
def test_response_after_upstream_timeout_counts_as_504(timeout_case: Case, reply: Reply) -> None:
    """Without a whole response within `upstream_timeout` the request is cancelled, and retried or given up as 504."""
    case, again = timeout_case, Case(timeout_case.shared)
    assert case.run(reply, annotations={"com.openfaas.retry.attempts": "1"}) == 1
    assert case.dead_letter.headers["X-Function-Status"] == "504"
    wait_until(lambda: case.requests[0].disconnected, "the worker to leave the request")
    assert again.run(reply, Reply(200)) >= 2
    assert again.dead_letters == []


def test_response_before_upstream_timeout_is_final(case: Case) -> None:
    """A response before `upstream_timeout` is final, here after more than the timeout of the other shared worker."""
    assert case.run(Reply(after=1.5 * TIMEOUT)) == 1


def test_refused_connection_to_the_gateway_is_retried(queue: Queue, start: StartWorker) -> None:
    """While connections to `gateway_url` are refused, invocations are retried; they succeed when the port listens."""
    port = free_port()
    worker = start(gateway_url=f"http://127.0.0.1:{port}")
    queue.put_calls("echo", ["one", "two"])
    wait_until(lambda: worker.metric("queue_worker_retries_total") >= 4, "retries")
    with Functions(port) as functions:
        queue.wait_empty()
        assert functions.calls() == {"one": 1, "two": 1}
    assert {line["status"] for line in worker.lines_of("one")} == {502, 200}


def test_gateway_host_without_an_address_counts_as_502(queue: Queue, start: StartWorker) -> None:
    """A gateway host that DNS cannot resolve counts as 502: the message is retried, then given up."""
    start(gateway_url="http://no-such-host.invalid:8080", max_retry_attempts=2)
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    (letter,) = queue.dead_letters()
    assert (letter.headers["X-Function-Status"], letter.headers["X-Dead-Letter-Attempts"]) == ("502", "2")


def test_gateway_without_tls_counts_as_502(queue: Queue, start: StartWorker) -> None:
    """A failed TLS handshake with the gateway counts as 502: the message is retried, then given up."""
    start(gateway_url=f"https://127.0.0.1:{queue.nats.port}", max_retry_attempts=2)  # NATS greets first, in plain text
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    (letter,) = queue.dead_letters()
    assert (letter.headers["X-Function-Status"], letter.headers["X-Dead-Letter-Attempts"]) == ("502", "2")


def test_retry_http_codes_replaces_the_default_list(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """`retry_http_codes` replaces the default list; a missing response is retried also if 502 is not in the list."""
    functions.answer("teapot", Reply(418), Reply(200))
    functions.answer("broken", Reply(500))
    functions.answer("bad", Reply(502))
    functions.answer("reset", Reply(raw=b"", reset=True), Reply(200))
    start(retry_http_codes="418,429")
    for name in ("teapot", "broken", "bad", "reset"):
        queue.put_calls(name, [name])
    queue.wait_empty()
    assert functions.calls() == {"teapot": 2, "broken": 1, "bad": 1, "reset": 2}
    assert queue.dead_letters() == []


# Complete responses.

WHOLE = {
    "chunked": Reply(body=b"x" * 100_000, framing="chunked"),
    "until the connection's end": Reply(body=b"x" * 100_000, framing="close"),
    "huge": Reply(body=b"x" * 30_000_000),
    "huge and chunked": Reply(body=b"x" * 5_000_000, framing="chunked"),
    "empty": Reply(body=b""),
    "after an informational one": Reply(
        raw=b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
    ),
    "old": Reply(raw=b"HTTP/1.0 200 OK\r\n\r\nbody"),
    "with trailers": Reply(
        raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-A\r\n\r\n1\r\na\r\n0\r\nX-A: b\r\n\r\n"
    ),
    "closed without a word": Reply(close=True),
}


@pytest.mark.parametrize("reply", WHOLE.values(), ids=list(WHOLE))
def test_complete_response_in_each_framing_is_final(case: Case, reply: Reply) -> None:
    """Any complete HTTP/1.1 response is final, for each length and each way to end a body."""
    assert case.run(reply) == 1
    assert case.dead_letters == []


# Dead letters.


def test_message_given_up_is_stored_as_a_dead_letter(case: Case) -> None:
    """After `max_retry_attempts` failures the message is stored as a dead letter, byte for byte, and acked."""
    assert case.run(Reply(500, b"sorry")) == ATTEMPTS
    letter, stream = case.dead_letter, case.queue.name
    assert letter.subject == f"DEAD-LETTERS.{stream}.{case.name}.openfaas-fn"
    headers = dict(letter.headers)
    sequence = headers.pop("X-Dead-Letter-Sequence")
    assert headers.pop("Nats-Msg-Id").startswith(f"{stream}.{sequence}.")
    assert headers == {
        "X-Dead-Letter-Reason": f"gave up after {ATTEMPTS} of {ATTEMPTS} attempts: status 500",
        "X-Dead-Letter-Attempts": str(ATTEMPTS),
        "X-Dead-Letter-Deliveries": str(ATTEMPTS),
        "X-Dead-Letter-Stream": stream,
        "X-Dead-Letter-Subject": stream,
        "X-Call-Id": case.call_id,
        "X-Function-Name": f"{case.name}.openfaas-fn",
        "X-Function-Status": "500",
    }
    assert [line["event"] for line in case.lines if line["level"] == "error"] == ["Dead letter"]


def test_dead_letter_stream_keeps_letters_for_max_age(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The dead letter stream keeps its messages for `dead_letter_max_age`, also after they were read."""
    functions.answer("echo", Reply(500))
    start(max_retry_attempts=1, dead_letter_max_age="48h", nats_stream_storage="memory")
    queue.put_calls("echo", ["one"])
    queue.wait_empty()
    config = queue.nats.api(f"STREAM.INFO.{queue.dead_letter_stream}")["config"]
    assert (config["retention"], config["max_age"], config["storage"]) == ("limits", 48 * 3600 * 10**9, "memory")


def test_dead_letter_false_discards_given_up_messages(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """With `dead_letter=false` given-up messages are acked without a dead letter, but logged and counted."""
    functions.answer("echo", Reply(500))
    worker = start(dead_letter="false", max_retry_attempts=2)
    queue.put_calls("echo", ["one"])
    queue.put(b"malformed")
    queue.wait_empty()
    assert functions.calls() == {"one": 2}
    assert queue.dead_letter_stream not in queue.nats.api("STREAM.NAMES")["streams"]
    assert len(worker.logged("Message discarded because dead_letter is false")) == 2
    assert worker.metric("queue_worker_messages_processed_total") == 2


def test_attempts_are_counted_across_workers(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Two workers together attempt each message `max_retry_attempts` times."""
    functions.answer("echo", Reply(500))
    start(max_retry_attempts=5)
    start(max_retry_attempts=5)
    calls = queue.put_calls("echo", [f"call-{number}" for number in range(20)])
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 5)
    assert sorted(letter.headers["X-Call-Id"] for letter in queue.dead_letters()) == sorted(calls)


@pytest.mark.parametrize("annotation", [{"com.openfaas.retry.attempts": "0"}, {"com.openfaas.retry.codes": ""}])
def test_annotation_for_no_retry_sends_once(case: Case, annotation: dict[str, str]) -> None:
    """A function that asks for 0 attempts, or for no code to be retried, gets a failing invocation once."""
    assert case.run(Reply(500), annotations=annotation) == 1
    assert case.warnings == []


@pytest.mark.parametrize("status", [301, 307, 308])
def test_redirect_to_the_clean_path_is_one_attempt(case: Case, status: int) -> None:
    """The gateway's redirect to the clean path is followed: the function gets the request, and it is one attempt."""
    location = f"/function/{case.name}/x/y?a=b"
    assert case.run(Reply(status, headers=(("Location", location),)), Reply(200), Path="//x//y", QueryString="a=b") == 2
    assert [request.line.split()[1].decode() for request in case.requests] == [
        location.replace("/x/y", "//x//y"),
        location,
    ]
    assert {request.body for request in case.requests} == {b"input"}
    (line,) = [line for line in case.lines if line["event"] == "Invoked"]
    assert (line["attempt"], line["status"], line["redirect"]) == (1, 200, "followed")
