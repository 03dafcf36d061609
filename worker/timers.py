"""The retry scheduler: the waits of this worker that end with another try.

The broker keeps the waits between attempts (a NAK with a delay). Those here are short and happen while a message is
held: before a callback or a dead letter is sent again, and for the rest of a back-off that the broker cut short. One
task ends them in the order in which they fall due, and they can be counted.
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
        """Number of tasks that wait now, by purpose."""
        self._heap: list[tuple[float, int, trio.Event]] = []
        self._order = count()
        self._earlier = trio.Event()
        """Set when a wait ends earlier than :meth:`run` expects."""

    async def wait(self, seconds: float, what: str) -> None:
        """Wait before another try of *what*."""
        due, event = trio.current_time() + seconds, trio.Event()
        heapq.heappush(self._heap, (due, next(self._order), event))
        if self._heap[0][2] is event:
            self._earlier.set()
        self.waiting[what] += 1
        try:
            await event.wait()
        finally:
            self.waiting[what] -= 1

    async def run(self) -> None:
        """End the waits that are due, until cancelled."""
        while True:
            self._earlier = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else float("inf")):
                await self._earlier.wait()
            while self._heap and self._heap[0][0] <= trio.current_time():
                heapq.heappop(self._heap)[2].set()
