"""Connections to the receivers of callbacks: each address is checked before it is connected to.

A check of the URL, or of a look-up before the connection's own, would be no protection: the owner of a name can let it
point to another address a moment later (DNS rebinding). So there is one look-up, and exactly its addresses are checked
and connected to. httpcore then runs TLS and HTTP over the connection, with the name of the URL.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from ipaddress import ip_address
from typing import Any

import httpcore
import trio

from ..policy.addresses import Address
from .transport import NEXT_ADDRESS_DELAY

MAX_ADDRESSES = 8
"""Addresses of a name that are tried: the owner of the name chooses how many it has."""
MAX_RESPONSE = 262_144
"""Bytes that are read between two writes: httpcore's limit of a header, the part of a body that is read to reuse the
connection, and room for what encodes them."""

CheckAddress = Callable[[str, int, Address], str | None]
"""Returns why an address of a host must not be connected to, or None."""


class ReceiverRefusedError(Exception):
    """No address of a receiver may be connected to. The text names the rule."""


class ReceiverNetwork(httpcore.AsyncNetworkBackend):
    """See the module. Without *check* all addresses are allowed: for the gateway, and for a proxy."""

    def __init__(self, check: CheckAddress | None = None) -> None:
        self._check = check

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 -- httpcore's interface; post() has a timeout
        local_address: str | None = None,  # noqa: ARG002 -- httpcore's interface
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002 -- httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        """Look *host* up, and connect to the first of its addresses that is allowed and accepts.

        Raises:
            ReceiverRefusedError: the rules forbid all addresses.
            httpcore.ConnectError: the look-up failed, or no address accepts.
        """
        try:
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise httpcore.ConnectError(f"no address of {host}: {error}") from error
        return BoundedStream(await _connect(self._allowed(host, port, [str(info[4][0]) for info in found]), port))

    def _allowed(self, host: str, port: int, found: list[str]) -> list[str]:
        """Return the addresses that may be connected to; raise ReceiverRefusedError if there are none."""
        allowed, refusal = [], None
        for text in found:
            if self._check and (reason := self._check(host, port, ip_address(text.partition("%")[0]))):
                refusal = refusal or reason
            else:
                allowed.append(text)
        if refusal and not allowed:
            raise ReceiverRefusedError(refusal)
        return allowed[:MAX_ADDRESSES]


class BoundedStream(httpcore.AsyncNetworkStream):
    """A connection that fails when a receiver sends more than any response that is read."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream, self._left = stream, MAX_RESPONSE

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 -- httpcore's interface
        """See :meth:`httpcore.AsyncNetworkStream.read`."""
        data = await self._stream.read(max_bytes, timeout)
        self._left -= len(data)
        if self._left < 0:
            raise httpcore.ReadError(f"the response is larger than {MAX_RESPONSE} bytes")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- httpcore's interface
        """See :meth:`httpcore.AsyncNetworkStream.write`."""
        self._left = MAX_RESPONSE
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        """See :meth:`httpcore.AsyncNetworkStream.aclose`."""
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's interface
    ) -> httpcore.AsyncNetworkStream:
        """See :meth:`httpcore.AsyncNetworkStream.start_tls`."""
        return BoundedStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        """See :meth:`httpcore.AsyncNetworkStream.get_extra_info`."""
        return self._stream.get_extra_info(info)


async def _connect(addresses: list[str], port: int) -> httpcore.AsyncNetworkStream:
    """Connect to the first address that accepts; each next one is tried when one failed, or is late (RFC 8305)."""
    connected: list[httpcore.AsyncNetworkStream] = []
    errors: list[Exception] = []

    async def attempt(address: str, failed: trio.Event, scope: trio.CancelScope) -> None:
        try:
            connected.append(await httpcore.TrioBackend().connect_tcp(address, port))
        except httpcore.ConnectError as error:
            errors.append(error)
            failed.set()
        else:
            scope.cancel()

    first = None
    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed, nursery.cancel_scope)
                with trio.move_on_after(NEXT_ADDRESS_DELAY):
                    await failed.wait()
        first = connected.pop(0) if connected else None
    finally:
        with trio.CancelScope(shield=True):
            for other in connected:
                await other.aclose()
    if first is None:
        raise errors[-1] if errors else httpcore.ConnectError("the name has no address")
    return first
