"""The transport on real sockets: which connections are used again, and what ends an exchange."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from socket import AF_INET

import httpx
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.http.server import OK, Server, Stream, answer_all, one_answer, serving
from tests.servers import until
from worker.http.connection import Connection
from worker.http.names import NameCache
from worker.http.transport import IDLE, PlainTransport


def _request(server: Server, **extensions: object) -> httpx.Request:
    return httpx.Request("POST", f"http://127.0.0.1:{server.port}/p?q", content=b"body", extensions=dict(extensions))


def _transport() -> PlainTransport:
    return PlainTransport(most_body=100, most_idle=10)


def _silent(connection: Connection) -> bool:
    return connection.silent(trio.current_time())


@pytest.fixture(params=[True, False], ids=["watch", "trio"])
async def transport(request: pytest.FixtureRequest, nursery: trio.Nursery) -> AsyncIterator[PlainTransport]:
    """One whose connections are heard of by its watch, and one where nothing runs that."""
    transport = _transport()
    if request.param:
        nursery.start_soon(transport.keep)
        await wait_all_tasks_blocked()
    yield transport
    await transport.aclose()


async def test_an_idle_connection_is_used_again(transport: PlainTransport) -> None:
    """Requests one after the other share a connection."""
    async with serving(answer_all) as server:
        for _ in range(3):
            response = await transport.handle_async_request(_request(server))
            assert (response.status_code, await response.aread()) == (200, b"ok")
        assert (server.connections, len(server.requests)) == (1, 3)


async def test_the_connection_used_last_is_used_first(transport: PlainTransport) -> None:
    """A burst's connections grow old while quiet traffic stays on one."""
    async with serving(answer_all) as server:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(transport.handle_async_request, _request(server))
        burst = server.connections
        for _ in range(5):
            await transport.handle_async_request(_request(server))
        assert server.connections == burst


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        OK + b"trailing",
    ],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(data: bytes, transport: PlainTransport) -> None:
    """Close, HTTP/1.0, and trailing bytes each mean a new connection for the next request."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            await stream.send_all(data)

    async with serving(script) as server:
        for _ in range(2):
            assert (await transport.handle_async_request(_request(server))).status_code == 200
        assert server.connections == 2


async def test_a_connection_that_died_idle_is_replaced_without_counting(transport: PlainTransport) -> None:
    """The server closed it after its answer: the next request goes out on a new one, once."""
    async with serving(one_answer(OK)) as server:
        for expected in (1, 2, 3):
            assert (await transport.handle_async_request(_request(server))).status_code == 200
            idle = transport._idle.get(("127.0.0.1", server.port), ())
            await until(lambda idle=idle: not any(_silent(each) for each in idle), "its end to be seen")  # type: ignore[misc]
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


async def test_a_cancelled_exchange_leaves_no_connection_half_used(transport: PlainTransport) -> None:
    """Cancelled while the answer is awaited, the connection is closed, and the next request has one of its own."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            if len(server.requests) > 1:
                await stream.send_all(OK)

    async with serving(script) as server:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(transport.handle_async_request, _request(server))
            while not server.requests:  # noqa: ASYNC110 -- the server's record, not a task's
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        assert (await transport.handle_async_request(_request(server))).status_code == 200
        assert server.connections == 2


async def test_an_early_answer_to_a_large_request_is_heard(transport: PlainTransport) -> None:
    """A server may refuse a body without reading it: what it said counts, not that it closed."""

    async def script(_: Server, stream: Stream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        assert isinstance(stream, trio.SocketStream)
        await stream.send_eof()
        while await stream.receive_some(65536):
            pass

    async with serving(script) as server:
        request = httpx.Request("POST", f"http://127.0.0.1:{server.port}/", content=b"x" * 1_000_000)
        assert (await transport.handle_async_request(request)).status_code == 413


async def test_what_is_cancelled_before_it_begins_is_not_sent(transport: PlainTransport) -> None:
    """No function runs for it, and the idle connection stays."""
    async with serving(answer_all) as server:
        await transport.handle_async_request(_request(server))
        with trio.CancelScope() as scope:
            scope.cancel()
            await transport.handle_async_request(_request(server))
        await transport.handle_async_request(_request(server))
        assert (server.connections, len(server.requests)) == (1, 2)


def test_a_server_s_own_idle_time_is_kept_to() -> None:
    """Where it tells a shorter one than ours, the connection is closed a second before that."""

    async def script(server: Server, stream: Stream) -> None:
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


async def test_a_large_request_is_sent_once(transport: PlainTransport) -> None:
    """A server that refuses a body half-way has been asked, also on a connection that was idle: it is sent once."""

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

    async with serving(script) as server:
        await transport.handle_async_request(_request(server))
        request = httpx.Request("POST", f"http://127.0.0.1:{server.port}/", content=b"x" * 20_000_000)
        assert (await transport.handle_async_request(request)).status_code == 413
        assert server.requests[1:] == [b"half"]


async def test_addresses_that_changed_are_found_in_the_same_attempt() -> None:
    """Where a remembered address refuses, the name is asked for again before the attempt counts as failed."""
    addresses = [(AF_INET, ("127.0.0.2", 0))]
    async with serving(one_answer(OK.replace(b"Content", b"Connection: close\r\nContent"))) as server:
        names = NameCache(lambda _, port: [(family, (host, port)) for family, (host, _) in addresses])
        transport = PlainTransport(most_body=100, most_idle=10, names=names)
        request = httpx.Request("GET", f"http://gateway:{server.port}/")
        with pytest.raises(httpx.ConnectError, match=f"cannot connect to gateway:{server.port}: .*refused"):
            await transport.handle_async_request(request)
        addresses[:] = [(AF_INET, ("127.0.0.1", 0))]
        assert (await transport.handle_async_request(request)).status_code == 200
        names._asked["gateway", server.port].found = [(AF_INET, ("127.0.0.2", server.port))]
        assert (await transport.handle_async_request(request)).status_code == 200
        assert len(server.requests) == 2


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_cancelled_anywhere_no_answer_is_another_s() -> None:
    """However far an exchange has come: what is cancelled leaves nothing behind, neither bytes nor a socket."""

    async def script(server: Server, stream: Stream) -> None:
        while head := await server.read(stream):
            number = head.split(b" ")[1].strip(b"/")
            answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(number), number)
            for piece in (answer[:10], answer[10:-1], answer[-1:]):
                await stream.send_all(piece)
                await trio.sleep(0.0005)

    async def get(number: int) -> bytes:
        url = f"http://127.0.0.1:{server.port}/{number}"
        return (await transport.handle_async_request(httpx.Request("PUT", url, content=b"x" * 300_000))).read()

    async with serving(script) as server:
        before = _open_files()
        transport = PlainTransport(most_body=100, most_idle=1000)
        cancelled = 0
        for number in range(0, 400, 2):
            with trio.move_on_after(number % 80 / 10_000) as scope:
                assert await get(number) == b"%d" % number
            cancelled += scope.cancelled_caught
            assert await get(number + 1) == b"%d" % (number + 1)
            assert not transport._busy
        assert cancelled >= 5  # those with no time at all
        await transport.aclose()
        await until(lambda: _open_files() == before, "both ends of each connection to be closed")


async def test_an_exchange_outlives_the_watch(nursery: trio.Nursery) -> None:
    """What heard for it has ended: it goes on by itself, and so does the next one on its connection."""
    go = trio.Event()

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            await go.wait()
            await stream.send_all(OK)

    async with serving(script) as server:
        transport, responses = _transport(), list[httpx.Response]()

        async def exchange() -> None:
            responses.append(await transport.handle_async_request(_request(server)))

        async with trio.open_nursery() as exchanges:
            await nursery.start(_until_set, transport, ended := trio.Event())
            exchanges.start_soon(exchange)
            await until(lambda: bool(server.requests), "the request to arrive")
            ended.set()
            await wait_all_tasks_blocked()
            go.set()
        await exchange()
        assert ([response.status_code for response in responses], server.connections) == ([200, 200], 1)
        await transport.aclose()


async def _until_set(
    transport: PlainTransport, ended: trio.Event, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport.keep)
        await wait_all_tasks_blocked()
        task_status.started()
        await ended.wait()
        nursery.cancel_scope.cancel()
