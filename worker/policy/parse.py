"""From an operator's text to a value, or ValueError saying what is accepted."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from .durations import format_duration, parse_duration
from .names import is_name
from .syntax import whole_number


def text(value: str) -> str:
    """Anything."""
    return value


def flag(value: str) -> bool:
    """true/false/1/0."""
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise ValueError("not a switch: write true or false")


def whole(least: int, most: int = 2**31 - 1) -> Callable[[str], int]:
    """A whole number within bounds, which are not negative."""

    def parse(value: str) -> int:
        if (number := whole_number(value, least, most)) is None:
            raise ValueError(f"not a whole number from {least} to {most}")
        return number

    return parse


def limit(value: str) -> int:
    """A positive whole number, or -1 for none."""
    try:
        return -1 if value == "-1" else whole(1)(value)
    except ValueError:
        raise ValueError("not a limit: write a whole number from 1, or -1 for none") from None


def duration(least: float = 0.0) -> Callable[[str], float]:
    """A Go duration of at least so many seconds."""

    def parse(value: str) -> float:
        if (seconds := parse_duration(value)) < least:
            raise ValueError(f"too short: at least {format_duration(least)}")
        return seconds

    return parse


def port(value: str) -> int:
    """A TCP port."""
    try:
        return whole(0, 65535)(value)
    except ValueError:
        raise ValueError("not a port: write a whole number from 0 to 65535") from None


def one_of(*accepted: str) -> Callable[[str], Any]:
    """One of a few words."""

    def parse(value: str) -> str:
        if value not in accepted:
            raise ValueError(f"not one of {', '.join(accepted)}")
        return value

    return parse


def only(value: str, *, until: str) -> Callable[[str], str]:
    """The one word that this version can do, where the contract has others."""

    def parse(given: str) -> str:
        if given != value:
            raise ValueError(f"this version can only do {value!r}; {until}")
        return given

    return parse


def host(value: str) -> str:
    """The name or the address of a machine."""
    bare = value[1:-1] if re.fullmatch(r"\[.*\]", value) else value
    with suppress(ValueError):
        if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", value):  # nobody resolves it as a name
            return str(ipaddress.IPv4Address(value))
        if re.fullmatch(r"[A-Za-z0-9_.-]+", value):
            return value
        if re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?", bare):  # a zone can hold anything, for ipaddress
            return str(ipaddress.IPv6Address(bare))
    raise ValueError("not a host: write a name or an IP address, with no port")


def http_url(value: str) -> str:
    """The absolute URL of a web server, less a slash at its end."""
    if not _is_url(value, "http", "https") or "?" in value or "#" in value:
        raise ValueError("not the URL of a web server: write http://host:port")
    return value.rstrip("/")


def nats_urls(value: str) -> str:
    """A comma-separated list of NATS servers."""
    if not all(_is_url(url.strip(" "), "nats", "tls", "ws", "wss") for url in value.split(",")):
        raise ValueError("not a list of NATS servers: write nats://host:port (or tls, ws, wss), with commas between")
    return value


def _is_url(value: str, *schemes: str) -> bool:
    # The parser's own complaints are not told on: they quote what may be a password.
    try:
        parts = urlsplit(value)
        return (
            re.fullmatch(r"[!-~]+", value) is not None
            and parts.scheme in schemes
            and bool(host(parts.hostname or ""))
            and re.fullmatch(r"(\[[^\[\]]+\]|[^\[\]:]+)(:[0-9]+)?", parts.netloc.rpartition("@")[2]) is not None
            and parts.port != 0
        )
    except ValueError:
        return False


def queue(value: str) -> str:
    """A queue's name."""
    if not is_name(value):
        raise ValueError("not a queue's name: lower-case letters, digits, - and _, a letter or digit first and last")
    return value


def jetstream_name(value: str) -> str:
    """The name of a stream or consumer."""
    if len(value) > 255 or not value.isascii() or not value.isprintable() or any(c in " .*>/\\%" for c in value):
        raise ValueError("not a name for JetStream: ASCII, at most 255, no spaces, and none of . * > / \\ %")
    return value
