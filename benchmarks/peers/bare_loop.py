"""The bare nats.py loop: fetch one, POST it, acknowledge it, fetch the next. For the figure of latency."""

from __future__ import annotations

import aiohttp
import nats
import uvloop

from .common import Told, request_of


async def main() -> None:
    """Until it is killed."""
    told = Told()
    client = await nats.connect(told.nats)
    subscription = await client.jetstream().pull_subscribe_bind(told.durable, told.stream)
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                (message,) = await subscription.fetch(1, timeout=5)
            except nats.errors.TimeoutError:
                continue
            method, url, headers, body = request_of(told.gateway, message.data)
            async with session.request(method, url, headers=headers, data=body) as response:
                await response.read()
                assert response.status == 200
            await message.ack()


if __name__ == "__main__":
    uvloop.run(main())
