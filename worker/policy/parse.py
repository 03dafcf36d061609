"""Parsers of settings and annotations: each turns a text into a value, or raises ValueError with the accepted ones."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from .durations import format_duration, parse_duration
from .names import is_name


def whole_number(text: str, low: int = 0, high: int = 2**31 - 1, *, digits: int = 10) -> int | None:
    """Return the whole number from *low* to *high* that *text* writes in at most *digits* ASCII digits, or None."""
    # The time of int() grows with the length of its input.
    is_short = text.isascii() and text.isdigit() and len(text) <= digits
    return number if is_short and low <= (number := int(text)) <= high else None


def whole(low: int, high: int = 2**31 - 1, *, digits: int = 10, error: str = "") -> Callable[[str], int]:
    """Return a parser of such whole numbers. *error* is the text of its error, if another one explains more."""

    def parse(value: str) -> int:
        if (number := whole_number(value, low, high, digits=digits)) is None:
            raise ValueError(error or f"not a whole number from {low} to {high}")
        return number

    return parse


port = whole(0, 65535, error="not a port: write a whole number from 0 to 65535")


def limit(value: str) -> int:
    """Parse a positive whole number, or -1 for no limit."""
    return -1 if value == "-1" else whole(1, error="not a limit: write a whole number from 1, or -1 for none")(value)


def byte_limit(value: str) -> int:
    """Parse a number of bytes, or -1 for no limit."""
    error = "not a number of bytes: write a whole number from 1, or -1 for no limit"
    return -1 if value == "-1" else whole(1, 2**63 - 1, digits=19, error=error)(value)


def flag(value: str) -> bool:
    """Parse true, false, 1 or 0."""
    if value.lower() not in ("true", "1", "false", "0"):
        raise ValueError("not a switch: write true or false")
    return value.lower() in ("true", "1")


def duration(minimum: float = 0.0) -> Callable[[str], float]:
    """Return a parser of Go durations of at least *minimum* seconds."""

    def parse(value: str) -> float:
        if (seconds := parse_duration(value)) < minimum:
            raise ValueError(f"too short: at least {format_duration(minimum)}")
        return seconds

    return parse


def one_of(*accepted: str, error: str = "") -> Callable[[str], Any]:
    """Return a parser of one of a few words. *error* is the text of its error, if another one explains more."""

    def parse(value: str) -> str:
        if value not in accepted:
            raise ValueError(error or f"not one of {', '.join(accepted)}")
        return value

    return parse


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


def origins(value: str) -> tuple[str, ...]:
    """Parse a comma-separated list of origins, as browsers write them: ``https://app.example``, or ``*`` for all."""
    found = tuple(each.strip(" ") for each in value.split(","))
    for each in found if found != ("*",) else ():
        parts = each.partition("://")
        if not _is_url(each, "http", "https") or each != each.lower() or "@" in each or "/" in parts[2]:
            raise ValueError(
                f"{each!r} is not an origin: write https://host or https://host:port in lower case, without a path,"
                " with commas between, or only *"
            )
    return found


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
    if not is_name(value):
        raise ValueError("not a queue's name: lower-case letters, digits, - and _, a letter or digit first and last")
    return value


def jetstream_name(value: str) -> str:
    """Parse the name of a stream or consumer."""
    if len(value) > 255 or not value.isascii() or not value.isprintable() or any(c in " .*>/\\%" for c in value):
        raise ValueError("not a name for JetStream: ASCII, at most 255, no spaces, and none of . * > / \\ %")
    return value


def subject_prefix(value: str) -> str:
    """Parse the beginning of a NATS subject: one or more tokens without wildcards."""
    if len(value) > 100 or not all(
        re.fullmatch(r"[!-~]+", each) and not {*each} & {*"*>"} for each in value.split(".")
    ):
        raise ValueError("not the beginning of a subject: write _INBOX_name, with no spaces and neither * nor >")
    return value


def without_password(url: str) -> str:
    """Mask user and password of a URL, or of a list of URLs, also if they have characters that should be escaped."""
    urls = re.split(r",(?=\s*\w+://)", url)
    return ",".join(re.sub(r"^(\s*\w+://)?.*@", r"\1********@", each, flags=re.DOTALL) for each in urls)
