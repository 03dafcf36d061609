"""The name cache: one look-up at a time, shared by all that wait, and a short memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, SOCK_STREAM, gaierror
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.http.names import LOOKUP_TIMEOUT, MAX_AGE, AddressInfo, NameCache

A, B, C = (
    (AF_INET, SOCK_STREAM, 6, "", ("10.0.0.1", 80)),
    (AF_INET6, SOCK_STREAM, 6, "", ("fd00::2", 80, 0, 0)),
    (AF_INET, SOCK_STREAM, 6, "", ("10.0.0.3", 80)),
)


class System:
    """A look-up with these answers, the last of which it repeats; a *held* one answers once *release* is set."""

    def __init__(self, *answers: Sequence[AddressInfo] | OSError, held: bool = False) -> None:
        self._answers = list(answers)
        self.asked: list[bytes] = []
        self.release = threading.Event()
        if not held:
            self.release.set()

    def __call__(self, host: bytes, *_: int) -> list[AddressInfo]:
        self.asked.append(host)
        self.release.wait()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, OSError):
            raise answer
        return list(answer)


def _names(nursery: trio.Nursery, system: System) -> NameCache:
    return NameCache("gateway", 80, nursery, system)


async def _look_up(names: NameCache) -> list[Any]:
    return await names.getaddrinfo(b"gateway", 80, 0, SOCK_STREAM, 0, 0)


async def test_concurrent_lookups_share_one_answer(nursery: trio.Nursery) -> None:
    """A burst of connects asks the system once."""
    system = System([A], held=True)
    names, found = _names(nursery, system), list[Any]()

    async def look_up() -> None:
        found.append(await _look_up(names))

    async with trio.open_nursery() as waiting:
        for _ in range(100):
            waiting.start_soon(look_up)
        await wait_all_tasks_blocked()
        assert not names.remembered
        system.release.set()
    assert (found, system.asked, names.remembered) == ([[A]] * 100, [b"gateway"], True)


async def test_lookup_of_another_host_or_port_is_not_cached(nursery: trio.Nursery) -> None:
    """Trio has one resolver, which callbacks use too: their receivers are looked up each time."""
    system = System([A], [B], [C])
    names = _names(nursery, system)
    assert await names.getaddrinfo(b"receiver", 80, 0, SOCK_STREAM, 0, 0) == [A]
    assert await names.getaddrinfo(b"gateway", 81, 0, SOCK_STREAM, 0, 0) == [B]
    assert (await _look_up(names), await _look_up(names)) == ([C], [C])
    assert len(system.asked) == 3


async def test_lookup_whose_first_waiter_is_cancelled_goes_on(nursery: trio.Nursery) -> None:
    """All others still get its answer."""
    system = System([A], held=True)
    names = _names(nursery, system)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(_look_up, names)
            await wait_all_tasks_blocked()
            scope.cancel()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(_look_up, names)
        await wait_all_tasks_blocked()
        system.release.set()
    assert len(system.asked) == 1


async def test_addresses_are_remembered_for_their_age(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """They are used for MAX_AGE seconds after the look-up ended."""
    names = _names(nursery, System([A], [B]))
    assert (await _look_up(names), names.remembered) == ([A], True)
    mock_clock.jump(MAX_AGE - 0.001)
    assert await _look_up(names) == [A]
    mock_clock.jump(0.001)
    assert not names.remembered
    assert await _look_up(names) == [B]


async def test_forget_causes_a_new_lookup_but_not_while_one_runs(nursery: trio.Nursery) -> None:
    """After a failed connect the name is looked up again; a running look-up is new enough."""
    system = System([A], [B])
    names = _names(nursery, system)
    await _look_up(names)
    names.forget()
    system.release.clear()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(_look_up, names)
        await wait_all_tasks_blocked()
        names.forget()
        system.release.set()
    assert (await _look_up(names), len(system.asked)) == ([B], 2)


async def test_failed_lookup_is_reported_to_all_and_not_remembered(nursery: trio.Nursery) -> None:
    """The next connect looks the name up again."""
    system = System(gaierror(-3, "try again"), [A], held=True)
    names, refusals = _names(nursery, system), list[Any]()

    async def look_up() -> None:
        with pytest.raises(OSError, match="try again") as refused:
            await _look_up(names)
        refusals.append(refused)

    async with trio.open_nursery() as waiting:
        for _ in range(10):
            waiting.start_soon(look_up)
        await wait_all_tasks_blocked()
        system.release.set()
    assert (len(refusals), len(system.asked), names.remembered) == (10, 1, False)
    assert await _look_up(names) == [A]


async def test_lookup_without_answer_fails_after_its_timeout(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """The hanging call is abandoned after LOOKUP_TIMEOUT, and the next connect starts another."""
    system = System([A], held=True)
    names = _names(nursery, system)

    async def look_up() -> None:
        with pytest.raises(OSError, match="no answer to the look-up of gateway within 10 s"):
            await _look_up(names)

    async with trio.open_nursery() as waiting:
        waiting.start_soon(look_up)
        await wait_all_tasks_blocked()
        mock_clock.jump(LOOKUP_TIMEOUT)
    system.release.set()
    assert await _look_up(names) == [A]


async def test_address_that_connected_after_others_is_preferred(nursery: trio.Nursery) -> None:
    """The addresses before it failed or were slow. The order holds after another look-up, until another one wins."""
    names = _names(nursery, System([A, B, C]))
    assert await _look_up(names) == [A, B, C]
    names.connected(A[-1])
    assert await _look_up(names) == [A, B, C]
    names.connected(B[-1])
    assert await _look_up(names) == [B, A, C]
    names.forget()
    assert await _look_up(names) == [B, A, C]
    names.connected(C[-1])
    assert await _look_up(names) == [C, A, B]


async def test_reverse_lookup_is_the_system_s(nursery: trio.Nursery) -> None:
    """Trio's resolver must offer it; nothing is cached."""
    names = _names(nursery, System([A]))
    assert (await names.getnameinfo(("127.0.0.1", 80), 0))[1] in ("http", "80")
