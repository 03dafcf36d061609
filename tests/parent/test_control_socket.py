from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from worker.parent.control_socket import FATAL, METRICS, READY, VARIABLE, ControlSocket, WorkerRank, worker_rank


class Worker:
    """A worker that answers queries, or delays its answers until *may_answer* is set."""

    def __init__(self) -> None:
        self.may_answer = trio.Event()
        self.may_answer.set()
        self.num_queries = 0
        self.text = ""

    async def metrics(self) -> str:
        self.num_queries += 1
        await self.may_answer.wait()
        return self.text

    async def not_alive(self) -> str | None:
        return None

    async def not_ready(self) -> str | None:
        return "no \u2603 yet"


@asynccontextmanager
async def connected(worker: Worker) -> AsyncIterator[tuple[ControlSocket, WorkerRank]]:
    """Connect both ends: the parent receives and *worker* answers."""
    parent_end, worker_end = socket.socketpair()
    control, rank = ControlSocket(parent_end), WorkerRank(1, 2, worker_end)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(control.receive)
        nursery.start_soon(rank.serve, worker)
        yield control, rank
        nursery.cancel_scope.cancel()
    worker_end.close()


async def test_query_returns_the_answer_to_its_question() -> None:
    """Each query gets the answer to its own question, with texts in UTF-8 of any length."""
    worker = Worker()
    worker.text = "\u2028x" * 500_000
    async with connected(worker) as (control, _):
        assert await control.query(METRICS, 5.0)
        assert await control.query(READY, 5.0)
        assert control.answers == {METRICS: worker.text, READY: "no \u2603 yet"}
        worker.text = ""
        assert await control.query(METRICS, 5.0)
        assert control.answers[METRICS] == ""


async def test_query_of_a_hanging_worker_times_out(autojump_clock: trio.testing.MockClock) -> None:
    """A query returns after its timeout, is not sent again while it is unanswered, and a late answer is stored."""
    worker = Worker()
    worker.may_answer = trio.Event()
    async with connected(worker) as (control, _):
        for number in (1, 2, 3):
            assert not await control.query(METRICS, 2.0)
            assert autojump_clock.current_time() == pytest.approx(2.0 * number)
        assert control.answers == {}
        worker.text = "late"
        worker.may_answer.set()
        while METRICS not in control.answers:  # noqa: ASYNC110 -- the socket is the system's, so no Trio event shows it
            await trio.sleep(0.1)
        assert worker.num_queries == 1
        assert await control.query(METRICS, 2.0)
        assert worker.num_queries == 2


async def test_control_socket_end_of_one_side_ends_the_other() -> None:
    """When a process or the parent ends, the other end stops serving, and a query has no answer."""
    parent_end, worker_end = socket.socketpair()
    control, rank = ControlSocket(parent_end), WorkerRank(1, 2, worker_end)
    rank.send(FATAL, "why")
    worker_end.close()
    await control.receive()
    assert control.answers == {FATAL: "why"}
    assert not await control.query(METRICS, 5.0)
    parent_end, worker_end = socket.socketpair()
    parent_end.send(METRICS)
    parent_end.close()
    await WorkerRank(1, 2, worker_end).serve(Worker())
    WorkerRank(1, 2, worker_end).send(FATAL, "unread")
    worker_end.close()


async def test_control_socket_sends_nothing_after_a_partial_frame() -> None:
    """A process sends nothing after a partial frame, because the parent could not find the next frame."""
    worker = Worker()
    worker.text = "x" * 10_000_000
    parent_end, worker_end = socket.socketpair()
    rank = WorkerRank(1, 2, worker_end)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rank.serve, worker)
        parent_end.send(METRICS)
        while not worker.num_queries:  # noqa: ASYNC110 -- the socket is the system's, so no Trio event shows it
            await trio.sleep(0.001)
        await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    rank.send(FATAL, "why")
    control = ControlSocket(parent_end)
    with worker_end:
        await control.receive()
    assert control.answers == {}


def test_worker_rank_is_taken_out_of_the_environment() -> None:
    """The rank is read once and removed from the environment, so that child processes do not use its socket."""
    parent_end, worker_end = socket.socketpair()
    environment = {VARIABLE: f"2/4/{worker_end.detach()}", "PATH": "/bin"}
    rank = worker_rank(environment)
    assert rank
    assert (rank.number, rank.count, rank.end.get_inheritable()) == (2, 4, False)
    assert environment == {"PATH": "/bin"}
    assert worker_rank(environment) is None
    rank.end.sendall(b"here")
    assert parent_end.recv(10) == b"here"
    rank.end.close()
    parent_end.close()
