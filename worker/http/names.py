"""Addresses of one host: one look-up for all that wait, remembered for a few seconds."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable
from typing import Any

import trio

MAX_AGE = 5.0
"""Seconds for which addresses are used: as long as CoreDNS lets clients cache the names of a cluster."""
LOOKUP_TIMEOUT = 10.0
"""Seconds that a look-up may take: two tries of a resolver, at glibc's 5 s each."""

AddressInfo = tuple[Any, ...]
"""An item of the result of ``socket.getaddrinfo``; its last field is what ``socket.connect`` takes."""
LookUp = Callable[..., list[Any]]
"""Blocking function with the parameters, result and errors of ``socket.getaddrinfo``."""


class NameCache(trio.abc.HostnameResolver):
    """Resolver for Trio that caches the addresses of one host. All other names are looked up each time."""

    def __init__(self, host: str, port: int, nursery: trio.Nursery, look_up: LookUp = socket.getaddrinfo) -> None:
        self.host, self.port = host, port
        self._query = host.encode(), port, 0, socket.SOCK_STREAM, 0, 0  # as trio.open_tcp_stream asks
        self._nursery = nursery  # runs the look-ups, so that cancelling one waiter does not cancel the look-up of all
        self._look_up = look_up
        self._current: _Result | None = None
        self._preferred: Any = None

    @property
    def remembered(self) -> bool:
        """Flag: the next connect uses addresses of an earlier look-up."""
        result = self._current
        return result is not None and result.done.is_set() and trio.current_time() < result.expires_at

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
            return await trio.to_thread.run_sync(self._look_up, *query, abandon_on_cancel=True)
        result = self._current
        if result is None or trio.current_time() >= result.expires_at:
            result = self._current = _Result()
            self._nursery.start_soon(self._run, result)
        await result.done.wait()
        if result.error:
            raise OSError(result.error)
        return self._sorted(result.addresses)

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        """See :meth:`trio.abc.HostnameResolver.getnameinfo`; not cached."""
        return await trio.to_thread.run_sync(socket.getnameinfo, sockaddr, flags, abandon_on_cancel=True)

    def _sorted(self, addresses: list[AddressInfo]) -> list[AddressInfo]:
        return sorted(addresses, key=lambda info: info[-1] != self._preferred)

    async def _run(self, result: _Result) -> None:
        result.error = f"no answer to the look-up of {self.host} within {LOOKUP_TIMEOUT:g} s"
        with trio.move_on_after(LOOKUP_TIMEOUT):
            try:
                result.addresses = await trio.to_thread.run_sync(self._look_up, *self._query, abandon_on_cancel=True)
                result.error = ""
            except OSError as error:
                result.error = str(error)
        # An error is reported to all that wait and not remembered: the next connect looks the name up again.
        result.expires_at = trio.current_time() + (0 if result.error else MAX_AGE)
        result.done.set()


class _Result:
    """Result of a look-up that runs or has ended."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.addresses: list[AddressInfo] = []
        self.error, self.expires_at = "", math.inf
