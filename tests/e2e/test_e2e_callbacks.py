"""Contract, section 6: the result goes to the CallbackUrl, once the invocation has ended for good."""

from __future__ import annotations

import gzip
import time
from typing import Any

import pytest

from tests.e2e.functions import Functions, Reply, Request
from tests.e2e.stack import PATIENCE, Queue, StartWorker, go_url, look_on, message
from tests.servers import free_port, wait_until
from worker import __version__

STARTED = "1646739420463153513"


def called_back(receiver: Functions, name: str = "callback") -> Request:
    """The one callback that came."""
    (request,) = receiver.to(name)
    return request


def put(queue: Queue, receiver: Functions, name: str = "callback", function: str = "echo", **fields: Any) -> None:
    """One message, ``one``, whose result goes to ``/callback`` or another path of the receiver, and its end."""
    header = {"X-Call-Id": ["one"], "X-Start-Time": [STARTED]}
    url = go_url(f"{receiver.url}/{name}")
    queue.put(message(function, Header=header, **({"CallbackUrl": url} | fields)))
    queue.wait_empty()


def test_the_result_is_posted(queue: Queue, functions: Functions, receiver: Functions, start: StartWorker) -> None:
    """The function's body and response headers, with ours; X-Retry and X-Retry-Max only where there was a retry."""
    theirs = (
        ("Content-Type", "text/x-result"),
        ("Set-Cookie", "a=1"),
        ("Set-Cookie", "b=2"),
        ("X-Custom", "zoë"),
        ("Connection", "X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("X-Call-Id", "of the function"),
        ("X-Duration-Seconds", "99"),
        ("X-Retry", "7"),
        ("User-Agent", "function"),
    )
    body = bytes(range(256))
    functions.answer("echo", Reply(200, body, theirs, after=0.1))
    start()
    put(queue, receiver, "callback/a%2Fb?c=d&e", function="echo.dev")
    request = called_back(receiver)
    assert request.line == b"POST /callback/a%2Fb?c=d&e HTTP/1.1"
    assert request.body == body
    assert request.header("Content-Type") == "text/x-result"
    assert request.all("Set-Cookie") == ["a=1", "b=2"]
    assert request.header("X-Custom") == "zoë"
    assert [request.header(name) for name in ("X-Hop", "Keep-Alive", "X-Retry", "X-Retry-Max")] == [None] * 4
    assert request.header("X-Call-Id") == "one"
    assert request.header("X-Function-Name") == "echo.dev"
    assert request.header("X-Function-Status") == "200"
    assert request.header("X-Start-Time") == STARTED
    assert request.header("User-Agent") == f"queue-worker/{__version__}"
    assert request.header("Host") == f"127.0.0.1:{receiver.port}"
    assert request.header("Content-Length") == "256"
    assert 0.1 <= float(request.header("X-Duration-Seconds") or 0) < PATIENCE


def test_start_time_is_told_where_the_message_has_none(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """X-Start-Time is then when the message was stored, in nanoseconds."""
    start()
    before = time.time_ns()
    queue.put(message("echo", "one", CallbackUrl=f"{receiver.url}/callback"))
    queue.wait_empty()
    assert before <= int(called_back(receiver).header("X-Start-Time") or 0) <= time.time_ns()
    assert functions.calls() == {"one": 1}


def test_an_undecided_url_is_not_called(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """No callback where the message has none: null, an empty string, or no such field."""
    worker = start()
    queue.put(message("echo", "null"), message("echo", "empty", CallbackUrl=""), b'{"Function": "echo"}')
    queue.wait_empty()
    assert len(functions.requests) == 3
    assert worker.logged("[Cc]allback|result") == []


@pytest.mark.parametrize("status", [200, 404, 302])
def test_whatever_ended_it_is_told(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, status: int
) -> None:
    """A code that is not retried is told as it is, with its body, below 400 or not."""
    functions.answer("echo", Reply(status, b"so it is", (("Location", "/elsewhere"),)))
    start()
    put(queue, receiver)
    request = called_back(receiver)
    assert (request.header("X-Function-Status"), request.body) == (str(status), b"so it is")


def test_it_comes_after_the_last_attempt(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """One callback, after the retries: the last body and status, and how many retries were made and allowed."""
    functions.answer("echo", Reply(500, b"no"), Reply(503, b"not yet"), Reply(201, b"yes"))
    start(max_retry_attempts=5)
    put(queue, receiver)
    request = called_back(receiver)
    assert (request.header("X-Function-Status"), request.body) == ("201", b"yes")
    assert (request.header("X-Retry"), request.header("X-Retry-Max")) == ("2", "4")
    last = functions.requests[-1]
    assert last.ended is not None
    assert request.began >= last.ended


def test_giving_up_is_told(queue: Queue, functions: Functions, receiver: Functions, start: StartWorker) -> None:
    """Given up: the last answer, X-Retry equal to X-Retry-Max; the dead letter is kept as well."""
    functions.answer("echo", Reply(500, b"first"), Reply(503, b"last", (("X-Why", "because"),)))
    start(max_retry_attempts=3)
    put(queue, receiver)
    request = called_back(receiver)
    assert (request.header("X-Function-Status"), request.body) == ("503", b"last")
    assert (request.header("X-Retry"), request.header("X-Retry-Max")) == ("2", "2")
    assert request.header("X-Why") == "because"
    assert len(queue.letters()) == 1


@pytest.mark.parametrize("status", ["502", "504"])
def test_no_response_is_told(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, status: str
) -> None:
    """With no response from the function the body is empty and the status 502 or 504."""
    cut_off = b"HTTP/1.1 200 OK\r\nX-A: b\r\n"
    functions.answer("echo", Reply(raw=cut_off, reset=status == "502", stall=status == "504"))
    start(max_retry_attempts=2, upstream_timeout="300ms")
    put(queue, receiver)
    request = called_back(receiver)
    assert (request.header("X-Function-Status"), request.body) == (status, b"")
    assert (request.header("X-Retry"), request.header("X-Retry-Max")) == ("1", "1")
    assert request.header("Content-Length") == "0"


def test_annotated_attempts_are_told(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """X-Retry-Max follows the attempts that hold for this function."""
    functions.answer("echo", Reply(500))
    start()
    put(queue, receiver, Annotations={"com.openfaas.retry.attempts": "2"})
    request = called_back(receiver)
    assert (request.header("X-Retry"), request.header("X-Retry-Max")) == ("1", "1")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_bodies_go_on_byte_for_byte(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, framing: Any
) -> None:
    """However the function sent its body; one that it compressed stays so, and says so."""
    body = gzip.compress(bytes(range(256)) * 2_000, mtime=0)
    functions.answer("echo", Reply(200, body, (("Content-Encoding", "gzip"),), framing=framing))
    start()
    put(queue, receiver)
    request = called_back(receiver)
    assert request.body == body
    assert request.header("Content-Encoding") == "gzip"
    assert request.all("Content-Length") == [str(len(body))]
    assert request.all("Transfer-Encoding") == []


def test_a_failing_callback_is_tried_again(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """By itself, the function not being run again; then the message leaves the queue."""
    receiver.answer("callback", Reply(500), Reply(raw=b"", reset=True), Reply(200))
    worker = start()
    put(queue, receiver)
    assert functions.calls() == {"one": 1}
    first, second, third = receiver.requests
    assert (first.line, first.headers, first.body) == (second.line, second.headers, second.body)
    assert (first.line, first.headers, first.body) == (third.line, third.headers, third.body)
    results = {labels: value for labels, value in worker.samples("queue_worker_callbacks_total").items() if value}
    assert sorted(results.values()) == [1, 2]


def test_a_callback_is_given_up(queue: Queue, functions: Functions, receiver: Functions, start: StartWorker) -> None:
    """After its own bounded attempts: the function is not run again, and its result counts."""
    receiver.answer("callback", Reply(503))
    worker = start(callback_attempts=4)
    put(queue, receiver)
    assert functions.calls() == {"one": 1}
    assert len(receiver.requests) == 4
    assert queue.letters() == []
    assert len(worker.logged("Callback given up")) == 1


@pytest.mark.parametrize("status", [400, 404, 410])
def test_a_callback_that_can_never_succeed(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, status: int
) -> None:
    """A refusal that trying again does not mend is given up at once."""
    receiver.answer("callback", Reply(status))
    start()
    put(queue, receiver)
    assert (len(functions.requests), len(receiver.requests)) == (1, 1)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_redirects_are_not_followed(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, status: int
) -> None:
    """A result goes only where the caller asked for it."""
    receiver.answer("callback", Reply(status, headers=(("Location", f"{receiver.url}/elsewhere"),)))
    start()
    put(queue, receiver)
    assert [request.target for request in receiver.requests] == ["/callback"]
    assert functions.calls() == {"one": 1}


def test_a_dead_host(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A callback that nobody takes holds up its own message only, and that not for ever."""
    start()
    for number, host in enumerate((f"127.0.0.1:{free_port()}", "no-such-host.invalid", "[::1]:1", "127.0.0.1:0")):
        queue.put(message("echo", f"call-{number}", CallbackUrl=go_url(f"http://{host}/callback")))
    queue.put(message("echo", "other"))
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys([f"call-{number}" for number in range(4)] + ["other"], 1)
    assert queue.letters() == []


def test_a_callback_that_never_answers(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """Each attempt has its `callback_timeout`."""
    receiver.answer("callback", Reply(raw=b"", stall=True), Reply(raw=b"HTTP/1.1 200 OK\r\n", stall=True), Reply(200))
    start(callback_timeout="300ms")
    put(queue, receiver)
    assert (len(functions.requests), len(receiver.requests)) == (1, 3)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/x",
        "not a url",
        "http://",
        "//127.0.0.1/x",
        "http://[::1/x",
        "http://127.0.0.1:99999/x",
        {"Scheme": "mailto", "Opaque": "a@example.com"},
        {"Scheme": "http", "Host": "127.0.0.1:1\r\nX-Evil: 1"},
        {"Scheme": 5, "Host": {}},
        {},
    ],
    ids=str,
)
def test_a_callback_that_cannot_be_posted_to(queue: Queue, functions: Functions, start: StartWorker, url: Any) -> None:
    """It does not spoil the invocation: the function runs once, nobody is told, and a warning says why."""
    worker = start()
    queue.put(message("echo", "one", CallbackUrl=url))
    queue.wait_empty()
    assert functions.calls() == {"one": 1}
    assert queue.letters() == []
    (warning,) = [line for line in worker.lines_of("one") if line["level"] == "warning"]
    assert warning["reason"]


def test_settled_only_after_the_callback(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """While the callback is on its way the message stays on the queue; then it leaves it."""
    receiver.answer("callback", Reply(held=True))
    start()
    queue.put(message("echo", "one", CallbackUrl=go_url(f"{receiver.url}/callback")))
    wait_until(lambda: receiver.running == 1, "the callback", PATIENCE)
    look_on()
    assert queue.nats.state(queue.name)["messages"] == 1
    receiver.release("callback")
    queue.wait_empty()
    assert functions.calls() == {"one": 1}


def test_credentials_in_the_url_are_not_logged(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """User, password and query of a callback's URL stay out of the log, whether it succeeds or fails."""
    receiver.answer("callback", Reply(500), Reply(200))
    worker = start(debug="true")
    url = receiver.url.replace("http://", "http://user-s3cret:pass-s3cret@") + "/callback?token=query-s3cret"
    queue.put(message("echo", "one", CallbackUrl=url))
    queue.put(message("echo", "two", CallbackUrl=url.replace(f":{receiver.port}", ":1")))
    queue.wait_empty()
    assert len(receiver.of("one")) == 2
    assert len(worker.logged("Callback|Posted")) >= 3
    assert "s3cret" not in worker.output
    assert functions.calls() == {"one": 1, "two": 1}


def test_many_callbacks_at_once(queue: Queue, functions: Functions, receiver: Functions, start: StartWorker) -> None:
    """Each result goes to its own caller."""
    start(max_inflight=20)
    calls = [f"call-{number}" for number in range(200)]
    queue.put(*(message("echo", call, CallbackUrl=go_url(f"{receiver.url}/to/{call}")) for call in calls))
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)
    assert sorted((request.target, request.call_id) for request in receiver.requests) == sorted(
        (f"/to/{call}", call) for call in calls
    )
