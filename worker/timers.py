"""The retry scheduler: every wait before another try that is ours rather than the broker's.

The broker keeps the waits between attempts (a delayed NAK). Ours are the short ones that happen while a message is
held: a callback or a dead letter to be sent again, and the rest of a back-off that the broker cut short. One task
wakes them, in the order in which they fall due, and what waits can be counted.
"""

from __future__ import annotations

import heapq
from collections import Counter
from itertools import count

import trio


class Timers:
    """Waits, and the task that ends them."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        """How many wait now, by what for."""
        self._heap: list[tuple[float, int, trio.Event]] = []
        self._order = count()
        self._sooner = trio.Event()

    async def wait(self, seconds: float, what: str) -> None:
        """Wait for another try of *what*. Cancelled, it is forgotten."""
        due, event = trio.current_time() + seconds, trio.Event()
        heapq.heappush(self._heap, (due, next(self._order), event))
        if self._heap[0][2] is event:
            self._sooner.set()
        self.waiting[what] += 1
        try:
            await event.wait()
        finally:
            self.waiting[what] -= 1

    async def run(self) -> None:
        """Wake what is due, until cancelled."""
        while True:
            self._sooner = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._sooner.wait()
            while self._heap and self._heap[0][0] <= trio.current_time():
                heapq.heappop(self._heap)[2].set()
