"""taskiq with taskiq-nats' pulling broker, and aiohttp, under uvloop, as its own runner does.

taskiq has its own message format; a formatter makes tasks of OpenFaaS's messages.
"""

from __future__ import annotations

import asyncio

import aiohttp
import uvloop
from nats.js.api import ConsumerConfig
from taskiq import BrokerMessage, TaskiqFormatter, TaskiqMessage
from taskiq.api import run_receiver_task
from taskiq_nats import PullBasedJetStreamBroker

from .common import PeerSettings, request_of, stopped


class OpenFaaS(TaskiqFormatter):
    """A formatter that makes a task ``invoke`` of each message."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway

    def dumps(self, message: TaskiqMessage) -> BrokerMessage:
        """Raise, because this program sends no task."""
        raise NotImplementedError  # taskiq's interface requires the method, and this worker only receives

    def loads(self, message: bytes) -> TaskiqMessage:
        """Run one invocation as a task."""
        return TaskiqMessage(
            task_id="", task_name="invoke", labels={}, args=[*request_of(self._gateway, message)], kwargs={}
        )


async def main() -> None:
    """Run until SIGTERM."""
    settings = PeerSettings()
    broker = PullBasedJetStreamBroker(
        settings.nats,
        subject=settings.stream,  # they have the same name
        stream_name=settings.stream,
        durable=settings.durable,
        consumer_config=ConsumerConfig(durable_name=settings.durable, max_ack_pending=-1, ack_wait=60),
        pull_consume_batch=settings.inflight,
        pull_consume_timeout=5,
    ).with_formatter(OpenFaaS(settings.gateway))
    connector = aiohttp.TCPConnector(limit=settings.inflight)
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:

        @broker.task("invoke")
        async def invoke(method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> None:
            async with session.request(method, url, headers=headers, data=body) as response:
                await response.read()
                assert response.status == 200

        await broker.startup()
        work = asyncio.create_task(
            run_receiver_task(broker, max_async_tasks=settings.inflight, validate_params=False, run_startup=False)
        )
        await stopped().wait()
        work.cancel()


if __name__ == "__main__":
    uvloop.run(main())
