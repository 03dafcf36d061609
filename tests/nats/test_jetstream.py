"""The JetStream client: its reading of answers, and its methods on a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.servers import NatsServer
from worker.config import load
from worker.events import Connected
from worker.nats.connection import Connection, NoRespondersError, connect_options
from worker.nats.jetstream import JetStream
from worker.nats.wire import ApiError, ConsumerConfig, ErrorCode, PubAck, StreamConfig
from worker.ports import BrokerUnavailableError, MisconfiguredError

STREAM = StreamConfig(name="s", subjects=("q", "q.>"), retention="workqueue", storage="memory")


def consumer(name: str, **fields: Any) -> ConsumerConfig:
    return ConsumerConfig(name=name, durable_name=name, ack_policy="explicit", **fields)


class ScriptedConnection:
    """A connection on which each request gets the next answer of a list."""

    def __init__(self, *answers: object) -> None:
        self.answers = [each if isinstance(each, bytes) else json.dumps(each).encode() for each in answers]
        self.requests: list[tuple[str, Any]] = []

    async def request(self, subject: str, payload: bytes, _: object) -> Any:
        self.requests.append((subject, json.loads(payload or b"null")))
        return SimpleNamespace(data=self.answers.pop(0))


def run_client(scripted: ScriptedConnection, act: Callable[[JetStream], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        return await act(JetStream(cast(Connection, scripted)))

    return asyncio.run(run())


def stream_page(subjects: dict[str, int], total: int) -> dict[str, Any]:
    state = {"messages": 5, "last_seq": 9, "subjects": subjects}
    return {"config": {"name": "s"}, "state": state, "created": "2026", "total": total}


def consumer_page(*names: str, total: int, missing: tuple[str, ...] = ()) -> dict[str, Any]:
    consumers = [
        {"name": name, "config": {}, "delivered": {"stream_seq": 0}, "num_ack_pending": 0, "num_pending": 0}
        for name in names
    ]
    return {"consumers": consumers, "total": total, "missing": [*missing]}


def test_stream_with_subjects_several_pages_returns_all() -> None:
    """The subjects of a stream are requested page by page until there are as many as the server counts."""
    scripted = ScriptedConnection(stream_page({"a": 1, "b": 2}, 3), stream_page({"c": 2}, 3))
    info = run_client(scripted, lambda jetstream: jetstream.stream_with_subjects("s", "q.>"))
    assert info.state.subjects == {"a": 1, "b": 2, "c": 2}
    assert scripted.requests == [
        ("$JS.API.STREAM.INFO.s", {"subjects_filter": "q.>", "offset": 0}),
        ("$JS.API.STREAM.INFO.s", {"subjects_filter": "q.>", "offset": 2}),
    ]


def test_stream_with_subjects_empty_page_ends() -> None:
    """Where subjects disappear between two pages, so that the count is never reached, an empty page ends the list."""
    scripted = ScriptedConnection(stream_page({"a": 1}, 2), stream_page({}, 2))
    assert run_client(scripted, lambda jetstream: jetstream.stream_with_subjects("s")).state.subjects == {"a": 1}


def test_consumers_several_pages_returns_all() -> None:
    """The consumers of a stream are requested page by page until there are as many as the server counts."""
    scripted = ScriptedConnection(consumer_page("a", "b", total=3), consumer_page("c", total=3))
    found, missing = run_client(scripted, lambda jetstream: jetstream.consumers("s"))
    assert ([each.name for each in found], missing) == (["a", "b", "c"], [])
    assert [body for _, body in scripted.requests] == [{"offset": 0}, {"offset": 2}]


def test_consumers_missing_ends_the_list() -> None:
    """A page that names consumers without a leader is the last one: the server counts those, and never lists them."""
    scripted = ScriptedConnection(consumer_page("a", total=3, missing=("b", "c")))
    found, missing = run_client(scripted, lambda jetstream: jetstream.consumers("s"))
    assert ([each.name for each in found], missing) == (["a"], ["b", "c"])


@pytest.mark.parametrize("answer", [b"", b"+ACK", b"[]", b'{"config":[],"state":{},"created":1}', b'{"error":[]}', {}])
def test_stream_foreign_answer_raises_unavailable(answer: object) -> None:
    """Any client may answer on a subject, so an answer that is not JetStream's counts as no answer."""
    with pytest.raises(BrokerUnavailableError, match="an answer that is not JetStream's"):
        run_client(ScriptedConnection(answer), lambda jetstream: jetstream.stream("s"))


@pytest.mark.parametrize(("number", "code"), [(10059, ErrorCode.STREAM_NOT_FOUND), (1, 1)])
def test_stream_error_answer_raises_api_error(number: int, code: int) -> None:
    """An error is raised with its code, if that is one that callers treat differently, and with the server's text."""
    scripted = ScriptedConnection({"error": {"code": 404, "err_code": number, "description": "no"}})
    with pytest.raises(ApiError, match=rf"^no \(404/{number}\)$") as raised:
        run_client(scripted, lambda jetstream: jetstream.stream("s"))
    assert raised.value.err_code == code


def on_server(folder: Path, act: Callable[[JetStream, NatsServer], Awaitable[None]]) -> None:
    """Run *act* with a client of a server of its own, on plain asyncio as in the producer."""

    async def run(server: NatsServer) -> None:
        connection = Connection(connect_options(load({"nats_port": str(server.port)}).settings, name=""), events.append)
        await connection.open()
        assert events == [Connected(f"127.0.0.1:{server.port}", reconnected=False)]
        try:
            await act(JetStream(connection), server)
        finally:
            await connection.close()

    events: list[Any] = []
    with NatsServer(folder) as server:
        asyncio.run(run(server))


def test_find_or_create_creates_once(tmp_path: Path) -> None:
    """A missing stream or consumer is created, an existing one is found, and the result has which."""

    async def act(jetstream: JetStream, _: NatsServer) -> None:
        assert await jetstream.find_stream("s") is None
        made, created = await jetstream.find_or_create_stream(STREAM)
        found, again = await jetstream.find_or_create_stream(STREAM)
        assert (created, again, made.created) == (True, False, found.created)
        assert (found.config.retention, found.config.max_msgs) == ("workqueue", -1)
        assert await jetstream.find_consumer("s", "c") is None
        config = consumer("c", filter_subject="q", ack_wait=5 * 10**9, metadata={"a": "b"})
        assert (await jetstream.find_or_create_consumer("s", config))[1] is True
        one, again = await jetstream.find_or_create_consumer("s", config)
        assert (again, one.ack_wait, one.config.filters, one.config.metadata["a"]) == (False, 5.0, ("q",), "b")

    on_server(tmp_path, act)


def test_find_or_create_conflict_raises_misconfigured(tmp_path: Path) -> None:
    """A stream or consumer that conflicts with an existing one is a misconfiguration, with the reason."""

    async def act(jetstream: JetStream, _: NatsServer) -> None:
        await jetstream.find_or_create_stream(STREAM)
        with pytest.raises(MisconfiguredError, match=r"cannot create the stream t: the subjects overlap .*10065"):
            await jetstream.find_or_create_stream(StreamConfig(name="t", subjects=("q.x",)))
        await jetstream.find_or_create_consumer("s", consumer("c", filter_subject="q.>"))
        with pytest.raises(MisconfiguredError, match=r"cannot create the consumer s.d: other consumers.*10099"):
            await jetstream.find_or_create_consumer("s", consumer("d"))
        with pytest.raises(MisconfiguredError, match=r"cannot create the consumer s.d: another consumer .*10100"):
            await jetstream.find_or_create_consumer("s", consumer("d", filter_subject="q.x"))

    on_server(tmp_path, act)


def test_update_keeps_unknown_fields(tmp_path: Path) -> None:
    """An update sends back all that the server sent, also fields that no struct here knows."""

    async def act(jetstream: JetStream, server: NatsServer) -> None:
        server.api("STREAM.CREATE.s", name="s", subjects=["q", "q.>"], retention="workqueue", description="mine")
        await jetstream.update_stream(await jetstream.stream("s"), max_consumers=1000)
        stream = (await jetstream.stream("s")).sent
        assert (stream["description"], stream["max_consumers"]) == ("mine", 1000)
        config = {"name": "c", "durable_name": "c", "ack_policy": "explicit", "filter_subject": "q", "max_batch": 7}
        server.api("CONSUMER.CREATE.s.c", stream_name="s", config=config)
        info = await jetstream.consumer("s", "c")
        await jetstream.update_consumer("s", info, filter_subject=None, filter_subjects=["q", "q.>"], ack_wait=10**10)
        changed = (await jetstream.consumer("s", "c")).sent
        assert (changed["max_batch"], changed["ack_wait"]) == (7, 10**10)
        assert changed["filter_subjects"] == ["q", "q.>"]
        assert "filter_subject" not in changed

    on_server(tmp_path, act)


def test_messages_are_stored_read_and_deleted(tmp_path: Path) -> None:
    """A publish is confirmed, a repeated message id reported; messages are read and deleted."""

    async def act(jetstream: JetStream, _: NatsServer) -> None:
        await jetstream.find_or_create_stream(STREAM)
        for duplicate in (False, True):
            assert await jetstream.publish("q.a", b"\xff1", {"Nats-Msg-Id": "1"}) == PubAck("s", 1, duplicate)
        await jetstream.publish("q.b", b"", {})
        assert (await jetstream.message("s", 1)).data == b"\xff1"
        assert (found := await jetstream.next_message("s", 1, "q.b")) is not None
        assert (found.subject, found.seq, found.data) == ("q.b", 2, b"")
        assert await jetstream.next_message("s", 3, ">") is None
        assert (await jetstream.stream_with_subjects("s")).state.subjects == {"q.a": 1, "q.b": 1}
        await jetstream.delete_message("s", 1)
        assert await jetstream.purge("s", "q.b") == 1
        assert (await jetstream.stream("s")).state.messages == 0
        with pytest.raises(NoRespondersError):
            await jetstream.publish("elsewhere", b"", {})

    on_server(tmp_path, act)


def test_consumer_is_paused_listed_and_deleted(tmp_path: Path) -> None:
    """A consumer is paused until a time, listed, and deleted; to delete it again does nothing."""

    async def act(jetstream: JetStream, _: NatsServer) -> None:
        await jetstream.find_or_create_stream(STREAM)
        await jetstream.find_or_create_consumer("s", consumer("c"))
        assert await jetstream.pause_consumer("s", "c", "2100-01-01T00:00:00Z")
        assert (await jetstream.consumer("s", "c")).paused
        found, missing = await jetstream.consumers("s")
        assert ([each.name for each in found], missing) == (["c"], [])
        for _again in range(2):
            await jetstream.delete_consumer("s", "c")
        assert await jetstream.find_consumer("s", "c") is None

    on_server(tmp_path, act)


def test_request_connection_lost_raises_at_once(tmp_path: Path) -> None:
    """A request fails when its connection is lost, not only at its timeout."""

    async def run(server: NatsServer) -> None:
        connection = Connection(connect_options(load({"nats_port": str(server.port)}).settings, name=""), events.append)
        await connection.open()
        await connection.client.subscribe("silent")
        request = asyncio.ensure_future(connection.request("silent", within=3600.0))
        await connection.round_trip()
        await asyncio.to_thread(server.stop)
        with pytest.raises(BrokerUnavailableError, match="no answer on silent: the connection was lost"):
            await request
        with pytest.raises(BrokerUnavailableError, match="not connected"):
            await connection.request("silent")
        await connection.close()

    events: list[Any] = []
    with NatsServer(tmp_path) as server:
        asyncio.run(run(server))
