"""Addresses of hosts: one look-up for all that wait for a name, and the gateway's addresses are remembered.

A look-up occupies a thread for as long as the system's resolver takes, up to a minute if no name server answers. So the
gateway's name, and all other names together (receivers of callbacks), have threads of their own. A name for which no
server answers then delays no invocation.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio

MAX_AGE = 5.0
"""Seconds for which addresses are used: as long as CoreDNS lets clients cache the names of a cluster."""
LOOKUP_TIMEOUT = 10.0
"""Seconds that a look-up may take: two tries of a resolver, at glibc's 5 s each."""

STALE_AFTER = 1.8
"""Seconds of a look-up after which the last known addresses are used (RFC 8767, section 5)."""
HOST_THREADS = 4
"""Threads for look-ups of the host. One runs at a time; those that were abandoned at the timeout keep theirs longer."""
OTHER_THREADS = 16
"""Threads for look-ups of all other names, each of another name."""

AddressInfo = tuple[Any, ...]
"""An item of the result of ``socket.getaddrinfo``; its last field is what ``socket.connect`` takes."""
LookUp = Callable[..., list[Any]]
"""Blocking function with the parameters, result and errors of ``socket.getaddrinfo``."""


class NameCache(trio.abc.HostnameResolver):
    """Resolver for Trio that caches the addresses of one host. All other names are looked up each time.

    If the host's look-up fails or is late, its last addresses are used (RFC 8767): a name server that fails is no
    failure of the function, and a host that has moved away refuses the connection.
    """

    def __init__(self, host: str, port: int, nursery: trio.Nursery, look_up: LookUp = socket.getaddrinfo) -> None:
        self.host, self.port = host, port
        self._query = host.encode(), port, 0, socket.SOCK_STREAM, 0, 0  # as trio.open_tcp_stream asks
        self._nursery = nursery  # runs the look-ups, so that cancelling one waiter does not cancel the look-up of all
        self._look_up = look_up
        self._current: _Result | None = None
        self._last_addresses: list[AddressInfo] = []
        self._preferred: Any = None
        self._threads = trio.CapacityLimiter(HOST_THREADS)
        self._other_threads = trio.CapacityLimiter(OTHER_THREADS)
        self._others: dict[tuple[Any, ...], _Result] = {}
        """Look-ups of other names that run."""

    @property
    def remembered(self) -> bool:
        """Flag: the next connect uses addresses of an earlier look-up."""
        result = self._current
        return result is not None and result.done.is_set() and trio.current_time() < result.expires_at

    @property
    def unanswered(self) -> bool:
        """Flag: the look-up has no answer yet, or had none in time, and there are no addresses of an earlier one."""
        if self._current is None or self._last_addresses:
            return False
        # Both may have happened: its time ends in the same moment as that of a connect which began with it.
        return not self._current.done.is_set() or getattr(self._current.error, "errno", None) == socket.EAI_AGAIN

    def forget(self) -> None:
        """Look the name up again at the next connect, because no known address accepts one."""
        if self.remembered:
            self._current = None

    def connected(self, address: Any) -> None:
        """Try *address* first from now on if others were tried before it: they failed or were slow.

        So an address that does not respond delays one connect and not each.
        """
        if self._current and self._current.addresses and self._sorted(self._current.addresses)[0][-1] != address:
            self._preferred = address

    async def getaddrinfo(  # type: ignore[override]  # Trio names each option, and passes them by position
        self, host: bytes, port: int, *options: int
    ) -> list[AddressInfo]:
        """See :meth:`trio.abc.HostnameResolver.getaddrinfo`.

        Raises:
            OSError: the look-up failed or took longer than LOOKUP_TIMEOUT.
        """
        query = (host, port, *options)
        if query != self._query:
            if (result := self._others.get(query)) is None:
                result = self._others[query] = _Result()
                self._nursery.start_soon(self._run_other, query, result)
        elif (result := self._current) is None or trio.current_time() >= result.expires_at:
            result = self._current = _Result()
            self._nursery.start_soon(self._run, result)
        # One look-up for all that wait is late: they go on with the last addresses, and it still renews these.
        stale = self._last_addresses if query == self._query else []
        with trio.move_on_at(result.started_at + STALE_AFTER if stale else math.inf):
            await result.done.wait()
        if not result.done.is_set():
            return self._sorted(stale)
        if result.error:
            raise OSError(*result.error.args) from result.error
        return self._sorted(result.addresses)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """See :meth:`trio.abc.HostnameResolver.getnameinfo`; not cached."""
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True)

    def _sorted(self, addresses: list[AddressInfo]) -> list[AddressInfo]:
        return sorted(addresses, key=lambda info: info[-1] != self._preferred)

    async def _run(self, result: _Result) -> None:
        await self._resolve(self._query, self._threads, result)
        # An error is reported to all that wait and not remembered: the next connect looks the name up again.
        result.expires_at = trio.current_time() + (0 if result.error else MAX_AGE)
        if result.error and self._last_addresses:
            result.addresses, result.error = self._last_addresses, None
        self._last_addresses = result.addresses
        result.done.set()

    async def _run_other(self, query: tuple[Any, ...], result: _Result) -> None:
        await self._resolve(query, self._other_threads, result)
        del self._others[query]
        result.done.set()

    async def _resolve(self, query: tuple[Any, ...], threads: trio.CapacityLimiter, result: _Result) -> None:
        name = query[0].decode("ascii", "replace")
        text = f"no answer to the look-up of {name} within {LOOKUP_TIMEOUT:g} s"
        result.error = socket.gaierror(socket.EAI_AGAIN, text)
        with trio.move_on_after(LOOKUP_TIMEOUT):
            try:
                result.addresses = await trio.to_thread.run_sync(
                    self._look_up, *query, abandon_on_cancel=True, limiter=threads
                )
                result.error = None
            except Exception as error:  # noqa: BLE001 -- also a name that is none (UnicodeError), or no thread
                result.error = error


class _Result:
    """Result of a look-up that runs or has ended."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.addresses: list[AddressInfo] = []
        self.error: Exception | None = None
        self.started_at = trio.current_time()
        self.expires_at = math.inf


@asynccontextmanager
async def open_names(host: str, port: int, look_up: LookUp = socket.getaddrinfo) -> AsyncIterator[NameCache]:
    """Resolve all names of this Trio run by a :class:`NameCache` for *host*."""
    async with trio.open_nursery() as nursery:
        names = NameCache(host, port, nursery, look_up)
        previous = trio.socket.set_custom_hostname_resolver(names)
        try:
            yield names
        finally:
            trio.socket.set_custom_hostname_resolver(previous)
            nursery.cancel_scope.cancel()
