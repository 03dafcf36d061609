"""asyncio + uvloop + nats-py + aiohttp: the fastest of Python's usual libraries."""

from __future__ import annotations

import aiohttp
import uvloop

from .common import PeerSettings, fetch_and_invoke


async def main() -> None:
    """Run until SIGTERM."""
    settings = PeerSettings()
    connector = aiohttp.TCPConnector(limit=settings.inflight)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:

        async def invoke(method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> int:
            async with session.request(method, url, headers=headers, data=body) as response:
                await response.read()
                return response.status

        await fetch_and_invoke(settings, invoke)


if __name__ == "__main__":
    uvloop.run(main())
