"""Which receivers callbacks reach, on real sockets and with a name server that lies."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from tests.http.server import LOOPBACK, OK, Server, Stream, answer_all, ignore, one_answer, serving
from worker.config import load
from worker.http.callbacks import HttpCallbacks, open_callbacks
from worker.http.names import open_names
from worker.http.receiver_network import MAX_RESPONSE
from worker.model import Callback, Refused

RULES = "which callbacks may not reach by default"


@asynccontextmanager
async def posting(settings: Mapping[str, str], *answers: list[str]) -> AsyncIterator[tuple[HttpCallbacks, list[str]]]:
    """Open callbacks with a name server that answers the n-th look-up with the n-th *answers*; list the look-ups."""
    asked: list[str] = []

    def look_up(host: bytes, port: int, *_: int) -> list[Any]:
        asked.append(host.decode())
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in answers[min(len(asked), len(answers)) - 1]
        ]

    async with open_names("gateway.invalid", 80, look_up), open_callbacks(load(settings).settings, ignore) as callbacks:
        yield callbacks, asked


def to(url: str) -> Callback:
    return Callback(url, ((b"X-Call-Id", b"c"),), b"x")


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.1", "2130706433", "0x7f000001", "0", "0.0.0.0", "[::ffff:127.0.0.1]"),
        *("[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "user@127.0.0.1", "example.com:80@127.0.0.1", "169.254.169.254"),
        *("[fe80::1]", "100.100.100.200", "[64:ff9b::7f00:1]", "[fd00:ec2::254]", "[::ffff:a9fe:a9fe]", "localhost"),
    ],
)
async def test_post_to_a_special_address_is_refused(host: str) -> None:
    """By default nothing is sent to this machine, its link or its metadata, in whatever form the URL names it."""
    async with serving(answer_all) as server, open_callbacks(load({}).settings, ignore) as callbacks:
        refused = await callbacks.post(to(f"http://{host}:{server.port}/"))
        assert server.connections == 0
    assert isinstance(refused, Refused), refused
    assert RULES in refused.reason


@pytest.mark.parametrize("host", ["0177.0.0.1", "127.0.0.1.", "127.0.0.01", "%31%32%37.0.0.1", "127。0。0。1"])
async def test_post_to_an_odd_form_of_an_address_sends_nothing(host: str) -> None:
    """Forms that this system reads as an address are refused; to others no connection is possible."""
    async with serving(answer_all) as server, open_callbacks(load({}).settings, ignore) as callbacks:
        result = await callbacks.post(to(f"http://{host}:{server.port}/"))
        assert server.connections == 0
    assert not isinstance(result, int)


@pytest.mark.parametrize(
    "host", ["xn--bcher-kva.example", "%78n--bcher-kva.example", "XN--BCHER-KVA.example.", "xn--a"]
)
async def test_post_through_a_proxy_judges_a_name_as_rules_write_it(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a proxy looks names up, an internationalized name, or one with escapes, does not slip past a rule."""
    async with serving(answer_all) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        rules = {"callback_deny": "xn--bcher-kva.example,xn--a"}
        async with open_callbacks(load(rules).settings, ignore) as callbacks:
            refused = await callbacks.post(to(f"http://{host}/"))
        assert proxy.connections == 0
    assert isinstance(refused, Refused), refused


async def test_post_connects_to_the_addresses_that_were_checked() -> None:
    """A name that means another address at its next look-up gains nothing: there is one, and it is checked."""
    async with serving(answer_all) as server, posting({}, ["127.0.0.1"]) as (callbacks, asked):
        url = f"http://rebind.example:{server.port}/"
        refused = await callbacks.post(to(url))
        assert isinstance(refused, Refused)
        assert f"rebind.example (127.0.0.1) is a loopback address, {RULES}" in refused.reason
        assert (server.connections, asked) == (0, ["rebind.example"])


async def test_post_looks_a_name_up_once() -> None:
    """The address that is connected to is from the look-up that was checked, also if a second one would be refused."""
    rules = {"callback_allow": "127.0.0.1", "callback_deny": "127.0.0.2"}
    async with serving(answer_all) as server, posting(rules, ["127.0.0.1"], ["127.0.0.2"]) as (callbacks, asked):
        url = f"http://rebind.example:{server.port}/"
        assert await callbacks.post(to(url)) == 200
        assert asked == ["rebind.example"]
        assert server.requests[0].startswith(b"POST / HTTP/1.1\r\nHost: rebind.example:")


async def test_post_to_a_name_uses_its_allowed_addresses_only() -> None:
    """Of a name with several addresses, those that the rules forbid are not connected to."""
    rules = {"callback_allow": "127.0.0.1"}
    addresses = ["169.254.169.254", "::1", "127.0.0.1"]
    async with serving(answer_all) as server, posting(rules, addresses) as (callbacks, _):
        assert await callbacks.post(to(f"http://many.example:{server.port}/")) == 200


async def test_post_tries_the_next_address_of_a_name() -> None:
    """An address that refuses the connection is followed by the next one."""
    rules = {"callback_allow": "127.0.0.0/8"}
    async with serving(answer_all) as server, posting(rules, ["127.0.0.9", "127.0.0.1"]) as (callbacks, _):
        assert await callbacks.post(to(f"http://many.example:{server.port}/")) == 200
        dead = await callbacks.post(to(f"http://many.example:{server.port + 1}/"))
        assert isinstance(dead, str)
        assert dead.endswith("Connection refused")


async def test_post_to_a_name_without_address_returns_the_reason() -> None:
    """A look-up that fails is a failed try, not a refusal."""
    async with posting({}, []) as (callbacks, _):
        assert await callbacks.post(to("http://none.example/")) == "the name has no address"


async def test_post_to_the_system_path_of_the_gateway_is_refused() -> None:
    """What deploys and deletes functions is no receiver, although the gateway is one."""
    async with serving(answer_all) as server:
        async with open_callbacks(
            load({"gateway_url": f"http://127.0.0.1:{server.port}"}).settings, ignore
        ) as callbacks:
            refused = await callbacks.post(to(f"http://127.0.0.1:{server.port}//%73ystem/functions?x=1"))
        assert server.connections == 0
    assert isinstance(refused, Refused)
    assert f"list 127.0.0.1:{server.port} in callback_allow" in refused.reason


async def test_post_to_the_gateway_is_always_allowed() -> None:
    """The origin of gateway_url is allowed whatever the rules are, and gets no credentials; its other ports are not."""
    async with serving(answer_all) as server, serving(answer_all) as other:
        settings = {"gateway_url": f"http://admin:secret@127.0.0.1:{server.port}", "callback_deny": "*"}
        async with open_callbacks(load(settings).settings, ignore) as callbacks:
            assert await callbacks.post(to(f"http://127.0.0.1:{server.port}/async-function/next")) == 200
            assert isinstance(await callbacks.post(to(f"http://127.0.0.1:{other.port}/")), Refused)
            assert isinstance(await callbacks.post(to(f"https://127.0.0.1:{server.port}/")), Refused)
        assert b"authorization" not in server.requests[0].lower()
        assert other.connections == 0


async def test_post_does_not_follow_a_redirect_to_a_forbidden_address() -> None:
    """A receiver that redirects to this machine gets its status back, and nothing else happens."""
    async with serving(answer_all) as secret:
        location = f"HTTP/1.1 307 X\r\nLocation: http://127.0.0.1:{secret.port}/\r\nContent-Length: 0\r\n\r\n"
        async with serving(one_answer(location.encode())) as server:
            rules = {"callback_allow": f"127.0.0.1:{server.port}"}
            async with open_callbacks(load(rules).settings, ignore) as callbacks:
                assert await callbacks.post(to(f"http://127.0.0.1:{server.port}/")) == 307
        assert secret.connections == 0


async def test_post_through_a_proxy_is_judged_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy looks names up itself: names and written addresses are judged, and the proxy may be on this machine."""
    async with serving(answer_all) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        async with open_callbacks(load({"callback_deny": "*.internal"}).settings, ignore) as callbacks:
            for host in ("127.0.0.1", "2130706433", "localhost", "[::ffff:7f00:1]", "169.254.169.254", "a.internal"):
                assert isinstance(await callbacks.post(to(f"http://{host}/")), Refused), host
            assert proxy.connections == 0
            assert await callbacks.post(to("http://example.com/")) == 200


async def test_post_sends_the_credentials_of_its_url() -> None:
    """User and password of the callback URL are sent to its receiver, instead of an Authorization of the function."""
    async with serving(answer_all) as server, open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
        url = f"http://me:p%40ss@127.0.0.1:{server.port}/"
        assert await callbacks.post(Callback(url, ((b"authorization", b"Bearer of the function"),), b"")) == 200
        lines = server.requests[0].split(b"\r\n")
        assert [line for line in lines if line.lower().startswith(b"authorization")] == [
            b"Authorization: Basic bWU6cEBzcw=="
        ]


@pytest.mark.parametrize(
    ("start", "part", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\nX: ", b"x" * 8192, "Receive buffer too long"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n", f"the response is larger than {MAX_RESPONSE} bytes"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n" * 1000, "Receive buffer too long"),
        (b"", b"x" * 8192, "Receive buffer too long"),
    ],
    ids=["field", "informational", "fields", "no HTTP"],
)
@pytest.mark.usefixtures("autojump_clock")
async def test_post_with_a_header_without_end_fails(start: bytes, part: bytes, reason: str) -> None:
    """A receiver that sends a header forever has not answered, and is not read forever."""
    sent = 0

    async def script(server: Server, stream: Stream) -> None:
        nonlocal sent
        await server.read(stream)
        await stream.send_all(start)
        while sent < 100 * MAX_RESPONSE:
            await stream.send_all(part)
            sent += len(part)

    async with serving(script) as server, open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
        result = await callbacks.post(to(f"http://127.0.0.1:{server.port}/"))
        assert isinstance(result, str)
        assert reason in result
    assert sent < 100 * MAX_RESPONSE


async def test_post_with_chunk_extensions_without_end_returns_the_status() -> None:
    """What encodes a body is bounded too: the status is the answer, and the connection is closed."""
    closed = trio.Event()

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        await stream.send_all(OK.partition(b"Content-Length")[0] + b"Transfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                await stream.send_all(b"1;" + b"x" * 1000 + b"\r\na\r\n")
        finally:
            closed.set()

    async with serving(script) as server, open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
        assert await callbacks.post(to(f"http://127.0.0.1:{server.port}/")) == 200
        await closed.wait()
