"""The transport on real sockets: which connections are reused, and what ends an exchange."""

from __future__ import annotations

import gc
import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from tests.http.server import OK, Script, Server, Stream, answer_all, one_answer, serving
from tests.servers import until
from worker.http.http11 import ResponseParser
from worker.http.transport import CONNECT_TIMEOUT, MAX_IDLE, PlainTransport, open_transport


@asynccontextmanager
async def _serving(script: Script, *, max_idle: int = 10) -> AsyncIterator[tuple[Server, PlainTransport]]:
    async with (
        serving(script) as server,
        open_transport("127.0.0.1", server.port, max_idle=max_idle, exchange_timeout=math.inf) as transport,
    ):
        yield server, transport


async def _post(transport: PlainTransport, body: bytes = b"body", target: bytes = b"/p?q") -> ResponseParser:
    response = ResponseParser("POST", 100)
    await transport.exchange("POST", target, [(b"Host", b"gateway")], body, response)
    return response


async def test_exchange_after_another_reuses_its_connection() -> None:
    """Sequential requests share one connection."""
    async with _serving(answer_all) as (server, transport):
        for _ in range(3):
            response = await _post(transport)
            assert (response.status, bytes(response.body)) == (200, b"ok")
        assert (server.connections, len(server.requests)) == (1, 3)


async def test_exchange_after_a_burst_reuses_the_last_connection() -> None:
    """After a burst, sequential requests use one connection, so that the others reach their maximum idle time."""
    async with _serving(answer_all) as (server, transport):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(_post, transport)
        burst = server.connections
        for _ in range(5):
            await _post(transport)
        assert server.connections == burst


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"trailing",
    ],
)
async def test_connection_in_doubt_is_not_reused(data: bytes) -> None:
    """After Connection: close, HTTP/1.0 or trailing bytes the next request opens a new connection."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            await stream.send_all(data)

    async with _serving(script) as (server, transport):
        for _ in range(2):
            assert (await _post(transport)).status == 200
        assert server.connections == 2


async def test_connection_closed_by_the_server_while_idle_is_replaced() -> None:
    """After the server closed an idle connection, the next request is sent once, on a new connection."""
    async with _serving(one_answer(OK)) as (server, transport):
        for expected in (1, 2, 3):
            assert (await _post(transport)).status == 200
            await until(lambda: not any(each._idle for each in transport._idle), "the poller to report the end")
            assert (server.connections, len(server.requests)) == (expected, expected)


def test_connection_idle_for_too_long_is_closed() -> None:
    """After MAX_IDLE seconds an idle connection is not used for another request."""

    async def main() -> None:
        async with _serving(answer_all) as (server, transport):
            await _post(transport)
            clock.jump(MAX_IDLE + 0.001)
            await _post(transport)
            assert server.connections == 2

    clock = MockClock()
    trio.run(main, clock=clock)


def test_connection_is_closed_before_the_announced_idle_time_ends() -> None:
    """If the server announces a shorter idle time than MAX_IDLE, the connection is closed a second before its end."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            await stream.send_all(OK.replace(b"\r\n\r\n", b"\r\nKeep-Alive: timeout=3, max=9\r\n\r\n"))

    async def main() -> None:
        async with _serving(script) as (server, transport):
            await _post(transport)
            clock.jump(1.9)
            await _post(transport)
            assert server.connections == 1
            clock.jump(2.1)
            await _post(transport)
            assert server.connections == 2

    clock = MockClock()
    trio.run(main, clock=clock)


async def test_idle_connections_beyond_the_limit_are_closed() -> None:
    """Of more idle connections than the limit, the oldest are closed first."""
    async with _serving(answer_all, max_idle=3) as (server, transport):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(_post, transport)
        assert server.connections == 8
        assert len(transport._idle) == 3


async def test_cancelled_exchange_leaves_no_half_used_connection() -> None:
    """If an exchange is cancelled while it waits for the response, the next request opens a new connection."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            if len(server.requests) > 1:
                await stream.send_all(OK)

    async with _serving(script) as (server, transport):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_post, transport)
            await until(lambda: bool(server.requests), "the request to arrive")
            nursery.cancel_scope.cancel()
        assert (await _post(transport)).status == 200
        assert server.connections == 2


async def test_exchange_in_a_cancelled_scope_sends_nothing() -> None:
    """An exchange in a cancelled scope sends no request, and the idle connection stays usable."""
    async with _serving(answer_all) as (server, transport):
        await _post(transport)
        with trio.CancelScope() as scope:
            scope.cancel()
            await _post(transport)
        await _post(transport)
        assert (server.connections, len(server.requests)) == (1, 2)


async def test_early_response_to_a_large_request_is_received() -> None:
    """A response before the request is sent completely is received, also when the server closes the connection."""

    async def script(_: Server, stream: Stream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        assert isinstance(stream, trio.SocketStream)
        await stream.send_eof()
        while await stream.receive_some(65536):
            pass

    async with _serving(script) as (_, transport):
        assert (await _post(transport, b"x" * 1_000_000)).status == 413


async def test_large_request_rejected_half_way_is_not_repeated() -> None:
    """A request of which a part was sent is not sent again, also on a connection that was idle before."""

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        await stream.send_all(OK)
        await stream.receive_some(100)
        server.requests.append(b"half")
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        assert isinstance(stream, trio.SocketStream)
        await stream.send_eof()
        while await stream.receive_some(65536):
            pass

    async with _serving(script) as (server, transport):
        await _post(transport)
        assert (await _post(transport, b"x" * 20_000_000)).status == 413
        assert server.requests[1:] == [b"half"]


class FakeResolver:
    """A look-up whose answer a test changes."""

    def __init__(self, *hosts: str) -> None:
        self.hosts: list[str] = list(hosts)
        self.num_lookups = 0

    def __call__(self, _: bytes, port: int, *__: int) -> list[Any]:
        self.num_lookups += 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in self.hosts]


async def test_host_that_moved_is_found_in_the_same_attempt() -> None:
    """If no remembered address accepts a connection, the name is looked up again before the attempt fails."""
    resolver = FakeResolver("127.0.0.2")
    async with (
        serving(one_answer(OK.replace(b"Content", b"Connection: close\r\nContent"))) as server,
        open_transport("gateway", server.port, max_idle=1, exchange_timeout=math.inf, look_up=resolver) as transport,
    ):
        with pytest.raises(httpx.ConnectError, match=f"cannot connect to gateway:{server.port}: .*refused"):
            await _post(transport)
        assert resolver.num_lookups == 1  # these addresses were new, so there is no second look-up
        resolver.hosts = ["127.0.0.1"]
        assert (await _post(transport)).status == 200
        assert transport._names._current
        transport._names._current.addresses = FakeResolver("127.0.0.2")(b"", server.port)
        assert (await _post(transport)).status == 200
        assert (len(server.requests), resolver.num_lookups) == (2, 3)


async def test_address_that_refuses_is_tried_last_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that refuses delays one connect only, because later ones use it last; the socket has no delay."""
    attempts: list[str] = []
    connect = type(trio.socket.socket()).connect

    async def record(self: Any, address: Any) -> None:
        attempts.append(address[0])
        await connect(self, address)

    monkeypatch.setattr(type(trio.socket.socket()), "connect", record)
    async with (
        serving(answer_all) as server,
        open_transport(
            "gateway",
            server.port,
            max_idle=1,
            exchange_timeout=math.inf,
            look_up=FakeResolver("127.0.0.2", "127.0.0.1"),
        ) as transport,
    ):
        for expected in (["127.0.0.2", "127.0.0.1"], ["127.0.0.1"]):
            attempts.clear()
            with await transport._connect() as sock:
                assert sock.getpeername() == ("127.0.0.1", server.port)
                assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                assert not sock.getblocking()
            assert attempts == expected


async def test_connect_without_answer_ends_after_its_timeout(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """A connect without an answer ends after its own timeout, and does not count as a slow function."""
    assert autojump_clock

    async def unanswered(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(trio, "open_tcp_stream", unanswered)
    began = trio.current_time()
    async with open_transport("127.0.0.1", 9, max_idle=1, exchange_timeout=math.inf) as transport:
        with pytest.raises(httpx.ConnectTimeout, match=r"^no connection to 127\.0\.0\.1:9 within 10 s$"):
            await _post(transport)
        assert trio.current_time() - began == pytest.approx(CONNECT_TIMEOUT)  # of the virtual clock


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_exchange_cancelled_anywhere_mixes_up_no_responses() -> None:
    """A cancelled exchange, at any point, leaves neither bytes nor an open socket behind."""

    async def script(server: Server, stream: Stream) -> None:
        while head := await server.read(stream):
            number = head.split(b" ")[1].strip(b"/")
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(number), number)
            for piece in (answer[:10], answer[10:-1], answer[-1:]):
                await stream.send_all(piece)
                await trio.sleep(0.0005)

    async with serving(script) as server:
        gc.collect()  # files of earlier tests are not counted
        before = _open_files()
        async with open_transport("127.0.0.1", server.port, max_idle=1000, exchange_timeout=math.inf) as transport:
            cancelled = 0
            for number in range(0, 400, 2):
                for each, patience in ((number, number % 80 / 10_000), (number + 1, math.inf)):
                    with trio.move_on_after(patience) as scope:
                        response = await _post(transport, b"x" * 300_000, b"/%d" % each)
                        assert bytes(response.body) == b"%d" % each
                    cancelled += scope.cancelled_caught
                assert not transport._deadlines
            assert cancelled >= 5  # those with no time at all
        await until(lambda: _open_files() <= before, "both ends of each connection to be closed")
