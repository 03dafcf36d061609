"""``queue-worker gateway``: contract, section 9. A real nats-server, a real process, real sockets."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message as AsgiEvent

from tests.functions import Functions
from tests.gateway import Gateway, Response, gateway_on
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, Program, run_program, wait_until
from tests.wire import StoredMessage
from worker.dev.stack import free_port
from worker.gateway.large_bodies import BodyReader

BUCKET = "OBJ_faas-request-bodies"
MAX_PAYLOAD = 1_048_576
"""nats-server's default (bytes)."""
GATEWAY_SETTINGS = {"debug": "true"}


def stored(nats: NatsServer, answer: Response) -> list[StoredMessage]:
    """Return the messages with the call id of an answer."""
    return [each for each in nats.messages() if call_id(each) == answer.headers["X-Call-Id"]]


def call_id(message: StoredMessage) -> str:
    """Return the call id of a stored message."""
    (found,) = message.json["Header"]["X-Call-Id"]
    return str(found)


# Queued invocations.


def test_post_accepted_answers_202_with_the_stored_message_s_call_id(nats: NatsServer, gateway: Gateway) -> None:
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


def test_post_without_namespace_uses_the_default_namespace(nats: NatsServer, gateway: Gateway) -> None:
    """Without a namespace the message is published on the default namespace's subject, with the name as written."""
    (message,) = stored(nats, gateway.queue("echo"))
    assert message.subject == "faas-request.0.echo.openfaas-fn"
    assert message.json["Function"] == "echo"


def test_post_with_other_settings_uses_their_queue_stream_and_namespace(nats: NatsServer, tmp_path: Path) -> None:
    """The settings ``nats_stream``, ``queue_name`` and ``default_function_name`` determine the subject."""
    nats.make_stream("OF_other", "other")
    with gateway_on(nats, tmp_path, nats_stream="OF_other", default_function_name="fn") as gateway:
        assert gateway.queue("echo").status == 202
    (message,) = nats.messages("OF_other")
    assert message.subject == "other.0.echo.fn"
    assert message.json["QueueName"] == "other"


def test_post_with_callback_stores_it_as_go_s_url(nats: NatsServer, gateway: Gateway) -> None:
    """The callback is in the message as Go's ``url.URL``; the header stays, as in OpenFaaS's gateway."""
    (message,) = stored(nats, gateway.queue("echo", X_Callback_Url="http://h:1/a%2Fb?c"))
    assert message.json["CallbackUrl"]["Host"] == "h:1"
    assert message.json["CallbackUrl"]["RawPath"] == "/a%2Fb"
    assert message.json["Header"]["X-Callback-Url"] == ["http://h:1/a%2Fb?c"]


def test_posts_at_once_are_each_confirmed(nats: NatsServer, gateway: Gateway) -> None:
    """Of many posts at once, each answer belongs to its own message."""
    bodies = {f"many-{number}": b"%d" % number for number in range(300)}
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda call: gateway.queue("echo", bodies[call], X_Call_Id=call), bodies))
    assert [answer.headers["X-Call-Id"] for answer in answers] == list(bodies)
    held = {call_id(each): each.json.get("Body") for each in nats.messages()}
    assert {call: base64.b64decode(held[call]) for call in bodies} == bodies


def test_connection_after_many_requests_is_still_used(gateway: Gateway) -> None:
    """All requests of one connection are answered, also after rejected ones with an unread body."""
    connection = gateway.connection()
    for function, body, status in [("echo", b"x", 202), ("Bad", b"x" * 2_000_000, 400), ("echo", b"", 202)] * 3:
        connection.request("POST", f"/async-function/{function}", body)
        response = connection.getresponse()
        response.read()
        assert response.status == status
    connection.close()


# Rejected requests.


@pytest.mark.parametrize(
    ("below", "headers", "reason"),
    [
        ("Bad", {}, "not a function's name: 'Bad'"),
        ("", {}, "not a function's name: ''"),
        ("a.b.c", {}, "not a function's name"),
        ("%00", {}, "not a function's name"),
        ("echo/../x", {}, "the path has a . or .. segment"),
        ("echo/%2e%2E/x", {}, "the path has a . or .. segment"),
        ("echo//x", {}, "the path has an empty segment"),
        ("echo/x%2F%2fy", {}, "the path has an empty segment"),
        ("echo%2F..%2Fx", {}, "not a function's name"),
        ("/echo", {}, "not a function's name: ''"),
        ("echo/%zz", {}, "a % that begins no escape"),
        ("echo", {"X_Call_Id": "x" * 257}, "X-Call-Id is not one"),
        ("echo", {"X_Callback_Url": "ftp://h/"}, "only http and https"),
        ("echo", {"X_Callback_Url": "nowhere"}, "X-Callback-Url cannot be posted to"),
    ],
)
def test_post_invalid_answers_400_with_the_reason(
    nats: NatsServer, gateway: Gateway, below: str, headers: dict[str, str], reason: str
) -> None:
    """An invalid request is answered with 400 and the reason, and is not queued."""
    before = nats.state()["messages"]
    answer = gateway.queue(below, b"x", **headers)
    assert (answer.status, reason in answer.text) == (400, True), answer
    assert nats.state()["messages"] == before


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE", "OPTIONS"])
def test_async_function_with_another_method_answers_405(gateway: Gateway, method: str) -> None:
    """Another method is answered with 405 and the allowed method."""
    answer = gateway.request(method, "/async-function/echo")
    assert (answer.status, answer.headers["Allow"]) == (405, "POST")


def test_unknown_path_answers_404(gateway: Gateway) -> None:
    """An unknown path is answered with 404, also if it begins like a known one."""
    assert {gateway.request("POST", path).status for path in ("/", "/async-function", "/x", "/functions/echo")} == {404}


@pytest.mark.parametrize("limit", [3_000, 2_000_000])
def test_body_above_its_limit_answers_413(nats: NatsServer, tmp_path: Path, limit: int) -> None:
    """A body above max_body_bytes is answered with 413, by its length or where it has grown so long, and not kept."""
    with gateway_on(nats, tmp_path, max_body_bytes=limit) as gateway:
        assert gateway.queue("echo", b"x" * limit).status == 202
        objects = nats.state(BUCKET).get("messages", 0)
        answer = gateway.queue("echo", b"x" * (limit + 1))
        assert (answer.status, f"max_body_bytes allows {limit} bytes" in answer.text) == (413, True)
        connection = gateway.connection()
        connection.request(
            "POST", "/async-function/echo", iter([b"x" * 1000] * (limit // 1000 + 1)), encode_chunked=True
        )
        assert connection.getresponse().status == 413
        connection.close()
        wait_until(lambda: nats.state(BUCKET).get("messages", 0) == objects, "its chunks to be deleted")


def test_body_expecting_100_and_too_large_answers_413_at_once(gateway: Gateway) -> None:
    """A too large body with Expect: 100-continue is answered with 413 at once, and the connection is closed."""
    with gateway.raw() as raw:
        raw.sendall(
            b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\n"
            b"Expect: 100-continue\r\nContent-Length: 104857601\r\n\r\n"
        )
        answer = _until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close\r\n" in answer


def test_message_too_large_with_its_headers_has_a_reference(nats: NatsServer, gateway: Gateway) -> None:
    """The body of a message that exceeds max_payload only with its headers is stored beside the queue, too."""
    assert gateway.queue("echo", b"x" * 786_432).status == 202
    assert nats.messages()[-1].json["BodyObject"]["Size"] == 786_432
    assert gateway.queue("echo", b"x" * 785_000).status == 202
    assert len(nats.messages()[-1].data) > MAX_PAYLOAD * 0.99


def test_path_with_a_slash_at_its_end_is_queued(nats: NatsServer, gateway: Gateway) -> None:
    """A slash at the end of a path is no empty segment: Go's gateways keep it, so the function receives it."""
    for below, path in (("echo/", "/"), ("echo/x/", "/x/")):
        (message,) = stored(nats, gateway.queue(below))
        assert message.json["Path"] == path


@pytest.mark.parametrize(
    ("below", "header", "status"),
    [("echo", "\xff" * 25_000, 431), ("echo/" + "|" * 25_000, "", 414), ("echo?" + "q" * 36_000, "\xff" * 11_000, 414)],
    ids=["header", "path", "both"],
)
def test_request_too_large_for_a_worker_to_send_is_rejected(
    nats: NatsServer, gateway: Gateway, below: str, header: str, status: int
) -> None:
    """A request that fits, but becomes larger in the message, is answered with 431 or 414 and not queued."""
    before = nats.state()["messages"]
    answer = gateway.queue(below, b"x", X_Large=header)
    assert (answer.status, "a queued request has room for 65536" in answer.text) == (status, True)
    assert nats.state()["messages"] == before


def test_header_above_64_kib_is_rejected(gateway: Gateway) -> None:
    """A header above 64 KiB is rejected, so that a caller cannot fill the memory."""
    with gateway.raw() as raw:
        raw.sendall(b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\n")
        for number in range(1000):
            raw.sendall(b"X-%d: %s\r\n" % (number, b"x" * 1000))
        answer = _until_closed(raw)
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert gateway.ready()


def test_body_too_slow_answers_408() -> None:
    """A body that is not complete within its time is answered with 408."""

    async def never() -> AsgiEvent:
        await asyncio.sleep(3600)
        raise AssertionError

    with pytest.raises(HTTPException) as caught:
        asyncio.run(_read(BodyReader(within=0.01), never))
    assert caught.value.status_code == 408


def test_bodies_above_their_common_limit_answer_503() -> None:
    """Bodies above their common limit are answered with 503, until another body is complete."""
    bodies = BodyReader(max_total=25)

    async def three() -> list[int]:
        held, results = asyncio.Event(), []

        async def hold() -> None:
            async with bodies.read({"type": "http", "headers": []}, _body(b"x" * 20), 100):
                held.set()
                await asyncio.sleep(0)

        holding = asyncio.ensure_future(hold())
        await held.wait()
        for _ in range(2):
            try:
                results.append(len(await _read(bodies, _body(b"y" * 10))))
            except HTTPException as refused:
                results.append(refused.status_code)
            await holding
        return results

    assert asyncio.run(three()) == [503, 10]


def test_body_that_breaks_off_queues_nothing() -> None:
    """A body that breaks off is not published."""

    async def disconnected() -> AsgiEvent:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        asyncio.run(_read(BodyReader(), disconnected))


# Failures of the queue.


def test_post_without_a_stream_answers_503(tmp_path: Path) -> None:
    """Without a stream the answer is 503, with stream, subject, remedy, time to retry and call id."""
    with NatsServer(tmp_path) as nats, gateway_on(nats, tmp_path) as gateway:
        answer = gateway.queue("echo")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "faas-request.0.echo.openfaas-fn" in answer.text
        assert "start a worker" in answer.text
        assert answer.headers["X-Call-Id"]
        nats.make_stream()
        assert gateway.queue("echo").status == 202


def test_post_onto_another_stream_answers_503(tmp_path: Path) -> None:
    """A post whose subject belongs to another stream is answered with 503, because the worker does not read it."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream("other", "faas-request")
        with gateway_on(nats, tmp_path) as gateway:
            answer = gateway.queue("echo")
            assert (answer.status, "another stream than faas-request" in answer.text) == (503, True)
        assert nats.messages("other") == []


def test_post_refused_by_the_stream_answers_503_with_the_reason(tmp_path: Path) -> None:
    """A post that the stream refuses is answered with 503 and the reason, and with 413 if it is too large."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream(max_msgs=1, discard="new", max_msg_size=2000)
        with gateway_on(nats, tmp_path) as gateway:
            assert gateway.queue("echo").status == 202
            full = gateway.queue("echo")
            assert (full.status, "maximum messages exceeded" in full.text) == (503, True)
            assert gateway.queue("echo", b"x" * 3000).status == 413


def test_gateway_before_nats_is_alive_and_not_ready(tmp_path: Path) -> None:
    """Before NATS runs, the gateway is alive and not ready, and answers 503; it connects when the server starts."""
    nats = NatsServer(tmp_path)
    nats.port = free_port()
    with Gateway(tmp_path=tmp_path, nats_port=nats.port) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        assert gateway.request("GET", "/readyz").status == 503
        answer = gateway.queue("echo")
        assert (answer.status, "not connected to NATS" in answer.text) == (503, True)
        with nats:
            nats.make_stream()
            wait_until(gateway.ready, "the gateway to be ready")
            assert gateway.queue("echo").status == 202


def test_gateway_after_a_restart_of_nats_answers_202_again(own_nats: NatsServer, tmp_path: Path) -> None:
    """While the server is down callers get 503, and a rejected message is not published later."""
    with gateway_on(own_nats, tmp_path) as gateway:
        own_nats.stop()
        wait_until(lambda: not gateway.ready(), "the gateway to be not ready")
        assert gateway.queue("echo", X_Call_Id="refused").status == 503
        own_nats.start()
        wait_until(gateway.ready, "the gateway to be ready again")
        assert gateway.queue("echo", X_Call_Id="taken").status == 202
        assert [call_id(message) for message in own_nats.messages()] == ["taken"]


def test_post_to_a_frozen_server_answers_503_and_can_be_repeated(own_nats: NatsServer, tmp_path: Path) -> None:
    """A post to a frozen server may be stored or not; a repeat with its call id leaves one message."""
    with gateway_on(own_nats, tmp_path) as gateway:
        own_nats.pause()
        first = gateway.queue("echo")
        assert (first.status, "did not confirm within 5 s" in first.text) == (503, True)
        own_nats.resume()
        wait_until(lambda: gateway.queue("echo", X_Call_Id=first.headers["X-Call-Id"]).status == 202, "a 202")
        assert len(stored(own_nats, first)) == 1


def test_posts_answered_202_survive_sigkill_of_nats(own_nats: NatsServer, tmp_path: Path) -> None:
    """Every invocation that was answered 202 under load is on the stream afterwards."""
    with gateway_on(own_nats, tmp_path) as gateway, ThreadPoolExecutor(8) as pool:
        posts = [pool.submit(gateway.queue, "echo", b"x" * 500) for _ in range(2000)]
        wait_until(lambda: sum(post.done() for post in posts) > 300, "300 answers")
        own_nats.kill()
        answers = [post.result() for post in posts]
        own_nats.start()
        accepted = {answer.headers["X-Call-Id"] for answer in answers if answer.status == 202}
        assert {answer.status for answer in answers} == {202, 503}
        assert accepted <= {call_id(message) for message in own_nats.messages()}


# The process.


def test_gateway_with_refused_credentials_exits_1(tmp_path: Path) -> None:
    """On refused credentials the gateway exits with 1 and names their settings."""
    config, connect = "authorization { token: s3cret }", {"auth_token": "s3cret"}
    with NatsServer(tmp_path, config=config, connect=connect) as nats:
        nats.make_stream()
        with gateway_on(nats, tmp_path, nats_token="s3cret") as gateway:
            assert gateway.queue("echo").status == 202
        with Gateway(tmp_path=tmp_path, nats_port=nats.port, nats_token="wr0ng") as refused:
            assert refused.wait() == 1
            assert re.search(r"NATS refuses our credentials .*: check nats_token", refused.stderr)
            assert "wr0ng" not in refused.output


def test_gateway_on_a_taken_port_exits_1_with_one_line(tmp_path: Path) -> None:
    """On a port in use the gateway exits with 1 and one line, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        settings = {"listen_host": "127.0.0.1", "listen_port": listener.getsockname()[1]}
        code, _, errors = run_program("worker.cli", "gateway", tmp_path=tmp_path, settings=settings)
    assert code == 1
    assert errors == f"queue-worker: cannot listen on 127.0.0.1:{settings['listen_port']}: Address already in use\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0:0:0:0:0:0:0:0"])
def test_gateway_on_any_address_serves_both_families(nats: NatsServer, tmp_path: Path, host: str) -> None:
    """The default and ``::`` mean all addresses, of IPv4 and of IPv6, and the functions see IPv4 callers as such."""
    with Functions() as functions:
        settings = {"listen_host": host, "gateway_url": functions.url}
        with gateway_on(nats, tmp_path, **settings) as gateway:
            for address, family in (("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)):
                if family == socket.AF_INET6 and not _has_ipv6():
                    continue
                connection = http.client.HTTPConnection(address, gateway.port, timeout=LAST_RESORT)
                connection.request("GET", "/function/echo")
                assert connection.getresponse().status == 200
                connection.close()
                assert functions.requests[-1].header("X-Forwarded-For") == address


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_gateway_with_invalid_settings_exits_2(tmp_path: Path) -> None:
    """Invalid settings are named in one message, and the exit code is 2."""
    code, _, errors = run_program(
        "worker.cli", "gateway", tmp_path=tmp_path, settings={"listen_port": "x", "nats_port": "y"}
    )
    assert code == 2
    assert "listen_port = 'x'" in errors
    assert "nats_port = 'y'" in errors


@pytest.mark.parametrize("stop", [Program.terminate, Program.interrupt], ids=["SIGTERM", "SIGINT"])
def test_gateway_on_sigterm_ends_the_running_request_and_exits_0(nats: NatsServer, tmp_path: Path, stop: Any) -> None:
    """On SIGTERM the gateway accepts no new connection, ends the running request and exits with 0."""
    with gateway_on(nats, tmp_path) as gateway, gateway.raw() as raw:
        raw.sendall(b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nx")
        wait_until(gateway.ready, "the request to have been read")
        stop(gateway)
        wait_until(lambda: not gateway.healthy(), "the gateway to stop listening")
        raw.sendall(b"y")
        assert _until_closed(raw).startswith(b"HTTP/1.1 202 ")
        assert gateway.wait() == 0


def test_logs_at_debug_level_hold_no_body_header_or_query(nats: NatsServer, tmp_path: Path) -> None:
    """Each invocation has one line with its call id, and no line has a body, header or query."""
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
    async with bodies.read({"type": "http", "headers": []}, receive, 100) as body:
        assert isinstance(body, bytes)
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
