"""One connection and its watch, look by look."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.server import OK
from worker.http.connection import Connection
from worker.http.http11 import ResponseParser
from worker.http.watch import STALE, Watch, watching

Pair = tuple[Watch, Connection, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A watch that looks when it is told to, a connection, and its other end."""
    with watching() as watch:
        assert watch
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = Connection(("h", 80), ours, watch)
        yield watch, connection, theirs
        connection.close()
        theirs.close()


@pytest.mark.parametrize("data", [b"", OK])
def test_what_comes_on_an_idle_connection_ends_it(pair: Pair, data: bytes) -> None:
    """Its end, or an answer to nothing: it is closed at the next look, and not used meanwhile."""
    watch, connection, theirs = pair
    connection.idle = True
    assert connection.silent(10.0)
    theirs.sendall(data)
    theirs.close()
    watch.look(11.0)
    assert not connection.silent(11.0)
    assert connection._sock.fileno() == -1


def test_a_look_is_good_for_a_while(pair: Pair) -> None:
    """Before a connection is used again there is another look, unless the last one was just now."""
    _, connection, theirs = pair
    connection.idle, connection.idle_since = True, 9.9
    assert connection.silent(10.0)
    theirs.close()
    assert connection.silent(10.0 + STALE / 2)
    assert not connection.silent(10.0 + STALE * 2)


def test_who_was_busy_at_the_last_look(pair: Pair) -> None:
    """What has been idle only since then is looked at in any case: it is behind its answer that a server closes."""
    watch, connection, theirs = pair
    watch.look(10.0)
    connection.idle, connection.idle_since = True, 10.0
    theirs.close()
    assert not connection.silent(10.0 + STALE / 2)


async def test_one_read_at_a_look(pair: Pair, nursery: trio.Nursery) -> None:
    """However much comes on one connection, others are heard between; and nothing that came is left lying."""
    watch, connection, theirs = pair
    answer = ResponseParser("GET", 1_000_000)
    nursery.start_soon(connection.receive, answer, None)
    await wait_all_tasks_blocked()
    theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
    watch.look(1.0)
    assert 0 < answer.size < 100_000
    watch.look(2.0)
    watch.look(3.0)
    assert answer.complete


async def test_an_end_in_the_same_look_as_data(pair: Pair, nursery: trio.Nursery) -> None:
    """Both came before the first look, which tells of them once: the end is met all the same."""
    watch, connection, theirs = pair
    answer = ResponseParser("GET", 100)
    nursery.start_soon(connection.receive, answer, None)
    await wait_all_tasks_blocked()
    theirs.sendall(b"HTTP/1.1 200 OK\r\n\r\nall")
    theirs.close()
    watch.look(1.0)
    at_first = answer.complete
    watch.look(2.0)
    assert (at_first, answer.complete, bytes(answer.body)) == (False, True, b"all")


@pytest.mark.parametrize("before", [True, False])
async def test_an_end_behind_a_whole_answer(pair: Pair, nursery: trio.Nursery, before: bool) -> None:
    """Told in the same look, or in one before the exchange's task has run: the connection is not used again."""
    watch, connection, theirs = pair
    answer = ResponseParser("GET", 100)
    nursery.start_soon(connection.receive, answer, None)
    await wait_all_tasks_blocked()
    theirs.sendall(OK)
    if not before:
        watch.look(1.0)
        assert not connection.spent
    theirs.close()
    watch.look(2.0)
    assert (answer.reusable, connection.spent) == (True, True)
