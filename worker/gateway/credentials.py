"""The producer's own credentials for the gateway behind it: OpenFaaS's basic auth, from files or from ``gateway_url``.

The files are OpenFaaS's secrets ``basic-auth-user`` and ``basic-auth-password``. Kubernetes replaces them when the
secret is rotated, so they are read again, at most once a second.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..settings import Settings

_READ_AGAIN = 1.0
"""Seconds before the files are looked at again."""
_LONGEST = 4096
"""Most bytes of a file that are read: passwords have tens of them."""


class Credentials:
    """User and password. The files win over ``gateway_url``; *now* returns a time (s).

    Without a readable pair of files the last one that was read is used: a rotation replaces one file after the other.
    """

    def __init__(self, settings: Settings, now: Callable[[], float]) -> None:
        self._files = (settings.basic_auth_user_file, settings.basic_auth_password_file)
        self._now, self._read_at = now, float("-inf")
        parts = urlsplit(settings.gateway_url)
        self._pair: tuple[str, str] | None = None
        if parts.username is not None:
            self._pair = unquote(parts.username), unquote(parts.password or "")
        self._header = _basic(self._pair)

    def pair(self) -> tuple[str, str] | None:
        """Return user and password; None without any."""
        self._read()
        return self._pair

    def authorization(self) -> bytes | None:
        """Return the value of the header ``Authorization``; None without credentials."""
        self._read()
        return self._header

    def _read(self) -> None:
        user_file, password_file = self._files
        if user_file is None or password_file is None or (now := self._now()) < self._read_at + _READ_AGAIN:
            return
        self._read_at = now
        pair = _content(user_file), _content(password_file)
        if all(pair) and pair != self._pair:
            self._pair, self._header = pair, _basic(pair)


def _content(path: str) -> str:
    """Return the content of a secret's file without space around it; empty if it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return file.read(_LONGEST).decode().strip()
    except (OSError, ValueError):
        return ""


def _basic(pair: tuple[str, str] | None) -> bytes | None:
    """Return a pair as basic authentication writes it (RFC 7617)."""
    return None if pair is None else b"Basic " + base64.b64encode(":".join(pair).encode())
