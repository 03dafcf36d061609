"""Patterns of receivers in settings: a host, the hosts below one, a host and port, an address, or a network."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote

from .addresses import Address, Network, canonical, ends_in_number, read_address
from .parse import port as parse_port

_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([-A-Za-z0-9_.]*[A-Za-z0-9_])?\.?")
_WANTED = "write example.com, *.example.com, host:port, 192.0.2.1, [2001:db8::1]:8080, 10.0.0.0/8 or *"
_MAPPED = IPv6Network("::ffff:0:0/96")


@dataclass(frozen=True, slots=True)
class ReceiverPattern:
    """One pattern; *text* is how it was written."""

    text: str
    name: str = ""
    """A name in lower case, ``*.`` and the name above, ``*`` for all receivers, or empty if *network* is set."""
    network: Network | None = None
    port: int | None = None
    """None for any port."""

    @property
    def matches_all(self) -> bool:
        """Flag: the pattern is ``*``."""
        return self.name == "*"

    @property
    def is_wildcard(self) -> bool:
        """Flag: the pattern stands for more than one name."""
        return self.name.startswith("*")

    def matches_name(self, host: str, port: int) -> bool:
        """Return whether the pattern names *host*, a name in lower case without a dot at its end."""
        if not self.name or self.port not in (None, port):
            return False
        return self.matches_all or (host.endswith(self.name[1:]) if self.is_wildcard else host == self.name)

    def matches_address(self, addresses: Iterable[Address], port: int) -> bool:
        """Return whether the pattern's network contains one of *addresses*."""
        if self.network is None or self.port not in (None, port):
            return False
        return any(address in self.network for address in addresses)


@dataclass(frozen=True, slots=True)
class ReceiverPatterns:
    """The patterns of one setting."""

    patterns: tuple[ReceiverPattern, ...] = ()

    def __str__(self) -> str:
        """Return the patterns as an operator writes them."""
        return ",".join(pattern.text for pattern in self.patterns)


def parse_patterns(value: str) -> ReceiverPatterns:
    """Parse a comma-separated list of patterns."""
    texts = [text.strip() for text in value.split(",")]
    return ReceiverPatterns(tuple(parse_pattern(text) for text in texts if text))


def parse_pattern(text: str) -> ReceiverPattern:
    """Parse one pattern."""
    if text == "*":
        return ReceiverPattern(text, name="*")
    if "/" in text:
        return ReceiverPattern(text, network=_parse_network(text))
    host, port = (text, None) if _parse_address(text) else _split_port(text)
    if address := _parse_address(host):
        return ReceiverPattern(text, network=ip_network(address), port=port)
    name = host.lower().rstrip(".")
    if not _NAME.fullmatch(host) or ".." in host or ends_in_number(name):
        raise ValueError(f"{text[:80]!r} is no pattern of receivers: {_WANTED}")
    return ReceiverPattern(text, name=name, port=port)


def host_of(host: str) -> tuple[str, Address | None]:
    """Return a URL's host in the form of a pattern's name, and its address if it is written as one."""
    host = unquote(host)  # a proxy may read escapes
    return host.lower().rstrip("."), read_address(host)


def _split_port(text: str) -> tuple[str, int | None]:
    found = re.fullmatch(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::(.*))?", text, re.DOTALL)
    if not found:
        return text, None
    if found[2] is None:
        return found[1], None
    try:
        return found[1], parse_port(found[2])
    except ValueError:
        raise ValueError(f"{text[:80]!r} has no port after its colon: {_WANTED}") from None


def _parse_address(host: str) -> Address | None:
    try:
        address = canonical(ip_address(host[1:-1] if re.fullmatch(r"\[.*\]", host) else host))
    except ValueError:
        return None
    return None if isinstance(address, IPv6Address) and address.scope_id else address


def _parse_network(text: str) -> Network:
    if "://" in text:
        raise ValueError(f"{text[:80]!r} is a URL, but receivers are chosen by host and port: {_WANTED}")
    try:
        network = ip_network(text)
    except ValueError:
        try:
            whole = ip_network(text, strict=False)
        except ValueError:
            raise ValueError(f"{text[:80]!r} is no network: {_WANTED}") from None
        raise ValueError(f"{text[:80]!r} is an address within a network: write {whole}") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return ip_network((int(network.network_address) & 0xFFFFFFFF, network.prefixlen - 96))
    return network
