"""Pauses and quotas reach every worker: on a real nats-server."""

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
from worker.config import Settings, load
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

STREAM = "faas-request-functions"


def settings(server: NatsServer) -> Settings:
    return load({"nats_port": str(server.port)}).settings


@asynccontextmanager
async def following(
    server: NatsServer, events: list[Event], *, serve: bool = True
) -> AsyncIterator[tuple[FunctionStates, list[set[str]]]]:
    """Run a worker's view of the states, with all sets of paused functions that it was notified of."""
    told: list[set[str]] = []
    async with trio_asyncio.open_loop(), trio.open_nursery() as nursery:

        def changed(up: bool) -> None:
            if up:
                controls.read_soon()

        connection = Connection(connect_options(settings(server), name=""), events.append, changed)
        controls = FunctionStates(JetStream(connection), settings(server), lambda paused: told.append(set(paused)))
        await aio_as_trio(connection.open)()
        await aio_as_trio(controls.open)()
        if serve:
            nursery.start_soon(aio_as_trio(controls.run))
        yield controls, told
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await aio_as_trio(connection.close)()


def make(server: NatsServer, **changes: Any) -> None:
    config = msgspec.to_builtins(stream_config(settings(server))) | changes
    server.api(f"STREAM.CREATE.{STREAM}", **config)


def publish(server: NatsServer, label: str, *, paused: bool) -> None:
    server.publish(subject_for("faas-request", label), encode(PauseState(paused)))


async def test_states_pause_reaches_all_workers(tmp_path: Path) -> None:
    """A pause and a resume reach workers that are there, also where the stream is made by the first pause."""
    with NatsServer(tmp_path) as server:
        async with following(server, []) as (_, one), following(server, []) as (_, other):
            make(server)
            publish(server, "echo.fn", paused=True)
            await until(lambda: one == other == [{"echo.fn"}], "both to receive the pause")
            publish(server, "echo.fn", paused=False)
            await until(lambda: one == other == [{"echo.fn"}, set()], "both to receive its end")


async def test_store_without_a_stream_creates_it_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publication without a stream has no answer where workers subscribe to its subject: the stream is made first."""
    monkeypatch.setattr(Connection.request, "__defaults__", (b"", None, 10 * LAST_RESORT))
    with NatsServer(tmp_path) as server:
        async with following(server, []) as (controls, told):
            with trio.fail_after(LAST_RESORT):
                await aio_as_trio(controls.agree)("echo.fn", AgreedQuota(Quota(max_inflight=5), 7))
            assert controls.quotas["echo.fn"] == AgreedQuota(Quota(max_inflight=5), 7)
            assert told == []


async def test_states_are_read_when_open_returns(tmp_path: Path) -> None:
    """A worker that starts knows it when its opening returns; of 300 functions the paused ones."""
    with NatsServer(tmp_path) as server:
        make(server)
        for number in range(300):
            publish(server, f"f{number}.fn", paused=True)
            publish(server, f"f{number}.fn", paused=number % 3 == 0)
        async with following(server, []) as (controls, told):
            assert told == [{f"f{number}.fn" for number in range(0, 300, 3)}]
            assert len(controls.pauses) == 300


async def test_states_without_a_stream_are_empty(tmp_path: Path) -> None:
    """Before the first pause there is no stream, which is no trouble; and one that is deleted pauses nothing."""
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        async with following(server, events) as (controls, told):
            assert (told, events[1:]) == ([], [])
            make(server)
            publish(server, "echo.fn", paused=True)
            await until(lambda: told == [{"echo.fn"}], "the pause")
            server.api(f"STREAM.DELETE.{STREAM}")
            await aio_as_trio(controls.read_changes)()
            assert told == [{"echo.fn"}, set()]


async def test_states_of_a_replaced_stream_are_read_again(tmp_path: Path) -> None:
    """The states of an earlier stream are forgotten, though the new one has the same sequences."""
    with NatsServer(tmp_path) as server:
        make(server)
        publish(server, "echo.fn", paused=True)
        async with following(server, []) as (controls, told):
            server.api(f"STREAM.DELETE.{STREAM}")
            make(server)
            publish(server, "other.fn", paused=True)
            await aio_as_trio(controls.read_changes)()
            assert told[-1] == {"other.fn"}


async def test_states_purged_by_an_operator_are_forgotten(tmp_path: Path) -> None:
    """A message purged from the stream is as if it had never been."""
    with NatsServer(tmp_path) as server:
        make(server)
        publish(server, "echo.fn", paused=True)
        publish(server, "other.fn", paused=True)
        async with following(server, []) as (controls, told):
            server.api(f"STREAM.PURGE.{STREAM}", filter=subject_for("faas-request", "echo.fn"))
            await aio_as_trio(controls.read_changes)()
            assert told[-1] == {"other.fn"}
            server.api(f"STREAM.PURGE.{STREAM}")
            await aio_as_trio(controls.read_changes)()
            assert told[-1] == set()


async def test_states_changed_without_a_connection_are_read_after_it(tmp_path: Path) -> None:
    """A worker reads the stream after each connecting, because it received no change before."""
    with NatsServer(tmp_path) as server:
        make(server)
        async with following(server, []) as (_, told):
            server.restart()
            publish(server, "echo.fn", paused=True)
            await until(lambda: told == [{"echo.fn"}], "the pause")


async def test_refresh_without_a_received_change_reads_every_thirty_seconds(tmp_path: Path) -> None:
    """A copy of a change can be lost, so the stream is read every 30 s, and not more often."""
    with NatsServer(tmp_path) as server:
        make(server)
        async with following(server, [], serve=False) as (controls, told):
            publish(server, "echo.fn", paused=True)
            await until(lambda: controls._changed_at > 0, "it to be received")
            controls._changed_at = float("-inf")  # as if it had not been
            due = controls._due
            await aio_as_trio(controls.refresh)(due - 0.001)
            assert told == []
            await aio_as_trio(controls.refresh)(due)
            assert told == [{"echo.fn"}]
            assert controls._due == due + READ_AGAIN


async def test_refresh_that_failed_is_repeated_soon(tmp_path: Path) -> None:
    """Soon, and not in half a minute: what is paused must not run until then."""
    with NatsServer(tmp_path, jetstream=False) as server:
        async with following(server, [], serve=False) as (controls, _):
            assert controls._due < trio.current_time() + 2
            assert controls._due + READ_AGAIN > trio.current_time() + 2


async def test_states_of_foreign_messages_are_reported(tmp_path: Path) -> None:
    """Any client may publish there: a foreign message is reported, and the others count."""
    events: list[Event] = []
    with NatsServer(tmp_path) as server:
        make(server)
        server.publish("FUNCTIONS.faas-request.echo.fn", b"\xff")
        publish(server, "other.fn", paused=True)
        async with following(server, events) as (_, told):
            assert told == [{"other.fn"}]
    assert [event.action for event in events if isinstance(event, BrokerFailure)] == [
        "reading the pauses and quotas of functions"
    ]


async def test_read_changes_reads_only_new_messages(tmp_path: Path) -> None:
    """A worker that looks again reads only what came since."""
    with NatsServer(tmp_path) as server:
        make(server)
        for number in range(10):
            publish(server, f"f{number}.fn", paused=True)
        async with following(server, []) as (controls, _):
            before = server.api("STREAM.INFO.faas-request-functions")
            assert not await aio_as_trio(controls.read_changes)()
            publish(server, "f3.fn", paused=False)
            assert before["state"]["last_seq"] == 10
            assert await aio_as_trio(controls.read_changes)()
            assert controls._read_to == 11
            assert not controls.pauses["f3.fn"].paused


names = st.from_regex(r"[a-z0-9]([-a-z0-9_]{0,8}[a-z0-9])?", fullmatch=True)


@given(names, names, names, st.booleans(), st.text(max_size=30))
def test_decode_reads_what_encode_writes(queue: str, name: str, namespace: str, paused: bool, since: str) -> None:
    """By its subject and its payload."""
    label, control = f"{name}.{namespace}", PauseState(paused, since)
    assert decode(queue, subject_for(queue, label), encode(control)) == (label, control)


@given(st.text(max_size=20), st.binary(max_size=40))
@example("echo.fn", b"[" * 100_000)
@example("echo.fn", b'{"paused": 1}')
@example("echo", b'{"paused": true}')
@example("a.b.c", b'{"paused": true}')
def test_decode_of_foreign_bytes_is_none(below: str, data: bytes) -> None:
    """Whatever is published there, reading it raises nothing."""
    assert decode("q", f"FUNCTIONS.q.{below}", data) is None


def test_decode_ignores_unknown_fields() -> None:
    """Later versions may write more."""
    assert decode("q", "FUNCTIONS.q.echo.fn", b'{"paused": true, "why": {"x": 1}}') == (
        "echo.fn",
        PauseState(paused=True),
    )


@given(names, names, names, st.none() | st.integers(1, 100_000), st.none() | st.integers(1, 10**6), st.integers(0))
def test_decode_reads_an_agreed_quota(  # noqa: PLR0917 -- what is drawn
    queue: str, name: str, namespace: str, most: int | None, starts: int | None, stored: int
) -> None:
    """Quotas have a subject of their own, beside that of a function's pauses."""
    agreed = AgreedQuota(Quota(max_inflight=most, rate=starts and Rate(starts, 60.0)), stored)  # type: ignore[arg-type]  # starts is not 0
    subject = subject_for(queue, f"{name}.{namespace}.quota")
    assert decode(queue, subject, encode(agreed)) == (f"{name}.{namespace}", agreed)


@pytest.mark.parametrize("data", ['{"max_inflight": 0, "rate": null, "stored": 1}', '{"max_inflight": 5}', "{}", "[]"])
def test_decode_of_an_impossible_quota_is_none(data: str) -> None:
    """A cap of nothing would stop a function for good."""
    assert decode("q", "FUNCTIONS.q.echo.fn.quota", data.encode()) is None
