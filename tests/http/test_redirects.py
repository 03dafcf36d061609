"""Redirects to a clean path, on real sockets: a gateway that cleans paths exactly as Go's ServeMux does."""

from __future__ import annotations

from functools import partial

import pytest
from trio.testing import MockClock

from tests.http.go_mux import redirect_of
from tests.http.invocations import invocation
from tests.http.server import OK, Server, Stream, serving
from worker.config import load
from worker.http.functions import open_functions
from worker.model import Responded, TimedOut


async def _go_server(server: Server, stream: Stream, *, status: int = 301, root: str = "") -> None:
    """Answer 200 for a clean path and a redirect for any other; *root* is what this server does not see of the path."""
    while head := await server.read(stream):
        location = redirect_of(head.split(b" ")[1].decode(), root)
        if location is None:
            await stream.send_all(OK)
        else:
            lines = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 4\r\n\r\nmove"
            await stream.send_all(lines.encode())


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
@pytest.mark.parametrize(("status", "root"), [(301, ""), (307, "/function/f"), (308, "")])
async def test_invoke_redirect_to_the_clean_path_is_followed_once(method: str, status: int, root: str) -> None:
    """The same method, header, body and query are sent to the clean path, and its answer is the outcome."""
    async with (
        serving(partial(_go_server, status=status, root=root)) as server,
        open_functions(load({"gateway_url": f"http://127.0.0.1:{server.port}"}).settings) as functions,
    ):
        sent = invocation(method=method, target=b"/function/f//x//y/?a=%2F&b", body=b"body", callback="http://h/")
        outcome = await functions.invoke(sent)
        assert outcome == Responded(200, ((b"Content-Length", b"2"),), b"ok", 2, redirected=True)
        first, second = server.requests
        assert first.replace(b"/f//x//y/", b"/f/x/y/") == second
        assert second.startswith(f"{method} /function/f/x/y/?a=%2F&b HTTP/1.1\r\n".encode())
        assert server.connections == 1


async def test_invoke_clean_path_is_sent_once() -> None:
    """A clean path is not redirected, and the outcome is not marked as redirected."""
    async with (
        serving(_go_server) as server,
        open_functions(load({"gateway_url": f"http://127.0.0.1:{server.port}"}).settings) as functions,
    ):
        outcome = await functions.invoke(invocation(target=b"/function/f/x/?a"))
        assert isinstance(outcome, Responded)
        assert not outcome.redirected
        assert len(server.requests) == 1


async def _redirect(server: Server, stream: Stream, *, answer: bytes) -> None:
    while await server.read(stream):
        await stream.send_all(answer)


@pytest.mark.parametrize(
    "line",
    [
        "301 Moved Permanently\r\nLocation: http://127.0.0.1:1/function/f/x",
        "301 Moved Permanently\r\nLocation: /function/g/x",
        "302 Found\r\nLocation: /function/f/x",
        "303 See Other\r\nLocation: /function/f/x",
        "304 Not Modified",
        "308 Permanent Redirect",
    ],
)
async def test_invoke_other_redirect_is_the_answer(line: str) -> None:
    """Any other redirect is the function's answer, whatever its Location, and nothing else is requested."""
    async with (
        serving(partial(_redirect, answer=f"HTTP/1.1 {line}\r\nContent-Length: 0\r\n\r\n".encode())) as server,
        open_functions(load({"gateway_url": f"http://127.0.0.1:{server.port}"}).settings) as functions,
    ):
        outcome = await functions.invoke(invocation(target=b"/function/f//x"))
        assert isinstance(outcome, Responded)
        assert (outcome.status, outcome.redirected, len(server.requests)) == (int(line[:3]), False, 1)


async def test_invoke_redirect_that_repeats_is_followed_once() -> None:
    """A gateway that redirects the clean path too is not asked a third time."""
    answer = b"HTTP/1.1 301 Moved\r\nLocation: /function/f/x\r\nContent-Length: 0\r\n\r\n"
    async with (
        serving(partial(_redirect, answer=answer)) as server,
        open_functions(load({"gateway_url": f"http://127.0.0.1:{server.port}"}).settings) as functions,
    ):
        outcome = await functions.invoke(invocation(target=b"/function/f//x"))
        assert isinstance(outcome, Responded)
        assert (outcome.status, outcome.redirected, len(server.requests)) == (301, True, 2)


async def test_invoke_redirect_and_answer_share_one_timeout(mock_clock: MockClock) -> None:
    """upstream_timeout limits both requests together."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            mock_clock.jump(2.0)
            if len(server.requests) == 1:
                await stream.send_all(b"HTTP/1.1 301 Moved\r\nLocation: /function/f/x\r\nContent-Length: 0\r\n\r\n")

    async with (
        serving(script) as server,
        open_functions(
            load({"gateway_url": f"http://127.0.0.1:{server.port}", "upstream_timeout": "3s"}).settings
        ) as functions,
    ):
        assert await functions.invoke(invocation(target=b"/function/f//x")) == TimedOut(3.0)
        assert len(server.requests) == 2
