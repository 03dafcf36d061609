"""``proxy_all``: OpenFaaS's API through the producer, and the credentials for it. The gateway is a fake."""

from __future__ import annotations

import base64
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.functions import Functions, Reply
from tests.gateway import Gateway
from tests.servers import wait_until
from worker.dev.stack import free_port

USER, PASSWORD, TOKENS = "admin", "pässword:1", ("token-1", "token-2")
BASIC = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()


@pytest.fixture(scope="module")
def openfaas() -> Iterator[Functions]:
    """Start the gateway behind the producer, which records what it is asked for."""
    with Functions() as server:
        yield server
        assert not server.protocol_errors


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Write the secrets' files, and return the settings that name them."""
    directory = tmp_path_factory.mktemp("secrets")
    contents = {"user": f"{USER}\n", "password": f" {PASSWORD}\n", "tokens": "\n".join(("", *TOKENS, ""))}
    for name, content in contents.items():
        (directory / name).write_text(content)
    return {
        "basic_auth": "true",
        "basic_auth_user_file": directory / "user",
        "basic_auth_password_file": directory / "password",
        "api_token_file": directory / "tokens",
    }


def started(openfaas: Functions, tmp_path: Path, **settings: object) -> Gateway:
    """Return a gateway before *openfaas*; it needs no NATS to pass requests on."""
    defaults = {"gateway_url": openfaas.url, "nats_port": free_port(), "upstream_timeout": "2s", "proxy_all": "true"}
    return Gateway(tmp_path=tmp_path, **(defaults | settings))


@pytest.fixture(scope="module")
def guarded(
    openfaas: Functions, secrets: dict[str, object], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Start a gateway that authenticates its callers."""
    with started(openfaas, tmp_path_factory.mktemp("guarded"), **secrets) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        yield gateway
        assert "Traceback" not in gateway.output
        assert not [each for each in (PASSWORD, *TOKENS, BASIC[6:]) if each in gateway.output]


@pytest.fixture(scope="module")
def plain(openfaas: Functions, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Start a gateway that leaves authentication to the one behind it, with credentials that it must not give away."""
    directory = tmp_path_factory.mktemp("plain")
    (directory / "secret").write_text("own")
    files = {"basic_auth_user_file": directory / "secret", "basic_auth_password_file": directory / "secret"}
    with started(openfaas, directory, **files) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        yield gateway
        assert "Traceback" not in gateway.output


# What is passed on.


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/ui/"),
        ("GET", "/system/functions?namespace=openfaas-fn"),
        ("POST", "/system/functions"),
        ("PUT", "/system/functions"),
        ("DELETE", "/system/functions"),
        ("GET", "/system/info"),
        ("GET", "/system/function/a%20b?usage=1"),
        ("POST", "/system/scale-function/echo"),
        ("GET", "/namespaces"),
    ],
)
def test_proxy_all_passes_other_paths_on_unchanged(
    plain: Gateway, openfaas: Functions, method: str, target: str
) -> None:
    """Method, target, body, and the caller's Authorization are passed on, and nothing of the producer's own."""
    body = b"" if method == "GET" else b'{"service": "echo"}'
    openfaas.deploy("a%20b")
    answer = plain.request(method, target, body, {"Authorization": "Basic x", "X-Forwarded-For": "10.0.0.1"})
    assert answer.status == 200
    request = (openfaas.look_ups if "/function/" in target else openfaas.requests)[-1]
    assert (request.line, request.body) == (f"{method} {target} HTTP/1.1".encode(), body)
    assert request.header("Authorization") == "Basic x"
    assert request.header("Host") == f"127.0.0.1:{openfaas.port}"
    assert request.header("X-Forwarded-For") == "10.0.0.1, 127.0.0.1"
    assert request.header("X-Forwarded-Host") == f"127.0.0.1:{plain.port}"


def test_proxy_all_without_authentication_adds_no_credentials(plain: Gateway, openfaas: Functions) -> None:
    """A caller without credentials stays one: the producer's own ones are not added. A warning names that at start."""
    assert plain.request("GET", "/system/functions").status == 200
    assert openfaas.requests[-1].header("Authorization") is None
    assert "only gateway_url itself protects /system/" in plain.output


def test_proxy_all_off_passes_nothing_on(openfaas: Functions, tmp_path: Path) -> None:
    """By default other paths are 404, and the gateway behind sees none of them."""
    with started(openfaas, tmp_path, proxy_all="") as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        before = len(openfaas.requests)
        assert {gateway.request("GET", path).status for path in ("/", "/ui/", "/system/functions")} == {404}
        assert len(openfaas.requests) == before


def test_proxy_all_passes_redirects_and_401_back(plain: Gateway, openfaas: Functions) -> None:
    """A redirect is not followed, and the gateway's own demand for credentials reaches the caller."""
    openfaas.answer("ui", Reply(301, b"", (("Location", "/ui/"),)))
    openfaas.answer("secret", Reply(401, b"no", (("WWW-Authenticate", 'Basic realm="Restricted"'),)))
    moved, refused = plain.request("GET", "/ui"), plain.request("GET", "/secret")
    assert (moved.status, moved.headers["Location"]) == (301, "/ui/")
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, 'Basic realm="Restricted"')


def test_logs_are_streamed_longer_than_any_timeout(openfaas: Functions, tmp_path: Path) -> None:
    """Lines of a followed log are passed back as they come, through pauses longer than both timeouts."""
    first = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nline\n\r\n"
    openfaas.answer("logs", Reply(raw=first, stall=True))
    with started(openfaas, tmp_path, client_timeout="300ms", upstream_timeout="300ms") as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        connection = gateway.connection()
        connection.request("GET", "/logs?name=echo&follow=1")
        response = connection.getresponse()
        assert response.read1(100) == b"line\n"
        time.sleep(3)
        request = openfaas.to("logs")[-1]
        assert not request.disconnected
        response.close()
        connection.close()
        wait_until(lambda: request.disconnected, "the stream to be closed")


# Authentication.


@pytest.mark.parametrize("authorization", [BASIC, BASIC.replace("Basic", "bAsIc"), "Bearer token-1", "bearer token-2"])
def test_valid_credentials_reach_the_gateway_as_the_producer_s_own(
    guarded: Gateway, openfaas: Functions, authorization: str
) -> None:
    """With user and password, or a token, the request is passed on with the producer's own credentials."""
    assert guarded.request("GET", "/system/functions", headers={"Authorization": authorization}).status == 200
    assert openfaas.requests[-1].all("Authorization") == [BASIC]


BAD = {
    "none": "",
    "password": "Basic " + base64.b64encode(f"{USER}:x".encode()).decode(),
    "user": "Basic " + base64.b64encode(f"x:{PASSWORD}".encode()).decode(),
    "swapped": "Basic " + base64.b64encode(f"{PASSWORD}:{USER}".encode()).decode(),
    "no colon": "Basic " + base64.b64encode(USER.encode()).decode(),
    "empty pair": "Basic Og==",
    "not base64": "Basic !!!!",
    "only scheme": "Basic",
    "empty token": "Bearer ",
    "part of a token": "Bearer token",
    "both tokens": "Bearer token-1\ttoken-2",
    "tail": f"{BASIC}, x",
    "token as basic": "Basic token-1",
    "other scheme": "Digest token-1",
    "high bytes": "Bearer \xff\xfe",
}


@pytest.mark.parametrize("name", BAD)
def test_invalid_credentials_are_401(guarded: Gateway, openfaas: Functions, name: str) -> None:
    """Anything but valid credentials is 401 with both schemes, as OpenFaaS's gateway answers, and is not passed on."""
    before = len(openfaas.requests)
    answer = guarded.request("GET", "/system/functions", headers={"Authorization": BAD[name]} if BAD[name] else {})
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="Restricted", Bearer')
    assert len(openfaas.requests) == before


def test_two_authorization_headers_are_401(guarded: Gateway, openfaas: Functions) -> None:
    """Of two headers another server could read the other one."""
    before = len(openfaas.requests)
    with guarded.raw() as raw:
        fields = f"Authorization: {BASIC}\r\nAuthorization: Basic x\r\n"
        raw.sendall(f"GET /system/info HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 401 ")
    assert len(openfaas.requests) == before


TRICKS = [
    *("/system", "/system/", "//system/functions", "/./system/functions", "/x/../system/functions"),
    *("/%2e/system/functions", "/%2e%2e/system/functions", "/%2E%2E%2Fsystem/functions", "/%73ystem/functions"),
    *(
        "/system%2Ffunctions",
        "/SYSTEM/functions",
        "/system;x=1/functions",
        "/system/functions/",
        "/system%00/functions",
    ),
    *("/function/../system/functions", "/function/echo/../../system/functions", "/function/echo/%2e%2e/%2e%2e/system"),
    *("/function//system/functions", "/function/..%2fsystem/functions", "/function/%2e%2e/system/functions"),
    *("/function/echo/..\\..\\..\\system", "/function/echo/..%5c..%5csystem", "/\\system/functions", "/%5csystem"),
    *("/healthz/../system/functions", "/healthz%2f..%2fsystem/functions", "/metrics/../system/functions"),
    *("/async-function/../system/functions", "/async-function", "/%61sync-function/echo", "/%66unction/echo"),
    *("/ui/../system/functions", "/ui/", "/%", "/%zz", "/%25%32%65%25%32%65/system", "/%252e%252e/system/functions"),
    *("http://h/system/functions", "http://h/%2e%2e/system/functions", "http://h//system/functions"),
]


@pytest.mark.parametrize("target", TRICKS)
def test_path_tricks_reach_nothing_without_credentials(guarded: Gateway, openfaas: Functions, target: str) -> None:
    """However a path is written, the gateway behind sees no request without credentials besides / and a function's."""
    before = len(openfaas.requests)
    for method in ("GET", "POST", "OPTIONS"):
        with guarded.raw() as raw:
            raw.sendall(f"{method} {target} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
            status = int(raw.recv(100).split()[1])
        assert status in (400, 401, 404, 405)
    assert len(openfaas.requests) == before


def test_functions_root_and_health_need_no_credentials(guarded: Gateway, openfaas: Functions) -> None:
    """What OpenFaaS's gateway leaves open is open, and a function gets the caller's Authorization."""
    assert guarded.request("GET", "/function/echo", headers={"Authorization": "Bearer x"}).status == 200
    assert openfaas.requests[-1].header("Authorization") == "Bearer x"
    assert guarded.request("GET", "/").status == 200
    assert openfaas.requests[-1].header("Authorization") is None
    assert guarded.request("GET", "/healthz").status == 200
    assert guarded.queue("echo").status == 503  # NATS is not there


def test_rotated_secrets_count_without_a_restart(openfaas: Functions, tmp_path: Path) -> None:
    """A replaced file of tokens counts within seconds. While it is empty the previous ones do; the log reports it."""
    tokens = tmp_path / "tokens"
    tokens.write_text("old")
    with started(openfaas, tmp_path, api_token_file=tokens) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")

        def status(token: str) -> int:
            return gateway.request("GET", "/system/info", headers={"Authorization": f"Bearer {token}"}).status

        assert (status("old"), status("new"), status("")) == (200, 401, 401)
        assert openfaas.requests[-1].header("Authorization") is None
        tokens.write_text("")
        wait_until(lambda: status("old") == 200 and "No tokens in api_token_file" in gateway.output, "the warning")
        (tmp_path / "next").write_text("new\n")
        os.replace(tmp_path / "next", tokens)  # noqa: PTH105 -- as Kubernetes does
        wait_until(lambda: status("new") == 200, "the new token")
        assert status("old") == 401


# CORS.


def test_cors_answers_preflights_of_its_origins_only(openfaas: Functions, tmp_path: Path) -> None:
    """Scripts of a configured origin may call with any header; those of others are left to the function."""
    with started(openfaas, tmp_path, cors_origins="https://app.example, http://localhost:3000") as gateway:
        wait_until(gateway.healthy, "the gateway to listen")

        def preflight(origin: str, target: str) -> tuple[int, str | None]:
            headers = {
                "Origin": origin,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization, x-call-id",
            }
            answer = gateway.request("OPTIONS", target, headers=headers)
            return answer.status, answer.headers["Access-Control-Allow-Origin"]

        for target in ("/async-function/echo", "/function/echo", "/system/functions"):
            assert preflight("http://localhost:3000", target) == (200, "http://localhost:3000")
        for origin in ("https://app.example.evil", "null", "https://APP.example", "http://app.example"):
            assert preflight(origin, "/async-function/echo") == (405, None)
        answer = gateway.queue("echo", Origin="https://app.example")
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (503, "https://app.example")
        assert "X-Call-Id" in answer.headers["Access-Control-Expose-Headers"]
        assert answer.headers["Access-Control-Allow-Credentials"] is None
        assert gateway.queue("echo").headers["Access-Control-Allow-Origin"] is None


# Metrics.


def test_metrics_count_requests_by_route_and_reason(gateway: Gateway) -> None:
    """The port for metrics shows requests, calls, refusals and the connection, and no value of a caller's choice."""
    assert [gateway.queue("echo", b"x", X_Call_Id="one").status for _ in range(2)] == [202, 202]
    assert gateway.queue("Bad").status == 400
    assert gateway.request("GET", "/made-up").status == 404
    with gateway.raw() as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 400 ")
    text = gateway.metrics()
    for line in (
        'gateway_requests_total{code="202",route="async-function"} 2.0',
        'gateway_requests_total{code="400",route="async-function"} 1.0',
        'gateway_requests_total{code="404",route="other"} 1.0',
        'gateway_rejected_total{reason="invalid"} 1.0',
        'gateway_rejected_total{reason="unknown"} 1.0',
        "gateway_queued_total 1.0",
        "gateway_repeated_total 1.0",
        "gateway_nats_connected 1.0",
        'gateway_invalid_requests_total{code="400"} 1.0',
        'gateway_request_duration_seconds_count{route="async-function"} 3.0',
        'gateway_build_info{version="',
        'gateway_connections{state="limited"} 0.0',
    ):
        assert f"queue_worker_{line}" in text, text
    assert "made-up" not in text


def test_metrics_on_the_public_port_need_credentials(openfaas: Functions, guarded: Gateway, tmp_path: Path) -> None:
    """On a loopback address metrics are open; on others they need credentials, and without any they are 404."""
    assert guarded.request("GET", "/metrics").status == 200
    files = {"listen_host": "0.0.0.0"}
    with started(openfaas, tmp_path, **files) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        assert gateway.request("GET", "/metrics").status == 404
    (tmp_path / "tokens").write_text("t")
    with started(openfaas, tmp_path, api_token_file=tmp_path / "tokens", **files) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        assert gateway.request("GET", "/metrics").status == 401
        assert gateway.request("GET", "/metrics", headers={"Authorization": "Bearer t"}).status == 200


def test_metrics_port_taken_is_one_warning(openfaas: Functions, tmp_path: Path) -> None:
    """The producer works without its metrics port, and logs a warning."""
    with started(openfaas, tmp_path, metrics_port=openfaas.port) as gateway:
        wait_until(gateway.healthy, "the gateway to listen")
        assert gateway.output.count("No metrics are served; set metrics_port") == 1
        assert gateway.request("GET", "/metrics").status == 200
