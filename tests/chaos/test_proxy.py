"""Tests of each fault of the proxy, observed at both of its ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tests.chaos.proxy import Proxy
from tests.patience import LAST_RESORT


@asynccontextmanager
async def open_echo() -> AsyncIterator[tuple[Proxy, trio.SocketStream]]:
    """Open a proxy to an echo server, and a connection through it."""

    async def echo(stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        proxy = Proxy(listeners[0].socket.getsockname()[1])
        await nursery.start(proxy.serve)
        yield proxy, await trio.open_tcp_stream("127.0.0.1", proxy.port)
        nursery.cancel_scope.cancel()


async def exchange(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send bytes, and return the first block of the answer."""
    await stream.send_all(data)
    with trio.fail_after(LAST_RESORT):
        return await stream.receive_some()


async def expect_reset(stream: trio.SocketStream) -> None:
    with trio.fail_after(LAST_RESORT), pytest.raises(trio.BrokenResourceError):  # noqa: PT012 -- bytes from before the reset are read first
        while await stream.receive_some():
            pass


async def expect_no_bytes(stream: trio.SocketStream) -> None:
    with trio.move_on_after(0.1) as waiting:
        await stream.receive_some()
    assert waiting.cancelled_caught


async def test_proxy_without_faults_passes_bytes_both_ways() -> None:
    """A proxy without faults passes bytes and the end of the stream in both directions."""
    async with open_echo() as (_, stream):
        assert await exchange(stream, b"hello") == b"hello"
        await stream.send_eof()
        with trio.fail_after(LAST_RESORT):
            assert await stream.receive_some() == b""


async def test_proxy_cut_resets_connections() -> None:
    """A cut resets the open connections, and a new connection can be opened at once."""
    async with open_echo() as (proxy, stream):
        assert await exchange(stream, b"hello") == b"hello"
        proxy.cut()
        await expect_reset(stream)
        assert await exchange(await trio.open_tcp_stream("127.0.0.1", proxy.port), b"again") == b"again"


async def test_proxy_closed_resets_new_connections_until_healed() -> None:
    """A closed proxy resets new connections until it is healed."""
    async with open_echo() as (proxy, _):
        proxy.closed = True
        await expect_reset(await trio.open_tcp_stream("127.0.0.1", proxy.port))
        proxy.heal()
        assert await exchange(await trio.open_tcp_stream("127.0.0.1", proxy.port), b"again") == b"again"


async def test_proxy_without_a_server_resets_connections() -> None:
    """A proxy to a closed port resets connections."""
    async with open_echo() as (proxy, _):
        proxy._target = 1
        await expect_reset(await trio.open_tcp_stream("127.0.0.1", proxy.port))


async def test_proxy_cut_in_a_block_passes_half_of_it() -> None:
    """A proxy that cuts in a block passes half of the next block, and resets the connection."""
    async with open_echo() as (proxy, stream):
        proxy.cut_in_block()
        assert await exchange(stream, b"12345678") == b"1234"
        await expect_reset(stream)


async def test_proxy_stalled_delivers_held_bytes_later() -> None:
    """A stalled proxy passes no bytes; when it resumes, it passes all of them."""
    async with open_echo() as (proxy, stream):
        proxy.stall()
        await stream.send_all(b"hello")
        await expect_no_bytes(stream)
        proxy.resume()
        with trio.fail_after(LAST_RESORT):
            assert await stream.receive_some() == b"hello"


@pytest.mark.parametrize("direction", ["drops_to_server", "drops_from_server"])
async def test_proxy_that_drops_bytes_cuts_the_connection_when_healed(direction: str) -> None:
    """Bytes that a proxy has dropped never arrive: the connection is cut when the proxy heals."""
    async with open_echo() as (proxy, stream):
        setattr(proxy, direction, True)
        await stream.send_all(b"hello")
        await expect_no_bytes(stream)
        proxy.heal()
        await expect_reset(stream)


async def test_proxy_slow_delays_both_directions() -> None:
    """A proxy with a latency delays the bytes of each direction by it."""
    async with open_echo() as (proxy, stream):
        proxy.latency = 0.05
        began = trio.current_time()
        assert await exchange(stream, b"hello") == b"hello"
        assert trio.current_time() - began >= 2 * proxy.latency
