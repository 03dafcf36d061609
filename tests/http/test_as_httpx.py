"""What httpx's own transport makes of a server, ours makes of it too: status, header, body, and the class of an error.

Where ours is stricter, the case says why. All goes through httpx's client, as anyone's use of it would.
"""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
import pytest
import trio

from tests.http.server import OK, Script, Server, Stream, answer_all, one_answer, serving
from worker.http.transport import PlainTransport

Make = Callable[[], httpx.AsyncBaseTransport]
Seen = tuple[object, ...]
OURS: Make = lambda: PlainTransport(most_body=1 << 24, most_idle=10)  # noqa: E731 -- as the other one
THEIRS: Make = httpx.AsyncHTTPTransport


async def _seen(make: Make, url: str, method: str = "POST", **options: object) -> Seen:
    """What a user of httpx sees."""
    async with httpx.AsyncClient(transport=make()) as client:
        try:
            response = await client.request(method, url, **options)  # type: ignore[arg-type]
        except httpx.HTTPError as error:
            return (type(error),)
    version, reason = response.http_version, response.reason_phrase
    return response.status_code, version, reason, response.headers.raw, response.content


async def _both(script: Script, method: str = "POST", **options: object) -> tuple[Seen, Seen]:
    found = []
    for make in (OURS, THEIRS):
        async with serving(script) as server:
            url = f"http://127.0.0.1:{server.port}/p?q=%20"
            found.append((await _seen(make, url, method, **options), _less_port(server)))
    assert found[0][1] == found[1][1]  # what was sent
    return found[0][0], found[1][0]


def _less_port(server: Server) -> list[bytes]:
    return [request.replace(b":%d" % server.port, b"") for request in server.requests]


SAME = {
    "by length": OK,
    "empty": b"HTTP/1.1 204 No Content\r\n\r\n",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n2;x=y\r\nkk\r\n0\r\nA: b\r\n\r\n",
    "to the end": b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nto the end",
    "http/1.0": b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "an error's status": b"HTTP/1.1 503 Not Now\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nbusy",
    "without a reason": b"HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
    "an unknown status": b"HTTP/1.1 299 Well\r\nContent-Length: 0\r\n\r\n",
    "a redirect": b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n",
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
    "repeated fields": b"HTTP/1.1 200 OK\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nContent-Length: 0\r\n\r\n",
    "bytes outside ASCII": b"HTTP/1.1 200 OK\r\nX: \xc3\xa9\r\nContent-Length: 0\r\n\r\n",
    "compressed": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b"
    % (len(gzip.compress(b"text", mtime=0)), gzip.compress(b"text", mtime=0)),
    "trailing bytes": OK + b"more",
    "closed without an answer": b"",
    "cut in its header": b"HTTP/1.1 200 OK\r\nContent-Le",
    "cut in its body": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
    "cut in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nok",
    "garbage": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "switching protocols": b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    "not a status": b"HTTP/1.1 OK 200\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "not a length": b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok",
    "not a chunk's size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000 + b"\r\n",
    "coded, then chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", SAME)
async def test_a_server_s_bytes(case: str) -> None:
    """The same answer, or the same class of error."""
    ours, theirs = await _both(one_answer(SAME[case]), content=b"body")
    assert ours == theirs


async def test_what_only_ours_refuses() -> None:
    """A folded field, which is obsolete since RFC 7230."""
    ours, theirs = await _both(one_answer(b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n"))
    assert ours == (httpx.RemoteProtocolError,)
    assert theirs[0] == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PUT"])
async def test_methods(method: str) -> None:
    """A response to HEAD has no body, whatever length it tells; what goes out is the same for each."""
    ours, theirs = await _both(one_answer(OK if method != "HEAD" else OK[:-2]), method)
    assert ours == theirs


async def _parts() -> AsyncIterator[bytes]:
    yield b"one"
    yield b""
    yield b"two"


async def test_a_body_that_is_a_stream() -> None:
    """Ours reads it to its end before it sends, so it is one chunk; to a server it is the same body."""
    for content, sent in ((_parts(), b"6\r\nonetwo\r\n0\r\n\r\n"), (_no_parts(), b"0\r\n\r\n")):
        async with serving(_reads_chunks) as server, httpx.AsyncClient(transport=OURS()) as client:
            url = f"http://127.0.0.1:{server.port}/"
            assert (await client.post(url, content=content)).content == b"ok"
            assert server.requests[0].endswith(b"\r\n\r\n" + sent)


async def _no_parts() -> AsyncIterator[bytes]:
    for part in list[bytes]():
        yield part


async def _reads_chunks(server: Server, stream: Stream) -> None:
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        data += await stream.receive_some(65536)
    server.requests.append(data)
    await stream.send_all(OK)


@pytest.mark.parametrize("headers", [{"X": "a\r\nB: c"}, {"X": "a\x00"}, {"X y": "a"}])
async def test_what_cannot_be_sent(headers: dict[str, str]) -> None:
    """No one adds a line to a request by way of a field's name or value."""
    async with serving(answer_all) as server:
        url = f"http://127.0.0.1:{server.port}/"
        for make in (OURS, THEIRS):
            assert await _seen(make, url, headers=headers) == (httpx.LocalProtocolError,)
        assert not server.requests


@pytest.mark.parametrize("told", ["5", "3", "x"])
async def test_a_length_that_is_not_the_body_s(told: str) -> None:
    """Nor a second request by way of a wrong length; where httpx lets h11's own error through."""
    async with serving(answer_all) as server:
        url = f"http://127.0.0.1:{server.port}/"
        assert await _seen(OURS, url, headers={"Content-Length": told}, content=b"1234") == (httpx.LocalProtocolError,)
        assert server.connections == 0


async def test_what_is_not_plain_http() -> None:
    """Httpx's client sends https elsewhere; what comes here all the same is refused."""
    transport = OURS()
    for url in ("https://127.0.0.1/", "ftp://127.0.0.1/"):
        with pytest.raises(httpx.UnsupportedProtocol):
            await transport.handle_async_request(httpx.Request("GET", url))


async def test_nobody_listens() -> None:
    """Refused, and unknown: the same class."""
    async with serving(answer_all) as server:
        port = server.port
    for url in (f"http://127.0.0.1:{port}/", "http://nowhere.invalid/"):
        for make in (OURS, THEIRS):
            assert await _seen(make, url) == (httpx.ConnectError,)


async def test_a_connection_that_is_reset() -> None:
    """Before any answer, and within one."""
    for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"):

        async def script(server: Server, stream: Stream, answer: bytes = answer) -> None:
            await server.read(stream)
            await stream.send_all(answer)
            assert isinstance(stream, trio.SocketStream)
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no end

        assert await _both(script) == ((httpx.ReadError,), (httpx.ReadError,))


async def _silent(server: Server, stream: Stream) -> None:
    await server.read(stream)
    await trio.sleep_forever()


async def _takes_nothing(_: Server, __: Stream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("script", "patience", "size", "expected"),
    [
        (_silent, httpx.Timeout(None, read=0.02), 1, httpx.ReadTimeout),
        (_takes_nothing, httpx.Timeout(None, write=0.02), 20_000_000, httpx.WriteTimeout),
    ],
)
async def test_timeouts_of_the_client(script: Script, patience: httpx.Timeout, size: int, expected: type) -> None:
    """They are told apart."""
    async with serving(script) as server:
        for make in (OURS, THEIRS):
            url = f"http://127.0.0.1:{server.port}/"
            assert await _seen(make, url, content=b"x" * size, timeout=patience) == (expected,)


@pytest.mark.quiet
async def test_each_move_has_its_own_time() -> None:
    """A body that drips for longer than the client's timeout, but never pauses so long, arrives."""

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        for _ in range(6):
            await trio.sleep(0.2)
            await stream.send_all(b"x")

    async with serving(script) as server:
        url = f"http://127.0.0.1:{server.port}/"
        assert (await _seen(OURS, url, timeout=httpx.Timeout(None, read=1.0)))[-1] == b"x" * 6


@asynccontextmanager
async def _full() -> AsyncIterator[int]:
    """The port of one that takes no more connections: its backlog is full."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(trio.open_tcp_stream, "127.0.0.1", port)
            await trio.sleep(0.05)
            yield port
            nursery.cancel_scope.cancel()


async def test_the_client_s_timeout_to_connect() -> None:
    """Another class than for a refusal."""
    async with _full() as port:
        for make in (OURS, THEIRS):
            async with httpx.AsyncClient(transport=make(), timeout=httpx.Timeout(5, connect=0.05)) as client:
                with pytest.raises(httpx.ConnectTimeout):
                    await client.get(f"http://127.0.0.1:{port}/")


async def test_streaming() -> None:
    """``client.stream`` works, for the pieces of a response that was read before it was handed out."""
    async with serving(answer_all) as server, httpx.AsyncClient(transport=OURS()) as client:
        url = f"http://127.0.0.1:{server.port}/"
        async with client.stream("POST", url, content=b"x") as response:
            assert [piece async for piece in response.aiter_bytes()] == [b"ok"]
        async with client.stream("POST", url) as response:
            assert not response.is_closed  # left unread, it costs no connection
        assert (await client.get(url)).text == "ok"
        assert server.connections == 1


async def test_a_body_that_is_cut_is_told() -> None:
    """Its bound is the transport's; the response says that there was more."""
    async with serving(answer_all) as server:
        transport = PlainTransport(most_body=1, most_idle=1)
        response = await transport.handle_async_request(httpx.Request("GET", f"http://127.0.0.1:{server.port}/"))
        assert (await response.aread(), response.extensions["truncated"]) == (b"o", True)


async def test_another_target() -> None:
    """Httpx's extension replaces what the URL says, byte for byte."""
    for make in (OURS, THEIRS):
        async with serving(answer_all) as server, httpx.AsyncClient(transport=make()) as client:
            url = f"http://127.0.0.1:{server.port}/"
            await client.get(url, extensions={"target": b"/a%2fb/../<c>?"})
            assert server.requests[0].startswith(b"GET /a%2fb/../<c>? HTTP/1.1\r\n")


async def test_a_task_that_is_cancelled() -> None:
    """Cancelled while it waits, the client goes on to work."""
    for make in (OURS, THEIRS):
        async with serving(_silent_once) as server, httpx.AsyncClient(transport=make()) as client:
            url = f"http://127.0.0.1:{server.port}/"
            with trio.move_on_after(0.05) as scope:
                await client.get(url)
            assert scope.cancelled_caught
            assert (await client.get(url)).text == "ok"


async def _silent_once(server: Server, stream: Stream) -> None:
    while await server.read(stream):
        if len(server.requests) > 1:
            await stream.send_all(OK)
