"""``queue-worker gateway``: contract, section 9. A real nats-server, a real process, real sockets."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message as AsgiEvent

from tests.gateway import Answer, Gateway, gateway_on
from tests.servers import NatsServer, Program, run_program, wait_until
from tests.wire import Stored
from worker.dev.stack import free_port
from worker.gateway.http import BodyReader, CallerDisconnectedError, RequestRejectedError

_numbers = count(1)
MAX_PAYLOAD = 1_048_576
"""nats-server's default (bytes)."""


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server for the tests that leave it alone."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        server.make_stream()
        yield server


@pytest.fixture(scope="module")
def gateway(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway on it, with debug logs."""
    with gateway_on(nats, tmp_path_factory.mktemp("gateway"), debug="true") as started:
        yield started


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A server for one test, which may do to it what it likes."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


def stored(nats: NatsServer, answer: Answer) -> list[Stored]:
    """The messages of an answer's call id."""
    return [each for each in nats.messages() if each.headers.get("Nats-Msg-Id") == answer.headers["X-Call-Id"]]


# What is queued.


def test_202_tells_of_a_message_that_is_stored(nats: NatsServer, gateway: Gateway) -> None:
    """The answer's call id and start time are those of the message, which is on its function's own subject."""
    before = time.time_ns()
    answer = gateway.queue("echo.fn/a%2Fb/c?x=1&y=%20", b"hello", Content_Type="text/plain")
    after = time.time_ns()
    assert (answer.status, answer.body) == (202, b"")
    (message,) = stored(nats, answer)
    assert message.subject == "faas-request.0.echo.fn"
    written = message.json
    assert written["Header"]["X-Call-Id"] == [answer.headers["X-Call-Id"]]
    assert written["Header"]["X-Start-Time"] == [answer.headers["X-Start-Time"]]
    assert before <= int(answer.headers["X-Start-Time"]) <= after
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", answer.headers["X-Call-Id"])
    del written["Header"]
    assert written == {
        "Host": f"127.0.0.1:{gateway.port}",
        "Body": "aGVsbG8=",
        "Method": "POST",
        "Path": "/a%2Fb/c",
        "QueryString": "x=1&y=%20",
        "Function": "echo.fn",
        "QueueName": "faas-request",
    }


def test_a_function_without_a_namespace_gets_the_default_one_in_its_subject(nats: NatsServer, gateway: Gateway) -> None:
    """The message has the name as the caller wrote it."""
    (message,) = stored(nats, gateway.queue("echo"))
    assert message.subject == "faas-request.0.echo.openfaas-fn"
    assert message.json["Function"] == "echo"


def test_queue_stream_and_namespace_are_settings(nats: NatsServer, tmp_path: Path) -> None:
    """``nats_stream``, ``queue_name``, ``default_function_name``."""
    nats.make_stream("OF_other", "other")
    with gateway_on(nats, tmp_path, nats_stream="OF_other", default_function_name="fn") as gateway:
        assert gateway.queue("echo").status == 202
    (message,) = nats.messages("OF_other")
    assert message.subject == "other.0.echo.fn"
    assert message.json["QueueName"] == "other"


def test_a_callback_is_in_the_message(nats: NatsServer, gateway: Gateway) -> None:
    """As Go's ``url.URL``; the header stays, as OpenFaaS's gateway leaves it."""
    (message,) = stored(nats, gateway.queue("echo", X_Callback_Url="http://h:1/a%2Fb?c"))
    assert message.json["CallbackUrl"]["Host"] == "h:1"
    assert message.json["CallbackUrl"]["RawPath"] == "/a%2Fb"
    assert message.json["Header"]["X-Callback-Url"] == ["http://h:1/a%2Fb?c"]


def test_the_same_call_id_is_queued_once(nats: NatsServer, gateway: Gateway) -> None:
    """Within the stream's window; both callers get 202, since for both the invocation is queued."""
    call_id = f"call-{next(_numbers)}"
    answers = [gateway.queue("echo", X_Call_Id=call_id) for _ in range(3)]
    assert [(answer.status, answer.headers["X-Call-Id"]) for answer in answers] == [(202, call_id)] * 3
    assert len(stored(nats, answers[0])) == 1


def test_many_at_once(nats: NatsServer, gateway: Gateway) -> None:
    """Each answer is of its own message: no confirmation is taken for another's."""
    bodies = {f"many-{number}": b"%d" % number for number in range(300)}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda call: gateway.queue("echo", bodies[call], X_Call_Id=call), bodies))
    assert [answer.headers["X-Call-Id"] for answer in answers] == list(bodies)
    held = {each.headers["Nats-Msg-Id"]: each.json.get("Body") for each in nats.messages()}
    assert {call: base64.b64decode(held[call]) for call in bodies} == bodies


def test_a_connection_is_kept(gateway: Gateway) -> None:
    """Many requests on one connection, refused ones among them, their bodies read or not."""
    connection = gateway.connection()
    for function, body, status in [("echo", b"x", 202), ("Bad", b"x" * 2_000_000, 400), ("echo", b"", 202)] * 3:
        connection.request("POST", f"/async-function/{function}", body)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


# What is refused.


@pytest.mark.parametrize(
    ("below", "headers", "reason"),
    [
        ("Bad", {}, "not a function's name: 'Bad'"),
        ("", {}, "not a function's name: ''"),
        ("a.b.c", {}, "not a function's name"),
        ("%00", {}, "not a function's name"),
        ("echo/../x", {}, "the path has a . or .. segment"),
        ("echo/%zz", {}, "a % that begins no escape"),
        ("echo", {"X_Call_Id": "x" * 257}, "X-Call-Id is not one"),
        ("echo", {"X_Callback_Url": "ftp://h/"}, "only http and https"),
        ("echo", {"X_Callback_Url": "nowhere"}, "X-Callback-Url cannot be posted to"),
    ],
)
def test_400_says_what_is_wrong(
    nats: NatsServer, gateway: Gateway, below: str, headers: dict[str, str], reason: str
) -> None:
    """In a sentence for the caller; and nothing is queued."""
    before = nats.state()["messages"]
    answer = gateway.queue(below, b"x", **headers)
    assert (answer.status, reason in answer.text) == (400, True), answer
    assert nats.state()["messages"] == before


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE", "OPTIONS"])
def test_other_methods_are_405(gateway: Gateway, method: str) -> None:
    """It says which is allowed."""
    answer = gateway.ask(method, "/async-function/echo")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


def test_what_is_elsewhere_is_404(gateway: Gateway) -> None:
    """Also what merely begins alike."""
    assert {gateway.ask("POST", path).status for path in ("/", "/async-function", "/x", "/functions/echo")} == {404}


@pytest.mark.parametrize("size", [786_433, 3_000_000])
def test_a_body_that_no_message_has_room_for_is_413(gateway: Gateway, size: int) -> None:
    """By its announced length: three quarters of max_payload, as base64 takes the rest."""
    answer = gateway.queue("echo", b"x" * size)
    assert (answer.status, "786432 bytes" in answer.text) == (413, True)


def test_a_body_of_unknown_length_is_cut_off(gateway: Gateway) -> None:
    """It is not read past the bound, however long it would go on."""
    connection = gateway.connection()
    connection.request("POST", "/async-function/echo", iter([b"x" * 100_000] * 30), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_caller_that_asks_first_is_spared_the_sending(gateway: Gateway) -> None:
    """``Expect: 100-continue`` with too long a body gets the 413 at once, and the connection is closed."""
    with gateway.raw() as raw:
        raw.sendall(
            b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 9999999\r\n\r\n"
        )
        answer = _until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer


def test_headers_count_towards_the_message(nats: NatsServer, gateway: Gateway) -> None:
    """What fits as a body and not as a message is 413, and not sent: the server would close the connection for it."""
    assert gateway.queue("echo", b"x" * 786_432).status == 413
    assert gateway.queue("echo", b"x" * 785_000).status == 202
    assert len(nats.messages()[-1].data) > MAX_PAYLOAD * 0.99


def test_a_header_has_a_bound(gateway: Gateway) -> None:
    """64 KiB, then the request is refused: a caller cannot make us hold more."""
    with gateway.raw() as raw:
        raw.sendall(b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\n")
        try:
            for number in range(1000):
                raw.sendall(b"X-%d: %s\r\n" % (number, b"x" * 1000))
            answer = _until_closed(raw)
        except ConnectionError:
            answer = b""  # it was closed while we were still sending
    assert not answer or answer.startswith(b"HTTP/1.1 400 ")
    assert gateway.ready()


def test_a_slow_body_is_408() -> None:
    """A caller has a time to send its body in."""

    async def never() -> AsgiEvent:
        await asyncio.sleep(3600)
        raise AssertionError

    with pytest.raises(RequestRejectedError) as caught:
        asyncio.run(_read(BodyReader(within=0.01), never))
    assert caught.value.status == 408


def test_all_bodies_together_have_a_bound() -> None:
    """Past it, 503: memory is not the callers' to fill. What is done with makes room."""
    bodies = BodyReader(max_total=25)

    async def three() -> list[int]:
        held, results = asyncio.Event(), []

        async def hold() -> None:
            async with bodies.read({"headers": []}, _body(b"x" * 20), 100):
                held.set()
                await asyncio.sleep(0)

        holding = asyncio.ensure_future(hold())
        await held.wait()
        for _ in range(2):
            try:
                results.append(len(await _read(bodies, _body(b"y" * 10))))
            except RequestRejectedError as refused:
                results.append(refused.status)
            await holding
        return results

    assert asyncio.run(three()) == [503, 10]


def test_a_caller_that_goes_away_queues_nothing() -> None:
    """A body that breaks off is nobody's request."""

    async def gone() -> AsgiEvent:
        return {"type": "http.disconnect"}

    with pytest.raises(CallerDisconnectedError):
        asyncio.run(_read(BodyReader(), gone))


# When the queue cannot take it.


def test_no_stream_is_503(tmp_path: Path) -> None:
    """It names the stream and the subject, says what to do, when to come again, and under which call id."""
    with NatsServer(tmp_path) as nats, gateway_on(nats, tmp_path) as gateway:
        answer = gateway.queue("echo")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "faas-request.0.echo.openfaas-fn" in answer.text
        assert "start a worker" in answer.text
        assert answer.headers["X-Call-Id"]
        nats.make_stream()
        assert gateway.queue("echo").status == 202


def test_a_stream_of_another_name_is_503(tmp_path: Path) -> None:
    """A message never goes onto another stream than the one that the worker reads."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream("other", "faas-request")
        with gateway_on(nats, tmp_path) as gateway:
            answer = gateway.queue("echo")
            assert (answer.status, "another stream than faas-request" in answer.text) == (503, True)
        assert nats.messages("other") == []


def test_a_stream_that_refuses_is_503(tmp_path: Path) -> None:
    """With its reason; one that is too large for that stream is 413."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream(max_msgs=1, discard="new", max_msg_size=2000)
        with gateway_on(nats, tmp_path) as gateway:
            assert gateway.queue("echo").status == 202
            full = gateway.queue("echo")
            assert (full.status, "maximum messages exceeded" in full.text) == (503, True)
            assert gateway.queue("echo", b"x" * 3000).status == 413


def test_it_starts_before_nats_does(tmp_path: Path) -> None:
    """Alive but not ready, 503 for callers; it connects when there is something to connect to."""
    nats = NatsServer(tmp_path)
    nats.port = free_port()
    with Gateway(tmp_path=tmp_path, nats_port=nats.port) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        assert gateway.ask("GET", "/readyz").status == 503
        answer = gateway.queue("echo")
        assert (answer.status, "not connected to NATS" in answer.text) == (503, True)
        with nats:
            nats.make_stream()
            wait_until(gateway.ready, "the gateway to be ready")
            assert gateway.queue("echo").status == 202


def test_it_outlives_a_restart_of_nats(own_nats: NatsServer, tmp_path: Path) -> None:
    """503 while it is gone, 202 when it is back; what was refused is not sent late."""
    with gateway_on(own_nats, tmp_path) as gateway:
        own_nats.stop()
        wait_until(lambda: not gateway.ready(), "the gateway to notice")
        assert gateway.queue("echo", X_Call_Id="refused").status == 503
        own_nats.start()
        wait_until(gateway.ready, "the gateway to be ready again")
        assert gateway.queue("echo", X_Call_Id="taken").status == 202
        assert [message.headers["Nats-Msg-Id"] for message in own_nats.messages()] == ["taken"]


def test_a_frozen_server_is_503_and_the_call_id_makes_a_second_try_safe(own_nats: NatsServer, tmp_path: Path) -> None:
    """Nobody knows whether the first was stored, and the second finds out: one message in the end."""
    with gateway_on(own_nats, tmp_path) as gateway:
        own_nats.pause()
        first = gateway.queue("echo")
        assert (first.status, "did not confirm within 5 s" in first.text) == (503, True)
        own_nats.resume()
        wait_until(lambda: gateway.queue("echo", X_Call_Id=first.headers["X-Call-Id"]).status == 202, "a 202")
        assert len(stored(own_nats, first)) == 1


def test_no_202_is_lost_when_nats_is_killed(own_nats: NatsServer, tmp_path: Path) -> None:
    """Under load, SIGKILL: every invocation that was answered 202 is on the stream afterwards."""
    with gateway_on(own_nats, tmp_path) as gateway, ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(gateway.queue, "echo", b"x" * 500) for _ in range(2000)]
        wait_until(lambda: sum(post.done() for post in posts) > 300, "some to be queued")
        own_nats.kill()
        answers = [post.result() for post in posts]
        own_nats.start()
        taken = {answer.headers["X-Call-Id"] for answer in answers if answer.status == 202}
        assert {answer.status for answer in answers} == {202, 503}
        assert taken <= {message.headers["Nats-Msg-Id"] for message in own_nats.messages()}


# The process.


def test_it_authenticates(tmp_path: Path) -> None:
    """With the settings of section 2; refused credentials are fatal, and the message says which settings to look at."""
    config, connect = "authorization { token: s3cret }", {"auth_token": "s3cret"}
    with NatsServer(tmp_path, config=config, connect=connect) as nats:
        nats.make_stream()
        with gateway_on(nats, tmp_path, nats_token="s3cret") as gateway:
            assert gateway.queue("echo").status == 202
        with Gateway(tmp_path=tmp_path, nats_port=nats.port, nats_token="wr0ng") as refused:
            assert refused.wait() == 1
            assert re.search(r"NATS refuses our credentials .*: check nats_token", refused.stderr)
            assert "wr0ng" not in refused.output


def test_a_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    """Exit code 1."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {"listen_host": "127.0.0.1", "listen_port": taken.getsockname()[1]}
        code, _, errors = run_program("worker.cli", "gateway", tmp_path=tmp_path, settings=settings)
    assert code == 1
    assert errors == f"queue-worker: cannot listen on 127.0.0.1:{settings['listen_port']}: Address already in use\n"


def test_settings_that_cannot_be_are_bad_usage(tmp_path: Path) -> None:
    """Exit code 2, one message that names them all."""
    code, _, errors = run_program(
        "worker.cli", "gateway", tmp_path=tmp_path, settings={"listen_port": "x", "nats_port": "y"}
    )
    assert code == 2
    assert "listen_port = 'x'" in errors
    assert "nats_port = 'y'" in errors


@pytest.mark.parametrize("stop", [Program.terminate, Program.interrupt], ids=["SIGTERM", "SIGINT"])
def test_it_ends_in_order(nats: NatsServer, tmp_path: Path, stop: Any) -> None:
    """It takes no new connection, lets the request that is under way end, and exits with 0."""
    with gateway_on(nats, tmp_path) as gateway, gateway.raw() as raw:
        raw.sendall(b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nx")
        wait_until(gateway.ready, "the request to have been read")
        stop(gateway)
        wait_until(lambda: not gateway.healthy(), "the gateway to stop listening")
        raw.sendall(b"y")
        assert _until_closed(raw).startswith(b"HTTP/1.1 202 ")
        assert gateway.wait() == 0


def test_logs_hold_nothing_that_is_the_callers(nats: NatsServer, tmp_path: Path) -> None:
    """At debug level too: a line for each invocation with its call id, and no body, header or query."""
    with gateway_on(nats, tmp_path, debug="true", log_encoding="json") as gateway:
        answer = gateway.queue(
            "echo/path?s3cret",
            b"s3cret",
            Authorization="Bearer s3cret",
            X_Callback_Url="http://h/?s3cret",
        )
        gateway.queue("echo?s3cret", b"s3cret" * 200_000)
        gateway.queue("echo", b"s3cret", X_Callback_Url="http://u:s3cret@h/?s3cret")
        gateway.terminate()
        assert gateway.wait() == 0
        assert answer.headers["X-Call-Id"] in gateway.output
        assert "s3cret" not in gateway.output
        assert {json.loads(line)["event"] for line in gateway.stdout.splitlines()} >= {"Listening", "Queued", "Stopped"}


async def _read(bodies: BodyReader, receive: Any) -> bytes:
    async with bodies.read({"headers": []}, receive, 100) as body:
        return body


def _body(content: bytes) -> Any:
    async def receive() -> AsgiEvent:
        return {"type": "http.request", "body": content, "more_body": False}

    return receive


def _until_closed(raw: socket.socket) -> bytes:
    received = b""
    while data := raw.recv(65_536):
        received += data
    return received
