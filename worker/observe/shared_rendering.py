"""One rendering of the metrics at a time, shared by all scrapers that wait for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

_REST = 4
"""Pause after a rendering, as a multiple of its duration: at most a fifth of the time is spent on scrapes."""
_MAX_REST = 0.5
"""Longest pause (s): on a busy loop a rendering takes long without working long."""


class SharedRendering:
    """The metrics as bytes. Each caller of :meth:`get` gets a rendering that began after its call, so it is current."""

    def __init__(self, render: Callable[[], Awaitable[str]]) -> None:
        self._render = render
        self._next = _Rendering()

    async def get(self) -> bytes:
        """Wait for the next rendering."""
        rendering = self._next
        rendering.wanted.set()
        await rendering.done.wait()
        return rendering.content

    async def run(self) -> None:
        """Render whenever a caller waits, until cancelled."""
        while True:
            await self._next.wanted.wait()
            rendering, self._next = self._next, _Rendering()
            began = trio.current_time()
            rendering.content = (await self._render()).encode()
            rendering.done.set()
            await trio.sleep(min(_REST * (trio.current_time() - began), _MAX_REST))


class _Rendering:
    def __init__(self) -> None:
        self.wanted, self.done = trio.Event(), trio.Event()
        self.content = b""
