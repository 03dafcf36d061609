"""The bare nats.py loop: fetch one, POST it, acknowledge it, fetch the next. For the figure of latency."""

from __future__ import annotations

import aiohttp
import nats
import uvloop

from .common import PeerSettings, request_of


async def main() -> None:
    """Run until it is killed."""
    settings = PeerSettings()
    client = await nats.connect(settings.nats)
    subscription = await client.jetstream().pull_subscribe_bind(settings.durable, settings.stream)
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                (message,) = await subscription.fetch(1, timeout=5)
            except nats.errors.TimeoutError:
                continue
            method, url, headers, body = request_of(settings.gateway, message.data)
            async with session.request(method, url, headers=headers, data=body) as response:
                await response.read()
                assert response.status == 200
            await message.ack()


if __name__ == "__main__":
    uvloop.run(main())
