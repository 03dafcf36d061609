"""Which proxy a callback uses, by the environment's variables as curl and Go read them.

httpx reads them too, but fails on an address in brackets or a network in NO_PROXY, and then no callback is ever sent.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

_VARIABLES = {"http": ("http_proxy", "all_proxy"), "https": ("https_proxy", "all_proxy")}
_SCHEMES = ("http", "https")
"""Proxies that can be used: socks needs a library that is not installed."""


class InvalidProxyError(ValueError):
    """A variable names a proxy that no callback could use. The text names the variable, but no password."""


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of the environment: of each scheme a URL or None, and the hosts that are reached without one."""

    by_scheme: Mapping[str, str | None]
    excluded: tuple[str, ...]

    def proxy_of(self, url: str) -> str | None:
        """Return the URL of the proxy for a request to *url*; None if it needs none."""
        parts = urlsplit(url)
        proxy, host = self.by_scheme.get(parts.scheme), (parts.hostname or "").rstrip(".")
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
        if not proxy or any(_matches(entry, host, port) for entry in self.excluded):
            return None
        return proxy


def read_proxies(environment: Mapping[str, str]) -> Proxies:
    """Read HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY, in either case; raise InvalidProxyError for a bad one."""
    values = {name: environment.get(name) or environment.get(name.upper(), "") for name in ("no_proxy", *_names())}
    for name in _names():
        _check(name, values[name])
    proxies = {
        scheme: next((values[name] for name in names if values[name]), None) for scheme, names in _VARIABLES.items()
    }
    with_scheme = {
        scheme: proxy if not proxy or "://" in proxy else f"http://{proxy}" for scheme, proxy in proxies.items()
    }
    return Proxies(
        with_scheme, tuple(entry for each in values["no_proxy"].split(",") if (entry := each.strip().lower()))
    )


def _names() -> set[str]:
    return {name for names in _VARIABLES.values() for name in names}


def _check(name: str, value: str) -> None:
    if not value:
        return
    scheme, _, rest = value.rpartition("://")
    shown = f"{scheme}://{rest.rpartition('@')[2]}" if scheme else rest.rpartition("@")[2]
    wanted = "write http://host:port, or unset it"
    if scheme and scheme.lower() not in _SCHEMES:
        raise InvalidProxyError(
            f"{name.upper()} = {shown!r}: callbacks cannot use a proxy of scheme {scheme!r}; {wanted}"
        )
    try:
        parts = urlsplit(value if scheme else f"http://{value}")
        valid = (
            bool(parts.hostname) and parts.port != 0 and value.isascii() and value.isprintable() and " " not in value
        )
    except ValueError:
        valid = False
    if not valid:
        raise InvalidProxyError(f"{name.upper()} = {shown!r}: not the URL of a proxy; {wanted}")


def _matches(entry: str, host: str, port: int) -> bool:
    """Return whether an entry of NO_PROXY matches: ``*``, a name and those below it, an address, or a network."""
    entry = entry.rpartition("://")[2]
    if entry == "*":
        return True
    name, _, digits = entry.rpartition(":")
    if name and digits.isdigit() and (name.count(":") == 0 or name.endswith("]")):
        if int(digits) != port:
            return False
        entry = name
    entry = entry.strip("[]")
    try:
        network = ipaddress.ip_network(entry.replace("]", ""), strict=False)
    except ValueError:
        suffix = entry.removeprefix("*").rstrip(".")
        return host.endswith(suffix) if suffix.startswith(".") else host == suffix or host.endswith(f".{suffix}")
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False
