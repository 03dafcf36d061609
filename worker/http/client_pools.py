"""httpx clients for TLS and proxies, with any number of exchanges in flight.

httpx's pool scans all its connections for each request, and with hundreds of them it fails ("this socket was already
closed"). So here each client has one connection, and the idle clients of an origin are a stack. That costs a third of
one large pool, at 20 exchanges in flight as at 2,000.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

import httpx
import trio

from .transport import MAX_IDLE

LIMITS = httpx.Limits(max_connections=None, keepalive_expiry=MAX_IDLE)
"""Limits of one client. It never has two requests at once, so a limit of httpx's own could only delay it."""
CLOSE_TIMEOUT = 1.0
"""Seconds that TLS's closing handshake may take before the connection is closed without it."""


class PooledClient(Protocol):
    """A client with one connection: one of httpx's transports, or an ``httpx.AsyncClient``, which handles proxies."""

    async def aclose(self) -> None:
        """Close the connection."""


C = TypeVar("C", bound=PooledClient)


class OriginPool(Generic[C]):
    """The clients of one origin."""

    def __init__(self, max_clients: float) -> None:
        self.limiter = trio.CapacityLimiter(max_clients)
        self.idle: OrderedDict[C, float] = OrderedDict()
        """Idle clients and when they became idle, the oldest first."""


class ClientPools(Generic[C]):
    """A pool of clients for each origin.

    A task that finds all clients of an origin in use waits for one, first come, first served. Origins do not wait for
    each other.

    Args:
        make: creates a client for an origin, which does not connect yet.
    """

    def __init__(self, make: Callable[[str], C], *, max_per_origin: float) -> None:
        self._make, self._max_per_origin = make, max_per_origin
        self._pools: dict[str, OriginPool[C]] = {}

    @asynccontextmanager
    async def client(self, origin: str) -> AsyncIterator[C]:
        """Wait for a client of *origin*. It is closed if the body fails or is cancelled, and kept otherwise."""
        pool = self._pools.setdefault(origin, OriginPool(self._max_per_origin))
        async with pool.limiter:
            client = pool.idle.popitem()[0] if pool.idle else self._make(origin)
            try:
                yield client
            except BaseException:
                await _close(client)
                raise
            pool.idle[client] = trio.current_time()

    async def close_expired(self) -> None:
        """Close clients that were idle for MAX_IDLE, until cancelled."""
        while True:
            await trio.sleep(MAX_IDLE)
            await self.close_idle(trio.current_time() - MAX_IDLE)

    async def close_idle(self, time: float) -> None:
        """Close clients that have been idle since before *time*, and drop pools without clients."""
        for origin, pool in list(self._pools.items()):
            while pool.idle and next(iter(pool.idle.values())) < time:
                await _close(pool.idle.popitem(last=False)[0])
            if not pool.idle and not pool.limiter.borrowed_tokens:
                self._pools.pop(origin, None)


async def _close(client: PooledClient) -> None:
    with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
        await client.aclose()


@asynccontextmanager
async def open_client_pools(make: Callable[[str], C], *, max_per_origin: float) -> AsyncIterator[ClientPools[C]]:
    """Run :class:`ClientPools`, and close all clients at the end."""
    async with trio.open_nursery() as nursery:
        pools = ClientPools(make, max_per_origin=max_per_origin)
        nursery.start_soon(pools.close_expired)
        try:
            yield pools
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT, shield=True):
                await pools.close_idle(math.inf)
            nursery.cancel_scope.cancel()
