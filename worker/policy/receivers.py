"""The callbacks of one worker that wait for their receivers, outside of the slots.

A slot is for an invocation. A callback that waits in one would stop invocations of all functions, and a receiver that
accepts connections and answers nothing could keep all slots so. So a callback leaves its slot while there is room
outside. Without room it keeps its slot, because the memory of a worker is bounded too: then functions wait for
receivers that are slower than they are. A receiver that answers nothing gets no slot: its callbacks fail at once.
One receiver has a part of the room only, so that the callbacks of all others find some.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MAX_CALLBACKS = 1_000
"""Callbacks outside of the slots: 31 s of 30 results a second for a receiver that does not answer."""
MAX_BYTES = 16 * 1024 * 1024
"""Bytes of their messages and bodies: a fraction of what a worker uses for 50 invocations with large bodies."""
RECEIVERS = 4
"""Receivers that fill the room. One that has nothing outside yet has room for a callback of any size."""


class Receivers:
    """The receivers with callbacks in flight. A receiver is silent after *silence* seconds without any answer."""

    def __init__(self, silence: float) -> None:
        self._silence = silence
        self._waiting: dict[str, int] = {}
        self._quiet_since: dict[str, float] = {}
        """Time of the last answer of a receiver, or of its first callback."""
        self._outside = self._bytes = 0
        self._taken: dict[str, tuple[int, int]] = {}
        """Callbacks outside of the slots and their bytes, of each receiver that has some."""

    @contextmanager
    def waiting(self, receiver: str, size: int, now: float) -> Iterator[bool]:
        """Note a callback of *size* bytes for as long as it is in flight; return whether there is room outside."""
        room = self._has_room(receiver, size)
        self._waiting[receiver] = self._waiting.get(receiver, 0) + 1
        self._quiet_since.setdefault(receiver, now)
        if room:
            self._take(receiver, 1, size)
        try:
            yield room
        finally:
            if room:
                self._take(receiver, -1, -size)
            self._waiting[receiver] -= 1
            if not self._waiting[receiver]:
                del self._waiting[receiver], self._quiet_since[receiver]

    def _has_room(self, receiver: str, size: int) -> bool:
        if self._outside >= MAX_CALLBACKS or self._bytes + size > MAX_BYTES:
            return False
        count, used = self._taken.get(receiver, (0, 0))
        return not count or (count < MAX_CALLBACKS // RECEIVERS and used + size <= MAX_BYTES // RECEIVERS)

    def _take(self, receiver: str, count: int, size: int) -> None:
        self._outside += count
        self._bytes += size
        taken, used = self._taken.get(receiver, (0, 0))
        if taken + count:
            self._taken[receiver] = taken + count, used + size
        else:
            del self._taken[receiver]

    def answered(self, receiver: str, now: float) -> None:
        """Note that a receiver has answered a callback in flight."""
        self._quiet_since[receiver] = now

    def is_silent(self, receiver: str, now: float) -> bool:
        """Return whether a receiver with callbacks in flight has answered none for so long that it may not answer."""
        return now - self._quiet_since[receiver] >= self._silence
