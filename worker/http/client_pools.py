"""httpx's own transport, for TLS and proxies, with any number of exchanges in flight.

Its pool scans all its connections for each request, and with hundreds of them it fails ("this socket was already
closed"). So here each pool has one connection, and is a lane: lanes to one origin are a road, and those that are idle
are stacked. That costs a third of one large pool, at 20 exchanges in flight as at 2,000.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import httpx
import trio

from .transport import IDLE

LIMITS = httpx.Limits(max_connections=None, keepalive_expiry=IDLE)
"""Of a lane. That it has one connection is our doing; a bound of httpx's could only make it wait for itself."""
CLOSING = 1.0
"""Seconds that TLS's goodbye may take, after which the connection is closed all the same."""


class PooledClient(Protocol):
    """What has one connection: one of httpx's transports, or a client, which knows of proxies."""

    async def aclose(self) -> None:
        """Close it."""


L = TypeVar("L", bound=PooledClient)


class OriginPool(Generic[L]):
    """The lanes to one origin."""

    def __init__(self, at_once: float) -> None:
        self.gate = trio.CapacityLimiter(at_once)
        self.idle: OrderedDict[L, float] = OrderedDict()
        """Since when. The first is the oldest."""
        self.users = 0


class ClientPools(Generic[L]):
    """Who finds all lanes to an origin taken waits for one, in the order of coming. Origins do not wait for each other.

    Args:
        make: makes a lane, without connecting it.
        at_once: lanes to one origin, at most.
    """

    def __init__(self, make: Callable[[], L], *, at_once: float) -> None:
        self._make, self._at_once = make, at_once
        self._roads: dict[str, OriginPool[L]] = {}

    @asynccontextmanager
    async def client(self, origin: str) -> AsyncIterator[L]:
        """A lane to *origin*, once there is one. When what is done with it fails, or is cancelled, it is closed."""
        road = self._roads.setdefault(origin, OriginPool(self._at_once))
        road.users += 1
        try:
            async with road.gate:
                lane = road.idle.popitem()[0] if road.idle else self._make()
                try:
                    yield lane
                except BaseException:
                    await _closed(lane)
                    raise
                road.idle[lane] = trio.current_time()
        finally:
            road.users -= 1
        await self._tidy(origin, road, trio.current_time() - IDLE)

    async def close_idle(self) -> None:
        """Close what is idle for too long, until cancelled."""
        while True:
            await trio.sleep(IDLE)
            oldest = trio.current_time() - IDLE
            for origin, road in list(self._roads.items()):
                await self._tidy(origin, road, oldest)

    async def aclose(self) -> None:
        """Close what is idle."""
        for origin, road in list(self._roads.items()):
            await self._tidy(origin, road, math.inf)

    async def _tidy(self, origin: str, road: OriginPool[L], oldest: float) -> None:
        if not road.users and next(reversed(road.idle.values()), -math.inf) < oldest:
            self._roads.pop(origin, None)  # and what is idle there goes below
        while road.idle and next(iter(road.idle.values())) < oldest:
            await _closed(road.idle.popitem(last=False)[0])


async def _closed(lane: PooledClient) -> None:
    with trio.move_on_after(CLOSING, shield=True):
        await lane.aclose()
