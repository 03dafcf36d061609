"""The functions' annotations, which the producer reads from the gateway and writes into messages: real processes."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.functions import Functions, Reply
from tests.gateway import Gateway, Response, gateway_on
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, wait_until
from worker.dev.stack import free_port
from worker.policy.function_records import FRESH

RETRY = "com.openfaas.retry.attempts"


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """Start a server with the queue's stream."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


@pytest.fixture
def functions() -> Iterator[Functions]:
    """Start the gateway of OpenFaaS."""
    with Functions() as server:
        yield server


@pytest.fixture
def gateway(nats: NatsServer, functions: Functions, tmp_path: Path) -> Iterator[Gateway]:
    """Start the producer before it."""
    with gateway_on(nats, tmp_path, gateway_url=functions.url, log_encoding="json") as started:
        yield started


@contextmanager
def silent_server() -> Iterator[str]:
    """Listen without ever accepting a connection, and yield the URL."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def stored(nats: NatsServer, answer: Response, stream: str = "faas-request") -> dict[str, Any]:
    """Return the message of an accepted call."""
    assert answer.status == 202, answer
    (found,) = [
        each.json for each in nats.messages(stream) if each.json["Header"]["X-Call-Id"] == [answer.headers["X-Call-Id"]]
    ]
    return dict(found)


def annotations_of(nats: NatsServer, answer: Response) -> Any:
    """Return the annotations in the message of an accepted call; None if it has none, not even an empty object."""
    return stored(nats, answer).get("Annotations")


def logged(gateway: Gateway, level: str = "warning") -> list[str]:
    """Return the events of a level that the gateway has logged, less those about its start."""
    gateway.healthy()
    lines = [json.loads(line) for line in gateway.stdout.splitlines()]
    return [line["event"] for line in lines if line["level"] == level]


def test_message_carries_the_annotations_that_workers_read(
    nats: NatsServer, functions: Functions, gateway: Gateway
) -> None:
    """Those of retries, weight, cap and rate travel, others do not; the request names the function's namespace."""
    functions.deploy("echo", retry_attempts="2", queue_weight="3", retry_foo="x", retry_max_wait="1s")
    functions.deploy("echo", "dev", queue_rate="5/s")
    assert annotations_of(nats, gateway.queue("echo")) == {
        RETRY: "2",
        "com.openfaas.queue.weight": "3",
        "com.openfaas.retry.max_wait": "1s",
    }
    assert annotations_of(nats, gateway.queue("echo.dev")) == {"com.openfaas.queue.rate": "5/s"}
    assert [each.target for each in functions.look_ups] == [
        "/system/function/echo?namespace=openfaas-fn",
        "/system/function/echo?namespace=dev",
    ]


def test_message_of_a_function_without_annotations_has_an_empty_object(
    nats: NatsServer, functions: Functions, gateway: Gateway
) -> None:
    """A known function without annotations has none, which ends its quota; of an unknown one that is not known."""
    functions.deploy("echo")
    assert annotations_of(nats, gateway.queue("echo")) == {}
    assert annotations_of(nats, gateway.queue("unknown")) is None


def test_headers_of_callers_set_no_annotation(nats: NatsServer, functions: Functions, gateway: Gateway) -> None:
    """Whatever header or body a caller sends, the message has the gateway's annotations only."""
    functions.deploy("echo", retry_attempts="2")
    for name in (RETRY, "Annotations", "X-Annotations", "X-Openfaas-Annotation-Com.openfaas.retry.attempts"):
        headers = {name: "99", "Content-Type": "application/json"}
        body = b'{"Annotations": {"com.openfaas.retry.attempts": "99"}}'
        answer = gateway.request("POST", "/async-function/echo", body, headers)
        assert annotations_of(nats, answer) == {RETRY: "2"}


def test_calls_within_seconds_share_one_request(functions: Functions, gateway: Gateway) -> None:
    """Many calls of one function cause one request for its annotations; an unknown function is asked for again."""
    functions.deploy("echo")
    for _ in range(50):
        assert gateway.queue("echo").status == 202
    assert len(functions.look_ups) == 1
    for _ in range(20):
        assert gateway.queue("unknown").status == 202
    assert len(functions.look_ups) < 10


def test_changed_annotations_arrive_within_seconds(nats: NatsServer, functions: Functions, gateway: Gateway) -> None:
    """A change counts when the copy is no longer fresh, also for a function that is called all the time."""
    functions.deploy("echo", retry_attempts="2")
    assert annotations_of(nats, gateway.queue("echo")) == {RETRY: "2"}
    functions.deploy("echo", retry_attempts="7")
    changed_at = time.monotonic()
    wait_until(lambda: annotations_of(nats, gateway.queue("echo")) == {RETRY: "7"}, "the change")
    assert len(functions.look_ups) <= 2 + (time.monotonic() - changed_at) / FRESH


def test_gateway_that_asks_for_credentials_gets_them_from_files(
    nats: NatsServer, functions: Functions, tmp_path: Path
) -> None:
    """User and password come from files, and count again when they are rotated; they are sent to the gateway only."""
    functions.credentials = "admin:old"
    functions.deploy("echo", retry_attempts="2")
    user, password = tmp_path / "user", tmp_path / "password"
    user.write_text("admin\n")
    password.write_text("old\n")
    settings = {"basic_auth_user_file": user, "basic_auth_password_file": password, "log_encoding": "json"}
    with gateway_on(nats, tmp_path, gateway_url=functions.url, **settings) as gateway:
        assert annotations_of(nats, gateway.queue("echo")) == {RETRY: "2"}
        functions.credentials = "admin:new"
        password.write_text("new")
        functions.deploy("echo", retry_attempts="3")
        wait_until(lambda: annotations_of(nats, gateway.queue("echo")) == {RETRY: "3"}, "the change")
        assert logged(gateway) == []


def test_gateway_that_refuses_is_reported_with_the_settings(
    nats: NatsServer, functions: Functions, gateway: Gateway
) -> None:
    """Without credentials, calls are queued without annotations, and one line names the settings to use."""
    functions.credentials = "admin:secret"
    functions.deploy("echo", retry_attempts="2")
    for name in ("echo", "echo", "other", "third"):
        assert annotations_of(nats, gateway.queue(name)) is None
    (line,) = logged(gateway)
    assert "basic_auth_user_file and basic_auth_password_file" in line


def test_credentials_in_gateway_url_are_sent(nats: NatsServer, functions: Functions, tmp_path: Path) -> None:
    """User and password in ``gateway_url`` are sent as basic authentication."""
    functions.credentials = "admin:s@cret"
    functions.deploy("echo", retry_attempts="2")
    url = functions.url.replace("://", "://admin:s%40cret@") + "/prefix"
    with gateway_on(nats, tmp_path, gateway_url=url) as gateway:
        assert annotations_of(nats, gateway.queue("echo")) == {RETRY: "2"}
        assert functions.look_ups[0].target.startswith("/prefix/system/function/echo?")
        assert "s@cret" not in gateway.output
        assert "s%40cret" not in gateway.output


@pytest.mark.parametrize(
    "reply",
    [
        Reply(200, b"<html>log in</html>"),
        Reply(200, b'{"name": 1}'),
        Reply(200, b"[]"),
        Reply(200, b"\xff" * 100),
        Reply(200, b'{"name": "echo", "annotations": [1]}'),
        Reply(200, b"{" + b" " * 2**21),
        Reply(200, b'{"a":' * 100_000),
        Reply(302, b"", (("Location", "http://127.0.0.1:1/"),)),
        Reply(400, b"no"),
        Reply(500, b"no"),
        Reply(503, b"no"),
        Reply(raw=b"not HTTP\r\n\r\n"),
        Reply(reset=True, raw=b""),
    ],
    ids=lambda reply: f"{reply.status}-{(reply.raw or reply.body)[:8]!r}",
)
def test_answer_that_is_no_status_queues_without_annotations(
    nats: NatsServer, functions: Functions, gateway: Gateway, reply: Reply
) -> None:
    """Whatever the gateway answers, the call is queued, one line reports it, and the next good answer counts."""
    functions.look_up_reply = reply
    for _ in range(3):
        assert annotations_of(nats, gateway.queue("echo")) is None
    assert len(logged(gateway)) == 1
    functions.look_up_reply = None
    functions.deploy("echo", retry_attempts="2")
    wait_until(lambda: annotations_of(nats, gateway.queue("echo")) == {RETRY: "2"}, "the annotations")


def test_outage_of_the_gateway_leaves_the_last_annotations(nats: NatsServer, tmp_path: Path) -> None:
    """While the gateway is away, known functions keep their annotations, others have none; one line reports it."""
    port = free_port()
    settings: dict[str, object] = {"gateway_url": f"http://127.0.0.1:{port}", "log_encoding": "json"}
    with gateway_on(nats, tmp_path, **settings) as gateway:
        with Functions(port) as functions:
            functions.deploy("echo", retry_attempts="2")
            assert annotations_of(nats, gateway.queue("echo")) == {RETRY: "2"}
        wait_until(lambda: gateway.queue("x").status == 202 and logged(gateway), "the outage to be noticed")
        time.sleep(FRESH)
        for name, expected in (("echo", {RETRY: "2"}), ("new", None), ("echo", {RETRY: "2"})):
            assert annotations_of(nats, gateway.queue(name)) == expected
        assert len(logged(gateway)) == 1
        with Functions(port) as functions:
            functions.deploy("echo", retry_attempts="3")
            functions.deploy("new", retry_attempts="4")
            for name, attempts in (("echo", "3"), ("new", "4")):
                wait_until(lambda: annotations_of(nats, gateway.queue(name)) == {RETRY: attempts}, "the annotations")  # noqa: B023 -- called in the loop
        assert logged(gateway, "info").count("The gateway describes functions again") == 1


def test_gateway_that_never_answers_delays_one_call(nats: NatsServer, tmp_path: Path) -> None:
    """Calls wait once for a gateway that accepts no connection: further ones are queued at once."""
    with silent_server() as url, gateway_on(nats, tmp_path, gateway_url=url, log_encoding="json") as gateway:
        assert annotations_of(nats, gateway.queue("echo")) is None
        wait_until(lambda: logged(gateway), "the outage to be noticed")
        began = time.monotonic()
        for number in range(100):
            assert gateway.queue(f"echo-{number}").status == 202
        assert time.monotonic() - began < LAST_RESORT / 2  # 100 waits of a second would take longer
        assert len(logged(gateway)) == 1


def test_function_annotations_false_requests_nothing(nats: NatsServer, functions: Functions, tmp_path: Path) -> None:
    """With ``function_annotations=false`` the gateway gets no request."""
    functions.deploy("echo", retry_attempts="2")
    with gateway_on(nats, tmp_path, gateway_url=functions.url, function_annotations="false") as gateway:
        assert annotations_of(nats, gateway.queue("echo")) is None
        assert functions.look_ups == []


def test_invalid_names_request_nothing(functions: Functions, gateway: Gateway) -> None:
    """A name that is no function's never reaches the gateway."""
    for name in ("Echo", "%2e%2e", "echo%3Fx", "a.b.c", "echo%2Fx"):
        assert gateway.queue(name).status == 400
    assert functions.look_ups == []


def test_invented_names_take_no_copy_and_few_requests_at_once(
    nats: NatsServer, functions: Functions, gateway: Gateway
) -> None:
    """A flood of unknown names reaches the gateway in eight requests at once, and leaves known functions alone."""
    functions.deploy("echo", retry_attempts="2")
    assert annotations_of(nats, gateway.queue("echo")) == {RETRY: "2"}
    functions.look_up_reply = Reply(404, b"", after=0.02)
    with ThreadPoolExecutor(30) as pool:
        flood = [pool.submit(gateway.queue, f"invented-{number}") for number in range(600)]
        functions_during = [gateway.queue("echo") for _ in range(20)]
        assert {call.result().status for call in flood} == {202}
    assert [annotations_of(nats, answer) for answer in functions_during] == [{RETRY: "2"}] * 20
    assert functions.max_running <= 8


def test_answer_in_a_coding_that_was_not_requested_is_an_error(
    nats: NatsServer, functions: Functions, gateway: Gateway
) -> None:
    """A compressed answer is not unpacked, because a small one may unpack to any size."""
    body = gzip.compress(b'{"name": "echo", "annotations": {"com.openfaas.retry.attempts": "9"}}')
    functions.look_up_reply = Reply(200, body, (("Content-Encoding", "gzip"),))
    assert annotations_of(nats, gateway.queue("echo")) is None
    assert functions.look_ups[0].header("Accept-Encoding") == "identity"
    assert len(logged(gateway)) == 1


# function_check.


def test_function_check_answers_404_for_unknown_functions(
    nats: NatsServer, functions: Functions, tmp_path: Path
) -> None:
    """An unknown function is 404 and not queued; one that is deployed later is found within seconds."""
    functions.deploy("echo")
    with gateway_on(nats, tmp_path, gateway_url=functions.url, function_check="true") as gateway:
        assert gateway.queue("echo").status == 202
        answer = gateway.queue("typo", b"x")
        assert (answer.status, "no function typo" in answer.text) == (404, True)
        assert nats.state()["messages"] == 1
        assert gateway.queue("echo.dev").status == 404
        functions.deploy("typo")
        wait_until(lambda: gateway.queue("typo").status == 202, "the new function to be found")
        functions.remove("echo")
        wait_until(lambda: gateway.queue("echo").status == 404, "the removed function to be missed")


def test_function_check_answers_no_404_in_an_outage(nats: NatsServer, tmp_path: Path) -> None:
    """While the gateway does not answer, or only with errors, every function is queued."""
    with Functions() as functions:
        functions.deploy("echo")
        settings: dict[str, object] = {"gateway_url": functions.url, "function_check": "true"}
        with gateway_on(nats, tmp_path, function_annotations="false", **settings) as gateway:
            assert gateway.queue("typo").status == 404
            functions.look_up_reply = Reply(503)
            wait_until(lambda: gateway.queue("typo").status == 202, "the copy to be dropped")
            for name in ("typo", "echo", "other"):
                assert gateway.queue(name).status == 202
            functions.look_up_reply = None
            wait_until(lambda: gateway.queue("typo").status == 404, "the gateway to be asked again")


# Queues.


def test_queue_annotation_selects_the_queue(nats: NatsServer, functions: Functions, gateway: Gateway) -> None:
    """The message goes to the stream that has the queue's subjects, whatever its name; repeats are found there."""
    nats.make_stream("OF_slow-fns", "slow-fns")
    functions.deploy("slow", queue="slow-fns", retry_attempts="2")
    functions.deploy("fast")
    for _ in range(2):
        answer = gateway.queue("slow", b"x", X_Call_Id="one")
        message = stored(nats, answer, "OF_slow-fns")
        assert (message["QueueName"], message["Annotations"]) == ("slow-fns", {RETRY: "2"})
    assert answer.headers["Idempotent-Replayed"] == "true"
    assert gateway.queue("slow", b"y", X_Call_Id="one").status == 422
    assert [each.subject for each in nats.messages("OF_slow-fns")] == ["slow-fns.0.slow.openfaas-fn"]
    assert nats.state("OF_slow-fns-call-ids")["messages"] == 1
    assert stored(nats, gateway.queue("fast"))["QueueName"] == "faas-request"


def test_queue_annotation_without_a_stream_answers_503(
    nats: NatsServer, functions: Functions, gateway: Gateway
) -> None:
    """A queue without a stream of a worker is 503 with the queue and the remedy; later its stream is found."""
    functions.deploy("slow", queue="slow-fns")
    answer = gateway.queue("slow")
    assert (answer.status, "nats_stream=slow-fns" in answer.text) == (503, True)
    assert answer.headers["Retry-After"]
    nats.make_stream("slow-fns")
    assert stored(nats, gateway.queue("slow"), "slow-fns")["Function"] == "slow"
    assert nats.state()["messages"] == 0


@pytest.mark.parametrize(
    ("stream", "reason"),
    [
        ({"name": "orders", "queue": "orders", "retention": "limits"}, "its retention is 'limits'"),
        ({"name": "mixed", "subjects": ["orders.*.*.*"]}, "leave out 'orders'"),
    ],
)
def test_queue_annotation_that_names_another_program_s_stream_writes_nothing(
    nats: NatsServer, functions: Functions, gateway: Gateway, stream: dict[str, Any], reason: str
) -> None:
    """A stream that is no worker's gets no message, because it may be another program's."""
    nats.make_stream(**stream)
    functions.deploy("evil", queue="orders")
    answer = gateway.queue("evil")
    assert (answer.status, reason in answer.text) == (503, True), answer.text
    assert nats.messages(stream["name"]) == []


@pytest.mark.parametrize("queue", ["Orders", "a.b", "$JS.API.STREAM.DELETE.x", "x" * 300, ">", "a b"])
def test_queue_annotation_that_names_no_queue_answers_503(
    nats: NatsServer, functions: Functions, gateway: Gateway, queue: str
) -> None:
    """A value that cannot name a queue is 503 with the annotation, and one log line."""
    functions.deploy("evil", queue=queue)
    for _ in range(2):
        answer = gateway.queue("evil")
        assert (answer.status, "com.openfaas.queue of evil names no queue" in answer.text) == (503, True)
    assert len(logged(gateway)) == 1
    assert nats.state()["messages"] == 0
