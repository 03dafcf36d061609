"""One connection and its poller, poll by poll."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.http.server import OK
from worker.http.connection import MAX_POLL_AGE, Connection, ReadinessPoller
from worker.http.http11 import ResponseParser

Pair = tuple[ReadinessPoller, Connection, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Yield a poller that the test runs, a connection, and the socket of its server."""
    with closing(ReadinessPoller()) as poller:
        client, server = socket.socketpair()
        client.setblocking(False)
        connection = Connection(client, poller)
        yield poller, connection, server
        connection.close()
        server.close()


@pytest.mark.parametrize("data", [b"", OK])
def test_idle_connection_that_becomes_readable_is_closed(pair: Pair, data: bytes) -> None:
    """An idle connection that becomes readable is closed, because it received its end or an unrequested response."""
    poller, connection, server = pair
    connection.park(9.0, 99.0)
    assert connection.claim(10.0)
    connection.park(10.0, 99.0)
    server.sendall(data)
    server.close()
    poller.poll(11.0)
    assert connection._sock.fileno() == -1
    assert not connection.claim(11.0)


def test_claim_after_a_recent_poll_does_not_poll_again(pair: Pair) -> None:
    """A poll is valid for MAX_POLL_AGE, because each one costs a system call."""
    poller, connection, server = pair
    connection.park(9.9, 99.0)
    poller.poll(10.0)
    server.close()
    assert connection.claim(10.0 + MAX_POLL_AGE / 2)
    connection.park(9.9, 99.0)
    assert not connection.claim(10.0 + MAX_POLL_AGE * 2)


def test_claim_of_a_connection_idle_since_the_last_poll_polls(pair: Pair) -> None:
    """A connection that became idle after the last poll is polled, because servers may close just after a response."""
    poller, connection, server = pair
    poller.poll(10.0)
    connection.park(10.0, 99.0)
    server.close()
    assert not connection.claim(10.0 + MAX_POLL_AGE / 2)


def test_claim_of_an_expired_connection_closes_it(pair: Pair) -> None:
    """An expired connection is closed and not used, because the server may be about to close it."""
    _, connection, _ = pair
    connection.park(10.0, 11.0)
    assert not connection.claim(11.5)
    assert connection._sock.fileno() == -1


async def test_poll_reads_once_from_each_connection(pair: Pair, nursery: trio.Nursery) -> None:
    """A poll reads once from each connection, and the rest of the data is read at the next polls."""
    poller, connection, server = pair
    response = ResponseParser("GET", 1_000_000)
    nursery.start_soon(connection.receive, response)
    await wait_all_tasks_blocked()
    server.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000)
    poller.poll(1.0)
    assert 0 < response.size < 100_000
    poller.poll(2.0)
    poller.poll(3.0)
    assert response.complete


async def test_end_reported_with_data_is_read_at_the_next_poll(pair: Pair, nursery: trio.Nursery) -> None:
    """Data and the end of a connection that one poll reports are read in that order, by two polls."""
    poller, connection, server = pair
    response = ResponseParser("GET", 100)
    nursery.start_soon(connection.receive, response)
    await wait_all_tasks_blocked()
    server.sendall(b"HTTP/1.1 200 OK\r\n\r\nall")
    server.close()
    poller.poll(1.0)
    at_first = response.complete
    poller.poll(2.0)
    assert (at_first, response.complete, bytes(response.body)) == (False, True, b"all")


@pytest.mark.parametrize("before", [True, False])
async def test_connection_closed_after_a_complete_response_is_not_reusable(
    pair: Pair, nursery: trio.Nursery, before: bool
) -> None:
    """A connection whose end is reported with its response, or before its task has run, is not reused."""
    poller, connection, server = pair
    response = ResponseParser("GET", 100)
    nursery.start_soon(connection.receive, response)
    await wait_all_tasks_blocked()
    server.sendall(OK)
    if not before:
        poller.poll(1.0)
        assert connection.reusable
    server.close()
    poller.poll(2.0)
    assert (response.reusable, connection.reusable) == (True, False)
