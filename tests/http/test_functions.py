"""Invocations on real sockets: requests, outcomes and timeouts."""

from __future__ import annotations

import resource
import socket
import threading
from base64 import b64encode
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.http.invocations import invocation
from tests.http.server import OK, Server, Stream, answer_all, one_answer, serving
from worker.config import load
from worker.http.functions import HttpFunctions, open_functions
from worker.http.names import LOOKUP_TIMEOUT, LookUp, NameCache
from worker.http.transport import MAX_IDLE, PlainTransport
from worker.model import NoResponse, NotSent, Outcome, Responded, TimedOut


def _functions(server_port: int, **environment: str) -> AbstractAsyncContextManager[HttpFunctions]:
    return open_functions(load({"gateway_url": f"http://127.0.0.1:{server_port}/base/"} | environment).settings)


def _transport(functions: HttpFunctions) -> PlainTransport:
    assert isinstance(functions._transport, PlainTransport)
    return functions._transport


def _use_look_up(monkeypatch: pytest.MonkeyPatch, look_up: LookUp) -> None:
    """Replace the system's look-up of names."""
    init = NameCache.__init__

    def patched(self: NameCache, host: str, port: int, nursery: trio.Nursery, _: LookUp) -> None:
        init(self, host, port, nursery, look_up)

    monkeypatch.setattr(NameCache, "__init__", patched)


@pytest.mark.parametrize("exchanges", [1, 20])
async def test_invoke_on_a_reused_connection_times_out(exchanges: int, mock_clock: MockClock) -> None:
    """A timeout on a reused connection aborts the exchange and closes its connection."""
    all_arrived = trio.Event()

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            if len(server.requests) == exchanges:
                all_arrived.set()
            if len(server.requests) <= exchanges:
                await all_arrived.wait()  # so that each has a connection of its own
                await stream.send_all(OK)
            elif len(server.requests) == 2 * exchanges:
                mock_clock.jump(3.0)

    async with serving(script) as server, _functions(server.port, upstream_timeout="3s") as functions:
        outcomes: list[Outcome] = []

        async def invoke() -> None:
            outcomes.append(await functions.invoke(invocation()))

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(exchanges):
                    nursery.start_soon(invoke)
        assert [type(outcome) for outcome in outcomes[:exchanges]] == [Responded] * exchanges
        assert outcomes[exchanges:] == [TimedOut(3.0)] * exchanges
        assert server.connections == exchanges
        assert not _transport(functions)._deadlines
        assert not _transport(functions)._idle


async def test_invoke_that_times_out_in_a_body_has_no_response(mock_clock: MockClock) -> None:
    """A body that ends with its connection is not completed by the worker's own abort at the timeout."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            if len(server.requests) == 1:
                await stream.send_all(OK)
            else:
                await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nthe beginning")
                mock_clock.jump(3.0)

    async with serving(script) as server, _functions(server.port, upstream_timeout="3s") as functions:
        assert isinstance(await functions.invoke(invocation()), Responded)
        assert await functions.invoke(invocation()) == TimedOut(3.0)
        assert server.connections == 1


def test_idle_connections_without_traffic_are_closed() -> None:
    """Idle connections are closed without traffic, so that a burst does not leave its connections open."""

    async def main() -> None:
        async with serving(answer_all) as server, _functions(server.port) as functions:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(functions.invoke, invocation())
            idle = _transport(functions)._idle
            assert len(idle) == server.connections
            for _ in range(2):
                await wait_all_tasks_blocked()
                clock.jump(MAX_IDLE)
            await wait_all_tasks_blocked()
            assert not idle

    clock = MockClock()
    trio.run(main, clock=clock)


@pytest.mark.parametrize("size", [65_536, 65_537, 5_000_000])
async def test_invoke_with_a_large_body_sends_all_of_it(size: int) -> None:
    """A large body is sent completely, also where the connection accepts only parts of it."""
    async with serving(answer_all) as server, _functions(server.port) as functions:
        body = bytes(range(256)) * (size // 256 + 1)
        for _ in range(2):
            assert isinstance(await functions.invoke(invocation(body=body[:size])), Responded)
        assert [request.partition(b"\r\n\r\n")[2] == body[:size] for request in server.requests] == [True, True]
        assert server.connections == 1


async def test_invoke_sends_the_message_byte_for_byte() -> None:
    """Target, header fields and body are the message's; the worker adds only Host and Content-Length."""
    async with serving(answer_all) as server, _functions(server.port) as functions:
        outcome = await functions.invoke(invocation())
        assert outcome == Responded(200, ((b"Content-Length", b"2"),), b"", 2, False)
        host = f"127.0.0.1:{server.port}".encode()
        assert server.requests == [
            b"PATCH /base/function/f/a%2Fb//..;/c?x=<1>&y=%zz HTTP/1.1\r\nHost: " + host + b"\r\nX-Call-Id: c\r\n"
            b"X-a: 1\r\nX-a: \xc3\xa9\r\nContent-Length: 2\r\n\r\n\x00\xff"
        ]


async def test_invoke_with_a_callback_keeps_the_body_up_to_its_limit() -> None:
    """With a callback the response's body is kept up to its limit; without one only its size is counted."""
    async with (
        serving(one_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789")) as server,
        _functions(server.port, max_response_bytes="4") as functions,
    ):
        outcome = await functions.invoke(invocation(callback="http://x/"))
        assert isinstance(outcome, Responded)
        assert (outcome.body, outcome.size, outcome.truncated) == (b"1234", 4, True)


HOSTILE = {
    "closes at once": b"",
    "garbage": b"\x16\x03\x01\x02\x00",
    "cut in its body": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "header without end": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000,
}


@pytest.mark.parametrize("case", HOSTILE)
async def test_invoke_of_a_broken_server_has_no_response(case: str) -> None:
    """With any broken response the outcome has a reason, and no error is raised."""
    async with serving(one_answer(HOSTILE[case])) as server, _functions(server.port) as functions:
        outcome = await functions.invoke(invocation())
        assert isinstance(outcome, NoResponse)
        assert outcome.reason


async def test_invoke_that_is_refused_has_no_response() -> None:
    """When the connection is refused, the reason names the gateway and the error."""
    async with serving(answer_all) as server:
        port = server.port
    async with _functions(port) as functions:
        outcome = await functions.invoke(invocation())
    assert isinstance(outcome, NoResponse)
    assert f"cannot connect to 127.0.0.1:{port}" in outcome.reason
    assert "Connection refused" in outcome.reason


async def test_invoke_of_an_unknown_name_has_no_response() -> None:
    """When the look-up fails, the reason names the host."""
    async with open_functions(load({"gateway_url": "http://nowhere.invalid"}).settings) as functions:
        outcome = await functions.invoke(invocation())
    assert isinstance(outcome, NoResponse)
    assert "nowhere.invalid" in outcome.reason


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("code", "is_attempt"),
    [
        (socket.EAI_AGAIN, False),
        (socket.EAI_FAIL, False),
        (socket.EAI_SYSTEM, False),
        (socket.EAI_NONAME, True),
        (socket.EAI_NODATA, True),
    ],
)
async def test_invoke_whose_lookup_fails_is_not_sent_unless_the_name_is_wrong(
    monkeypatch: pytest.MonkeyPatch, scheme: str, code: int, *, is_attempt: bool
) -> None:
    """Without a name server nothing is sent, which is no attempt; a name that does not exist is a failed attempt."""

    def look_up(*_: object) -> list[Any]:
        raise socket.gaierror(code, "the reason")

    _use_look_up(monkeypatch, look_up)
    async with open_functions(load({"gateway_url": f"{scheme}://gateway"}).settings) as functions:
        outcome = await functions.invoke(invocation())
    if is_attempt:
        assert isinstance(outcome, NoResponse)
    else:
        assert outcome == NotSent("this machine could not connect: the look-up of its name failed: the reason")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_invoke_whose_lookup_has_no_answer_is_not_sent(
    monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock, scheme: str
) -> None:
    """A look-up that no name server answers in time is no attempt."""
    asked, release = threading.Event(), threading.Event()

    def look_up(*_: object) -> list[Any]:
        asked.set()
        release.wait()
        return []

    _use_look_up(monkeypatch, look_up)
    outcomes = []
    async with open_functions(load({"gateway_url": f"{scheme}://gateway"}).settings) as functions:

        async def invoke() -> None:
            outcomes.append(await functions.invoke(invocation()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(invoke)
            while not asked.is_set():  # its thread starts in real time
                await trio.lowlevel.checkpoint()
            await wait_all_tasks_blocked()
            mock_clock.jump(LOOKUP_TIMEOUT)
    release.set()
    (outcome,) = outcomes
    assert isinstance(outcome, NotSent)
    assert "no answer" in outcome.reason


async def test_invoke_of_a_dripping_server_times_out() -> None:
    """upstream_timeout limits the whole exchange, also while bytes arrive."""

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.01)

    async with serving(script) as server, _functions(server.port, upstream_timeout="100ms") as functions:
        assert await functions.invoke(invocation()) == TimedOut(0.1)


@pytest.mark.parametrize(
    ("userinfo", "credentials"),
    [
        ("user:pw@", "user:pw"),
        ("us%40er:p%3Aw%C3%A9@", "us@er:p:w\u00e9"),
        ("user@", "user:"),
        (":pw@", ":pw"),
        ("", None),
    ],
)
async def test_invoke_sends_the_credentials_of_the_gateway_url(userinfo: str, credentials: str | None) -> None:
    """User and password of gateway_url are sent as basic authentication, decoded, in UTF-8."""
    async with (
        serving(answer_all) as server,
        open_functions(load({"gateway_url": f"http://{userinfo}127.0.0.1:{server.port}"}).settings) as functions,
    ):
        await functions.invoke(invocation())
    (request,) = server.requests
    lines = [line for line in request.split(b"\r\n") if line.startswith(b"Authorization")]
    assert lines == ([] if credentials is None else [b"Authorization: Basic " + b64encode(credentials.encode())])
    assert f"Host: 127.0.0.1:{server.port}\r\n".encode() in request


async def test_invoke_keeps_the_authorization_of_the_message() -> None:
    """A message with its own Authorization keeps it: it is meant for the function."""
    async with (
        serving(answer_all) as server,
        open_functions(load({"gateway_url": f"http://user:pw@127.0.0.1:{server.port}"}).settings) as functions,
    ):
        await functions.invoke(invocation(headers=((b"authorization", b"Bearer x"),)))
    assert [line for line in server.requests[0].split(b"\r\n") if b"uthorization" in line] == [
        b"authorization: Bearer x"
    ]


async def test_invoke_without_descriptors_is_not_sent() -> None:
    """A machine without descriptors could not send, which is not the function's failure; it sends when it has some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with serving(answer_all) as server, _functions(server.port) as functions:
        with open("/dev/null", "rb") as last:  # noqa: ASYNC230, PTH123 -- its descriptor is the lowest free one
            lowest = last.fileno()
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        try:
            outcome = await functions.invoke(invocation())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert outcome == NotSent("this machine could not connect: Too many open files")
        assert isinstance(await functions.invoke(invocation()), Responded)
