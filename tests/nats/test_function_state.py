"""Function states in every worker, on a real nats-server: pauses and quotas."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio_asyncio
from hypothesis import example, given
from hypothesis import strategies as st
from trio_asyncio import aio_as_trio

from tests.patience import LAST_RESORT
from tests.servers import NatsServer, until
from worker.config import load
from worker.events import BrokerFailure, Event
from worker.model import Quota, Rate
from worker.nats.connection import Connection, connect_options
from worker.nats.function_state import (
    READ_AGAIN,
    AgreedQuota,
    FunctionStates,
    PauseState,
    decode,
    encode,
    stream_config,
    subject_for,
)
from worker.nats.jetstream import JetStream
from worker.settings import Settings

STREAM = "faas-request-functions"


def settings(server: NatsServer) -> Settings:
    return load({"nats_port": str(server.port)}).settings


@asynccontextmanager
async def watched_states(
    server: NatsServer, events: list[Event], *, serve: bool = True
) -> AsyncIterator[tuple[FunctionStates, list[set[str]]]]:
    """Run a worker's view of the states, with all sets of paused functions that it was notified of."""
    notified: list[set[str]] = []
    async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:

        def changed(up: bool) -> None:
            if up:
                states.read_soon()

        connection = Connection(connect_options(settings(server), name=""), events.append, changed)
        states = FunctionStates(JetStream(connection), settings(server), lambda paused: notified.append(set(paused)))
        await aio_as_trio(connection.open)()
        await aio_as_trio(states.open)()
        if serve:
            nursery.start_soon(aio_as_trio(states.run))
        yield states, notified
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await aio_as_trio(connection.close)()


def create_stream(server: NatsServer, **changes: Any) -> None:
    config = msgspec.to_builtins(stream_config(settings(server))) | changes
    server.api(f"STREAM.CREATE.{STREAM}", **config)


def publish(server: NatsServer, label: str, *, paused: bool) -> None:
    server.publish(subject_for("faas-request", label), encode(PauseState(paused)))


async def test_states_pause_reaches_all_workers(tmp_path: Path) -> None:
    """Running workers receive a pause and a resume, also where the first pause creates the stream."""
    with NatsServer(tmp_path) as server:
        async with watched_states(server, []) as (_, one), watched_states(server, []) as (_, other):
            create_stream(server)
            publish(server, "echo.fn", paused=True)
            await until(lambda: one == other == [{"echo.fn"}], "both workers to receive the pause")
            publish(server, "echo.fn", paused=False)
            await until(lambda: one == other == [{"echo.fn"}, set()], "both workers to receive the resume")


async def test_store_without_a_stream_creates_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream is created before the publish, because a publish without a stream has no answer or error."""
    monkeypatch.setattr(Connection.request, "__defaults__", (b"", None, 10 * LAST_RESORT))
    with NatsServer(tmp_path) as server:
        async with watched_states(server, []) as (states, notified):
            with trio.fail_after(LAST_RESORT):
                await aio_as_trio(states.agree)("echo.fn", AgreedQuota(Quota(max_inflight=5), 7))
            assert states.quotas["echo.fn"] == AgreedQuota(Quota(max_inflight=5), 7)
            assert notified == []


async def test_states_are_read_when_open_returns(tmp_path: Path) -> None:
    """When ``open`` returns, the worker has read the states of all functions, also of 300."""
    with NatsServer(tmp_path) as server:
        create_stream(server)
        for number in range(300):
            publish(server, f"f{number}.fn", paused=True)
            publish(server, f"f{number}.fn", paused=number % 3 == 0)
        async with watched_states(server, []) as (states, notified):
            assert notified == [{f"f{number}.fn" for number in range(0, 300, 3)}]
            assert len(states.pauses) == 300


async def test_states_without_a_stream_are_empty(tmp_path: Path) -> None:
    """A missing stream is no failure, and after its deletion no function is paused."""
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        async with watched_states(server, events) as (states, notified):
            assert (notified, events[1:]) == ([], [])
            create_stream(server)
            publish(server, "echo.fn", paused=True)
            await until(lambda: notified == [{"echo.fn"}], "the pause")
            server.api(f"STREAM.DELETE.{STREAM}")
            await aio_as_trio(states.read_changes)()
            assert notified == [{"echo.fn"}, set()]


async def test_states_of_a_replaced_stream_are_read_again(tmp_path: Path) -> None:
    """The states of a replaced stream are dropped, although the new stream has the same sequences."""
    with NatsServer(tmp_path) as server:
        create_stream(server)
        publish(server, "echo.fn", paused=True)
        async with watched_states(server, []) as (states, notified):
            server.api(f"STREAM.DELETE.{STREAM}")
            create_stream(server)
            publish(server, "other.fn", paused=True)
            await aio_as_trio(states.read_changes)()
            assert notified[-1] == {"other.fn"}


async def test_states_purged_by_an_operator_are_forgotten(tmp_path: Path) -> None:
    """A function whose message was purged has no state."""
    with NatsServer(tmp_path) as server:
        create_stream(server)
        publish(server, "echo.fn", paused=True)
        publish(server, "other.fn", paused=True)
        async with watched_states(server, []) as (states, notified):
            server.api(f"STREAM.PURGE.{STREAM}", filter=subject_for("faas-request", "echo.fn"))
            await aio_as_trio(states.read_changes)()
            assert notified[-1] == {"other.fn"}
            server.api(f"STREAM.PURGE.{STREAM}")
            await aio_as_trio(states.read_changes)()
            assert notified[-1] == set()


async def test_states_changed_without_a_connection_are_read_after_it(tmp_path: Path) -> None:
    """A worker reads the stream after each reconnect, because it received no changes before."""
    with NatsServer(tmp_path) as server:
        create_stream(server)
        async with watched_states(server, []) as (_, notified):
            server.restart()
            publish(server, "echo.fn", paused=True)
            await until(lambda: notified == [{"echo.fn"}], "the pause")


async def test_refresh_without_a_received_change_reads_every_thirty_seconds(tmp_path: Path) -> None:
    """The stream is read every 30 s and not more often, because the announcement of a change can be lost."""
    with NatsServer(tmp_path) as server:
        create_stream(server)
        async with watched_states(server, [], serve=False) as (states, notified):
            publish(server, "echo.fn", paused=True)
            await until(lambda: states._changed_at > 0, "the change to be received")
            states._changed_at = float("-inf")  # as if the announcement was lost
            due = states._due
            await aio_as_trio(states.refresh)(due - 0.001)
            assert notified == []
            await aio_as_trio(states.refresh)(due)
            assert notified == [{"echo.fn"}]
            assert states._due == due + READ_AGAIN


async def test_refresh_that_failed_is_repeated_soon(tmp_path: Path) -> None:
    """A failed read is repeated within two seconds, because paused functions must not run until then."""
    with NatsServer(tmp_path, jetstream=False) as server:
        async with watched_states(server, [], serve=False) as (states, _):
            assert states._due < trio.current_time() + 2
            assert states._due + READ_AGAIN > trio.current_time() + 2


async def test_states_of_foreign_messages_are_reported(tmp_path: Path) -> None:
    """A foreign message in the stream is reported, and the other messages are applied."""
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        create_stream(server)
        server.publish("FUNCTIONS.faas-request.echo.fn", b"\xff")
        publish(server, "other.fn", paused=True)
        async with watched_states(server, events) as (_, notified):
            assert notified == [{"other.fn"}]
    assert [event.action for event in events if isinstance(event, BrokerFailure)] == [
        "reading the pauses and quotas of functions"
    ]


async def test_read_changes_reads_only_new_messages(tmp_path: Path) -> None:
    """A further read starts after the last message that was read."""
    with NatsServer(tmp_path) as server:
        create_stream(server)
        for number in range(10):
            publish(server, f"f{number}.fn", paused=True)
        async with watched_states(server, []) as (states, _):
            before = server.api("STREAM.INFO.faas-request-functions")
            assert not await aio_as_trio(states.read_changes)()
            publish(server, "f3.fn", paused=False)
            assert before["state"]["last_seq"] == 10
            assert await aio_as_trio(states.read_changes)()
            assert states._read_to == 11
            assert not states.pauses["f3.fn"].paused


names = st.from_regex(r"[a-z0-9]([-a-z0-9_]{0,8}[a-z0-9])?", fullmatch=True)


@given(names, names, names, st.booleans(), st.text(max_size=30))
def test_decode_reads_what_encode_writes(queue: str, name: str, namespace: str, paused: bool, since: str) -> None:
    """A state is decoded from the subject and payload that it was encoded to."""
    label, state = f"{name}.{namespace}", PauseState(paused, since)
    assert decode(queue, subject_for(queue, label), encode(state)) == (label, state)


@given(st.text(max_size=20), st.binary(max_size=40))
@example("echo.fn", b"[" * 100_000)
@example("echo.fn", b'{"paused": 1}')
@example("echo", b'{"paused": true}')
@example("a.b.c", b'{"paused": true}')
def test_decode_of_foreign_bytes_is_none(below: str, data: bytes) -> None:
    """Foreign bytes or subjects decode to None and raise nothing."""
    assert decode("q", f"FUNCTIONS.q.{below}", data) is None


def test_decode_ignores_unknown_fields() -> None:
    """Unknown fields are ignored, because later versions may write more."""
    assert decode("q", "FUNCTIONS.q.echo.fn", b'{"paused": true, "why": {"x": 1}}') == (
        "echo.fn",
        PauseState(paused=True),
    )


@given(names, names, names, st.none() | st.integers(1, 100_000), st.none() | st.integers(1, 10**6), st.integers(0))
def test_decode_reads_an_agreed_quota(  # noqa: PLR0917 -- what is drawn
    queue: str, name: str, namespace: str, most: int | None, starts: int | None, stored: int
) -> None:
    """An agreed quota is decoded from its own subject, beside that of the function's pauses."""
    agreed = AgreedQuota(Quota(max_inflight=most, rate=starts and Rate(starts, 60.0)), stored)  # type: ignore[arg-type]  # starts is not 0
    subject = subject_for(queue, f"{name}.{namespace}.quota")
    assert decode(queue, subject, encode(agreed)) == (f"{name}.{namespace}", agreed)


@pytest.mark.parametrize("data", ['{"max_inflight": 0, "rate": null, "stored": 1}', '{"max_inflight": 5}', "{}", "[]"])
def test_decode_of_an_impossible_quota_is_none(data: str) -> None:
    """A cap of 0 or an incomplete quota is ignored, because it would stop the function."""
    assert decode("q", "FUNCTIONS.q.echo.fn.quota", data.encode()) is None
