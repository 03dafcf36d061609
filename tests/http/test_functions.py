"""Invocations on real sockets: what is sent, what comes of it, and when it is over."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.http.invocations import invocation
from tests.http.server import OK, Server, Stream, answer_all, one_answer, serving
from worker.config import load
from worker.http.functions import HttpFunctions, open_functions
from worker.http.transport import IDLE, PlainTransport
from worker.model import Attempted, NoResponse, Responded, TimedOut


@pytest.fixture(autouse=True, params=[True, False], ids=["watch", "trio"])
def _heard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With epoll, and as where there is none."""
    if not request.param:
        monkeypatch.setattr("worker.http.transport.watching", nullcontext)


def _functions(server_port: int, **environment: str) -> AbstractAsyncContextManager[HttpFunctions]:
    return open_functions(load({"gateway_url": f"http://127.0.0.1:{server_port}/base/"} | environment).settings)


def _transport(functions: HttpFunctions) -> PlainTransport:
    transport = functions._gateway._transport  # type: ignore[union-attr]  # of http://
    assert isinstance(transport, PlainTransport)
    return transport


@pytest.mark.parametrize("exchanges", [1, 20])
async def test_the_deadline_holds_on_a_connection_that_was_idle(exchanges: int) -> None:
    """It is kept there by one task for all, and ends each exchange whose time is over; the connection is gone."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            if len(server.requests) <= exchanges:
                while len(server.requests) < exchanges:  # noqa: ASYNC110 -- until all have come, each on its own connection
                    await trio.sleep(0.001)
                await stream.send_all(OK)

    async with serving(script) as server, _functions(server.port, upstream_timeout="3s") as functions:
        outcomes: list[Attempted] = []

        async def invoke() -> None:
            outcomes.append(await functions.invoke(invocation()))

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(exchanges):
                    nursery.start_soon(invoke)
        assert [type(outcome) for outcome in outcomes[:exchanges]] == [Responded] * exchanges
        assert outcomes[exchanges:] == [TimedOut(3.0)] * exchanges
        assert server.connections == exchanges
        assert not _transport(functions)._busy
        assert not _transport(functions)._idle["127.0.0.1", server.port]


async def test_a_body_that_we_broke_off_is_not_whole() -> None:
    """A body that ends with its connection does not end with our deadline."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            if len(server.requests) == 1:
                await stream.send_all(OK)
            else:
                await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nthe beginning")

    async with serving(script) as server, _functions(server.port, upstream_timeout="3s") as functions:
        assert isinstance(await functions.invoke(invocation()), Responded)
        assert await functions.invoke(invocation()) == TimedOut(3.0)
        assert server.connections == 1


def test_idle_connections_are_closed_when_nothing_else_happens() -> None:
    """A burst does not leave its connections open for ever."""

    async def main() -> None:
        async with serving(answer_all) as server, _functions(server.port) as functions:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(functions.invoke, invocation())
            idle = _transport(functions)._idle["127.0.0.1", server.port]
            assert len(idle) == server.connections
            for _ in range(2):
                await wait_all_tasks_blocked()
                clock.jump(IDLE)
            await wait_all_tasks_blocked()
            assert not idle

    clock = MockClock()
    trio.run(main, clock=clock)


@pytest.mark.parametrize("size", [65_536, 65_537, 5_000_000])
async def test_a_large_body_arrives_whole(size: int) -> None:
    """However much of it the connection takes at a time."""
    async with serving(answer_all) as server, _functions(server.port) as functions:
        body = bytes(range(256)) * (size // 256 + 1)
        for _ in range(2):
            assert isinstance(await functions.invoke(invocation(body=body[:size])), Responded)
        assert [request.partition(b"\r\n\r\n")[2] == body[:size] for request in server.requests] == [True, True]
        assert server.connections == 1


async def test_a_request_reaches_the_function_byte_for_byte() -> None:
    """Target, header fields and body as the message has them; only Host and Content-Length are ours."""
    async with serving(answer_all) as server, _functions(server.port) as functions:
        outcome = await functions.invoke(invocation())
        assert outcome == Responded(200, ((b"Content-Length", b"2"),), b"", 2, False)
        host = f"127.0.0.1:{server.port}".encode()
        assert server.requests == [
            b"PATCH /base/function/f/a%2Fb//..;/c?x=<1>&y=%zz HTTP/1.1\r\nHost: " + host + b"\r\nX-Call-Id: c\r\n"
            b"X-a: 1\r\nX-a: \xc3\xa9\r\nContent-Length: 2\r\n\r\n\x00\xff"
        ]


async def test_a_body_is_kept_where_a_callback_wants_it() -> None:
    """And only there, cut at its bound."""
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
async def test_a_server_that_misbehaves_is_no_response(case: str) -> None:
    """Whatever a server does, invoking returns an outcome with a reason."""
    async with serving(one_answer(HOSTILE[case])) as server, _functions(server.port) as functions:
        outcome = await functions.invoke(invocation())
        assert isinstance(outcome, NoResponse)
        assert outcome.reason


async def test_a_refused_connection_is_no_response() -> None:
    """Nobody listens: the reason names where."""
    async with serving(answer_all) as server:
        port = server.port
    async with _functions(port) as functions:
        outcome = await functions.invoke(invocation())
    assert isinstance(outcome, NoResponse)
    assert f"cannot connect to 127.0.0.1:{port}" in outcome.reason


async def test_a_name_that_does_not_resolve_is_no_response() -> None:
    """DNS failures are outcomes too."""
    async with open_functions(load({"gateway_url": "http://nowhere.invalid"}).settings) as functions:
        outcome = await functions.invoke(invocation())
    assert isinstance(outcome, NoResponse)
    assert "nowhere.invalid" in outcome.reason


async def test_the_deadline_is_for_the_whole_exchange() -> None:
    """A server that drips its body, each byte in time, runs into upstream_timeout all the same."""

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.01)

    async with serving(script) as server, _functions(server.port, upstream_timeout="100ms") as functions:
        assert await functions.invoke(invocation()) == TimedOut(0.1)
