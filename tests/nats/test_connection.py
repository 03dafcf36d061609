"""The connection, with a real nats-server behind a proxy that can fail."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio_asyncio
from nats.aio.msg import Msg
from trio_asyncio import aio_as_trio

from tests.chaos.proxy import Proxy
from tests.patience import LAST_RESORT
from tests.servers import ROOT, NatsServer, until
from worker.config import load
from worker.events import BrokerFailure, ConfigDrift, Connected, Disconnected, Event
from worker.model import DeadLetter, Delivery
from worker.nats.connection import OLDEST_SERVER, Connection, ConnectionClosedError, connect_options
from worker.nats.queue import NatsQueue, open_queue
from worker.ports import BrokerUnavailableError, Consumer


async def test_open_connections_reset_waits(tmp_path: Path) -> None:
    """Opening the queue waits for a connection also while a proxy accepts connections and resets them."""
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            proxy = Proxy(server.port)
            await nursery.start(proxy.serve)
            server.stop()
            async with open_queue(load({"nats_port": str(proxy.port)}).settings, events.append) as queue:
                nursery.start_soon(start_after, 2.0, server, events)  # checks of whether the client closed for good
                await queue.consume()
            nursery.cancel_scope.cancel()
    assert was_reset(events)


def was_reset(events: list[Event]) -> bool:
    """Return whether a connection was reset."""
    return any(isinstance(event, BrokerFailure) and "reset" in event.error for event in events)


async def next_delivery(consumer: Consumer) -> Delivery:
    """Return the next delivery, which must be the only one received."""
    while True:
        if deliveries := [each for each in await consumer.receive() if isinstance(each, Delivery)]:
            (delivery,) = deliveries
            return delivery


async def start_after(seconds: float, server: NatsServer, events: list[Event]) -> None:
    """Start a server some time after a connection was reset."""
    await until(lambda: was_reset(events), "a connection to be reset")
    await trio.sleep(seconds)
    await trio.to_thread.run_sync(server.start)


async def test_watch_reader_died_reconnects(tmp_path: Path) -> None:
    """When nats-py's read loop has ended although the connection seems up, the worker reconnects and receives."""
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        # A delivery that nats-py's dead read loop did not receive is redelivered after the ack wait.
        async with open_queue(load({"nats_port": str(server.port), "ack_wait": "2s"}).settings, events.append) as queue:
            consumer = await queue.consume()
            consumer.add_credit(1, "")
            reading = queue._connection.client._reading_task
            assert reading
            reading.cancel()
            server.publish("faas-request", b"one")
            with trio.fail_after(LAST_RESORT):
                delivery = await next_delivery(consumer)
            assert delivery.payload == b"one"
    assert Connected(f"127.0.0.1:{server.port}", reconnected=True) in events


async def test_watch_client_closed_raises(tmp_path: Path) -> None:
    """When the server makes nats-py close itself, as after a message that is too large, the queue raises an error."""
    with NatsServer(tmp_path) as server, pytest.RaisesGroup(ConnectionClosedError, flatten_subgroups=True):
        async with open_queue(load({"nats_port": str(server.port)}).settings, lambda _: None) as queue:
            await queue.consume()
            client = queue._connection.client
            await aio_as_trio(client.publish)("any", bytes(client.max_payload), headers={"one": "too many"})
            with trio.fail_after(LAST_RESORT):
                await trio.sleep_forever()


async def test_close_while_connecting_ends_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is closed in the moment in which it connects again, makes no connection after that."""
    opened: list[asyncio.StreamWriter] = []
    closing: list[asyncio.Task[None]] = []
    open_connection = asyncio.open_connection

    async def open_and_close(*args: Any, **options: Any) -> Any:
        streams = await open_connection(*args, **options)
        opened.append(streams[1])
        if len(opened) > 1:  # after this moment, asyncio.wait_for of Python 3.11 drops the cancellation
            closing.append(asyncio.ensure_future(connection.close()))
        return streams

    async def connect_and_lose() -> None:
        await connection.open()
        opened[0].transport.abort()

    monkeypatch.setattr(asyncio, "open_connection", open_and_close)
    with NatsServer(tmp_path) as server, trio.fail_after(LAST_RESORT):
        async with trio_asyncio.open_loop():
            settings = load({"nats_port": str(server.port)}).settings
            connection = Connection(connect_options(settings, name=""), lambda _: None)
            await aio_as_trio(connect_and_lose)()
            await until(lambda: bool(closing) and closing[0].done(), "the closing to end")
            assert len(closing) == 1
            assert connection.client.is_closed
            assert asyncio.all_tasks(trio_asyncio.current_loop.get()) == set()
            assert [writer.transport.is_closing() for writer in opened] == [True, True]


async def test_watch_slow_reading_excuses_pings() -> None:
    """A server that sends data without answering pings stays connected; one that sends nothing is disconnected.

    Without this rule the server was disconnected after ten thousand deliveries at once: starting them took so long that
    the PONG behind them was read after the last ping. Every unread delivery then waited for its ack wait.
    """
    events: list[Event] = []
    server = ServerWithoutPongs()
    async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:
        port = await nursery.start(server.serve)
        settings = load({"nats_port": str(port)}).settings
        connection = Connection(connect_options(settings, name="") | {"ping_interval": PING}, events.append)
        await aio_as_trio(connection.open)()
        await aio_as_trio(connection.client.subscribe)("any", cb=ignore)
        nursery.start_soon(aio_as_trio(watch_repeatedly), connection)
        await until(lambda: server.pings > 10 or Disconnected() in events, "more pings than may be unanswered")
        assert Disconnected() not in events
        server.sending = False
        await until(lambda: Disconnected() in events, "the connection to be closed")
        await aio_as_trio(connection.close)()
        nursery.cancel_scope.cancel()


PING = 0.3
"""Seconds between the client's pings; at most two may be unanswered."""


class ServerWithoutPongs:
    """A server that answers only the first ping, which is part of connecting, and repeats one message."""

    def __init__(self) -> None:
        self.pings = 0
        self.sending = True

    async def serve(self, task_status: trio.TaskStatus[int]) -> None:
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            task_status.started(listener.socket.getsockname()[1])
            await trio.serve_listeners(self._serve_one, [listener], handler_nursery=nursery)

    async def _serve_one(self, stream: trio.SocketStream) -> None:
        await stream.send_all(b'INFO {"max_payload":1048576}\r\n')
        async with trio.open_nursery() as nursery, stream:
            with suppress(trio.BrokenResourceError):  # a client that disconnects resets the connection
                await self._listen(stream, nursery)
            nursery.cancel_scope.cancel()

    async def _listen(self, stream: trio.SocketStream, nursery: trio.Nursery) -> None:
        async for data in stream:
            if not self.pings and b"PING" in data:
                await stream.send_all(b"PONG\r\n")
            self.pings += data.count(b"PING")
            if b"SUB any" in data:
                nursery.start_soon(self._send, stream)

    async def _send(self, stream: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            while self.sending:
                await stream.send_all(b"MSG any 1 3\r\none\r\n")
                await trio.sleep(PING / 10)


async def ignore(message: Msg) -> None:
    """Accept a message as the callback of a subscription."""


async def watch_repeatedly(connection: Connection) -> None:
    """Watch the connection as the queue does, more often than pings are sent."""
    while True:
        await connection.watch()
        await asyncio.sleep(PING / 4)


@pytest.mark.slow
async def test_watch_unsent_bytes_reconnects(tmp_path: Path) -> None:
    """A connection that accepts no bytes, with megabytes unsent, does not keep the worker from reconnecting.

    nats-py waits until its old socket is closed. Unsent bytes delay that while TCP retries: a quarter of an hour.
    """
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        async with trio.open_nursery() as nursery:
            dead, alive = Proxy(server.port), Proxy(server.port)
            for proxy in (dead, alive):
                await nursery.start(proxy.serve)
            alive.closed = True
            urls = f"nats://127.0.0.1:{dead.port},nats://127.0.0.1:{alive.port}"
            settings = load({"nats_url": urls, "ack_wait": "12s"}).settings
            async with open_queue(settings, events.append) as queue:
                consumer = await queue.consume()
                consumer.add_credit(1, "")
                dead.stall()
                alive.closed = False
                for number in range(20):
                    letter = DeadLetter(large_delivery(number), "gave up", 1, None, None, None)
                    nursery.start_soon(store_ignoring_failure, queue, letter)
                await until(
                    lambda: Connected(f"127.0.0.1:{alive.port}", reconnected=True) in events, "another connection", 60
                )
                server.publish("faas-request", b"one")
                with trio.fail_after(LAST_RESORT):
                    delivery = await next_delivery(consumer)
                assert delivery.payload == b"one"
            nursery.cancel_scope.cancel()


def large_delivery(number: int) -> Delivery:
    return Delivery((number, 0), "", 1, 0.0, "faas-request", bytes(900_000))


async def store_ignoring_failure(queue: NatsQueue, letter: DeadLetter) -> None:
    with suppress(BrokerUnavailableError):
        await queue.store_dead_letter(letter)


@pytest.mark.parametrize(("found", "expected"), [(OLDEST_SERVER, []), ((2, 10, 24), ["2.10.24", "2.10.25"])])
async def test_connection_to_an_old_server_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: tuple[int, ...], expected: list[str]
) -> None:
    """A nats-server older than the oldest supported one causes one warning, which names both versions."""
    monkeypatch.setattr(Connection, "server_version", found)
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        async with trio_asyncio.open_loop():
            connection = Connection(
                connect_options(load({"nats_port": str(server.port)}).settings, name=""), events.append
            )
            await aio_as_trio(connection.open)()
            await aio_as_trio(connection.close)()
    warned = [event.text for event in events if isinstance(event, ConfigDrift)]
    assert len(warned) == bool(expected)
    assert all(version in warned[0] for version in expected)


def test_oldest_server_is_the_documented_one() -> None:
    """The operator's guide and `make test-versions` name the oldest nats-server of the code."""
    oldest = ".".join(map(str, OLDEST_SERVER))
    assert f"nats-server {oldest} or later" in (ROOT / "docs/operations.md").read_text()
    assert f"NATS_VERSIONS ?= {oldest} " in (ROOT / "Makefile").read_text()
