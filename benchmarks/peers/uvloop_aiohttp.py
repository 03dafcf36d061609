"""asyncio + uvloop + nats-py + aiohttp: the fastest that Python's usual libraries offer."""

from __future__ import annotations

import aiohttp
import uvloop

from .common import Told, fetch_and_invoke


async def main() -> None:
    """Until SIGTERM."""
    told = Told()
    connector = aiohttp.TCPConnector(limit=told.inflight)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:

        async def invoke(method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> int:
            async with session.request(method, url, headers=headers, data=body) as response:
                await response.read()
                return response.status

        await fetch_and_invoke(told, invoke)


if __name__ == "__main__":
    uvloop.run(main())
