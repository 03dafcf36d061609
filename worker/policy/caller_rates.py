"""A rate for each caller, and which address a caller has.

A caller is an IPv4 address, or the /64 of an IPv6 address, because a machine chooses the rest freely. Each may send as
many calls at once as the rate has in its window, and one more after each of the window's parts (a token bucket). The
bucket is one number, the time at which it is full again: the generic cell rate algorithm.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

from ..model import Rate

_MOST = 50_000
"""Callers that are remembered. The one that was seen first is forgotten above that: it may then send more."""
_PREFIX = 64
_MOST_PROXIES = 20
"""Trusted proxies in a row: one in the trusted networks may invent thousands of entries, each of which takes time."""
_PORT = re.compile(r"^([0-9.]+|\[.*\]):[0-9]+$")
"""An address with a port, as some proxies write it."""

Networks = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


class CallerRates:
    """The buckets of all callers, at most *most*. All times are of one monotonic clock (s)."""

    def __init__(self, rate: Rate, most: int = _MOST) -> None:
        self._part, self._window, self._most = rate.window / rate.starts, rate.window, most
        self._full_at: dict[str, float] = {}
        """The time at which the bucket of a caller is full again."""

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: str, now: float) -> float:
        """Take a token of the caller's and return 0, or return the seconds until there is one."""
        full_at = max(self._full_at.pop(caller, now), now)
        if (wait := full_at + self._part - self._window - now) > self._part * 1e-6:  # rounding is no lack
            self._full_at[caller] = full_at
            return wait
        self._full_at[caller] = full_at + self._part
        if len(self._full_at) > self._most:
            self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Forget the caller that was seen first, and those after it whose buckets are full."""
        first = next(iter(self._full_at))
        del self._full_at[first]
        while self._full_at and self._full_at[(first := next(iter(self._full_at)))] <= now:
            del self._full_at[first]


def parse_networks(text: str) -> Networks:
    """Parse a comma-separated list of addresses and networks: ``10.0.0.0/8, fd00::1``."""
    try:
        return tuple(ipaddress.ip_network(each.strip()) for each in text.split(","))
    except ValueError:
        raise ValueError("not a list of networks: write addresses and networks with commas, as 10.0.0.0/8") from None


@lru_cache(maxsize=4096)
def caller_of(address: str) -> str:
    """Return the caller with an address: itself, or the network of an IPv6 address; the text if it is neither."""
    if (found := _address(address)) is None:
        return address
    if isinstance(found, ipaddress.IPv4Address):
        return str(found)
    return str(ipaddress.IPv6Network((int(found), _PREFIX), strict=False))


def client_address(peer: str, forwarded: Sequence[str], trusted: Networks) -> str:
    """Return the address of the client behind *peer*.

    *forwarded* are the values of X-Forwarded-For. Each trusted proxy has added the address that it saw at the end. So
    the client is the last one that is not a trusted proxy's; what is before it may be invented.
    """
    client = peer
    for each in islice(_from_the_end(forwarded), _MOST_PROXIES):
        if not _is_trusted(client, trusted):
            break
        entry = _PORT.sub(r"\1", each).strip("[]")
        if _address(entry) is None:
            break
        client = entry
    return client


def _from_the_end(values: Sequence[str]) -> Iterator[str]:
    """Yield the entries of lists with commas, the last one first; what is not asked for is not split."""
    for value in reversed(values):
        rest, comma = value, ","
        while comma:
            rest, comma, entry = rest.rpartition(",")
            yield entry.strip()


@lru_cache(maxsize=4096)
def _is_trusted(address: str, trusted: Networks) -> bool:
    found = _address(address)
    return found is not None and any(found in network for network in trusted)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that a text writes, IPv4 also where it is mapped to IPv6, or None."""
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None) or found
