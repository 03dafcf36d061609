"""``/function/<name>…`` of the gateway: a proxy that changes nothing (contract, section 9)."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.functions import Functions, Reply
from tests.gateway import Gateway
from tests.servers import wait_until
from worker.dev.stack import free_port


@pytest.fixture(scope="module")
def functions() -> Iterator[Functions]:
    """Start the functions behind the gateway."""
    with Functions() as server:
        yield server
        assert not server.protocol_errors


@pytest.fixture(scope="module")
def gateway(functions: Functions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Start a gateway before them; it needs no NATS to pass requests on."""
    settings = {"gateway_url": functions.url, "upstream_timeout": "1s", "nats_port": free_port()}
    with Gateway(tmp_path=tmp_path_factory.mktemp("gateway"), **settings) as started:
        wait_until(started.healthy, "the gateway to listen")
        yield started


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_proxy_passes_method_target_body_and_headers_on(gateway: Gateway, functions: Functions, method: str) -> None:
    """The proxy passes method, target, body and headers on, except the headers of a single connection."""
    target = "/function/all.fn/a%2Fb//c?x=%20&y=%C3%A4"
    headers = {
        "Content-Type": "text/plain",
        "Cookie": "a=1",
        "X-Own": "kept",
        "Connection": "keep-alive, X-Named",
        "X-Named": "dropped",
        "TE": "trailers",
        "Proxy-Authorization": "dropped",
        "X-Forwarded-For": "10.0.0.1",
    }
    body = b"" if method == "GET" else b"\x00\xffbody"
    functions.answer("all", Reply(201, b"made", (("X-Answer", "1"), ("Set-Cookie", "b=2"), ("Set-Cookie", "c=3"))))
    answer = gateway.request(method, target, body, headers)
    assert (answer.status, answer.body, answer.headers["X-Answer"]) == (201, b"made", "1")
    assert answer.headers.get_all("Set-Cookie") == ["b=2", "c=3"]
    request = functions.to("all")[-1]
    assert request.line == f"{method} {target} HTTP/1.1".encode()
    assert request.body == body
    assert (request.header("X-Own"), request.header("Cookie")) == ("kept", "a=1")
    assert request.header("X-Forwarded-For") == "10.0.0.1, 127.0.0.1"
    assert request.header("X-Forwarded-Host") == f"127.0.0.1:{gateway.port}"
    assert request.header("Host") == f"127.0.0.1:{functions.port}"
    for name in ("X-Named", "TE", "Proxy-Authorization", "Accept-Encoding", "User-Agent"):
        assert request.all(name) == [], name


def test_proxy_stores_no_cookies(gateway: Gateway, functions: Functions) -> None:
    """The proxy stores no cookies, so that no caller gets the cookies of another."""
    functions.answer("cookies", Reply(200, b"", (("Set-Cookie", "secret=1; Path=/"),)))
    for _ in range(2):
        gateway.request("GET", "/function/cookies")
    assert [request.header("Cookie") for request in functions.to("cookies")] == [None, None]


def test_proxy_passes_a_redirect_back(gateway: Gateway, functions: Functions) -> None:
    """The proxy follows no redirect."""
    functions.answer("moved", Reply(302, b"", (("Location", "/function/elsewhere"),)))
    answer = gateway.request("GET", "/function/moved")
    assert (answer.status, answer.headers["Location"]) == (302, "/function/elsewhere")
    assert functions.to("elsewhere") == []


def test_proxy_passes_a_compressed_response_back_unchanged(gateway: Gateway, functions: Functions) -> None:
    """The proxy decodes nothing."""
    functions.answer("zipped", Reply(200, b"\x1f\x8bnot really", (("Content-Encoding", "gzip"),)))
    answer = gateway.request("GET", "/function/zipped")
    assert (answer.headers["Content-Encoding"], answer.body) == ("gzip", b"\x1f\x8bnot really")


@pytest.mark.parametrize("framing", ["length", "chunked", "close"])
def test_proxy_passes_a_large_response_back(gateway: Gateway, functions: Functions, framing: str) -> None:
    """A large response is passed back, with a length, in chunks, or up to the end of its connection."""
    functions.answer("large", Reply(200, b"0123456789" * 300_000, framing=framing))  # type: ignore[arg-type]  # one of three
    assert gateway.request("GET", "/function/large").body == b"0123456789" * 300_000


def test_proxy_passes_a_response_back_before_its_end(gateway: Gateway, functions: Functions) -> None:
    """A response is passed back before its end, and the caller's disconnect ends it."""
    functions.answer("endless", Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun", stall=True))
    connection = gateway.connection()
    connection.request("GET", "/function/endless")
    response = connection.getresponse()
    assert response.read(5) == b"begun"
    response.close()
    connection.close()
    wait_until(lambda: functions.to("endless")[0].disconnected, "the function's connection to be closed")


def test_response_that_breaks_off_closes_the_caller_s_connection(gateway: Gateway, functions: Functions) -> None:
    """When a response breaks off, the caller gets fewer bytes than announced, so that it does not look complete."""
    functions.answer("broken-off", Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nbegun"))
    with pytest.raises(http.client.IncompleteRead):
        gateway.request("GET", "/function/broken-off")


def test_caller_that_disconnects_ends_the_function_s_request(gateway: Gateway, functions: Functions) -> None:
    """When the caller disconnects, the function's connection is closed."""
    functions.answer("held", Reply(held=True))
    with gateway.raw() as raw:
        raw.sendall(b"POST /function/held HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nx")
        wait_until(lambda: functions.to("held"), "the function to be called")
    wait_until(lambda: functions.to("held")[0].disconnected, "the function's connection to be closed")


def test_function_without_an_answer_in_time_is_504(gateway: Gateway, functions: Functions) -> None:
    """A function without an answer within ``upstream_timeout`` is answered with 504."""
    functions.answer("silent", Reply(held=True))
    answer = gateway.request("GET", "/function/silent")
    assert (answer.status, "no answer within 1 s" in answer.text) == (504, True)


@pytest.mark.parametrize("reply", [Reply(reset=True, raw=b""), Reply(raw=b"not HTTP\r\n\r\n"), Reply(raw=b"")])
def test_function_with_an_invalid_answer_is_502(gateway: Gateway, functions: Functions, reply: Reply) -> None:
    """A connection that is reset, closed, or carries no HTTP is answered with 502."""
    functions.answer("bad", reply)
    assert gateway.request("GET", "/function/bad").status == 502


def test_functions_not_reachable_is_502(tmp_path: Path) -> None:
    """Functions that cannot be reached are answered with 502, and the answer names the host."""
    with Gateway(tmp_path=tmp_path, gateway_url=f"http://127.0.0.1:{free_port()}", nats_port=free_port()) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        answer = gateway.request("POST", "/function/echo", b"x")
        assert (answer.status, "cannot be reached" in answer.text) == (502, True)


def test_gateway_url_of_the_gateway_itself_is_508(tmp_path: Path) -> None:
    """A ``gateway_url`` of the gateway itself is answered with 508, and the answer names the setting."""
    port = free_port()
    settings = {"gateway_url": f"http://127.0.0.1:{port}", "listen_port": port, "nats_port": free_port()}
    with Gateway(tmp_path=tmp_path, **settings) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        answer = gateway.request("GET", "/function/echo")
        assert answer.headers["X-OpenFaaS-Internal"] == "queue-worker"
        assert (answer.status, "leads back to this gateway" in answer.text) == (508, True)


@pytest.mark.parametrize("below", ["", "Bad", "a.b.c", "echo/../../system", "echo/%2e%2e/x", "echo/%"])
def test_path_that_leaves_its_function_is_400(gateway: Gateway, functions: Functions, below: str) -> None:
    """A path that leaves its function is answered with 400, and no function receives the request."""
    before = len(functions.requests)
    answer = gateway.request("GET", f"/function/{below}")
    assert (answer.status, answer.headers["X-OpenFaaS-Internal"]) == (400, "queue-worker")
    assert len(functions.requests) == before


def test_gateway_url_with_a_path_is_put_before_the_target(functions: Functions, tmp_path: Path) -> None:
    """The path of ``gateway_url`` is put before the target."""
    settings = {"gateway_url": f"{functions.url}/base/", "nats_port": free_port()}
    with Gateway(tmp_path=tmp_path, **settings) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        gateway.request("GET", "/function/echo?q")
    assert functions.requests[-1].line == b"GET /base/function/echo?q HTTP/1.1"


def test_proxy_passes_a_body_on_before_its_end(tmp_path: Path) -> None:
    """A body is passed on before its end, in chunks where the caller's was."""
    with socket.create_server(("127.0.0.1", 0)) as upstream:
        settings = {"gateway_url": f"http://127.0.0.1:{upstream.getsockname()[1]}", "nats_port": free_port()}
        with ExitStack() as stack:
            gateway = stack.enter_context(Gateway(tmp_path=tmp_path, **settings))
            wait_until(gateway.healthy, "the gateway to listen")
            raw = stack.enter_context(gateway.raw())
            raw.sendall(b"POST /function/echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbegin\r\n")
            peer, _ = upstream.accept()
            with peer:
                received = b""
                while b"begin" not in received:
                    received += peer.recv(65_536)
                raw.sendall(b"3\r\nend\r\n0\r\n\r\n")
                while b"end" not in received:
                    received += peer.recv(65_536)
                peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert raw.recv(65_536).startswith(b"HTTP/1.1 204 ")
    assert b"transfer-encoding: chunked" in received.lower()
