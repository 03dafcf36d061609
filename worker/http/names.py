"""Which addresses a name has: looked up in a thread, once for all who ask meanwhile, and remembered for a while."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from typing import Any

import trio

FRESH = 5.0
"""Seconds that an answer is used: as long as CoreDNS lets others remember a cluster's names."""
LOOKUP = 10.0
"""Seconds that an answer is waited for: two tries of a resolver, with glibc's 5 s each."""

Address = tuple[int, Any]
"""Family, and what ``socket.connect`` takes."""
LookUp = Callable[[str, int], Sequence[Address]]
"""It blocks.

Raises:
    OSError: there is no answer.
"""


def getaddrinfo(host: str, port: int, flags: int = 0) -> Sequence[Address]:
    """What the system knows, in the order in which it wants them tried."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError as error:  # no name at all, such as one with two dots in a row
        raise OSError(f"{host!r} is not a host's name: {error}") from None
    return [(family, address) for family, _, _, _, address in found]


class NameCache:
    """A memory of names. It is short, since in a cluster addresses change.

    Args:
        look_up: asks the system.
    """

    def __init__(self, look_up: LookUp = getaddrinfo) -> None:
        self._look_up = look_up
        self._asked: dict[tuple[str, int], _Lookup] = {}
        self._late: dict[tuple[str, int], set[Address]] = {}

    async def addresses(self, host: str, port: int) -> tuple[Sequence[Address], bool]:
        """Where *host* is, best first, and whether that was remembered from earlier.

        Raises:
            OSError: it has no address that we could learn of.
        """
        try:
            return getaddrinfo(host, port, socket.AI_NUMERICHOST | socket.AI_NUMERICSERV), False
        except OSError:
            pass  # it is no address, so it is a name
        lookup = self._asked.get((host, port))
        remembered = lookup is not None and lookup.done.is_set()
        if lookup is None or lookup.stale():
            lookup, remembered = self._ask(host, port), False
        await lookup.done.wait()
        if lookup.refusal:
            raise OSError(lookup.refusal)
        return self._sorted(host, port, lookup.found), remembered

    def forget(self, host: str, port: int) -> None:
        """What is remembered leads nowhere: the next who asks waits for an answer that is new."""
        lookup = self._asked.get((host, port))
        if lookup and lookup.done.is_set():
            del self._asked[host, port]

    def tried(self, host: str, port: int, addresses: Sequence[Address]) -> None:
        """The last of *addresses* answered, those before it failed or were late: they are tried last from now on.

        So one that is dead costs its delay once, not once for each connection.
        """
        if len(addresses) > 1:
            late = self._late.setdefault((host, port), set())
            late.update(addresses[:-1])
            late.discard(addresses[-1])

    def _ask(self, host: str, port: int) -> _Lookup:
        lookup = self._asked[host, port] = _Lookup()
        # No task of its own would outlive the one that asked first; and who waits can be cancelled alone.
        trio.lowlevel.spawn_system_task(lookup.run, self._look_up, host, port, name=f"lookup of {host}")
        return lookup

    def _sorted(self, host: str, port: int, found: Sequence[Address]) -> Sequence[Address]:
        if not (late := self._late.get((host, port))):
            return found
        late.intersection_update(found)
        return sorted(found, key=late.__contains__)


class _Lookup:
    """One question, under way or answered."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.found: Sequence[Address] = ()
        self.refusal = ""
        self._until = float("inf")

    def stale(self) -> bool:
        """Whether it is of no more use. A refusal is told to those who waited for it, and not remembered."""
        return trio.current_time() >= self._until

    async def run(self, look_up: LookUp, host: str, port: int) -> None:
        self.refusal = f"no answer about {host} within {LOOKUP:g} s"
        with trio.move_on_after(LOOKUP):
            try:
                self.found = await trio.to_thread.run_sync(look_up, host, port, abandon_on_cancel=True)
                self.refusal = "" if self.found else f"{host} has no address"
            except OSError as error:
                self.refusal = str(error)
        now = trio.current_time()
        self._until = now if self.refusal else now + FRESH
        self.done.set()
