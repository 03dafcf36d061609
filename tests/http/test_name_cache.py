"""The name cache: one look-up at a time, shared by all waiting tasks and remembered for a short time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from socket import AF_INET, AF_INET6, SOCK_STREAM, gaierror
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.servers import until
from worker.http.names import LOOKUP_TIMEOUT, MAX_AGE, OTHER_THREADS, STALE_AFTER, AddressInfo, NameCache

A, B, C = (
    (AF_INET, SOCK_STREAM, 6, "", ("10.0.0.1", 80)),
    (AF_INET6, SOCK_STREAM, 6, "", ("fd00::2", 80, 0, 0)),
    (AF_INET, SOCK_STREAM, 6, "", ("10.0.0.3", 80)),
)


class FakeResolver:
    """A look-up with these answers, the last of which it repeats; a *blocked* one answers once *release* is set."""

    def __init__(self, *answers: Sequence[AddressInfo] | OSError, blocked: bool = False) -> None:
        self._answers = list(answers)
        self.lookups: list[bytes] = []
        self.release = threading.Event()
        if not blocked:
            self.release.set()

    def __call__(self, host: bytes, *_: int) -> list[AddressInfo]:
        self.lookups.append(host)
        self.release.wait()
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, OSError):
            raise answer
        return list(answer)


def _names(nursery: trio.Nursery, resolver: FakeResolver) -> NameCache:
    return NameCache("gateway", 80, nursery, resolver)


async def _look_up(names: NameCache) -> list[Any]:
    return await names.getaddrinfo(b"gateway", 80, 0, SOCK_STREAM, 0, 0)


async def test_lookups_at_once_share_one_answer(nursery: trio.Nursery) -> None:
    """A burst of connects causes one look-up of the system."""
    resolver = FakeResolver([A], blocked=True)
    names, answers = _names(nursery, resolver), list[Any]()

    async def look_up() -> None:
        answers.append(await _look_up(names))

    async with trio.open_nursery() as waiting:
        for _ in range(100):
            waiting.start_soon(look_up)
        await wait_all_tasks_blocked()
        assert not names.remembered
        resolver.release.set()
    assert (answers, resolver.lookups, names.remembered) == ([[A]] * 100, [b"gateway"], True)


async def test_lookup_of_another_host_or_port_is_not_cached(nursery: trio.Nursery) -> None:
    """Look-ups of other hosts, as of callbacks, are not cached, although Trio has one resolver for all."""
    resolver = FakeResolver([A], [B], [C])
    names = _names(nursery, resolver)
    assert await names.getaddrinfo(b"receiver", 80, 0, SOCK_STREAM, 0, 0) == [A]
    assert await names.getaddrinfo(b"gateway", 81, 0, SOCK_STREAM, 0, 0) == [B]
    assert (await _look_up(names), await _look_up(names)) == ([C], [C])
    assert len(resolver.lookups) == 3


async def test_lookup_whose_first_waiter_is_cancelled_continues(nursery: trio.Nursery) -> None:
    """When the first waiter is cancelled, the look-up continues, and the others get its answer."""
    resolver = FakeResolver([A], blocked=True)
    names = _names(nursery, resolver)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as waiting:
            waiting.start_soon(_look_up, names)
            await wait_all_tasks_blocked()
            scope.cancel()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(_look_up, names)
        await wait_all_tasks_blocked()
        resolver.release.set()
    assert len(resolver.lookups) == 1


async def test_lookup_is_remembered_for_its_age(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """Addresses are used for MAX_AGE seconds after their look-up ended."""
    names = _names(nursery, FakeResolver([A], [B]))
    assert (await _look_up(names), names.remembered) == ([A], True)
    mock_clock.jump(MAX_AGE - 0.001)
    assert await _look_up(names) == [A]
    mock_clock.jump(0.001)
    assert not names.remembered
    assert await _look_up(names) == [B]


async def test_forget_causes_a_new_lookup_but_not_while_one_runs(nursery: trio.Nursery) -> None:
    """After a failed connect the name is looked up again, unless a look-up is running."""
    resolver = FakeResolver([A], [B])
    names = _names(nursery, resolver)
    await _look_up(names)
    names.forget()
    resolver.release.clear()
    async with trio.open_nursery() as waiting:
        waiting.start_soon(_look_up, names)
        await wait_all_tasks_blocked()
        names.forget()
        resolver.release.set()
    assert (await _look_up(names), len(resolver.lookups)) == ([B], 2)


async def test_lookup_that_fails_is_raised_to_all_and_not_remembered(nursery: trio.Nursery) -> None:
    """A failed look-up raises in all waiting tasks, and the next connect looks the name up again."""
    resolver = FakeResolver(gaierror(-3, "try again"), [A], blocked=True)
    names, refusals = _names(nursery, resolver), list[Any]()

    async def look_up() -> None:
        with pytest.raises(OSError, match="try again") as refused:
            await _look_up(names)
        refusals.append(refused)

    async with trio.open_nursery() as waiting:
        for _ in range(10):
            waiting.start_soon(look_up)
        await wait_all_tasks_blocked()
        resolver.release.set()
    assert (len(refusals), len(resolver.lookups), names.remembered) == (10, 1, False)
    assert await _look_up(names) == [A]


async def test_lookup_without_answer_fails_after_its_timeout(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """A look-up without an answer fails after LOOKUP_TIMEOUT, and the next connect starts another."""
    resolver = FakeResolver([A], blocked=True)
    names = _names(nursery, resolver)

    async def look_up() -> None:
        with pytest.raises(OSError, match="no answer to the look-up of gateway within 10 s"):
            await _look_up(names)

    async with trio.open_nursery() as waiting:
        waiting.start_soon(look_up)
        await wait_all_tasks_blocked()
        mock_clock.jump(LOOKUP_TIMEOUT)
    resolver.release.set()
    assert await _look_up(names) == [A]


async def test_lookup_prefers_the_address_that_connected(nursery: trio.Nursery) -> None:
    """The address that connected after others failed is the first one of later look-ups, until another one connects."""
    names = _names(nursery, FakeResolver([A, B, C]))
    assert await _look_up(names) == [A, B, C]
    names.connected(A[-1])
    assert await _look_up(names) == [A, B, C]
    names.connected(B[-1])
    assert await _look_up(names) == [B, A, C]
    names.forget()
    assert await _look_up(names) == [B, A, C]
    names.connected(C[-1])
    assert await _look_up(names) == [C, A, B]


async def test_lookup_of_an_address_is_the_system_s(nursery: trio.Nursery) -> None:
    """The reverse look-up, which Trio's resolver must have, is the system's and is not cached."""
    names = _names(nursery, FakeResolver([A]))
    assert (await names.getnameinfo(("127.0.0.1", 80), 0))[1] in ("http", "80")


async def test_lookup_that_fails_uses_the_last_addresses(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """If the host's look-up fails, or is not answered, its last addresses are used; the next connect looks it up."""
    resolver = FakeResolver([A], gaierror(-3, "Temporary failure in name resolution"), [B])
    names = _names(nursery, resolver)
    assert await _look_up(names) == [A]
    mock_clock.jump(MAX_AGE)
    assert await _look_up(names) == [A]
    assert await _look_up(names) == [B]


async def test_lookups_of_other_names_do_not_delay_the_host(nursery: trio.Nursery) -> None:
    """More unanswered look-ups of other names than there are threads delay no look-up of the host."""
    blocked = FakeResolver([A], blocked=True)

    def look_up(host: bytes, *options: int) -> list[AddressInfo]:
        return [B] if host == b"gateway" else blocked(host, *options)

    names = NameCache("gateway", 80, nursery, look_up)
    async with trio.open_nursery() as waiting:
        for number in range(3 * OTHER_THREADS):
            waiting.start_soon(partial(names.getaddrinfo, f"dead-{number}".encode(), 80, 0, SOCK_STREAM, 0, 0))
        await until(lambda: len(blocked.lookups) == OTHER_THREADS, "all threads to wait")
        assert await _look_up(names) == [B]
        assert len(blocked.lookups) == OTHER_THREADS
        blocked.release.set()


async def test_lookups_of_one_other_name_share_one_thread(nursery: trio.Nursery) -> None:
    """Callbacks to one receiver look its name up once at a time, so that one dead name occupies one thread."""
    resolver = FakeResolver([C], blocked=True)
    names, answers = _names(nursery, resolver), list[Any]()

    async def look_up() -> None:
        answers.append(await names.getaddrinfo(b"other", 80, 0, SOCK_STREAM, 0, 0))

    async with trio.open_nursery() as waiting:
        for _ in range(50):
            waiting.start_soon(look_up)
        await wait_all_tasks_blocked()
        resolver.release.set()
    assert answers == [[C]] * 50
    assert len(resolver.lookups) == 1
    await names.getaddrinfo(b"other", 80, 0, SOCK_STREAM, 0, 0)
    assert len(resolver.lookups) == 2, "nothing is remembered"


@pytest.mark.parametrize("error", [UnicodeError("label too long"), RuntimeError("can't start new thread")])
async def test_lookup_that_raises_anything_is_an_oserror(nursery: trio.Nursery, error: Exception) -> None:
    """A look-up that fails in any way is an error of its own connect, and no other's."""

    def look_up(*_: object) -> list[AddressInfo]:
        raise error

    names = NameCache("gateway", 80, nursery, look_up)
    for host in (b"gateway", b"other"):
        with pytest.raises(OSError, match=str(error)):
            await names.getaddrinfo(host, 80, 0, SOCK_STREAM, 0, 0)


async def test_lookup_that_is_late_uses_the_last_addresses(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """If the host's look-up is not answered in time, its last addresses are used, until the look-up renews them."""
    resolver = FakeResolver([A], [B])
    names, answers = _names(nursery, resolver), list[Any]()
    assert await _look_up(names) == [A]
    mock_clock.jump(MAX_AGE)
    resolver.release.clear()

    async def look_up() -> None:
        answers.append(await _look_up(names))

    async with trio.open_nursery() as waiting:
        waiting.start_soon(look_up)
        while len(resolver.lookups) < 2:  # its thread starts in real time
            await trio.lowlevel.checkpoint()
        await wait_all_tasks_blocked()
        mock_clock.jump(STALE_AFTER)
    assert answers == [[A]]
    assert await _look_up(names) == [A], "the same look-up is late for the next connect too"
    resolver.release.set()
    assert len(resolver.lookups) == 2
    while await _look_up(names) != [B]:
        await trio.lowlevel.checkpoint()
    assert len(resolver.lookups) == 2
