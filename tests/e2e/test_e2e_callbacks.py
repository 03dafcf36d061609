"""Contract, section 6: the worker posts the result to the CallbackUrl after the final attempt of the invocation."""

from __future__ import annotations

import gzip
import time
from typing import Any

import pytest

from tests.e2e.case import ATTEMPTS, STARTED, Case
from tests.e2e.stack import Queue, StartWorker, go_url, message, wait_quietly
from tests.functions import Functions, Reply
from tests.servers import wait_until
from worker import __version__
from worker.dev.stack import free_port


def test_callback_has_body_and_headers_of_the_response(case: Case) -> None:
    """A callback has the function's body and headers, and the worker's; X-Retry and X-Retry-Max only after a retry."""
    headers = (
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
    function = f"{case.name}.dev"
    began = time.monotonic()
    case.run(Reply(200, body, headers, after=0.1), Function=function, callback=f"{case.callback}/a%2Fb?c=d&e")
    took = time.monotonic() - began
    request = case.called_back
    assert request.line == f"POST /{case.name}/a%2Fb?c=d&e HTTP/1.1".encode()
    assert request.body == body
    assert request.header("Content-Type") == "text/x-result"
    assert request.all("Set-Cookie") == ["a=1", "b=2"]
    assert request.header("X-Custom") == "zoë"
    assert [request.header(name) for name in ("X-Hop", "Keep-Alive", "X-Retry", "X-Retry-Max")] == [None] * 4
    assert request.header("X-Call-Id") == case.call_id
    assert request.header("X-Function-Name") == function
    assert request.header("X-Function-Status") == "200"
    assert request.header("X-Start-Time") == STARTED
    assert request.header("User-Agent") == f"queue-worker/{__version__}"
    assert request.header("Host") == f"127.0.0.1:{case.shared.receiver.port}"
    assert request.header("Content-Length") == "256"
    assert 0.1 <= float(request.header("X-Duration-Seconds") or 0) < took


def test_callback_without_a_start_time_has_the_time_of_storing(case: Case) -> None:
    """If the message has no X-Start-Time, the callback's is the time at which it was stored, in nanoseconds."""
    before = time.time_ns()
    case.run(CallbackUrl=case.callback, Header={"X-Call-Id": [case.call_id]})
    assert before <= int(case.called_back.header("X-Start-Time") or 0) <= time.time_ns()


def test_callback_without_a_url_is_not_sent(case: Case) -> None:
    """A message whose CallbackUrl is null or empty causes no callback."""
    assert case.run(CallbackUrl=None) == 1
    assert case.run(CallbackUrl="") == 2
    assert not [line for line in case.lines if "allback" in line["event"]]


@pytest.mark.parametrize("status", [200, 404, 302])
def test_callback_has_status_and_body_of_the_final_response(case: Case, status: int) -> None:
    """A callback has the status and body of each response that is not retried, also of 400 or more."""
    case.run(Reply(status, b"so it is", (("Location", "/elsewhere"),)), callback=case.callback)
    assert (case.called_back.header("X-Function-Status"), case.called_back.body) == (str(status), b"so it is")


def test_callback_is_sent_once_after_the_last_attempt(case: Case) -> None:
    """One callback follows the retries, with the last body and status, and the numbers of retries made and allowed."""
    case.run(Reply(500, b"no"), Reply(503, b"not yet"), Reply(201, b"yes"), callback=case.callback)
    request, last = case.called_back, case.requests[-1]
    assert (request.header("X-Function-Status"), request.body) == ("201", b"yes")
    assert (request.header("X-Retry"), request.header("X-Retry-Max")) == ("2", str(ATTEMPTS - 1))
    assert last.ended is not None
    assert request.began >= last.ended


def test_callback_of_a_given_up_message_has_the_last_response(case: Case) -> None:
    """The callback of a message that is given up has the last response, and X-Retry equal to X-Retry-Max."""
    replies = Reply(500, b"first"), Reply(503, b"last", (("X-Why", "because"),))
    assert case.run(*replies, callback=case.callback) == ATTEMPTS
    request = case.called_back
    assert (request.header("X-Function-Status"), request.body) == ("503", b"last")
    assert (request.header("X-Retry"), request.header("X-Retry-Max")) == (str(ATTEMPTS - 1), str(ATTEMPTS - 1))
    assert request.header("X-Why") == "because"
    assert case.dead_letter


@pytest.mark.parametrize("status", ["502", "504"])
def test_callback_without_a_response_has_502_or_504(timeout_case: Case, status: str) -> None:
    """Without a response of the function, the callback's body is empty, and its status is 502 or 504."""
    case = timeout_case
    cut_off = Reply(raw=b"HTTP/1.1 200 OK\r\nX-A: b\r\n", reset=status == "502", stall=status == "504")
    case.run(cut_off, callback=case.callback, annotations={"com.openfaas.retry.attempts": "2"})
    request = case.callbacks[0]  # on a busy machine the callback may be sent again
    assert (request.header("X-Function-Status"), request.body) == (status, b"")
    assert (request.header("X-Retry"), request.header("X-Retry-Max")) == ("1", "1")
    assert request.header("Content-Length") == "0"
    assert request.header("X-A") is None


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_callback_body_is_the_response_body_byte_for_byte(case: Case, framing: Any) -> None:
    """A callback has the response's body byte for byte, and its Content-Encoding, for each framing."""
    body = gzip.compress(bytes(range(256)) * 2_000, mtime=0)
    case.run(Reply(200, body, (("Content-Encoding", "gzip"),), framing=framing), callback=case.callback)
    request = case.called_back
    assert request.body == body
    assert request.header("Content-Encoding") == "gzip"
    assert request.all("Content-Length") == [str(len(body))]
    assert request.all("Transfer-Encoding") == []


def test_callback_that_fails_is_sent_again(case: Case) -> None:
    """The worker sends a failed callback again without another invocation, and then settles the message."""
    case.answer_callbacks(Reply(500), Reply(raw=b"", reset=True), Reply(200))
    assert case.run(callback=case.callback) == 1
    first, second, third = ((request.line, request.headers, request.body) for request in case.callbacks)
    assert first == second == third
    assert case.dead_letters == []


def test_callback_that_always_fails_is_given_up(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """The worker gives up a callback after `callback_attempts`, and acks the message without another invocation."""
    receiver.answer("callback", Reply(503))
    worker = start(callback_attempts=4, callback_durable="false")
    queue.put(message("echo", "one", CallbackUrl=f"{receiver.url}/callback"))
    queue.wait_empty()
    assert functions.calls() == {"one": 1}
    assert receiver.calls() == {"one": 4}
    assert queue.dead_letters() == []
    assert len(worker.logged("Callback given up")) == 1
    results = [value for value in worker.samples("queue_worker_callbacks_total").values() if value]
    assert sorted(results) == [1, 3]


@pytest.mark.parametrize("status", [400, 404, 410])
def test_callback_with_a_client_error_is_given_up_at_once(case: Case, status: int) -> None:
    """A callback that its receiver rejects with a client error is given up after one attempt."""
    case.answer_callbacks(Reply(status))
    assert case.run(callback=case.callback) == 1
    assert case.called_back


@pytest.mark.parametrize("status", [301, 302, 304, 307, 308])
def test_callback_redirect_is_given_up(case: Case, status: int) -> None:
    """A redirect is no delivery and is not followed: the callback is given up, with a line and a count."""
    elsewhere = f"{case.name}-elsewhere"
    location = f"Location: {case.shared.receiver.url}/{elsewhere}"
    case.answer_callbacks(Reply(raw=f"HTTP/1.1 {status} Whatever\r\n{location}\r\n\r\n".encode()))
    assert case.run(callback=case.callback) == 1
    assert case.called_back
    assert case.shared.receiver.to(elsewhere) == []
    (line,) = [line for line in case.lines if line["event"] == "Callback given up"]
    assert (line["call_id"], line["result"]) == (case.call_id, status)


def test_callback_with_an_endless_answer_is_delivered_once(case: Case) -> None:
    """A receiver that answers 200, and then never ends its body, has received the result: it is not posted again."""
    case.answer_callbacks(Reply(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n", stall=True))
    assert case.run(callback=case.callback) == 1
    assert case.called_back
    assert [line["result"] for line in case.lines if line["event"] == "Posted result"] == [200]


@pytest.mark.parametrize("no_proxy", ["localhost,127.0.0.1,[::1]", "127.0.0.1,fd00::/8", "127.0.0.0/8"])
def test_callback_is_sent_with_any_no_proxy(
    queue: Queue, receiver: Functions, start: StartWorker, no_proxy: str
) -> None:
    """Addresses in brackets and networks in NO_PROXY exclude receivers from the proxy, and break no callback."""
    worker = start(NO_PROXY=no_proxy, HTTP_PROXY=f"http://127.0.0.1:{free_port()}")
    queue.put(message("echo", "one", CallbackUrl=f"{receiver.url}/callback"))
    queue.wait_empty()
    assert receiver.calls() == {"one": 1}
    assert worker.logged("Callback (failed|given up)") == []


@pytest.mark.parametrize("mode", ["static", "function"])
def test_callbacks_to_a_tarpit_delay_no_other_function(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, mode: str
) -> None:
    """A receiver that accepts callbacks and never answers holds no slot, so other functions go on."""
    receiver.answer("tarpit", Reply(held=True))
    worker = start(scaling_mode=mode, max_inflight=4, callback_timeout="10m")
    queue.put_calls("slow", [f"slow-{number}" for number in range(40)], CallbackUrl=f"{receiver.url}/tarpit")
    others = queue.put_calls("quick", [f"quick-{number}" for number in range(40)])
    wait_until(lambda: all(functions.of(call) for call in others), "the other functions to be invoked")
    wait_until(lambda: receiver.running == 40, "all callbacks to be on their way")
    assert worker.metric("queue_worker_function_invocation_inflight") == 0
    receiver.release("tarpit")
    queue.wait_empty()
    assert set(functions.calls().values()) == {1}


@pytest.mark.parametrize("host", ["127.0.0.1:", "no-such-host.invalid", "[::1]:1", "127.0.0.1:0"])
def test_callback_to_an_unreachable_host_is_given_up(case: Case, host: str) -> None:
    """A callback to an unreachable host is given up, delays its own message only, and repeats no invocation."""
    port = free_port() if host.endswith(":") else ""
    assert case.run(callback=f"http://{host}{port}/callback") == 1
    assert case.dead_letters == []
    assert [line for line in case.lines if "allback" in line["event"] and line["call_id"] == case.call_id]


def test_callback_without_a_response_times_out_and_is_retried(timeout_case: Case) -> None:
    """Each attempt of a callback ends after `callback_timeout`; the first answered attempt settles the message."""
    case = timeout_case
    case.answer_callbacks(Reply(raw=b"", stall=True), Reply(raw=b"HTTP/1.1 200 OK\r\n", stall=True), Reply(200))
    case.run(callback=case.callback)
    assert len(case.callbacks) >= 3
    assert [request.disconnected for request in case.callbacks[:2]] == [True, True]


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
def test_callback_with_an_invalid_url_is_ignored(case: Case, url: Any) -> None:
    """An invalid callback URL does not affect the invocation: the function runs once, and a warning has the reason."""
    assert case.run(CallbackUrl=url) == 1
    assert case.dead_letters == []
    (warning,) = case.warnings
    assert warning["call_id"] == case.call_id
    assert warning["reason"]


def test_message_is_settled_after_its_callback(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """A message stays in the stream while its callback runs, and is settled after it."""
    receiver.answer("callback", Reply(held=True))
    start()
    queue.put(message("echo", "one", CallbackUrl=go_url(f"{receiver.url}/callback")))
    wait_until(lambda: receiver.running == 1, "the callback to arrive")
    wait_quietly()
    assert queue.nats.state(queue.name)["messages"] == 1
    receiver.release("callback")
    queue.wait_empty()
    assert functions.calls() == {"one": 1}


@pytest.mark.parametrize("where", ["there", "dead"])
def test_callback_url_is_logged_without_credentials(case: Case, where: str) -> None:
    """The worker logs neither user, password nor query of a callback's URL, whether the callback succeeds or fails."""
    case.answer_callbacks(Reply(500), Reply(200))
    url = case.callback if where == "there" else f"http://127.0.0.1:{free_port()}/x"
    assert case.run(CallbackUrl=url.replace("http://", "http://user-s3cret:pass-s3cret@") + "?t=query-s3cret") == 1
    assert len(case.callbacks) == (2 if where == "there" else 0)
    logged = [str(line) for line in case.lines if "allback" in line["event"] or "result" in line["event"]]
    assert len(logged) >= 2
    assert "s3cret" not in case.worker.output


def test_concurrent_callbacks_go_to_their_own_urls(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """Each of 200 concurrent results goes to its own caller's URL."""
    start(max_inflight=20)
    calls = [f"call-{number}" for number in range(200)]
    queue.put(*(message("echo", call, CallbackUrl=go_url(f"{receiver.url}/to/{call}")) for call in calls))
    queue.wait_empty()
    assert functions.calls() == dict.fromkeys(calls, 1)
    received = sorted((request.target, request.call_id) for request in receiver.requests)
    assert received == sorted((f"/to/{call}", call) for call in calls)
