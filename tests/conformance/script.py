"""A script of actions on a broker, tick by tick: it can be drawn, replayed on any broker, and printed as code.

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
"""The time in a tick when the numbers are read (s)."""
LATE = 1.5 * SLOT
"""Greatest delay (s): the last action comes before the look, and the look before half the tick is over."""
LOOKS = 4
"""Ticks between two looks of a script. Scripts look in different ticks, because a look costs more than all else."""
LAST = 16
"""The tick after the last."""
DOWN = 4
"""Ticks that a restart takes."""


def lasting(ticks: int) -> float:
    """Return the duration (s) of so many ticks."""
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
    """Settle or extend a delivery: the newest of all is 0, the one before is 1.

    *delay*: of a NAK, in ticks.
    """

    verb: Literal["+ACK", "-NAK", "+TERM", "+WPI"]
    about: int = 0
    delay: int | None = None
    client: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class Leave:
    """Let a client unsubscribe from its pulls."""

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
        """The time when it ends (s)."""
        return self.at * TICK + (1.8 if self.how == "cut short" else 9) * SLOT

    @property
    def last(self) -> float:
        """The time of the last action before it (s)."""
        return self.time - 0.8 * SLOT

    @property
    def back(self) -> float:
        """The time when it is back (s), within half a tick: nothing is due so near to a whole one."""
        return (self.at + DOWN) * TICK

    @property
    def first(self) -> float:
        """The time of the first action after it (s)."""
        return self.back + TICK


@dataclass(frozen=True, slots=True)
class Script:
    """All that is done. *ticks*: what is done in each; *ack_wait*: in ticks."""

    ticks: tuple[tuple[Action, ...], ...]
    ack_wait: int = 3
    restart: Restart | None = None

    def timetable(self) -> Iterator[tuple[float, Action | None]]:
        """Yield the actions with their times (s from the start); None: read the numbers. Nothing while it is down."""
        for tick in range(LAST):
            for slot, action in enumerate(self.ticks[tick] if tick < len(self.ticks) else ()):
                if self.there(tick * TICK + slot * SLOT):
                    yield tick * TICK + slot * SLOT, action
            if (tick + self.ack_wait) % LOOKS == 0 and self.there(tick * TICK + LOOK):
                yield tick * TICK + LOOK, None

    def there(self, at: float) -> bool:
        """Whether the server is there at that time."""
        return not self.restart or not self.restart.last < at < self.restart.first
