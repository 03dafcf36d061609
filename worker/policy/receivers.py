"""The callbacks of one worker that wait for their receivers, outside of the slots.

A slot is for an invocation. A callback that waits in one would stop invocations of all functions, and a receiver that
accepts connections and answers nothing could keep all slots so. So a callback leaves its slot while there is room
outside. Without room it keeps its slot, because the memory of a worker is bounded too: then functions wait for
receivers that are slower than they are. A receiver that answers nothing gets no slot: its callbacks fail at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MAX_CALLBACKS = 1_000
"""Callbacks outside of the slots: 31 s of 30 results a second for a receiver that does not answer."""
MAX_BYTES = 16 * 1024 * 1024
"""Bytes of their messages and bodies: a fraction of what a worker uses for 50 invocations with large bodies."""


class Receivers:
    """The receivers with callbacks in flight. A receiver is silent after *silence* seconds without any answer."""

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._waiting: dict[str, int] = {}
        self._quiet_since: dict[str, float] = {}
        """Time of the last answer of a receiver, or of its first callback."""
        self._outside = self._bytes = 0

    @contextmanager
    def waiting(self, receiver: str, size: int, now: float) -> Iterator[bool]:
        """Note a callback of *size* bytes for as long as it is in flight; return whether there is room outside."""
        room = self._outside < MAX_CALLBACKS and self._bytes + size <= MAX_BYTES
        self._waiting[receiver] = self._waiting.get(receiver, 0) + 1
        self._quiet_since.setdefault(receiver, now)
        self._outside += room
        self._bytes += size * room
        try:
            yield room
        finally:
            self._outside -= room
            self._bytes -= size * room
            self._waiting[receiver] -= 1
            if not self._waiting[receiver]:
                del self._waiting[receiver], self._quiet_since[receiver]

    def answered(self, receiver: str, now: float) -> None:
        """Note that a receiver has answered a callback in flight."""
        self._quiet_since[receiver] = now

    def is_silent(self, receiver: str, now: float) -> bool:
        """Return whether a receiver with callbacks in flight has answered none for so long that it may not answer."""
        return now - self._quiet_since[receiver] >= self._silence
