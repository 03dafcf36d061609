"""Each thing that can go wrong with a way, seen from both of its ends."""

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


async def said(stream: trio.SocketStream, what: bytes) -> bytes:
    """Send something, and what comes back as soon as anything does."""
    await stream.send_all(what)
    with trio.fail_after(LAST_RESORT):
        return await stream.receive_some()


async def is_reset(stream: trio.SocketStream) -> None:
    with trio.fail_after(LAST_RESORT), pytest.raises(trio.BrokenResourceError):  # noqa: PT012 -- what had come is read first
        while await stream.receive_some():
            pass


async def nothing_comes(stream: trio.SocketStream) -> None:
    with trio.move_on_after(0.1) as waiting:
        await stream.receive_some()
    assert waiting.cancelled_caught


async def test_it_leads_there_and_back() -> None:
    """With nothing wrong, bytes pass."""
    async with echoing() as (_, stream):
        assert await said(stream, b"hello") == b"hello"
        await stream.send_eof()
        with trio.fail_after(LAST_RESORT):
            assert await stream.receive_some() == b""


async def test_cut() -> None:
    """Cut, a connection is reset; a new one can be made."""
    async with echoing() as (way, stream):
        assert await said(stream, b"hello") == b"hello"
        way.cut()
        await is_reset(stream)
        assert await said(await trio.open_tcp_stream("127.0.0.1", way.port), b"again") == b"again"


async def test_closed() -> None:
    """Closed, it turns away who comes, until it is healed."""
    async with echoing() as (way, _):
        way.closed = True
        await is_reset(await trio.open_tcp_stream("127.0.0.1", way.port))
        way.heal()
        assert await said(await trio.open_tcp_stream("127.0.0.1", way.port), b"again") == b"again"


async def test_nobody_there() -> None:
    """A way to a closed port resets connections."""
    async with echoing() as (way, _):
        way._target = 1
        await is_reset(await trio.open_tcp_stream("127.0.0.1", way.port))


async def test_torn() -> None:
    """Torn, half of the next thing passes."""
    async with echoing() as (way, stream):
        way.tear()
        assert await said(stream, b"12345678") == b"1234"
        await is_reset(stream)


async def test_still() -> None:
    """Nothing passes while it stands still; all of it does afterwards."""
    async with echoing() as (way, stream):
        way.stand_still()
        await stream.send_all(b"hello")
        await nothing_comes(stream)
        way.move()
        with trio.fail_after(LAST_RESORT):
            assert await stream.receive_some() == b"hello"


@pytest.mark.parametrize("direction", ["swallows_up", "swallows_down"])
async def test_what_is_swallowed_is_lost(direction: str) -> None:
    """What is swallowed does not come later: the connection is cut when the way heals."""
    async with echoing() as (way, stream):
        setattr(way, direction, True)
        await stream.send_all(b"hello")
        await nothing_comes(stream)
        way.heal()
        await is_reset(stream)


async def test_slow() -> None:
    """A slow way takes its time for each direction."""
    async with echoing() as (way, stream):
        way.latency = 0.05
        began = trio.current_time()
        assert await said(stream, b"hello") == b"hello"
        assert trio.current_time() - began >= 2 * way.latency
