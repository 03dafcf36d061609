"""References to large bodies in the object store.

A message carries the reference. Other programs may publish, too, so it is checked: it names no bucket, only an object,
whose name cannot be guessed, and it counts only with the size and the digest of that object.
"""

from __future__ import annotations

import re

from ..model import StoredBody

_NAME = re.compile(r"[0-9a-f]{42}")
_DIGEST = re.compile(r"SHA-256=[A-Za-z0-9_-]{43}=")
_MAX_SIZE = 2**53
"""Bytes: a JSON number holds no larger one exactly in every program."""


def new_name(now: float, draw: str) -> str:
    """Return the name of a new object: its time (s since the epoch), and *draw*, 30 random hexadecimal digits.

    The length is a multiple of three, so that the name's base64 has no padding.
    """
    return f"{round(now * 1000):012x}{draw}"


def is_object_name(name: str) -> bool:
    """Return whether a name is one of :func:`new_name`."""
    return _NAME.fullmatch(name) is not None


def created_at(name: str) -> float:
    """Return the time in an object's name (s since the epoch), by the clock of its writer."""
    return int(name[:12], 16) / 1000


def check_reference(body: StoredBody) -> None:
    """Raise ValueError where a reference is none that an object store returned."""
    if not is_object_name(body.name):
        raise ValueError(f"not the name of a stored body: {body.name[:80]!r}")
    if not 0 <= body.size <= _MAX_SIZE:
        raise ValueError(f"not the size of a stored body: {body.size}")
    if not _DIGEST.fullmatch(body.digest):
        raise ValueError(f"not the digest of a stored body: {body.digest[:80]!r}")
