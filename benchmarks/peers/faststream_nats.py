"""FastStream on NATS, with aiohttp, under uvloop, as its own runner does."""

from __future__ import annotations

import aiohttp
import uvloop
from faststream.nats import JStream, NatsBroker, NatsMessage, PullSub

from .common import PeerSettings, request_of, stopped


async def main() -> None:
    """Run until SIGTERM."""
    settings = PeerSettings()
    broker = NatsBroker(settings.nats, logger=None)
    connector = aiohttp.TCPConnector(limit=settings.inflight)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:

        @broker.subscriber(
            settings.stream,  # the subject has the same name
            stream=JStream(settings.stream, declare=False),
            durable=settings.durable,
            pull_sub=PullSub(batch_size=settings.inflight),
            max_workers=settings.inflight,
        )
        async def invoke(message: NatsMessage) -> None:
            method, url, headers, body = request_of(settings.gateway, message.body)
            async with session.request(method, url, headers=headers, data=body) as response:
                await response.read()
                assert response.status == 200

        await broker.start()
        await stopped().wait()
        await broker.stop()


if __name__ == "__main__":
    uvloop.run(main())
