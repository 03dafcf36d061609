"""Which receivers callbacks may be sent to, by the address that is connected to.

The order: the gateway, but not its ``/system/``, then ``callback_allow``, then ``callback_deny``, then the default:
everything but this machine, its link and the metadata of its cloud. The owner of a name can let it point to any address
at any time. So a name in ``callback_allow`` allows loopback only if it is a whole name, and never link-local or
metadata addresses.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from .addresses import LOOPBACK, Address, destination, forms, special_kind, special_name
from .receiver_patterns import ReceiverPattern, ReceiverPatterns, host_of

Origin = tuple[str, str, int]
"""Scheme, host and port of a URL, in lower case."""


@dataclass(frozen=True, slots=True)
class CallbackAccess:
    """The rules of one worker."""

    gateway: Origin
    """The origin of ``gateway_url``, which is always allowed."""
    allow: ReceiverPatterns
    deny: ReceiverPatterns

    def is_gateway(self, origin: Origin) -> bool:
        """Return whether an origin is the gateway's."""
        scheme, host, port = origin
        return (scheme, host.lower().rstrip("."), port) == self.gateway

    def gateway_refusal(self, target: str) -> str | None:
        """Return why a callback may not be sent to a path of the gateway: one that deploys and deletes functions."""
        _, host, port = self.gateway
        name, address = host_of(host)
        if not _is_admin(target) or any(self._allows(each, name, port, address, None) for each in self.allow.patterns):
            return None
        return f"/system/ of gateway_url is closed to callbacks: to allow it, list {host}:{port} in callback_allow"

    def refusal(self, host: str, port: int, address: Address | None) -> str | None:
        """Return the rule that forbids a connection to *address* for a URL's *host* and *port*; None if none does.

        Without *address* a proxy looks the name up: then the host is judged as it is written.
        """
        name, written = host_of(host)
        address = address or written
        kind = special_kind(address) if address else special_name(name)
        if any(self._allows(pattern, name, port, address, kind) for pattern in self.allow.patterns):
            return None
        shown = name if address is None or address == written else f"{name} ({address})"
        every = tuple(forms(address)) if address else ()
        for pattern in self.deny.patterns:
            if pattern.matches_name(name, port) or pattern.matches_address(every, port):
                return f"{shown} port {port} matches {pattern.text} in callback_deny"
        if kind is None:
            return None
        wanted = f"the address in callback_allow, such as {address}" if address else "the name in callback_allow"
        return f"{shown} is a {kind} address, which callbacks may not reach by default: to allow it, list {wanted}"

    @staticmethod
    def _allows(pattern: ReceiverPattern, name: str, port: int, address: Address | None, kind: str | None) -> bool:
        if pattern.matches_all or (address and pattern.matches_address((address, destination(address)), port)):
            return True
        if not pattern.matches_name(name, port):
            return False
        return kind is None or (kind == LOOPBACK and not pattern.is_wildcard)


def _is_admin(target: str) -> bool:
    """Return whether a server, or a proxy before it, may read a path as one below ``/system``."""
    path = target.partition("?")[0]
    for _ in range(3):
        path = unquote(path)
    found: list[str] = []
    for segment in path.replace("\\", "/").split("/"):
        if segment == "..":
            del found[-1:]
        elif segment not in ("", "."):
            found.append(segment)
    names = [segment.partition(";")[0].lower() for segment in found]
    first = next((name for name in names if name in ("system", "function", "async-function")), "")
    return first == "system"  # gateway_url may have a path before it
