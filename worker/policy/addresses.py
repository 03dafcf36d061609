"""IP addresses as a connection reads them: which machine an address means, and which ones mean this machine itself.

The same IPv4 address can be written in many ways: as one number, in octal, inside an IPv6 address. A check of the text
would miss most of them. So texts are only read where no connection is made; everything else is judged by the address.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

LOOPBACK = "loopback"
_SPECIAL = {
    LOOPBACK: ("127.0.0.0/8", "::1", "0.0.0.0/8", "::"),  # Linux connects to itself for the last two
    "link-local": ("169.254.0.0/16", "fe80::/10"),
    # Of clouds whose metadata is not link-local: Alibaba, Azure, Oracle; AWS, Google, Scaleway and Oracle by IPv6.
    "metadata": (
        *("100.100.100.200", "168.63.129.16", "192.0.0.192"),
        *("fd00:ec2::/32", "fd20:ce::254", "fd00:42::42", "fd00:c1::a9fe:a9fe"),
    ),
}
_SPECIAL_NETWORKS: tuple[tuple[str, Network], ...] = tuple(
    (kind, ip_network(text)) for kind, texts in _SPECIAL.items() for text in texts
)
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.goog", "instance-data"})
_NAT64 = ip_network("64:ff9b::/96")
"""IPv4 behind a translator (RFC 6052). A network's own prefix is not known here."""
_LOCAL_NAT64 = ip_network("64:ff9b:1::/48")
_EMBEDDING: tuple[tuple[Network, int], ...] = (
    (_NAT64, 0),
    (ip_network("::/96"), 0),  # IPv4-compatible
    (ip_network("::ffff:0:0:0/96"), 0),  # IPv4-translated
    (ip_network("2002::/16"), 80),  # 6to4
)
"""Networks whose addresses contain an IPv4 address, and the bits after it."""
_TEREDO = ip_network("2001::/32")
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{0,8}|[0-9]{1,12}")


def canonical(address: Address) -> Address:
    """Return the IPv4 address of an IPv4-mapped one (``::ffff:10.0.0.1``), because the system connects to that."""
    return address.ipv4_mapped or address if isinstance(address, IPv6Address) else address


def destination(address: Address) -> Address:
    """Return the address of the machine that answers: behind a NAT64 translator it is the embedded IPv4 address."""
    address = canonical(address)
    return _low_bits(address) if address in _NAT64 else address


def forms(address: Address) -> Iterator[Address]:
    """Yield an address and all IPv4 addresses that it may stand for."""
    address = canonical(address)
    yield address
    if not isinstance(address, IPv6Address):
        return
    for network, bits in _EMBEDDING:
        if address in network:
            yield _low_bits(address, bits)
    if address in _LOCAL_NAT64:
        number = int(address)
        if number & 0xFF_FFFF_FFFF:  # a translator with a prefix of 96 bits
            yield _low_bits(address)
        else:  # one of 48 bits, with bits 64 to 71 between the halves of the address (RFC 6052, section 2.2)
            yield IPv4Address((number >> 64 & 0xFFFF) << 16 | number >> 40 & 0xFFFF)
    if address in _TEREDO:
        yield _low_bits(address, 64)
        yield IPv4Address(int(address) & 0xFFFFFFFF ^ 0xFFFFFFFF)
    if int(address) >> 32 & 0xFFFFFFFF in (0x5EFE, 0x02005EFE):  # ISATAP
        yield _low_bits(address)


def special_kind(address: Address) -> str | None:
    """Return ``loopback``, ``link-local`` or ``metadata`` if an address may stand for such a one."""
    every = list(forms(address))
    return next((kind for kind, network in _SPECIAL_NETWORKS if any(form in network for form in every)), None)


def special_name(host: str) -> str | None:
    """Return the same for a name that means such an address everywhere."""
    if host == "localhost" or host.endswith(".localhost"):
        return LOOPBACK
    return "metadata" if host in _METADATA_NAMES else None


def read_address(host: str) -> Address | None:
    """Return the address that a URL's host writes, in any form that a resolver reads; None if it is a name."""
    host = host.rstrip(".").strip("[]").partition("%")[0]
    try:
        return canonical(ip_address(host))
    except ValueError:
        return _read_ipv4(host)


def ends_in_number(host: str) -> bool:
    """Return whether the last part of a host is a number: then it is an IPv4 address or nothing, never a name."""
    return _NUMBER.fullmatch(host.rpartition(".")[2]) is not None


def _read_ipv4(host: str) -> IPv4Address | None:
    """Read an IPv4 address as ``inet_aton`` does: one to four numbers, decimal, octal or hexadecimal."""
    parts = host.split(".")
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) for part in parts):
        return None
    try:
        *bytes_, last = (_read_number(part) for part in parts)
    except ValueError:  # an octal number with an 8
        return None
    if any(byte > 255 for byte in bytes_) or last >= 256 ** (4 - len(bytes_)):
        return None
    number = last
    for index, byte in enumerate(bytes_):
        number |= byte << 8 * (3 - index)
    return IPv4Address(number)


def _read_number(text: str) -> int:
    if text[:2].lower() == "0x":
        return int(text[2:] or "0", 16)
    return int(text, 8) if text.startswith("0") else int(text)


def _low_bits(address: Address, bits: int = 0) -> IPv4Address:
    return IPv4Address(int(address) >> bits & 0xFFFFFFFF)
