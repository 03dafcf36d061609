"""Names: one question at a time, shared by all who wait, and a short memory."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from socket import AF_INET, AF_INET6, gaierror

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from worker.http.names import FRESH, LOOKUP, Address, NameCache, getaddrinfo

A, B, C = (AF_INET, ("10.0.0.1", 80)), (AF_INET6, ("fd00::2", 80, 0, 0)), (AF_INET, ("10.0.0.3", 80))


class System:
    """What a system's resolver answers, when it is let."""

    def __init__(self, *answers: Sequence[Address] | OSError, held: bool = False) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []
        self.let = threading.Event()
        if not held:
            self.let.set()

    def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append((host, port))
        self.let.wait()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


async def test_all_who_ask_at_once_share_an_answer() -> None:
    """A burst of connections asks once for each name."""
    system = System([A], held=True)
    names, found = NameCache(system), []

    async def ask(host: str) -> None:
        found.append(await names.addresses(host, 80))

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(ask, "gateway")
            nursery.start_soon(ask, "other")
        await wait_all_tasks_blocked()
        system.let.set()
    assert found == [([A], False)] * 200
    assert sorted(system.asked) == [("gateway", 80), ("other", 80)]


async def test_who_asked_first_may_go() -> None:
    """One who waits can be cancelled alone; the others' answer comes all the same."""
    system = System([A], held=True)
    names = NameCache(system)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names.addresses, "gateway", 80)
            await wait_all_tasks_blocked()
            scope.cancel()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(names.addresses, "gateway", 80)
        await wait_all_tasks_blocked()
        system.let.set()
    assert len(system.asked) == 1


async def test_an_answer_is_remembered_for_a_while(mock_clock: MockClock) -> None:
    """For FRESH seconds, from when it came."""
    system = System([A], [B])
    names = NameCache(system)
    assert await names.addresses("gateway", 80) == ([A], False)
    mock_clock.jump(FRESH - 0.001)
    assert await names.addresses("gateway", 80) == ([A], True)
    mock_clock.jump(0.001)
    assert await names.addresses("gateway", 80) == ([B], False)


async def test_what_leads_nowhere_is_forgotten() -> None:
    """After a connect failed, the next asks anew; nothing is forgotten of a question that is under way."""
    system = System([A], [B])
    names = NameCache(system)
    await names.addresses("gateway", 80)
    names.forget("gateway", 80)
    system.let.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(names.addresses, "gateway", 80)
        await wait_all_tasks_blocked()
        names.forget("gateway", 80)
        system.let.set()
    assert await names.addresses("gateway", 80) == ([B], True)


async def test_a_refusal_is_told_to_all_who_waited_and_not_remembered() -> None:
    """It may be over in a moment."""
    system = System(gaierror(-3, "try again"), [A], held=True)
    names, refusals = NameCache(system), []

    async def ask() -> None:
        with pytest.raises(OSError, match="try again") as refused:
            await names.addresses("gateway", 80)
        refusals.append(refused)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        system.let.set()
    assert (len(refusals), len(system.asked)) == (10, 1)
    assert await names.addresses("gateway", 80) == ([A], False)


async def test_no_answer_is_a_refusal_in_time(mock_clock: MockClock) -> None:
    """A resolver that hangs is left to itself after LOOKUP seconds, and asked again by the next."""
    system = System([A], held=True)
    names = NameCache(system)

    async def ask() -> None:
        with pytest.raises(OSError, match="no answer about gateway within 10 s"):
            await names.addresses("gateway", 80)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        mock_clock.jump(LOOKUP)
    system.let.set()
    assert await names.addresses("gateway", 80) == ([A], False)


async def test_a_name_without_addresses_is_a_refusal() -> None:
    """There is nothing to connect to."""
    with pytest.raises(OSError, match="gateway has no address"):
        await NameCache(System([])).addresses("gateway", 80)


async def test_a_dead_address_costs_its_delay_once() -> None:
    """What failed or was late is tried last, also after the name was asked for again, until it answers itself."""
    names = NameCache(System([A, B, C]))
    assert await names.addresses("gateway", 80) == ([A, B, C], False)
    names.tried("gateway", 80, [A, B])
    assert await names.addresses("gateway", 80) == ([B, C, A], True)
    names.tried("gateway", 80, [B, C])
    names.forget("gateway", 80)
    assert await names.addresses("gateway", 80) == ([C, A, B], False)
    names.tried("gateway", 80, [C, A])
    assert await names.addresses("gateway", 80) == ([A, B, C], True)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", AF_INET), ("::1", AF_INET6)])
async def test_an_address_is_no_question(host: str, family: int) -> None:
    """It is taken as it is, without a thread."""
    system = System([])
    (found,), remembered = await NameCache(system).addresses(host, 80)
    assert (found[0], found[1][:2], remembered) == (family, (host, 80), False)
    assert system.asked == []


def test_what_is_no_name_is_a_refusal() -> None:
    """Python raises something else for it."""
    with pytest.raises(OSError, match="not a host's name"):
        getaddrinfo("a..b", 80)


def test_the_system_knows_this_machine() -> None:
    """The real question has a real answer."""
    assert {address[0] for _, address in getaddrinfo("localhost", 80)} <= {"127.0.0.1", "::1"}
