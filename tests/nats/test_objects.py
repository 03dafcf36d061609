"""The object store for large bodies, on a real server, and beside nats-py's own object store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.servers import NatsServer
from worker.config import load
from worker.model import StoredBody
from worker.nats import objects
from worker.nats.connection import Connection, connect_options
from worker.nats.jetstream import JetStream
from worker.nats.object_info import CHUNK, read_info
from worker.nats.objects import NoRoomError, ObjectStore, stream_config
from worker.policy.stored_body import check_reference, created_at, is_object_name, new_name
from worker.ports import BodyLostError, BrokerUnavailableError

DRAW = "0" * 30
BUCKET = "OBJ_faas-request-bodies"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    with NatsServer(tmp_path_factory.mktemp("objects")) as nats:
        yield nats


def on_store(server: NatsServer, act: Callable[[ObjectStore], Awaitable[None]], **changes: Any) -> None:
    """Run *act* with the store of a queue on *server*; *changes* are of the bucket's configuration."""

    async def run() -> None:
        given = load({"nats_port": str(server.port), "nats_bodies_max_bytes": "-1"}).settings
        connection = Connection(connect_options(given, name=""), lambda _: None)
        await connection.open()
        try:
            await act(ObjectStore(JetStream(connection), msgspec.structs.replace(stream_config(given), **changes)))
        finally:
            await connection.close()

    asyncio.run(run())


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


async def collect(parts: AsyncIterator[bytes]) -> bytes:
    return b"".join([part async for part in parts])


async def noted(parts: AsyncIterator[bytes], into: list[bytes]) -> AsyncIterator[bytes]:
    async for part in parts:
        into.append(part)
        yield part


async def subjects(store: ObjectStore) -> set[str]:
    return {*(await store._jetstream.stream_with_subjects(store.stream)).state.subjects}


def reference(data: bytes, name: str = "") -> StoredBody:
    digest = b64encode(hashlib.sha256(data).digest(), b"-_").decode()
    return StoredBody(name or new_name(0, DRAW), len(data), f"SHA-256={digest}")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 3 * CHUNK), st.just(CHUNK)), max_size=6),
    seed=st.binary(min_size=1, max_size=8),
)
def test_read_any_chunking_returns_the_body(server: NatsServer, sizes: list[int], seed: bytes) -> None:
    """However a body arrives, it is read as it was, in chunks of the usual size, and its reference describes it."""
    parts = [(seed * size)[:size] for size in sizes]
    whole = b"".join(parts)

    async def act(store: ObjectStore) -> None:
        body = await store.put(pieces(*parts))
        assert body == reference(whole, body.name)
        chunks = [chunk async for chunk in store.read(body)]
        assert b"".join(chunks) == whole
        assert [len(chunk) for chunk in chunks[:-1]] == [CHUNK] * (len(chunks) - 1)
        await store.delete(body.name)

    on_store(server, act)


def test_put_object_is_read_by_the_client_library(server: NatsServer) -> None:
    """The layout is that of NATS's object stores, so other clients list the object and read it."""
    data = bytes(range(256)) * 2000

    async def act(store: ObjectStore) -> None:
        body = await store.put(pieces(data))
        foreign = await store._jetstream.connection.client.jetstream().object_store(store.bucket)
        found = await foreign.get(body.name)
        assert found.data == data
        assert (found.info.size, found.info.chunks, found.info.digest) == (len(data), 4, body.digest)
        assert [each.name for each in await foreign.list()] == [body.name]
        await store.delete(body.name)

    on_store(server, act)


def test_delete_removes_chunks_and_meta_data(server: NatsServer) -> None:
    """A deleted body leaves nothing in the stream, is lost to its readers, and can be deleted again."""

    async def act(store: ObjectStore) -> None:
        kept, body = await store.put(pieces(b"kept")), await store.put(pieces(b"x" * 300_000))
        await store.delete(body.name)
        assert await store.names() == [kept.name]
        assert len(await subjects(store)) == 2
        with pytest.raises(BodyLostError, match="not stored any more"):
            await collect(store.read(body))
        await store.delete(body.name)
        assert await collect(store.read(kept)) == b"kept"
        await store.delete(kept.name)

    on_store(server, act)


def test_put_failing_iterator_leaves_nothing(server: NatsServer) -> None:
    """If the body breaks off, the error is passed on and what was stored is deleted."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 400_000
        raise ConnectionResetError("the caller has gone")

    async def act(store: ObjectStore) -> None:
        with pytest.raises(ConnectionResetError):
            await store.put(broken())
        await store.wait_deleted()
        assert await subjects(store) == set()

    on_store(server, act)


def test_put_slow_server_holds_few_chunks(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the server confirms nothing, the body is read no further than the bound of unconfirmed chunks."""

    async def act(store: ObjectStore) -> None:
        taken, late, publish = 0, 0, store._jetstream.publish
        confirm, full = asyncio.Event(), asyncio.Event()

        async def endless() -> AsyncIterator[bytes]:
            nonlocal taken
            while taken < 40:
                taken += 1
                yield b"x" * CHUNK

        async def publish_late(subject: str, payload: bytes, headers: dict[str, str]) -> Any:
            nonlocal late
            if taken > 1:  # the first chunk is always waited for
                late += 1
                if late == objects._MAX_UNCONFIRMED:
                    full.set()
                await confirm.wait()
            return await publish(subject, payload, headers)

        monkeypatch.setattr(store._jetstream, "publish", publish_late)
        task = asyncio.ensure_future(store.put(endless()))
        await full.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        assert objects._MAX_UNCONFIRMED <= taken <= objects._MAX_UNCONFIRMED + 2
        confirm.set()
        body = await task
        assert (taken, body.size) == (40, 40 * CHUNK)
        await store.delete(body.name)

    on_store(server, act)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"size": 5}, "not the one that was sent"),
        ({"digest": reference(b"other").digest}, "not the one that was sent"),
        ({"name": new_name(1, DRAW)}, "not stored any more"),
    ],
)
def test_read_wrong_reference_is_lost(server: NatsServer, changes: dict[str, Any], text: str) -> None:
    """A reference counts only with the name, the size and the digest of one object."""

    async def act(store: ObjectStore) -> None:
        body = await store.put(pieces(b"data"))
        with pytest.raises(BodyLostError, match=text):
            await collect(store.read(msgspec.structs.replace(body, **changes)))
        await store.delete(body.name)

    on_store(server, act)


@pytest.mark.parametrize("change", ["chunk missing", "chunk added", "byte changed", "meta not JSON", "meta deleted"])
def test_read_damaged_body_never_yields_the_end(server: NatsServer, change: str) -> None:
    """A body that is not as it was stored is lost, and its reader never gets all of its bytes."""

    async def act(store: ObjectStore) -> None:
        data = b"".join(bytes([n]) * CHUNK for n in range(4)) + b"tail"
        body = await store.put(pieces(data))
        jetstream, chunks = store._jetstream, store._chunks(body.name)
        first = await jetstream.next_message(store.stream, 1, chunks)
        assert first
        match change:
            case "chunk missing":
                await jetstream.delete_message(store.stream, first.seq + 1)
            case "chunk added":
                last = await jetstream.last_message(store.stream, chunks)
                assert last
                await jetstream.delete_message(store.stream, last.seq)
                await jetstream.publish(chunks, b"tail and more", {})
            case "byte changed":
                last = await jetstream.last_message(store.stream, chunks)
                assert last
                await jetstream.delete_message(store.stream, last.seq)
                await jetstream.publish(chunks, b"tale", {})
            case "meta not JSON":
                await jetstream.publish(store._meta(body.name), b"[", {"Nats-Rollup": "sub"})
            case "meta deleted":
                found = await jetstream.last_message(store.stream, store._meta(body.name))
                assert found
                meta = json.loads(found.data) | {"deleted": True}
                await jetstream.publish(store._meta(body.name), json.dumps(meta).encode(), {"Nats-Rollup": "sub"})
        read: list[bytes] = []
        with pytest.raises(BodyLostError):
            await collect(noted(store.read(body), read))
        assert len(b"".join(read)) < len(data)
        while await store.names():  # nats-server 2.10.25 purges too few after a message in the middle was deleted
            await store.delete(body.name)

    on_store(server, act)


def test_put_full_bucket_raises_and_leaves_nothing(tmp_path: Path) -> None:
    """A body for which the bucket has no room is refused with a text that names the bucket; others stay readable."""

    async def act(store: ObjectStore) -> None:
        body = await store.put(pieces(b"x" * 600_000))
        with pytest.raises(NoRoomError, match=f"has no room: raise max_bytes of the stream {BUCKET}"):
            await store.put(pieces(*[b"y" * 200_000] * 5))
        await store.wait_deleted()
        assert await store.names() == [body.name]
        assert len(await collect(store.read(body))) == 600_000

    with NatsServer(tmp_path) as nats:
        on_store(nats, act, max_bytes=1_000_000)


def test_put_little_storage_creates_a_smaller_bucket(tmp_path: Path) -> None:
    """Where the server has no room for a bucket of the wanted size, a smaller one is created."""

    async def act(store: ObjectStore) -> None:
        await store.put(pieces(b"data"))
        info = await store._jetstream.stream(store.stream)
        assert info.config.max_bytes == 640 * 2**20

    limited = f'jetstream {{ store_dir: "{tmp_path}/limited", max_file_store: {2**30} }}'
    with NatsServer(tmp_path, config=limited, jetstream=False) as nats:
        on_store(nats, act, max_bytes=10 * 2**30)


def test_put_deleted_bucket_is_created_again(tmp_path: Path) -> None:
    """If the bucket is deleted while producers run, one body is refused, and the next one creates it again."""

    async def act(store: ObjectStore) -> None:
        await store.put(pieces(b"data"))
        await store._jetstream._ask(f"STREAM.DELETE.{store.stream}", dict)
        assert await store.names() == []
        with pytest.raises(BrokerUnavailableError):
            await store.put(pieces(b"data"))
        body = await store.put(pieces(b"data"))
        assert await collect(store.read(body)) == b"data"

    with NatsServer(tmp_path) as nats:
        on_store(nats, act)


def test_read_without_bucket_is_lost(tmp_path: Path) -> None:
    """A reference to a body where there never was a bucket is lost; deleting it is no error."""

    async def act(store: ObjectStore) -> None:
        with pytest.raises(BodyLostError):
            await collect(store.read(reference(b"data")))
        await store.delete(new_name(0, DRAW))
        assert not await store.keep(reference(b"data"), 1e9)
        assert await store.keep_until(new_name(0, DRAW)) is None

    with NatsServer(tmp_path) as nats:
        on_store(nats, act)


def test_put_server_away_raises_at_once(tmp_path: Path) -> None:
    """Without a server, neither storing nor reading waits."""

    async def act(store: ObjectStore) -> None:
        body = await store.put(pieces(b"data"))
        nats.kill()
        with contextlib.suppress(ConnectionError):  # it ends when the connection is lost
            await store._jetstream.connection.round_trip()
        with pytest.raises(BrokerUnavailableError, match="not connected"):
            await store.put(pieces(b"data"))
        with pytest.raises(BrokerUnavailableError, match="not connected"):
            await collect(store.read(body))

    with NatsServer(tmp_path) as nats:
        on_store(nats, act)


def test_keep_sets_the_later_time(server: NatsServer) -> None:
    """The time until which a body is kept can be set at the start, and later, and is never made earlier."""

    async def act(store: ObjectStore) -> None:
        body = await store.put(pieces(b"data"), keep_until=1000.0)
        stored = await store.keep_until(body.name)
        assert stored
        assert (stored[1], abs(stored[0] - created_at(body.name)) < 60) == (1000.0, True)
        for until, expected in ((2000.0, 2000.0), (500.0, 2000.0)):
            assert await store.keep(body, until)
            found = await store.keep_until(body.name)
            assert found
            assert found[1] == expected
        assert await collect(store.read(body)) == b"data"
        await store.delete(body.name)

    on_store(server, act)


def test_names_lists_remains_and_no_foreign_objects(server: NatsServer) -> None:
    """Objects without meta data are listed, with the time of a chunk; those that other programs put there are not."""

    async def act(store: ObjectStore) -> None:
        body = await store.put(pieces(b"data"))
        foreign = await store._jetstream.connection.client.jetstream().object_store(store.bucket)
        await foreign.put("report.pdf", b"theirs")
        await store._jetstream.purge(store.stream, store._meta(body.name))
        assert await store.names() == [body.name]
        found = await store.keep_until(body.name)
        assert found
        assert found[1] == 0.0
        await store.delete(body.name)
        await foreign.delete("report.pdf")

    on_store(server, act)


# Names, references and meta data.


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../other"},
        {"name": "*"},
        {"name": ">"},
        {"name": ""},
        {"name": "a" * 43},
        {"name": "A" * 42},
        {"name": "a" * 42 + "\n"},
        {"size": -1},
        {"size": 2**63},
        {"digest": ""},
        {"digest": "SHA-256=" + "x" * 44},
        {"digest": "MD5=" + "x" * 43 + "="},
    ],
)
def test_check_reference_hand_made_is_refused(changes: dict[str, Any]) -> None:
    """A reference with wildcards, another bucket's subject or anything else that no store returns is refused."""
    good = reference(b"data")
    check_reference(good)
    with pytest.raises(ValueError, match=r"not the (name|size|digest) of a stored body"):
        check_reference(msgspec.structs.replace(good, **changes))


def test_new_name_has_its_time_and_is_unique() -> None:
    """A name has the time to the millisecond, and no two are equal."""
    names = {new_name(1_700_000_000.123, f"{n:030x}") for n in range(100)}
    assert len(names) == 100
    assert all(is_object_name(name) and created_at(name) == 1_700_000_000.123 for name in names)
    assert all(objects._name(objects._id(name)) == name for name in names)


@given(st.text(max_size=80))
def test_object_ids_of_foreign_objects_have_no_name(identifier: str) -> None:
    """An id that this project did not make is no name of an object, and raises nothing."""
    assert objects._name(identifier) is None


@given(
    st.one_of(
        st.binary(max_size=200), st.recursive(st.none() | st.integers() | st.text(), st.lists).map(repr).map(str.encode)
    )
)
def test_read_info_any_bytes_are_meta_data_or_value_error(data: bytes) -> None:
    """Whatever stands where the meta data should be, reading it raises nothing but ValueError."""
    with pytest.raises(ValueError, match="not an object's meta data"):
        read_info(data)


@given(st.dictionaries(st.sampled_from(["keep-until", "x"]), st.text(max_size=15)))
def test_keep_until_any_metadata_is_a_time(metadata: dict[str, str]) -> None:
    """A time that no store wrote counts as none."""
    fields = {"name": "n", "bucket": "b", "nuid": "i", "size": 0, "chunks": 0, "digest": "", "metadata": metadata}
    assert 0 <= read_info(json.dumps(fields).encode()).keep_until < 1e12
