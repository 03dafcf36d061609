"""Happy Eyeballs: what is tried when, and which wins. Exact to the instant, by a virtual clock."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from worker.http import connect as module
from worker.http.connect import HEAD_START, connect
from worker.http.names import Address

A, B, C = (AF_INET6, "a"), (AF_INET, "b"), (AF_INET6, "c")
REFUSED = ConnectionRefusedError(111, "refused")


class Socket:
    """One that notes whether it was closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False

    def close(self) -> None:
        self.closed = True


class Net:
    """Where each address answers, or refuses, so many seconds after it is tried."""

    def __init__(self, behaviour: Mapping[str, tuple[float, OSError | None]]) -> None:
        self._behaviour = behaviour
        self.tried: list[tuple[str, float]] = []
        self.sockets: list[Socket] = []

    async def attempt(self, address: Address) -> Any:
        after, refusal = self._behaviour[address[1]]
        self.tried.append((address[1], trio.current_time()))
        await trio.sleep(after)
        if refusal:
            raise refusal
        self.sockets.append(Socket(address[1]))
        return self.sockets[-1]


def _net(monkeypatch: pytest.MonkeyPatch, **behaviour: tuple[float, OSError | None]) -> Net:
    net = Net(behaviour)
    monkeypatch.setattr(module, "_attempt", net.attempt)
    return net


CASES: dict[str, tuple[dict[str, tuple[float, OSError | None]], list[tuple[str, float]], str]] = {
    "the first answers in time": ({"a": (0.2, None)}, [("a", 0)], "a"),
    "the first is silent": ({"a": (9, None), "b": (0.01, None)}, [("a", 0), ("b", 0.25)], "b"),
    "the first refuses": ({"a": (0.1, REFUSED), "b": (0.01, None)}, [("a", 0), ("b", 0.1)], "b"),
    "the first is late, and still the first": ({"a": (0.3, None), "b": (1, None)}, [("a", 0), ("b", 0.25)], "a"),
    "only the last answers": (
        {"a": (9, None), "b": (0.05, REFUSED), "c": (1, None)},
        [("a", 0), ("b", 0.25), ("c", 0.3)],
        "c",
    ),
}


@pytest.mark.parametrize("case", CASES)
async def test_the_first_that_answers_wins(
    case: str, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """The next is tried when the one before refused, or after its head start; what is left is not waited for."""
    assert autojump_clock
    behaviour, tried, winner = CASES[case]
    net = _net(monkeypatch, **behaviour)
    began = trio.current_time()
    sock: Any
    sock, seen = await connect([A, B, C])
    assert [(name, round(at - began, 6)) for name, at in net.tried] == tried  # Trio's clock begins anywhere
    assert (sock.name, sock.closed, seen[-1][1]) == (winner, False, winner)


async def test_another_family_comes_second(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    """A network where one family leads nowhere costs one head start, however many addresses it has."""
    assert autojump_clock
    net = _net(monkeypatch, a=(9, REFUSED), b=(0.01, None), c=(9, REFUSED))
    _, tried = await connect([A, C, C, B])
    assert [name for name, _ in net.tried] == ["a", "b"]
    assert tried == [A, B]


async def test_the_last_refusal_is_told(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    """Where none answers, all have been tried."""
    assert autojump_clock
    net = _net(monkeypatch, a=(0, OSError("no route")), b=(0, OSError("no luck")), c=(0, OSError("no hope")))
    with pytest.raises(OSError, match="no hope"):
        await connect([A, B, C])
    assert len(net.tried) == 3


async def test_two_that_answer_in_one_instant(monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock) -> None:
    """One is used, the other is closed."""
    assert autojump_clock
    net = _net(monkeypatch, a=(HEAD_START + 1, None), b=(1, None))
    sock: Any
    sock, _ = await connect([A, B])
    assert [each.closed for each in net.sockets if each is not sock] == [True] * (len(net.sockets) - 1)
    assert not sock.closed


async def test_cancelled_in_the_instant_of_an_answer(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    """What nobody will use is closed."""
    assert autojump_clock
    net = _net(monkeypatch, a=(1, None), b=(9, None))
    with trio.move_on_after(1):
        await connect([A, B])
    assert all(sock.closed for sock in net.sockets)


async def test_a_real_connection() -> None:
    """It does not block, sends at once, and survives an address that refuses before it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        refusing, taking = (AF_INET, ("127.0.0.2", port)), (AF_INET, ("127.0.0.1", port))
        for addresses in ([taking], [refusing, taking]):
            sock, tried = await connect(addresses)
            assert tried == addresses
            assert (sock.getblocking(), sock.getpeername()) == (False, ("127.0.0.1", port))
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            sock.close()
        with pytest.raises(ConnectionRefusedError):
            await connect([refusing])
