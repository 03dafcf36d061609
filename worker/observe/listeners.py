"""Listening sockets of both servers: the one for metrics and health, and the producer."""

from __future__ import annotations

import errno
import os
import socket
from ipaddress import ip_address

_EVERY_ADDRESS = {"0.0.0.0": "::", "::": "0.0.0.0"}  # noqa: S104 -- what the settings ask for
"""The other family's name for all addresses."""


def listen(host: str, port: int, *, backlog: int = 100) -> list[socket.socket]:
    """Listen on each address of *host*, and for ``0.0.0.0`` or ``::`` on all addresses of both families.

    In a cluster of IPv6 only, probes and Prometheus come by IPv6, and ``0.0.0.0`` is the default. On a machine without
    one of the families the other is enough. Port 0 is a free one, which all sockets have in common.

    Raises:
        OSError: the port is taken, or no address can be bound. Its text is the reason.
    """
    sockets: list[socket.socket] = []
    errors: list[OSError] = []
    for name in (host, *filter(None, [_EVERY_ADDRESS.get(host)])):
        try:
            found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        except OSError as error:
            errors.append(error)
            continue
        for family, address in dict.fromkeys((info[0], str(info[4][0])) for info in found):
            number = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(socket.create_server((address, number), family=family, backlog=backlog))
            except OSError as error:
                errors.append(error)
    taken = [error for error in errors if error.errno == errno.EADDRINUSE and port]
    if taken or not sockets:
        for each in sockets:
            each.close()
        raise OSError(_reason((taken or errors)[0]))
    return sockets


def is_loopback(sockets: list[socket.socket]) -> bool:
    """Return whether all *sockets* can be reached from this machine only."""
    return all(ip_address(each.getsockname()[0].partition("%")[0]).is_loopback for each in sockets)


def addresses(sockets: list[socket.socket]) -> str:
    """Return the addresses of *sockets* for a log line, as ``0.0.0.0:8081, [::]:8081``."""
    names = (each.getsockname()[:2] for each in sockets)
    return ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in names)


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
