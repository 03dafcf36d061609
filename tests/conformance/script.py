"""What is done to a broker, tick by tick: a value that can be drawn, replayed on any broker, and printed as code.

Time goes in ticks. What is done is done within the first fifth of a tick, one thing after another; whatever lasts,
lasts so many ticks and a half. So nothing falls due while something is done, and a slow machine has :data:`LATE` to be
slow in before anything changes its order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

TICK = 0.5
"""Seconds. Two make a second, since a stored ack wait is one of whole seconds."""
SLOT = TICK / 10
"""Seconds between two things done in the same tick."""
SLOTS = 3
"""Most things done in a tick."""
LOOK = 3.5 * SLOT
"""When in a tick the numbers are looked at (s)."""
LATE = 1.5 * SLOT
"""How late (s) all may be: the last thing done is done before the look, and that before half the tick is over."""
LOOKS = 4
"""A script looks in every so manieth tick, and not all scripts in the same: it costs more than all else."""
LAST = 16
"""The tick after the last."""
DOWN = 4
"""Ticks that a restart takes."""


def lasting(ticks: int) -> float:
    """How long (s) something lasts that is to last so many ticks."""
    return (ticks + 0.5) * TICK


@dataclass(frozen=True, slots=True)
class Publish:
    """Store so many messages."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Pull:
    """Ask for messages; the request ends after so many ticks."""

    batch: int
    lasts: int = 99
    client: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class Say:
    """Say something about a delivery: the newest of all is 0, the one before is 1.

    *delay*: of a NAK, in ticks.
    """

    verb: Literal["+ACK", "-NAK", "+TERM", "+WPI"]
    about: int = 0
    delay: int | None = None
    client: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class Leave:
    """A client hears no more of what it asked for."""

    client: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class MakeAnew:
    """Delete the consumer and make it again."""


@dataclass(frozen=True, slots=True)
class ChangeAckWait:
    """Give the consumer another ack wait, in ticks."""

    ack_wait: int


Action = Publish | Pull | Say | Leave | MakeAnew | ChangeAckWait


@dataclass(frozen=True, slots=True)
class Restart:
    """The server ends in tick *at*, and begins :data:`DOWN` ticks later.

    ``stop``: in order. ``kill``: at once, when all is written. ``cut short``: at once, when something was just done.
    """

    how: Literal["stop", "kill", "cut short"]
    at: int = 5

    @property
    def time(self) -> float:
        """When it ends (s)."""
        return self.at * TICK + (1.8 if self.how == "cut short" else 9) * SLOT

    @property
    def last(self) -> float:
        """When something is done before it for the last time (s)."""
        return self.time - 0.8 * SLOT

    @property
    def back(self) -> float:
        """When it is there again (s), give or take less than half a tick: nothing is due so near to a whole one."""
        return (self.at + DOWN) * TICK

    @property
    def first(self) -> float:
        """When something is done after it for the first time (s)."""
        return self.back + TICK


@dataclass(frozen=True, slots=True)
class Script:
    """All that is done. *ticks*: what is done in each; *ack_wait*: in ticks."""

    ticks: tuple[tuple[Action, ...], ...]
    ack_wait: int = 3
    restart: Restart | None = None

    def timetable(self) -> Iterator[tuple[float, Action | None]]:
        """When (s from the start) to do what, in order; None: look at the numbers. Nothing while the server is away."""
        for tick in range(LAST):
            for slot, action in enumerate(self.ticks[tick] if tick < len(self.ticks) else ()):
                if self.there(tick * TICK + slot * SLOT):
                    yield tick * TICK + slot * SLOT, action
            if (tick + self.ack_wait) % LOOKS == 0 and self.there(tick * TICK + LOOK):
                yield tick * TICK + LOOK, None

    def there(self, at: float) -> bool:
        """Whether the server is there at that time."""
        return not self.restart or not self.restart.last < at < self.restart.first
