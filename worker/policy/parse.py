"""Parsers of the settings: each turns a text into a value, or raises ValueError with the accepted values."""

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
    """Accept any text."""
    return value


def flag(value: str) -> bool:
    """Parse true, false, 1 or 0."""
    if value.lower() in ("true", "1"):
        return True
    if value.lower() in ("false", "0"):
        return False
    raise ValueError("not a switch: write true or false")


def whole(minimum: int, maximum: int = 2**31 - 1) -> Callable[[str], int]:
    """Return a parser of whole numbers within bounds, which are not negative."""

    def parse(value: str) -> int:
        if (number := whole_number(value, minimum, maximum)) is None:
            raise ValueError(f"not a whole number from {minimum} to {maximum}")
        return number

    return parse


def limit(value: str) -> int:
    """Parse a positive whole number, or -1 for no limit."""
    try:
        return -1 if value == "-1" else whole(1)(value)
    except ValueError:
        raise ValueError("not a limit: write a whole number from 1, or -1 for none") from None


def duration(minimum: float = 0.0) -> Callable[[str], float]:
    """Return a parser of Go durations of at least *minimum* seconds."""

    def parse(value: str) -> float:
        if (seconds := parse_duration(value)) < minimum:
            raise ValueError(f"too short: at least {format_duration(minimum)}")
        return seconds

    return parse


def port(value: str) -> int:
    """Parse a TCP port."""
    try:
        return whole(0, 65535)(value)
    except ValueError:
        raise ValueError("not a port: write a whole number from 0 to 65535") from None


def one_of(*accepted: str) -> Callable[[str], Any]:
    """Return a parser of one of a few words."""

    def parse(value: str) -> str:
        if value not in accepted:
            raise ValueError(f"not one of {', '.join(accepted)}")
        return value

    return parse


def retry_strategy(value: str) -> str:
    """Parse the one strategy that this version supports; the contract has others."""
    if value != "nak":
        raise ValueError("this version supports only nak")
    return value


def host(value: str) -> str:
    """Parse the name or the address of a machine."""
    bare = value[1:-1] if re.fullmatch(r"\[.*\]", value) else value
    with suppress(ValueError):
        if re.fullmatch(r"[0-9]+(\.[0-9]+){3}", value):  # never a name
            return str(ipaddress.IPv4Address(value))
        if re.fullmatch(r"[A-Za-z0-9_.-]+", value):
            return value
        if re.fullmatch(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?", bare):  # a zone can hold anything, for ipaddress
            return str(ipaddress.IPv6Address(bare))
    raise ValueError("not a host: write a name or an IP address, with no port")


def http_url(value: str) -> str:
    """Parse the absolute URL of a web server, and remove a slash at its end."""
    if not _is_url(value, "http", "https") or "?" in value or "#" in value:
        raise ValueError("not the URL of a web server: write http://host:port")
    return value.rstrip("/")


def nats_urls(value: str) -> str:
    """Parse a comma-separated list of NATS servers."""
    if not all(_is_url(url.strip(" "), "nats", "tls", "ws", "wss") for url in value.split(",")):
        raise ValueError("not a list of NATS servers: write nats://host:port (or tls, ws, wss), with commas between")
    return value


def _is_url(value: str, *schemes: str) -> bool:
    # The errors of urlsplit are not passed on, because they quote a part that may be a password.
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
    """Parse a queue's name."""
    if not is_name(value):
        raise ValueError("not a queue's name: lower-case letters, digits, - and _, a letter or digit first and last")
    return value


def jetstream_name(value: str) -> str:
    """Parse the name of a stream or consumer."""
    if len(value) > 255 or not value.isascii() or not value.isprintable() or any(c in " .*>/\\%" for c in value):
        raise ValueError("not a name for JetStream: ASCII, at most 255, no spaces, and none of . * > / \\ %")
    return value
