from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from worker.parent.control_socket import FATAL, METRICS, READY, VARIABLE, ControlSocket, WorkerRank, worker_rank


class Worker:
    """A worker that answers, or holds its next answer until it is freed."""

    def __init__(self) -> None:
        self.free = trio.Event()
        self.free.set()
        self.asked = 0
        self.text = ""

    async def metrics(self) -> str:
        self.asked += 1
        await self.free.wait()
        return self.text

    async def not_alive(self) -> str | None:
        return None

    async def not_ready(self) -> str | None:
        return "no \u2603 yet"


@asynccontextmanager
async def connected(worker: Worker) -> AsyncIterator[tuple[ControlSocket, WorkerRank]]:
    """Connect both ends: the parent receives and *worker* answers."""
    ours, theirs = socket.socketpair()
    line, part = ControlSocket(ours), WorkerRank(1, 2, theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.receive)
        nursery.start_soon(part.serve, worker)
        yield line, part
        nursery.cancel_scope.cancel()
    theirs.close()


async def test_query_returns_each_question_s_own_answer() -> None:
    """Texts are UTF-8 of any length."""
    worker = Worker()
    worker.text = "\u2028x" * 500_000
    async with connected(worker) as (line, _):
        assert await line.query(METRICS, 5.0)
        assert await line.query(READY, 5.0)
        assert line.answers == {METRICS: worker.text, READY: "no \u2603 yet"}
        worker.text = ""
        assert await line.query(METRICS, 5.0)
        assert line.answers[METRICS] == ""


async def test_query_of_a_hanging_worker_times_out(autojump_clock: trio.testing.MockClock) -> None:
    """The parent waits no longer than asked to, sends the question once, and stores a late answer."""
    worker = Worker()
    worker.free = trio.Event()
    async with connected(worker) as (line, _):
        for number in (1, 2, 3):
            assert not await line.query(METRICS, 2.0)
            assert autojump_clock.current_time() == pytest.approx(2.0 * number)
        assert line.answers == {}
        worker.text = "late"
        worker.free.set()
        while METRICS not in line.answers:  # noqa: ASYNC110 -- the socket is the system's, so no event of ours tells
            await trio.sleep(0.1)
        assert worker.asked == 1
        assert await line.query(METRICS, 2.0)
        assert worker.asked == 2


async def test_end_of_one_side_ends_the_other() -> None:
    """A query of an ended process has no answer."""
    ours, theirs = socket.socketpair()
    line, part = ControlSocket(ours), WorkerRank(1, 2, theirs)
    part.send(FATAL, "why")
    theirs.close()
    await line.receive()
    assert line.answers == {FATAL: "why"}
    assert not await line.query(METRICS, 5.0)
    ours, theirs = socket.socketpair()
    ours.send(METRICS)
    ours.close()
    await WorkerRank(1, 2, theirs).serve(Worker())
    WorkerRank(1, 2, theirs).send(FATAL, "nobody hears it")
    theirs.close()


async def test_frame_cut_short_is_followed_by_no_other() -> None:
    """The parent could not find the next frame's start, so it receives neither."""
    worker = Worker()
    worker.text = "x" * 10_000_000
    ours, theirs = socket.socketpair()
    part = WorkerRank(1, 2, theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(part.serve, worker)
        ours.send(METRICS)
        while not worker.asked:  # noqa: ASYNC110 -- the socket is the system's, so no event of ours tells
            await trio.sleep(0.001)
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    part.send(FATAL, "why")
    line = ControlSocket(ours)
    with theirs:
        await line.receive()
    assert line.answers == {}


def test_worker_rank_is_taken_out_of_the_environment() -> None:
    """Programs that the process starts are not part of the worker."""
    ours, theirs = socket.socketpair()
    environment = {VARIABLE: f"2/4/{theirs.detach()}", "PATH": "/bin"}
    part = worker_rank(environment)
    assert part
    assert (part.number, part.count, part.end.get_inheritable()) == (2, 4, False)
    assert environment == {"PATH": "/bin"}
    assert worker_rank(environment) is None
    part.end.sendall(b"here")
    assert ours.recv(10) == b"here"
    part.end.close()
    ours.close()
