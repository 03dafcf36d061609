"""The private names of nats-py that :mod:`worker.nats.nats_internals` uses."""

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


def test_nats_py_has_the_private_names_in_use() -> None:
    """Each private name that the worker uses exists in the installed nats-py."""
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


def test_nats_py_counts_unanswered_pings() -> None:
    """The client compares a count of unanswered pings, which ``excuse_pings`` resets, with its limit."""
    assert Client()._pings_outstanding == 0
    assert "self._pings_outstanding > self.options" in inspect.getsource(Client._ping_interval)


async def test_end_connecting_with_a_lost_cancellation_cancels_again() -> None:
    """A reconnection task that drops the first cancellation, as ``asyncio.wait_for`` may, is cancelled again."""
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


async def test_listen_calls_back_in_order_after_an_error(tmp_path: Path) -> None:
    """Each message is passed to the callback in order; an error of one is reported, and the next ones follow."""
    received: list[bytes] = []
    errors: list[dict[str, Any]] = []

    def on_message(message: Msg) -> None:
        received.append(message.data)
        if message.data == b"bad":
            raise ValueError(message.data)

    async with trio_asyncio.open_loop() as loop:
        loop.set_exception_handler(lambda _, context: errors.append(context))
        with NatsServer(tmp_path) as server:
            client = Client()
            await aio_as_trio(client.connect)(server.url)
            subscription = await aio_as_trio(nats_internals.listen)(client, "any", on_message)
            for data in (b"one", b"bad", b"two"):
                await aio_as_trio(client.publish)("any", data)
            await aio_as_trio(client.flush)()  # its PONG follows them
            assert received == [b"one", b"bad", b"two"]
            assert subscription.pending_msgs == 0
            await aio_as_trio(client.close)()
    (context,) = errors
    assert context["message"] == "on any"
    assert isinstance(context["exception"], ValueError)


def test_nats_py_keeps_unsent_messages_in_a_list() -> None:
    """Unsent messages are in a list with a size, which ``forget_unsent`` empties."""
    client = Client()
    assert client._pending == []
    assert client._pending_data_size == 0
