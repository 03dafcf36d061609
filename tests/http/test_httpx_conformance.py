"""The worker's transport and httpx's own read the same from a server: status, header, body, or class of an error.

A case where the worker's is stricter contains the reason.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable

import httpx
import pytest
import trio

from tests.http.httpx_adapter import HttpxAdapter
from tests.http.server import OK, Script, Server, Stream, answer_all, one_answer, serving

Make = Callable[[], httpx.AsyncBaseTransport]
Result = tuple[object, ...]
TRANSPORTS: tuple[Make, Make] = HttpxAdapter, httpx.AsyncHTTPTransport


async def _result(make: Make, url: str, method: str = "POST", **options: object) -> Result:
    """Return the response that a user of httpx gets, or the class of its error."""
    async with httpx.AsyncClient(transport=make()) as client:
        try:
            response = await client.request(method, url, **options)  # type: ignore[arg-type]  # httpx's own options
        except httpx.HTTPError as error:
            return (type(error),)
    version, reason = response.http_version, response.reason_phrase
    return response.status_code, version, reason, response.headers.raw, response.content


async def _results(script: Script, method: str = "POST", **options: object) -> tuple[Result, Result]:
    found = []
    for make in TRANSPORTS:
        async with serving(script) as server:
            url = f"http://127.0.0.1:{server.port}/p?q=%20"
            found.append((await _result(make, url, method, **options), _requests(server)))
    assert found[0][1] == found[1][1]  # what was sent
    return found[0][0], found[1][0]


def _requests(server: Server) -> list[tuple[list[bytes], bytes]]:
    """Return each request's lines, without the port and with the body's length as the last, and its body."""
    parts = (request.replace(b":%d" % server.port, b"").partition(b"\r\n\r\n") for request in server.requests)
    return [
        (sorted(header.split(b"\r\n"), key=lambda line: line.startswith(b"Content-Length:")), body)
        for header, _, body in parts
    ]


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
async def test_transport_reads_a_response_as_httpx_does(case: str) -> None:
    """The worker's transport and httpx return the same response or raise the same class of error."""
    own, expected = await _results(one_answer(SAME[case]), content=b"body")
    assert own == expected


async def test_transport_rejects_a_folded_field() -> None:
    """The worker's transport rejects folded fields, which are obsolete (RFC 7230) and which httpx accepts."""
    own, expected = await _results(one_answer(b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n"))
    assert own == (httpx.RemoteProtocolError,)
    assert expected[0] == 200


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "OPTIONS", "PUT"])
async def test_transport_sends_each_method_as_httpx_does(method: str) -> None:
    """The server receives the same from both, but for the place of the length. A response to HEAD has no body."""
    own, expected = await _results(one_answer(OK if method != "HEAD" else OK[:-2]), method)
    assert own == expected


async def test_transport_fails_to_connect_as_httpx_does() -> None:
    """The worker's transport and httpx raise ConnectError for a refusal and for a name without an address."""
    async with serving(answer_all) as server:
        port = server.port
    for url in (f"http://127.0.0.1:{port}/", "http://nowhere.invalid/"):
        for make in TRANSPORTS:
            assert await _result(make, url) == (httpx.ConnectError,)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok"])
async def test_transport_reports_a_reset_as_httpx_does(answer: bytes) -> None:
    """A reset before a response or within one is a read error, and not the end of a response."""

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        await stream.send_all(answer)
        assert isinstance(stream, trio.SocketStream)
        stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, no end

    assert await _results(script) == ((httpx.ReadError,), (httpx.ReadError,))
