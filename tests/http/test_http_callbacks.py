"""Callbacks on real sockets: posted as they are, and held to their time."""

from __future__ import annotations

import pytest
import trio

from tests.http.server import OK, Server, Stream, answer_all, one_answer, serving
from tests.servers import until
from worker.config import load
from worker.http import callbacks as module
from worker.http.callbacks import MAX_PER_RECEIVER, open_callbacks
from worker.model import Callback


async def test_a_callback_is_posted_as_it_is() -> None:
    """Method, target, headers and body; nothing of httpx's own is added."""
    async with serving(answer_all) as server, open_callbacks(load({}).settings) as callbacks:
        url = f"http://127.0.0.1:{server.port}/cb/a%2Fb?t=%26"
        assert await callbacks.post(Callback(url, ((b"X-Call-Id", b"c"), (b"User-Agent", b"me")), b"\x00")) == 200
        host = f"127.0.0.1:{server.port}".encode()
        assert server.requests == [
            b"POST /cb/a%2Fb?t=%26 HTTP/1.1\r\nHost: " + host + b"\r\nX-Call-Id: c\r\nUser-Agent: me\r\n"
            b"Content-Length: 1\r\n\r\n\x00"
        ]


async def test_a_redirect_is_an_answer() -> None:
    """Results go only where the caller said."""
    redirect = one_answer(b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n")
    async with serving(redirect) as server, open_callbacks(load({}).settings) as callbacks:
        assert await callbacks.post(Callback(f"http://127.0.0.1:{server.port}/", (), b"")) == 302


async def test_a_callback_without_answer_tells_why() -> None:
    """Refused, and silent past its time: text, not an exception."""
    async with open_callbacks(load({"callback_timeout": "50ms"}).settings) as callbacks:
        async with serving(_silent) as server:
            url = f"http://127.0.0.1:{server.port}/"
            assert await callbacks.post(Callback(url, (), b"")) == "no answer within 0.05 s"
        refused = await callbacks.post(Callback(url, (), b""))
        assert isinstance(refused, str)
        assert refused


async def test_a_connection_is_used_again() -> None:
    """Callbacks to one receiver, one after the other, share a connection; after one that failed it is closed."""
    async with serving(_answers_the_third_never) as server:
        async with open_callbacks(load({"callback_timeout": "50ms"}).settings) as callbacks:
            results = [await callbacks.post(Callback(f"http://127.0.0.1:{server.port}/", (), b"")) for _ in range(4)]
        assert results == [200, 200, "no answer within 0.05 s", 200]
        assert server.connections == 2


async def test_a_slow_receiver_holds_up_no_other() -> None:
    """It may have MAX_PER_RECEIVER connections, which count for no other receiver; its next callback waits for one."""
    let = trio.Event()

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            await let.wait()
            await stream.send_all(OK)

    results: list[int | str] = []
    async with (
        serving(script) as slow,
        serving(answer_all) as quick,
        open_callbacks(load({}).settings) as callbacks,
        trio.open_nursery() as nursery,
    ):

        async def post(port: int) -> None:
            results.append(await callbacks.post(Callback(f"http://127.0.0.1:{port}/", (), b"")))

        for _ in range(MAX_PER_RECEIVER + 1):
            nursery.start_soon(post, slow.port)
        await until(lambda: len(slow.requests) == MAX_PER_RECEIVER, "all that the slow one may have")
        await post(quick.port)
        assert (results, slow.connections) == ([200], MAX_PER_RECEIVER)
        let.set()
        await until(lambda: len(results) == MAX_PER_RECEIVER + 2, "the rest")
        assert set(results) == {200}
        assert slow.connections == MAX_PER_RECEIVER


async def test_the_wait_for_other_callbacks_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback is given its time when it is its turn: each reaches the receiver."""
    monkeypatch.setattr(module, "MAX_PER_RECEIVER", 1)
    async with serving(_silent) as server, open_callbacks(load({"callback_timeout": "50ms"}).settings) as callbacks:
        results: list[int | str] = []

        async def post() -> None:
            results.append(await callbacks.post(Callback(f"http://127.0.0.1:{server.port}/", (), b"")))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(post)
        assert results == ["no answer within 0.05 s"] * 4
        assert len(server.requests) == 4


async def test_the_environment_s_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP_PROXY and NO_PROXY count for callbacks, as everywhere; a gateway is reached without."""
    async with serving(answer_all) as proxy, serving(answer_all) as receiver:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        async with open_callbacks(load({}).settings) as callbacks:
            assert await callbacks.post(Callback("http://receiver.example/a?b", (), b"x")) == 200
            assert await callbacks.post(Callback(f"http://127.0.0.1:{receiver.port}/", (), b"x")) == 200
        assert [request.split(b"\r\n")[0] for request in proxy.requests] == [
            b"POST http://receiver.example/a?b HTTP/1.1"
        ]
        assert len(receiver.requests) == 1


async def _silent(server: Server, stream: Stream) -> None:
    await server.read(stream)
    await trio.sleep_forever()


async def _answers_the_third_never(server: Server, stream: Stream) -> None:
    while await server.read(stream):
        if len(server.requests) != 3:
            await stream.send_all(OK)
