"""The parts that the Python peers share: settings from the environment, and the parser of messages.

They read the same environment variables as the worker, and do only the necessary: receive, decode, POST, acknowledge.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import nats
from nats.aio.msg import Msg
from nats.js.client import JetStreamContext


class QueueRequest(msgspec.Struct):
    """OpenFaaS's message, with the fields that an invocation uses."""

    Function: str
    Header: dict[str, list[str]]
    Method: str = "POST"
    Path: str = ""
    QueryString: str = ""
    Body: bytes = b""


decode = msgspec.json.Decoder(QueueRequest).decode


def setting(name: str) -> str:
    """Return a setting by the worker's name for it."""
    return os.environ[name]


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """The settings."""

    nats: str = field(default_factory=lambda: f"nats://127.0.0.1:{setting('nats_port')}")
    stream: str = field(default_factory=lambda: setting("nats_stream"))
    durable: str = field(default_factory=lambda: setting("nats_durable"))
    gateway: str = field(default_factory=lambda: setting("gateway_url"))
    inflight: int = field(default_factory=lambda: int(setting("max_inflight")))


def request_of(gateway: str, data: bytes) -> tuple[str, str, list[tuple[str, str]], bytes]:
    """Return method, URL, headers and body of a message's invocation."""
    message = decode(data)
    query = f"?{message.QueryString}" if message.QueryString else ""
    url = f"{gateway}/function/{message.Function}{message.Path}{query}"
    headers = [(name, value) for name, values in message.Header.items() for value in values]
    return message.Method, url, headers, message.Body


class Invoke(Protocol):
    """A function that sends an invocation, reads the whole response, and returns the status."""

    def __call__(self, method: str, url: str, headers: list[tuple[str, str]], body: bytes) -> Awaitable[int]: ...


def stopped() -> asyncio.Event:
    """Return an event that is set at SIGTERM."""
    event = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, event.set)
    return event


async def fetch_and_invoke(settings: PeerSettings, invoke: Invoke) -> None:
    """Run a bare loop over nats-py: fetch when half of the slots are free, one task for each message, until SIGTERM."""
    client = await nats.connect(settings.nats)
    subscription = await client.jetstream().pull_subscribe_bind(settings.durable, settings.stream)
    loop = asyncio.create_task(_fetch_forever(settings, subscription, invoke))
    await stopped().wait()
    loop.cancel()


async def _fetch_forever(
    settings: PeerSettings, subscription: JetStreamContext.PullSubscription, invoke: Invoke
) -> None:
    running: set[asyncio.Task[Any]] = set()
    room = asyncio.Event()

    def ended(task: asyncio.Task[Any]) -> None:
        running.discard(task)
        task.result()
        if len(running) <= settings.inflight // 2:
            room.set()

    async def process(message: Msg) -> None:
        assert await invoke(*request_of(settings.gateway, message.data)) == 200
        await message.ack()

    while True:
        try:
            messages = await subscription.fetch(settings.inflight - len(running), timeout=5)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            task = asyncio.create_task(process(message))
            running.add(task)
            task.add_done_callback(ended)
        if len(running) > settings.inflight // 2:
            room.clear()
            await room.wait()
