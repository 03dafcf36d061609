"""Workers that confirm what is stored, and the names by which they are found, on a real nats-server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio_asyncio import aio_as_trio

from tests.nats.coreless import CorelessWorker, running_worker
from tests.servers import NatsServer, until
from worker.config import load
from worker.events import BrokerFailure
from worker.model import Receipt
from worker.nats import presence
from worker.nats.connection import Connection, connect_options, connected
from worker.nats.presence import Presence, WorkerReport, ask_workers

FUNCTION = {"scaling_mode": "function"}
ALIVE = "queue-worker.faas-request.alive"


async def ask(server: NatsServer) -> WorkerReport:
    """Ask the workers of a server's queue, as a command does in a process of its own."""

    async def run() -> WorkerReport:
        async with connected(load({"nats_port": str(server.port)}).settings, "command") as connection:
            return await ask_workers(connection, "faas-request")

    return await trio.to_thread.run_sync(partial(asyncio.run, run()))


def name_of(worker: CorelessWorker) -> str:
    return worker.queue._presence.name


async def publish(worker: CorelessWorker, subject: str, data: bytes) -> None:
    await aio_as_trio(worker.queue._connection.client.publish)(subject, data)


async def test_all_workers_confirm(tmp_path: Path) -> None:
    """Each worker answers with its name; without any, the report is empty and certain."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        assert await ask(server) == WorkerReport()
        async with running_worker(server, FUNCTION) as one, running_worker(server, FUNCTION) as two:
            assert await ask(server) == WorkerReport({name_of(one), name_of(two)})


async def test_worker_confirms_only_what_its_core_has_received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose core does not receive notices does not confirm; another worker that does reports its name."""
    monkeypatch.setattr(presence, "WITHIN", 2.0)
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, FUNCTION) as one, running_worker(server, FUNCTION) as other:
            await until(lambda: name_of(other) in one.queue._presence._heard, "the report")
            consumer: Any = other.consumer
            notify = consumer.notify
            consumer.notify = lambda notice: None if isinstance(notice, Receipt) else notify(notice)
            assert await ask(server) == WorkerReport({name_of(one)}, {name_of(other)})
            consumer.notify = notify
            assert await ask(server) == WorkerReport({name_of(one), name_of(other)})


async def test_worker_that_left_is_not_awaited(tmp_path: Path) -> None:
    """A worker that stopped answers no question, and the others do not count it as alive."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, FUNCTION) as staying, running_worker(server, FUNCTION) as leaving:
            await until(lambda: name_of(leaving) in staying.queue._presence._heard, "the report")
            await leaving.stop()
            assert await ask(server) == WorkerReport({name_of(staying)})


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b'{"worker":""}', b'{"worker":7}', b"[" * 100_000])
async def test_malformed_report_is_reported_and_ignored(tmp_path: Path, data: bytes) -> None:
    """A report that cannot be read is reported, and the worker goes on to confirm."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, FUNCTION) as worker:
            await publish(worker, ALIVE, data)
            assert await ask(server) == WorkerReport({name_of(worker)})
            failures = [each.action for each in worker.events if isinstance(each, BrokerFailure)]
            assert failures == ["reading a report of another worker"]


@pytest.mark.parametrize(
    "reply", ["$JS.API.STREAM.PURGE.faas-request", "faas-request", "FUNCTIONS.faas-request.f.ns", "x_INBOX.1"]
)
async def test_question_with_a_foreign_reply_subject_is_not_answered(tmp_path: Path, reply: str) -> None:
    """Who may only ask cannot let a worker publish where it may not: store a message, or purge a stream."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        hold: Callable[[CorelessWorker, object], None] = lambda *_: None  # noqa: E731 -- no delivery ends here
        async with running_worker(server, FUNCTION, hold) as worker:
            server.publish("faas-request", b"kept")
            client = worker.queue._connection.client
            await aio_as_trio(client.publish)("queue-worker.faas-request.confirm", b"", reply=reply)
            assert await ask(server) == WorkerReport({name_of(worker)})  # it reads and answers in order
            assert [each.data for each in server.messages()] == [b"kept"]
            (failure,) = [each for each in worker.events if isinstance(each, BrokerFailure)]
            assert reply in failure.error


async def test_foreign_messages_are_reported_rarely(tmp_path: Path) -> None:
    """Changing malformed messages cost a line in ten seconds, and never replace the reason of an obstacle."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, FUNCTION) as worker:
            for number in range(100):
                await publish(worker, ALIVE, (b"[]", b"{}", b"7", b"")[number % 4])
                await publish(worker, "queue-worker.faas-request.attempts", (b"{}", b"7")[number % 2])
            assert await ask(server) == WorkerReport({name_of(worker)})
            assert len([each for each in worker.events if isinstance(each, BrokerFailure)]) == 1
            assert not worker.queue._connection.failure


@pytest.mark.parametrize("name", ["\x1b[2J\x1b]0;title\x07", "two words", "line\nend", "\u202e", "\x9b2J", "\u00e9"])
async def test_name_that_a_terminal_would_act_on_is_ignored(tmp_path: Path, name: str) -> None:
    """Commands write the names of workers to a terminal, so only visible ASCII is taken as one."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, FUNCTION) as worker:
            await publish(worker, ALIVE, msgspec.json.encode({"worker": name}))
            await publish(worker, ALIVE, msgspec.json.encode({"worker": "host/7/abcd"}))
            await aio_as_trio(worker.queue._connection.round_trip)()
            assert [*worker.queue._presence._heard] == ["host/7/abcd"]


async def test_reports_of_strangers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood of unknown names is remembered up to a limit, and answered by at most one report a second."""
    monkeypatch.setattr(presence, "_MOST", 50)
    with NatsServer(tmp_path) as server:
        server.make_stream()
        async with running_worker(server, FUNCTION) as worker:
            before = worker.queue._connection.client.stats["out_msgs"]
            for number in range(500):
                await publish(worker, ALIVE, msgspec.json.encode({"worker": f"w{number}"}))
            await aio_as_trio(worker.queue._connection.round_trip)()
            assert len(worker.queue._presence._heard) == 50
            assert worker.queue._connection.client.stats["out_msgs"] - before < 500 + 100


async def test_foreign_answers_are_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers that are not those of a worker confirm nothing, and do not end the wait."""
    monkeypatch.setattr(presence, "WITHIN", 0.5)

    async def run(port: int) -> WorkerReport:
        settings = load({"nats_port": str(port)}).settings
        async with connected(settings, "command") as connection, connected(settings, "foreign") as foreign:

            async def answer(message: object) -> None:
                for data in (b"", b"nonsense", b'{"worker":1}', b'{"worker":"x","others":7}'):
                    await foreign.client.publish(message.reply, data)  # type: ignore[attr-defined]  # a Msg

            await foreign.client.subscribe("queue-worker.faas-request.confirm", cb=answer)
            await foreign.round_trip()
            return await ask_workers(connection, "faas-request")

    with NatsServer(tmp_path) as server:
        found = await trio.to_thread.run_sync(partial(asyncio.run, run(server.port)))
    assert (found.confirmed, found.silent) == (set(), set())
    assert found.problem == "at least one worker is connected, but none has answered"


async def test_workers_are_asked_again_over_a_new_connection(tmp_path: Path) -> None:
    """If NATS restarts while a command waits, it asks again over the next connection, and gets its answers there."""

    async def run(server: NatsServer) -> None:
        settings = load({"nats_port": str(server.port)}).settings
        asked, calls = asyncio.Event(), list[Callable[[], None]]()

        def apply(call: Callable[[], None]) -> None:
            calls.append(call)
            asked.set()
            if restarted:
                call()

        async def watch() -> None:
            while True:
                await asyncio.sleep(0.1)
                await worker.watch()
                await command.watch()

        restarted = False
        worker = Connection(connect_options(settings, name="worker"), lambda _: None)
        async with connected(settings, "command") as command:
            await worker.open()
            one = Presence(worker, "faas-request", apply)
            await one.open()
            tasks = [asyncio.ensure_future(each) for each in (one.run(), watch())]
            try:
                asking = asyncio.ensure_future(ask_workers(command, "faas-request"))
                await asked.wait()
                await asyncio.to_thread(server.restart)
                restarted = True
                assert await asking == WorkerReport({one.name})
            finally:
                for task in tasks:
                    task.cancel()
                await worker.close()

    with NatsServer(tmp_path) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(presence, "WITHIN", 60.0)
        await trio.to_thread.run_sync(partial(asyncio.run, run(server)))
