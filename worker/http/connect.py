"""A connection to the first of several addresses that answers (Happy Eyeballs, RFC 8305)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Sequence

import trio

from .names import Address

HEAD_START = 0.25
"""Seconds that an address is given before the next is tried beside it (RFC 8305, section 8)."""


async def connect(addresses: Sequence[Address]) -> tuple[socket.socket, Sequence[Address]]:
    """A connection that does not block, and the addresses tried for it: the last of them is where it leads.

    Each address is tried when the one before it failed, or did not answer within its head start; the first that answers
    wins.

    Raises:
        OSError: none answered. It tells why the last one failed.
    """
    if len(addresses) == 1:
        return await _attempt(addresses[0]), addresses
    tried = _alternating(addresses)
    sock, place = await _race(tried)
    return sock, tried[: place + 1]


def _alternating(addresses: Sequence[Address]) -> Sequence[Address]:
    """The second one is of another family than the first, if any is (RFC 8305, section 4)."""
    first, *rest = addresses
    other = next((address for address in rest if address[0] != first[0]), rest[0])
    rest.remove(other)
    return [first, other, *rest]


async def _race(addresses: Sequence[Address]) -> tuple[socket.socket, int]:
    won: list[tuple[socket.socket, int]] = []
    failures: list[OSError] = []

    async def run(number: int, failed: trio.Event) -> None:
        try:
            won.append((await _attempt(addresses[number]), number))
        except OSError as error:
            failures.append(error)
            failed.set()
        else:
            nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for number in range(len(addresses)):
                failed = trio.Event()
                nursery.start_soon(run, number, failed)
                with trio.move_on_after(HEAD_START):
                    await failed.wait()
    except BaseException:
        _close(won)
        raise
    _close(won[1:])  # two can answer in the same instant
    if not won:
        raise failures[-1]
    return won[0]


def _close(won: Sequence[tuple[socket.socket, int]]) -> None:
    for sock, _ in won:
        sock.close()


async def _attempt(address: Address) -> socket.socket:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        refusal = sock.connect_ex(where)
        if refusal == errno.EINPROGRESS:
            await trio.lowlevel.wait_writable(sock)
            refusal = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        _raise(refusal)
    except BaseException:
        sock.close()
        raise
    return sock


def _raise(number: int) -> None:
    if number:
        raise OSError(number, os.strerror(number))
