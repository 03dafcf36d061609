"""The transport on real sockets: which connections are used again, and what ends an exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from socket import AF_INET

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.config import load
from worker.http.callbacks import HttpCallbacks
from worker.http.functions import HttpFunctions, open_functions
from worker.http.names import Names
from worker.http.transport import IDLE, PlainTransport
from worker.model import Attempted, Callback, Invocation, NoResponse, Responded, TimedOut

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Script = Callable[[trio.SocketStream], Awaitable[None]]


@dataclass
class Server:
    """A server by script: one call for each connection; *requests* are the bytes as they came."""

    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)

    async def read(self, stream: trio.SocketStream) -> bytes:
        """One request, by its Content-Length; b"" at the end."""
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := await stream.receive_some(65536)):
                return b""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line[15:]):
                    body += await stream.receive_some(65536)
        self.requests.append(head + b"\r\n\r\n" + body)
        return head


@asynccontextmanager
async def serving(script: Callable[[Server, trio.SocketStream], Awaitable[None]]) -> AsyncIterator[Server]:
    """Run *script* for each connection."""
    server = Server()

    async def handle(stream: trio.SocketStream) -> None:
        server.connections += 1
        try:
            await script(server, stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            stream.socket.close()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        server.port = listeners[0].socket.getsockname()[1]
        yield server
        nursery.cancel_scope.cancel()


async def answer_all(server: Server, stream: trio.SocketStream) -> None:
    """200 to each request, the connection kept."""
    while await server.read(stream):
        await stream.send_all(OK)


def one_answer(data: bytes) -> Callable[[Server, trio.SocketStream], Awaitable[None]]:
    """The same bytes to the first request, then the end."""

    async def script(server: Server, stream: trio.SocketStream) -> None:
        await server.read(stream)
        await stream.send_all(data)

    return script


def _request(server: Server, **extensions: object) -> httpx.Request:
    return httpx.Request("POST", f"http://127.0.0.1:{server.port}/p?q", content=b"body", extensions=dict(extensions))


def _transport() -> PlainTransport:
    return PlainTransport(most_body=100, most_idle=10)


async def test_an_idle_connection_is_used_again() -> None:
    """Requests one after the other share a connection."""
    async with serving(answer_all) as server:
        transport = _transport()
        for _ in range(3):
            response = await transport.handle_async_request(_request(server))
            assert (response.status_code, await response.aread()) == (200, b"ok")
        assert (server.connections, len(server.requests)) == (1, 3)
        await transport.aclose()


async def test_the_connection_used_last_is_used_first() -> None:
    """A burst's connections grow old while quiet traffic stays on one."""
    async with serving(answer_all) as server:
        transport = _transport()
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(transport.handle_async_request, _request(server))
        burst = server.connections
        for _ in range(5):
            await transport.handle_async_request(_request(server))
        assert server.connections == burst
        await transport.aclose()


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"trailing",
    ],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(data: bytes) -> None:
    """Close, HTTP/1.0, and trailing bytes each mean a new connection for the next request."""

    async def script(server: Server, stream: trio.SocketStream) -> None:
        while await server.read(stream):
            await stream.send_all(data)

    async with serving(script) as server:
        transport = _transport()
        for _ in range(2):
            assert (await transport.handle_async_request(_request(server))).status_code == 200
        assert server.connections == 2


async def test_a_connection_that_died_idle_is_replaced_without_counting() -> None:
    """The server closed it after its answer: the next request goes out on a new one, once."""
    async with serving(one_answer(OK)) as server:
        transport = _transport()
        for expected in (1, 2, 3):
            assert (await transport.handle_async_request(_request(server))).status_code == 200
            await trio.lowlevel.wait_readable(transport._idle["127.0.0.1", server.port][-1]._sock)
            assert (server.connections, len(server.requests)) == (expected, expected)


def test_an_old_idle_connection_is_not_used() -> None:
    """After IDLE seconds a connection is closed rather than risked."""

    async def main() -> None:
        async with serving(answer_all) as server:
            transport = _transport()
            await transport.handle_async_request(_request(server))
            clock.jump(IDLE + 0.001)
            await transport.handle_async_request(_request(server))
            assert server.connections == 2
            await transport.aclose()

    clock = MockClock(rate=1.0)
    trio.run(main, clock=clock)


async def test_a_cancelled_exchange_leaves_no_connection_half_used() -> None:
    """Cancelled while the answer is awaited, the connection is closed, and the next request has one of its own."""

    async def script(server: Server, stream: trio.SocketStream) -> None:
        while await server.read(stream):
            if len(server.requests) > 1:
                await stream.send_all(OK)

    async with serving(script) as server:
        transport = _transport()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.handle_async_request, _request(server))
            while not server.requests:  # noqa: ASYNC110 -- the server's record, not a task's
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert (await transport.handle_async_request(_request(server))).status_code == 200
        assert server.connections == 2
        await transport.aclose()


async def test_an_early_answer_to_a_large_request_is_heard() -> None:
    """A server may refuse a body without reading it: what it said counts, not that it closed."""

    async def script(_: Server, stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await stream.send_eof()
        while await stream.receive_some(65536):
            pass

    async with serving(script) as server:
        request = httpx.Request("POST", f"http://127.0.0.1:{server.port}/", content=b"x" * 1_000_000)
        assert (await _transport().handle_async_request(request)).status_code == 413


def _functions(server_port: int, **environment: str) -> AbstractAsyncContextManager[HttpFunctions]:
    return open_functions(load({"gateway_url": f"http://127.0.0.1:{server_port}/base/"} | environment).settings)


def _invocation(**change: object) -> Invocation:
    fields: dict[str, object] = {
        "call_id": "c",
        "function": "f",
        "label": "f.ns",
        "method": "PATCH",
        "target": b"/function/f/a%2Fb//..;/c?x=<1>&y=%zz",
        "headers": ((b"X-Call-Id", b"c"), (b"X-a", b"1"), (b"X-a", "é".encode())),
        "body": b"\x00\xff",
        "annotations": {},
        "callback": None,
        "started": "1",
    }
    return Invocation(**(fields | change))  # type: ignore[arg-type]  # a table of fields


@pytest.mark.parametrize("exchanges", [1, 20])
async def test_the_deadline_holds_on_a_connection_that_was_idle(exchanges: int) -> None:
    """It is kept there by one task for all, and ends each exchange whose time is over; the connection is gone."""

    async def script(server: Server, stream: trio.SocketStream) -> None:
        while await server.read(stream):
            if len(server.requests) <= exchanges:
                while len(server.requests) < exchanges:  # noqa: ASYNC110 -- until all have come, each on its own connection
                    await trio.sleep(0.001)
                await stream.send_all(OK)

    async with serving(script) as server, _functions(server.port, upstream_timeout="200ms") as functions:
        outcomes: list[Attempted] = []

        async def invoke() -> None:
            outcomes.append(await functions.invoke(_invocation()))

        for _ in range(2):
            async with trio.open_nursery() as nursery:
                for _ in range(exchanges):
                    nursery.start_soon(invoke)
        assert [type(outcome) for outcome in outcomes[:exchanges]] == [Responded] * exchanges
        assert outcomes[exchanges:] == [TimedOut(0.2)] * exchanges
        assert server.connections == exchanges
        assert not functions._plain._busy
        assert not functions._plain._idle["127.0.0.1", server.port]


async def test_a_body_that_we_broke_off_is_not_whole() -> None:
    """A body that ends with its connection does not end with our deadline."""

    async def script(server: Server, stream: trio.SocketStream) -> None:
        while await server.read(stream):
            if len(server.requests) == 1:
                await stream.send_all(OK)
            else:
                await stream.send_all(b"HTTP/1.1 200 OK\r\n\r\nthe beginning")

    async with serving(script) as server, _functions(server.port, upstream_timeout="100ms") as functions:
        assert isinstance(await functions.invoke(_invocation()), Responded)
        assert await functions.invoke(_invocation()) == TimedOut(0.1)
        assert server.connections == 1


async def test_what_is_cancelled_before_it_begins_is_not_sent() -> None:
    """No function runs for it, and the idle connection stays."""
    async with serving(answer_all) as server:
        transport = _transport()
        await transport.handle_async_request(_request(server))
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.handle_async_request(_request(server))
        await transport.handle_async_request(_request(server))
        assert (server.connections, len(server.requests)) == (1, 2)
        await transport.aclose()


def test_a_server_s_own_idle_time_is_kept_to() -> None:
    """Where it tells a shorter one than ours, the connection is closed a second before that."""

    async def script(server: Server, stream: trio.SocketStream) -> None:
        while await server.read(stream):
            await stream.send_all(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=3, max=9\r\n\r\n"))

    async def main() -> None:
        async with serving(script) as server:
            transport = _transport()
            await transport.handle_async_request(_request(server))
            clock.jump(1.9)
            await transport.handle_async_request(_request(server))
            assert server.connections == 1
            clock.jump(2.1)
            await transport.handle_async_request(_request(server))
            assert server.connections == 2
            await transport.aclose()

    clock = MockClock()
    trio.run(main, clock=clock)


def test_idle_connections_are_closed_when_nothing_else_happens() -> None:
    """A burst does not leave its connections open for ever."""

    async def main() -> None:
        async with serving(answer_all) as server, _functions(server.port) as functions:
            async with trio.open_nursery() as nursery:
                for _ in range(5):
                    nursery.start_soon(functions.invoke, _invocation())
            idle = functions._plain._idle["127.0.0.1", server.port]
            assert len(idle) == server.connections
            for _ in range(2):
                await wait_all_tasks_blocked()
                clock.jump(IDLE)
            await wait_all_tasks_blocked()
            assert not idle

    clock = MockClock()
    trio.run(main, clock=clock)


async def test_idle_connections_are_bounded() -> None:
    """Past the bound the oldest is closed."""
    async with serving(answer_all) as server:
        transport = PlainTransport(most_body=100, most_idle=3)
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(transport.handle_async_request, _request(server))
        assert server.connections == 8
        assert len(transport._idle["127.0.0.1", server.port]) == 3
        await transport.aclose()


async def test_a_large_request_is_sent_once() -> None:
    """A server that refuses a body half-way has been asked, also on a connection that was idle: it is sent once."""

    async def script(server: Server, stream: trio.SocketStream) -> None:
        await server.read(stream)
        await stream.send_all(OK)
        await stream.receive_some(100)
        server.requests.append(b"half")
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        await stream.send_eof()
        while await stream.receive_some(65536):
            pass

    async with serving(script) as server:
        transport = _transport()
        await transport.handle_async_request(_request(server))
        request = httpx.Request("POST", f"http://127.0.0.1:{server.port}/", content=b"x" * 20_000_000)
        assert (await transport.handle_async_request(request)).status_code == 413
        assert server.requests[1:] == [b"half"]


@pytest.mark.parametrize("size", [65_536, 65_537, 5_000_000])
async def test_a_large_body_arrives_whole(size: int) -> None:
    """However much of it the connection takes at a time."""
    async with serving(answer_all) as server, _functions(server.port) as functions:
        body = bytes(range(256)) * (size // 256 + 1)
        for _ in range(2):
            assert isinstance(await functions.invoke(_invocation(body=body[:size])), Responded)
        assert [request.partition(b"\r\n\r\n")[2] == body[:size] for request in server.requests] == [True, True]
        assert server.connections == 1


async def test_addresses_that_changed_are_found_in_the_same_attempt() -> None:
    """Where a remembered address refuses, the name is asked for again before the attempt counts as failed."""
    addresses = [(AF_INET, ("127.0.0.2", 0))]
    async with serving(one_answer(OK.replace(b"Content", b"Connection: close\r\nContent"))) as server:
        names = Names(lambda _, port: [(family, (host, port)) for family, (host, _) in addresses])
        transport = PlainTransport(most_body=100, most_idle=10, names=names)
        request = httpx.Request("GET", f"http://gateway:{server.port}/")
        with pytest.raises(httpx.ConnectError, match=f"cannot connect to gateway:{server.port}: .*refused"):
            await transport.handle_async_request(request)
        addresses[:] = [(AF_INET, ("127.0.0.1", 0))]
        assert (await transport.handle_async_request(request)).status_code == 200
        names._asked["gateway", server.port].found = [(AF_INET, ("127.0.0.2", server.port))]
        assert (await transport.handle_async_request(request)).status_code == 200
        assert len(server.requests) == 2


async def test_a_request_reaches_the_function_byte_for_byte() -> None:
    """Target, header fields and body as the message has them; only Host and Content-Length are ours."""
    async with serving(answer_all) as server, _functions(server.port) as functions:
        outcome = await functions.invoke(_invocation())
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
        outcome = await functions.invoke(_invocation(callback="http://x/"))
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
        outcome = await functions.invoke(_invocation())
        assert isinstance(outcome, NoResponse)
        assert outcome.reason


async def test_a_refused_connection_is_no_response() -> None:
    """Nobody listens: the reason names where."""
    async with serving(answer_all) as server:
        port = server.port
    async with _functions(port) as functions:
        outcome = await functions.invoke(_invocation())
    assert isinstance(outcome, NoResponse)
    assert f"cannot connect to 127.0.0.1:{port}" in outcome.reason


async def test_a_name_that_does_not_resolve_is_no_response() -> None:
    """DNS failures are outcomes too."""
    async with open_functions(load({"gateway_url": "http://nowhere.invalid"}).settings) as functions:
        outcome = await functions.invoke(_invocation())
    assert isinstance(outcome, NoResponse)
    assert "nowhere.invalid" in outcome.reason


async def test_the_deadline_is_for_the_whole_exchange() -> None:
    """A server that drips its body, each byte in time, runs into upstream_timeout all the same."""

    async def script(server: Server, stream: trio.SocketStream) -> None:
        await server.read(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while True:
            await stream.send_all(b"x")
            await trio.sleep(0.01)

    async with serving(script) as server, _functions(server.port, upstream_timeout="100ms") as functions:
        assert await functions.invoke(_invocation()) == TimedOut(0.1)


async def test_a_callback_is_posted_as_it_is() -> None:
    """Method, target, headers and body; nothing of httpx's own is added."""
    async with serving(answer_all) as server:
        callbacks = HttpCallbacks(load({}).settings)
        url = f"http://127.0.0.1:{server.port}/cb/a%2Fb?t=%26"
        assert await callbacks.post(Callback(url, ((b"X-Call-Id", b"c"), (b"User-Agent", b"me")), b"\x00")) == 200
        host = f"127.0.0.1:{server.port}".encode()
        assert server.requests == [
            b"POST /cb/a%2Fb?t=%26 HTTP/1.1\r\nHost: " + host + b"\r\nX-Call-Id: c\r\nUser-Agent: me\r\n"
            b"Content-Length: 1\r\n\r\n\x00"
        ]
        await callbacks.aclose()


async def test_a_redirect_is_an_answer() -> None:
    """Results go only where the caller said."""
    async with serving(
        one_answer(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    ) as server:
        callbacks = HttpCallbacks(load({}).settings)
        assert await callbacks.post(Callback(f"http://127.0.0.1:{server.port}/", (), b"")) == 302
        await callbacks.aclose()


async def test_a_callback_without_answer_tells_why() -> None:
    """Refused, and silent past its time: text, not an exception."""

    async def silent(server: Server, stream: trio.SocketStream) -> None:
        await server.read(stream)
        await trio.sleep_forever()

    callbacks = HttpCallbacks(load({"callback_timeout": "50ms"}).settings)
    async with serving(silent) as server:
        url = f"http://127.0.0.1:{server.port}/"
        assert await callbacks.post(Callback(url, (), b"")) == "no answer within 0.05 s"
    refused = await callbacks.post(Callback(url, (), b""))
    assert isinstance(refused, str)
    assert refused
    await callbacks.aclose()
