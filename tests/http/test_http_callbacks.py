"""Callbacks on real sockets: requests, results and timeouts."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from tests.http.server import LOOPBACK, OK, Script, Server, Stream, answer_all, ignore, one_answer, serving
from tests.servers import until
from worker.config import load
from worker.http import callbacks as module
from worker.http.callbacks import MAX_PER_RECEIVER, open_callbacks
from worker.model import Callback, PostResult


async def test_post_sends_the_callback_byte_for_byte() -> None:
    """Method, target, header and body are the callback's; httpx adds nothing of its own."""
    async with serving(answer_all) as server, open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
        url = f"http://127.0.0.1:{server.port}/cb/a%2Fb?t=%26"
        assert await callbacks.post(Callback(url, ((b"X-Call-Id", b"c"), (b"User-Agent", b"me")), b"\x00")) == 200
        host = f"127.0.0.1:{server.port}".encode()
        assert server.requests == [
            b"POST /cb/a%2Fb?t=%26 HTTP/1.1\r\nHost: " + host + b"\r\nX-Call-Id: c\r\nUser-Agent: me\r\n"
            b"Content-Length: 1\r\n\r\n\x00"
        ]


async def test_post_does_not_follow_a_redirect() -> None:
    """A redirect is not followed, because results are sent only to the URL that the caller named."""
    redirect = one_answer(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    async with serving(redirect) as server, open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
        assert await callbacks.post(Callback(f"http://127.0.0.1:{server.port}/", (), b"")) == 302


async def test_post_without_response_returns_the_reason(mock_clock: MockClock) -> None:
    """A refusal or a timeout returns its reason as a text, and raises nothing."""
    async with open_callbacks(load(LOOPBACK | {"callback_timeout": "50ms"}).settings, ignore) as callbacks:
        async with serving(_unanswered_from(1, mock_clock)) as server:
            url = f"http://127.0.0.1:{server.port}/"
            assert await callbacks.post(Callback(url, (), b"")) == "no answer within 0.05 s"
        refused = await callbacks.post(Callback(url, (), b""))
        assert isinstance(refused, str)
        assert refused


async def test_post_reuses_the_connection_of_its_receiver(mock_clock: MockClock) -> None:
    """Sequential callbacks share a connection, which is closed after one that failed."""
    async with serving(_unanswered_from(3, mock_clock)) as server:
        async with open_callbacks(load(LOOPBACK | {"callback_timeout": "50ms"}).settings, ignore) as callbacks:
            url = f"http://127.0.0.1:{server.port}/"
            results = [await callbacks.post(Callback(url, (), b"")) for _ in range(3)]
            assert (results, server.connections) == ([200, 200, "no answer within 0.05 s"], 1)
            await callbacks.post(Callback(url, (), b""))
        assert server.connections == 2


async def test_post_to_a_receiver_is_not_delayed_by_a_slow_one() -> None:
    """A slow receiver has at most MAX_PER_RECEIVER connections, and does not delay other receivers."""
    let = trio.Event()

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            await let.wait()
            await stream.send_all(OK)

    results: list[PostResult] = []
    async with (
        serving(script) as slow,
        serving(answer_all) as quick,
        open_callbacks(load(LOOPBACK | {"callback_timeout": "10m"}).settings, ignore) as callbacks,
        trio.open_nursery() as nursery,
    ):

        async def post(port: int) -> None:
            results.append(await callbacks.post(Callback(f"http://127.0.0.1:{port}/", (), b"")))

        for _ in range(MAX_PER_RECEIVER + 1):
            nursery.start_soon(post, slow.port)
        await until(lambda: len(slow.requests) == MAX_PER_RECEIVER, "MAX_PER_RECEIVER callbacks to the slow receiver")
        await post(quick.port)
        assert (results, slow.connections) == ([200], MAX_PER_RECEIVER)
        let.set()
        await until(lambda: len(results) == MAX_PER_RECEIVER + 2, "the other callbacks")
        assert set(results) == {200}
        assert slow.connections == MAX_PER_RECEIVER


async def test_post_that_waits_for_others_is_not_timed(monkeypatch: pytest.MonkeyPatch, mock_clock: MockClock) -> None:
    """The timeout of a callback begins when it is sent, not while it waits for a connection."""
    monkeypatch.setattr(module, "MAX_PER_RECEIVER", 1)
    async with (
        serving(_unanswered_from(1, mock_clock)) as server,
        open_callbacks(load(LOOPBACK | {"callback_timeout": "50ms"}).settings, ignore) as callbacks,
    ):
        results: list[PostResult] = []

        async def post() -> None:
            results.append(await callbacks.post(Callback(f"http://127.0.0.1:{server.port}/", (), b"")))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(post)
        assert results == ["no answer within 0.05 s"] * 4
        assert len(server.requests) == 4


async def test_post_uses_the_proxy_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY and NO_PROXY apply to callbacks, and not to the gateway."""
    async with serving(answer_all) as proxy, serving(answer_all) as receiver:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
            assert await callbacks.post(Callback("http://receiver.example/a?b", (), b"x")) == 200
            assert await callbacks.post(Callback(f"http://127.0.0.1:{receiver.port}/", (), b"x")) == 200
        assert [request.split(b"\r\n")[0] for request in proxy.requests] == [
            b"POST http://receiver.example/a?b HTTP/1.1"
        ]
        assert len(receiver.requests) == 1


def _unanswered_from(number: int, clock: MockClock) -> Script:
    """Return a script that answers no request from this *number* on, but lets the timeout of a callback pass."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            if len(server.requests) < number:
                await stream.send_all(OK)
            else:
                clock.jump(0.05)

    return script


@pytest.mark.parametrize(
    ("body", "reusable"),
    [
        (b"Content-Length: 3\r\n\r\nabc", True),
        (b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n", False),
        (b"Content-Length: 1000000\r\n\r\nabc", False),
        (b"Content-Length: 1000000\r\n\r\n" + b"x" * 100_000, False),
        (b"Content-Length: 10\r\n\r\nabc", False),
    ],
    ids=["whole", "trickle", "slow", "large", "cut"],
)
@pytest.mark.usefixtures("autojump_clock")
async def test_post_with_any_body_returns_the_status(body: bytes, reusable: bool) -> None:
    """The status is the result as soon as it has arrived, whatever the body does, and nothing is posted again."""

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            await stream.send_all(b"HTTP/1.1 200 OK\r\n" + body)
            if not reusable:
                await trio.sleep(3600 if b"10\r" not in body else 0)
                return

    async with serving(script) as server, open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
        url = f"http://127.0.0.1:{server.port}/"
        results = [await callbacks.post(Callback(url, (), b"x")) for _ in range(2)]
        assert results == [200, 200]
        assert len(server.requests) == 2
        assert server.connections == (1 if reusable else 2)


@pytest.mark.usefixtures("autojump_clock")
async def test_post_with_a_slow_header_times_out() -> None:
    """A receiver that sends its header byte by byte has not answered before callback_timeout."""

    async def script(server: Server, stream: Stream) -> None:
        await server.read(stream)
        for byte in b"HTTP/1.1 200 OK\r\n":
            await stream.send_all(bytes([byte]))
            await trio.sleep(60)

    async with serving(script) as server, open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
        assert await callbacks.post(Callback(f"http://127.0.0.1:{server.port}/", (), b"")) == "no answer within 10 s"
