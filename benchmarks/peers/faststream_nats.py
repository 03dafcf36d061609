"""FastStream on NATS, with aiohttp, under uvloop as its own runner has it."""

from __future__ import annotations

import aiohttp
import uvloop
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

from .common import Told, request_of, stopped


async def main() -> None:
    """Until SIGTERM."""
    told = Told()
    broker = NatsBroker(told.nats, logger=None)
    connector = aiohttp.TCPConnector(limit=told.inflight)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:

        @broker.subscriber(
            told.stream,  # whose subject has the same name
            stream=JStream(told.stream, declare=False),
            durable=told.durable,
            pull_sub=PullSub(batch_size=told.inflight),
            max_workers=told.inflight,
        )
        async def invoke(message: NatsMessage) -> None:
            method, url, headers, body = request_of(told.gateway, message.body)
            async with session.request(method, url, headers=headers, data=body) as response:
                await response.read()
                assert response.status == 200

        await broker.start()
        await stopped().wait()
        await broker.stop()


if __name__ == "__main__":
    uvloop.run(main())
