"""asyncio + nats-py + httpx: what many write first."""

from __future__ import annotations

import asyncio

import httpx

from .common import Told, fetch_and_invoke


async def main() -> None:
    """Until SIGTERM."""
    told = Told()
    limits = httpx.Limits(max_connections=told.inflight, max_keepalive_connections=told.inflight)
    async with httpx.AsyncClient(limits=limits, timeout=60, trust_env=False) as client:

        async def invoke(method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> int:
            return (await client.request(method, url, headers=headers, content=body)).status_code

        await fetch_and_invoke(told, invoke)


if __name__ == "__main__":
    asyncio.run(main())
