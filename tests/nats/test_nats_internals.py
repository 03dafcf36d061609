"""The private names of nats-py that we rely on are where they were."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import trio_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from trio_asyncio import aio_as_trio

from tests.servers import NatsServer
from worker.nats import nats_internals


def test_private_names_exist() -> None:
    """A release of nats-py that moves a private name fails here, not at three in the morning."""
    client = Client()
    for name in (
        "_pending",
        "_pending_data_size",
        "_pings_outstanding",
        "_reading_task",
        "_reconnection_task",
        "_transport",
    ):
        assert hasattr(client, name), name
    assert inspect.iscoroutinefunction(Client._send_unsubscribe)
    assert inspect.iscoroutinefunction(Client.force_reconnect)
    assert "self._id" in inspect.getsource(Subscription.__init__)


def test_excuse_pings_resets_the_count() -> None:
    """``excuse_pings`` resets the count of unanswered pings."""
    assert Client()._pings_outstanding == 0
    assert "self._pings_outstanding > self.options" in inspect.getsource(Client._ping_interval)


async def test_end_connecting_cancel_lost_cancels_again() -> None:
    """A reconnection that drops the first cancellation, as ``asyncio.wait_for`` may, is ended all the same."""
    lost = 0

    async def reconnect() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                if lost:
                    raise
                lost += 1

    async def end() -> list[bool]:
        client = Client()
        client._reconnection_task = again = asyncio.ensure_future(reconnect())
        first = asyncio.ensure_future(reconnect())
        await asyncio.sleep(0)
        await nats_internals.end_connecting(client, first)
        return [first.done(), again.done()]

    async with trio_asyncio.open_loop():
        assert await aio_as_trio(end)() == [True, True]
    assert lost == 1


async def test_listen_calls_back_in_order(tmp_path: Path) -> None:
    """Messages are passed on in order, as they are read; an error on one is reported, and the next follow."""
    heard: list[bytes] = []
    trouble: list[dict[str, Any]] = []

    def hear(message: Msg) -> None:
        heard.append(message.data)
        if message.data == b"bad":
            raise ValueError(message.data)

    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(lambda _, context: trouble.append(context))
        with NatsServer(tmp_path) as server:
            client = Client()
            await aio_as_trio(client.connect)(server.url)
            subscription = await aio_as_trio(nats_internals.listen)(client, "any", hear)
            for data in (b"one", b"bad", b"two"):
                await aio_as_trio(client.publish)("any", data)
            await aio_as_trio(client.flush)()  # its PONG comes behind them
            assert heard == [b"one", b"bad", b"two"]
            assert subscription.pending_msgs == 0
            await aio_as_trio(client.close)()
    (context,) = trouble
    assert context["message"] == "on any"
    assert isinstance(context["exception"], ValueError)


def test_forget_unsent_empties_the_list() -> None:
    """``forget_unsent`` replaces the list of unsent messages by an empty one."""
    client = Client()
    assert client._pending == []
    assert client._pending_data_size == 0
