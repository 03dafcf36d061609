"""What can be read, heard of by one task for all connections.

Trio's ``wait_readable`` costs a system call for each wait, and its books as much again. Here a connection is registered
once, for as long as it is open. Linux only (epoll); elsewhere, and where nothing runs the watch, connections wait by
Trio.
"""

from __future__ import annotations

import math
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

STALE = 0.001
"""Seconds that a look is good for.

A server can close a connection while our request is on its way, too, and no look would tell. That it closed in this
time before, unseen, makes such a failure no other than it is, and little more likely; a look costs a system call.
"""

Tell = Callable[[bool], None]


class Watch:
    """Each change is told once (edge-triggered), to a function that is called in the task that looks."""

    def __init__(self) -> None:
        self.running = True
        self._epoll = select.epoll()
        self._events = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
        self._ends = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
        self._tell: dict[int, Tell] = {}
        self._looked = -math.inf

    def add(self, fd: int, tell: Tell) -> None:
        """Have *tell* called when something came, or the end; it is given whether the end did.

        It may close its own connection, and no other.
        """
        self._tell[fd] = tell
        self._epoll.register(fd, self._events)

    def ask_again(self, fd: int) -> None:
        """Have it told once more if something can be read now: what was told was not heeded, or not to its end."""
        if self.running:
            self._epoll.modify(fd, self._events)

    def remove(self, fd: int) -> None:
        """Before it is closed, with which the kernel forgets it."""
        self._tell.pop(fd, None)

    def look(self, now: float) -> None:
        """Tell what has come until *now*."""
        self._looked = now
        for fd, events in self._epoll.poll(0):
            if tell := self._tell.get(fd):
                tell(events & self._ends != 0)

    def look_if_stale(self, now: float, since: float) -> None:
        """The same, unless somebody has just looked, and *since*: a server that closes does so behind its answer."""
        if self.running and (self._looked <= since or now - self._looked > STALE):
            self.look(now)

    async def keep(self) -> None:
        """Look whenever there is something to see, until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.look(trio.current_time())

    def end(self) -> None:
        """Tell all, for the last time."""
        self.running = False
        for tell in list(self._tell.values()):
            tell(False)
        self._epoll.close()


@contextmanager
def watching() -> Iterator[Watch | None]:
    """A watch, where there is epoll. Its ``keep`` is to be run meanwhile."""
    if not hasattr(select, "epoll"):
        yield None
        return
    watch = Watch()
    try:
        yield watch
    finally:
        watch.end()
