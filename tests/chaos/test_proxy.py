"""Tests of each fault of a way, observed at both of its ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tests.chaos.proxy import Way
from tests.patience import LAST_RESORT


@asynccontextmanager
async def echoing() -> AsyncIterator[tuple[Way, trio.SocketStream]]:
    """Open a way to an echo server, and a connection over it."""

    async def echo(stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except trio.BrokenResourceError:
            pass

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        way = Way(listeners[0].socket.getsockname()[1])
        await nursery.start(way.serve)
        yield way, await trio.open_tcp_stream("127.0.0.1", way.port)
        nursery.cancel_scope.cancel()


async def exchanged(stream: trio.SocketStream, data: bytes) -> bytes:
    """Send bytes, and return the first block of the answer."""
    await stream.send_all(data)
    with trio.fail_after(LAST_RESORT):
        return await stream.receive_some()


async def is_reset(stream: trio.SocketStream) -> None:
    with trio.fail_after(LAST_RESORT), pytest.raises(trio.BrokenResourceError):  # noqa: PT012 -- bytes from before the reset are read first
        while await stream.receive_some():
            pass


async def nothing_comes(stream: trio.SocketStream) -> None:
    with trio.move_on_after(0.1) as waiting:
        await stream.receive_some()
    assert waiting.cancelled_caught


async def test_way_without_faults_passes_bytes_both_ways() -> None:
    """A way without faults passes bytes and the end of the stream in both directions."""
    async with echoing() as (_, stream):
        assert await exchanged(stream, b"hello") == b"hello"
        await stream.send_eof()
        with trio.fail_after(LAST_RESORT):
            assert await stream.receive_some() == b""


async def test_way_cut_resets_connections() -> None:
    """A cut resets the open connections, and a new connection can be opened at once."""
    async with echoing() as (way, stream):
        assert await exchanged(stream, b"hello") == b"hello"
        way.cut()
        await is_reset(stream)
        assert await exchanged(await trio.open_tcp_stream("127.0.0.1", way.port), b"again") == b"again"


async def test_way_closed_resets_new_connections_until_healed() -> None:
    """A closed way resets new connections until it is healed."""
    async with echoing() as (way, _):
        way.closed = True
        await is_reset(await trio.open_tcp_stream("127.0.0.1", way.port))
        way.heal()
        assert await exchanged(await trio.open_tcp_stream("127.0.0.1", way.port), b"again") == b"again"


async def test_way_without_a_server_resets_connections() -> None:
    """A way to a closed port resets connections."""
    async with echoing() as (way, _):
        way._target = 1
        await is_reset(await trio.open_tcp_stream("127.0.0.1", way.port))


async def test_way_torn_passes_half_a_block() -> None:
    """A torn way passes half of the next block, and resets the connection."""
    async with echoing() as (way, stream):
        way.tear()
        assert await exchanged(stream, b"12345678") == b"1234"
        await is_reset(stream)


async def test_way_still_delivers_held_bytes_later() -> None:
    """A way that stands still passes no bytes; when it moves again, it passes all of them."""
    async with echoing() as (way, stream):
        way.stand_still()
        await stream.send_all(b"hello")
        await nothing_comes(stream)
        way.move()
        with trio.fail_after(LAST_RESORT):
            assert await stream.receive_some() == b"hello"


@pytest.mark.parametrize("direction", ["swallows_up", "swallows_down"])
async def test_way_that_drops_bytes_cuts_the_connection_when_healed(direction: str) -> None:
    """Bytes that a way has dropped never arrive: the connection is cut when the way heals."""
    async with echoing() as (way, stream):
        setattr(way, direction, True)
        await stream.send_all(b"hello")
        await nothing_comes(stream)
        way.heal()
        await is_reset(stream)


async def test_way_slow_delays_both_directions() -> None:
    """A way with a latency delays the bytes of each direction by it."""
    async with echoing() as (way, stream):
        way.latency = 0.05
        began = trio.current_time()
        assert await exchanged(stream, b"hello") == b"hello"
        assert trio.current_time() - began >= 2 * way.latency
