"""asyncio + nats-py + httpx: the usual first attempt."""

from __future__ import annotations

import asyncio

import httpx

from .common import PeerSettings, fetch_and_invoke


async def main() -> None:
    """Run until SIGTERM."""
    settings = PeerSettings()
    limits = httpx.Limits(max_connections=settings.inflight, max_keepalive_connections=settings.inflight)
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:

        async def invoke(method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> int:
            return (await client.request(method, url, headers=headers, content=body)).status_code

        await fetch_and_invoke(settings, invoke)


if __name__ == "__main__":
    asyncio.run(main())
