"""A script of actions on a broker, tick by tick: it can be drawn, replayed on any broker, and printed as code.

Time has ticks. Actions are in the first fifth of a tick, one after the other; durations are a number of whole ticks
and a half. So nothing is due during an action, and a slow machine can be late by :data:`MAX_DELAY` before the order
of events changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

TICK = 0.5
"""Duration of a tick (s). Two are a second, because a stored ack wait has whole seconds."""
STEP = TICK / 10
"""Seconds between two actions in the same tick."""
MAX_ACTIONS = 3
"""Most actions in a tick."""
READ_AT = 3.5 * STEP
"""The time in a tick at which the numbers are read (s)."""
MAX_DELAY = 1.5 * STEP
"""Greatest delay (s): the last action precedes the reading, and the reading is in the first half of the tick."""
READ_EVERY = 4
"""Ticks between two readings of a script. Scripts read in different ticks, because a reading costs most."""
END = 16
"""The tick after the last one."""
DOWN = 4
"""Ticks that a restart takes."""


def duration(ticks: int) -> float:
    """Return the duration (s) of *ticks*, and half a tick."""
    return (ticks + 0.5) * TICK


@dataclass(frozen=True, slots=True)
class Publish:
    """Store messages."""

    count: int = 1


@dataclass(frozen=True, slots=True)
class Pull:
    """Send a pull request, which expires after a number of ticks."""

    batch: int
    expires: int = 99
    client: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Settle or extend a delivery. Index 0 is the newest delivery, 1 the one before.

    *delay*: of a NAK, in ticks.
    """

    verb: Literal["+ACK", "-NAK", "+TERM", "+WPI"]
    delivery_index: int = 0
    delay: int | None = None
    client: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Unsubscribe a client from its pull requests."""

    client: Literal[0, 1] = 0


@dataclass(frozen=True, slots=True)
class RecreateConsumer:
    """Delete the consumer and create it again."""


@dataclass(frozen=True, slots=True)
class ChangeAckWait:
    """Change the consumer's ack wait, in ticks."""

    ack_wait: int


Action = Publish | Pull | Acknowledge | Unsubscribe | RecreateConsumer | ChangeAckWait


@dataclass(frozen=True, slots=True)
class Restart:
    """A restart: the server ends in tick *at*, and starts :data:`DOWN` ticks later.

    ``stop``: in order. ``kill``: at once, after all writes. ``mid-write``: at once, just after an action.
    """

    how: Literal["stop", "kill", "mid-write"]
    at: int = 5

    @property
    def time(self) -> float:
        """The time at which the server ends (s)."""
        return self.at * TICK + (1.8 if self.how == "mid-write" else 9) * STEP

    @property
    def last_action(self) -> float:
        """The time of the last action before the restart (s)."""
        return self.time - 0.8 * STEP

    @property
    def back(self) -> float:
        """The time at which the server runs again (s), within half a tick: nothing is due so near to a whole tick."""
        return (self.at + DOWN) * TICK

    @property
    def first_action(self) -> float:
        """The time of the first action after the restart (s)."""
        return self.back + TICK


@dataclass(frozen=True, slots=True)
class Script:
    """A script. *ticks*: the actions of each tick; *ack_wait*: in ticks."""

    ticks: tuple[tuple[Action, ...], ...]
    ack_wait: int = 3
    restart: Restart | None = None

    def timetable(self) -> Iterator[tuple[float, Action | None]]:
        """Yield the actions with their times (s), none while the server is down; None: read the numbers."""
        for tick in range(END):
            for step, action in enumerate(self.ticks[tick] if tick < len(self.ticks) else ()):
                if self.is_up(tick * TICK + step * STEP):
                    yield tick * TICK + step * STEP, action
            if (tick + self.ack_wait) % READ_EVERY == 0 and self.is_up(tick * TICK + READ_AT):
                yield tick * TICK + READ_AT, None

    def is_up(self, at: float) -> bool:
        """Return whether the server runs at that time."""
        return not self.restart or not self.restart.last_action < at < self.restart.first_action
