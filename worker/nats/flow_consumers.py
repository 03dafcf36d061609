"""Creates the consumers of flows that something is wanted of: of a subject, or of a function's tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from .pull_consumer import PullConsumer

_AT_ONCE = 8
"""Flows at the same time: on three servers one consumer takes 60 ms (measured)."""


class FlowConsumers:
    """A queue of flows, and the tasks that create their consumers.

    *create* finds or creates a flow's consumer and binds the flow. It returns 0, or the seconds until another try.
    """

    def __init__(self, flows: PullConsumer, create: Callable[[str], Awaitable[float]]) -> None:
        self._flows, self._create = flows, create
        self._queue: asyncio.Queue[str] = asyncio.Queue()
        self._queued: set[str] = set()

    def request(self, flow: str) -> None:
        """Have a flow's consumer created."""
        self._flows.open(flow).creating = True
        self._put(flow)

    async def run(self) -> None:
        """Create consumers until cancelled."""
        await asyncio.gather(*(self._work() for _ in range(_AT_ONCE)))

    def _put(self, flow: str) -> None:
        if flow not in self._queued:
            self._queued.add(flow)
            self._queue.put_nowait(flow)

    async def _work(self) -> None:
        while True:
            flow = await self._queue.get()
            self._queued.discard(flow)
            if self._flows.find(flow) is None:
                continue  # it has ended since
            if retry_in := await self._create(flow):
                asyncio.get_running_loop().call_later(retry_in, self._put, flow)
            elif pull := self._flows.find(flow):
                pull.creating = False
