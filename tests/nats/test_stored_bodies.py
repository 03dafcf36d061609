"""Leftovers of crashes in the object store, and what a sweep deletes: a real server, on plain asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.servers import NatsServer
from worker.config import load
from worker.events import Event, LeftoversDeleted
from worker.model import StoredBody
from worker.nats import stored_bodies
from worker.nats.connection import Connection, connect_options
from worker.nats.jetstream import JetStream
from worker.nats.objects import ObjectStore, one_part, stream_config
from worker.nats.stored_bodies import StoredBodies


def on_bodies(
    tmp_path: Path, act: Callable[[NatsServer, ObjectStore, StoredBodies, list[Event]], Awaitable[None]]
) -> None:
    async def run(nats: NatsServer) -> None:
        settings, events = load({"nats_port": str(nats.port)}).settings, list[Event]()
        connection = Connection(connect_options(settings, name=""), lambda _: None)
        await connection.open()
        try:
            jetstream = JetStream(connection)
            bodies = StoredBodies(jetstream, settings, events.append)
            bodies.open(settings)
            await act(nats, ObjectStore(jetstream, stream_config(settings)), bodies, events)
        finally:
            await connection.close()

    with NatsServer(tmp_path) as nats:
        nats.make_stream()
        asyncio.run(run(nats))


async def left(store: ObjectStore, *bodies: StoredBody) -> list[bool]:
    """Return which of the bodies are stored."""
    names = await store.names()
    return [body.name in names for body in bodies]


def test_sweep_young_objects_stay(tmp_path: Path) -> None:
    """An object whose message may be about to be published is no leftover, although the queue is empty."""

    async def act(_: NatsServer, store: ObjectStore, bodies: StoredBodies, events: list[Event]) -> None:
        await bodies.sweep()
        body = await store.put(one_part(b"young"))
        await bodies.sweep()
        assert (await left(store, body), events) == ([True], [])

    on_bodies(tmp_path, act)


def test_sweep_deletes_what_no_message_can_refer_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old objects are deleted if all messages are younger, also those without meta data; kept ones are not."""
    monkeypatch.setattr(stored_bodies, "MARGIN", 0.0)

    async def act(nats: NatsServer, store: ObjectStore, bodies: StoredBodies, events: list[Event]) -> None:
        crashed, broken = await store.put(one_part(b"crashed")), await store.put(one_part(b"broken"))
        await store._jetstream.purge(store.stream, store._meta(broken.name))
        kept = await store.put(one_part(b"kept"), keep_until=4e9)
        expired = await store.put(one_part(b"expired"), keep_until=1.0)
        nats.publish("faas-request", b"first message")
        used = await store.put(one_part(b"used"))
        for _ in range(2):
            await bodies.sweep()
            assert await left(store, crashed, broken, kept, expired, used) == [False, False, True, False, True]
        assert events == [LeftoversDeleted(3)]
        nats.api("STREAM.PURGE.faas-request")
        await bodies.sweep()
        assert await left(store, kept, used) == [True, False]

    on_bodies(tmp_path, act)


def test_sweep_leaves_what_a_stored_callback_refers_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a callback is stored, an object that is younger than it stays, although the queue is empty."""
    monkeypatch.setattr(stored_bodies, "MARGIN", 0.0)

    async def act(nats: NatsServer, store: ObjectStore, bodies: StoredBodies, _: list[Event]) -> None:
        nats.make_stream("faas-request-callbacks", subjects=["CALLBACKS.faas-request"])
        crashed = await store.put(one_part(b"crashed"))
        nats.publish("CALLBACKS.faas-request", b"callback")
        used = await bodies.put(b"result")
        await bodies.sweep()
        assert await left(store, crashed, used) == [False, True]
        nats.api("STREAM.PURGE.faas-request-callbacks")
        await bodies.sweep()
        assert await left(store, used) == [False]

    on_bodies(tmp_path, act)


def test_delete_soon_leaves_a_kept_body(tmp_path: Path) -> None:
    """The body of a settled message is deleted, unless a dead letter keeps it, and a lost one is no error."""

    async def act(_: NatsServer, store: ObjectStore, bodies: StoredBodies, __: list[Event]) -> None:
        done, kept = await store.put(one_part(b"done")), await store.put(one_part(b"kept"), keep_until=4e9)
        for body in (done, done, kept):
            bodies.delete_soon(body)
        await asyncio.wait([*bodies._deleting])
        assert await left(store, done, kept) == [False, True]

    on_bodies(tmp_path, act)
