"""Find out how many invocations of one function may be in flight at once.

A function accepts so many invocations at once and refuses more with 429; the number changes as replicas start and stop.
The limit rises while all that is sent is accepted, and stays at what was accepted once an invocation is refused.

A *proof* that as many as the limit were accepted is an answer, or silence: a refusal takes milliseconds, so what runs
clearly longer was accepted. To wait for answers, as Netflix's concurrency-limits does, would take half a minute to fill
a function of 2 s. The phases are those of :class:`Phase`, where a table shows how they follow each other.

A refusal shows exactly how many were accepted, so HOLD stays there. AIMD's saw-tooth would leave a part of the function
idle forever and cause a refusal at each tooth. A worker with a higher limit is refused more often and cuts more, while
all climb alike. So workers drift to equal shares without messages between them (Chiu and Jain, 1989).

A 429 is believed, unless refusals often stand alone: then replicas refuse one by one while others are free, or 429 has
a meaning of the function's own. A 502, 503 or 504 has other causes too, so one between two answers is ignored. A
function that refuses nothing becomes slow instead: see :mod:`.latency`. The measured figures are in docs/fairness.md.
"""

from __future__ import annotations

from enum import Enum
from math import ceil, inf

from .latency import LatencyTracker

BUSY = 429
DOUBTFUL = frozenset({502, 503, 504})
"""Statuses of an overloaded function, but of a broken one too."""
SILENCE, LONGEST_SILENCE = 0.05, 1.0
"""Seconds without a refusal that are a proof: three times what the last refusal took, within these bounds. The first is
several round trips in a cluster. The second bounds how slow the limit rises behind a gateway that refuses slowly."""
STEPS = 8
"""A step of a climb is 1, and 1 more for so many that the climb has gained. At worst a ninth of them is refused."""
FIRST_PROBE, LONGEST_PROBE = 2.0, 30.0
"""Seconds from a refusal to the next probe, at first and at most: two refusals a minute in the long run."""
INVOCATIONS_PER_PROBE = 400
"""The next probe comes after so many invocations, if that is sooner: 0.25 % are refused, half of what docs/fairness.md
allows."""
LATER = 1.3
"""Factor by which a wait grows after each failure: of the time until a probe succeeds, capacity was free for a quarter
at most."""
EARLY, LONGEST_PERIOD = 0.8, 60.0
"""Part of the time between the last two rises after which the next is tried, and the most seconds between them. A probe
that comes after an evaluation of OpenFaaS's autoscaler misses it, so it comes a little early."""
CUT = 0.1
"""Part of the limit that a first cut takes. Small, because one more refusal doubles it."""
MOST_ALONE = 3
"""The highest count of refusals that stood alone. Above 0, one refusal is no evidence. A row of them takes 1 off."""
FIRST_REST, LONGEST_REST = 0.25, 30.0
"""Seconds of the first rest and of the longest; each is LATER times the last. While they grow, for two minutes, a
refusal is no attempt. But the first refusal is an attempt, because its own message may be the cause."""


# phase       proof                        refused above the proof  refused in a row    all refused
# ----------  ---------------------------  -----------------------  ------------------  -----------
# SLOW_START  rise                         HOLD                     CUT                 REST
# HOLD        PROBE, once it is due        HOLD, one lower          CUT                 REST
# PROBE       CLIMB                        HOLD, next probe later   --                  REST
# CLIMB       rise; HOLD at a usual gain   HOLD, next probe timed   CUT                 REST
# CUT         HOLD; PROBE, once it is due  --                       CUT, twice as much  REST
# REST        HOLD (also when it is over)  --                       --                  --
class Phase(Enum):
    """A state of a limiter."""

    SLOW_START = "slow start"
    """The limit rises from 1 with each proof, until the first refusal, as in TCP (RFC 5681)."""
    HOLD = "hold"
    """The limit stays at what was accepted until the next probe."""
    PROBE = "probe"
    """The limit is one higher, because only a refusal shows that no capacity is free."""
    CLIMB = "climb"
    """A probe was accepted, so the limit rises with each proof."""
    CUT = "cut"
    """The limit fell: capacity fell, another worker uses it, or latency doubled."""
    REST = "rest"
    """The limit is 0 until :attr:`Limiter.due`, because the function refused all that was in flight."""


_SLOW_START, _HOLD, _PROBE, _CLIMB, _CUT, _REST = Phase


class Limiter:
    """The limit of one function in one worker; *max_limit*, the worker's slots, is the highest."""

    def __init__(self, max_limit: int) -> None:
        self.limit = 1
        """Invocations that may be in flight now; 0 only in a rest."""
        self.due = inf
        """Time at which :meth:`tick` may raise the limit; inf: never."""
        self.phase = _SLOW_START
        self._max_limit = max_limit
        self._in_flight = 0
        self._proven = 1  # the last limit that had a proof
        self._full_since = inf  # when as many as the limit were first in flight, after it last changed
        self._foot = 0  # the limit at which the climb began
        self._floor = 1  # the limit that late refusals of a step do not go below
        self._landed_at = -inf  # when a limit was last set that is not to rise at once
        self._cuts = 0  # cuts for refusals in a row
        self._rest = FIRST_REST  # seconds of the next rest
        self._refusals = Refusals()
        self._probes = ProbeTimes()
        self._latency = LatencyTracker()

    def started(self, now: float) -> None:
        """Count an invocation that is sent."""
        self._in_flight += 1
        if self._in_flight >= self.limit and self._full_since == inf:
            self._full_since = now
            self._set_due()

    def tick(self, now: float) -> None:
        """Raise the limit if it is *due*."""
        if now < self.due:
            return
        if self.phase is _REST:
            self._end_rest(now)
        elif self._in_flight < self.limit:
            self._full_since = inf  # silence proves nothing about a limit that is not used
        else:
            self._prove(now)
        self._set_due()

    def ended(self, began: float, now: float, status: int | None) -> float | None:
        """Adapt the limit to the end of an invocation that *began* at the time given to :meth:`started`.

        *status* is the HTTP status; 502 without an answer, 504 after a timeout, None if the worker cancelled it. Return
        the seconds after which the message is redelivered without counting an attempt, if it was refused because the
        limiter tried more than the function accepts; None for any other outcome.
        """
        self._in_flight -= 1
        wait = None
        if status == BUSY or status in DOUBTFUL:
            wait = self._refused(began, now, certain=status == BUSY)
        elif status is not None:
            self._answered(began, now)
        self._set_due()
        return wait

    def _set_due(self) -> None:
        if self.phase is not _REST:
            proof_nears = self._full_since < inf and self._may_rise()
            self.due = max(self._probes.next_at, self._full_since + self._refusals.silence) if proof_nears else inf

    def _may_rise(self) -> bool:
        return self.limit < self._max_limit and self.limit < self._latency.max_limit and not self._latency.slow

    def _answered(self, began: float, now: float) -> None:
        if began >= self._refusals.last_at:
            self._refusals.end_row()  # it was sent in the place of what was refused
        if began >= self._latency.since and (part := self._latency.add(now - began, now, self.limit, self._in_flight)):
            self._cut(int(self.limit * part), now)
        if began >= self._full_since:
            # After silence rests stay long: a function that refuses slowly would be tried forever, without attempts.
            self._rest = FIRST_REST
            self._prove(now)

    def _prove(self, now: float) -> None:
        """Handle a proof: as many as the limit were in flight, and all were accepted."""
        if self.phase is _HOLD or self.phase is _CUT:
            self.phase, self._cuts = _HOLD, 0
            if now >= self._probes.next_at and self._may_rise():
                self.phase = _PROBE
                self.limit += 1
                self._full_since = inf
        elif self.phase is _REST:
            self._end_rest(now)  # an invocation was accepted that had waited in its slot since before the rest
        else:
            self._climb(now)

    def _climb(self, now: float) -> None:
        self._proven = self.limit
        gained = self.limit - self._foot
        if self.phase is _PROBE:
            self.phase = _CLIMB
        if self._probes.is_usual(gained):
            # Replicas are alike: the next step would be refused, so the climb ends without a refusal.
            self._end_climb(now)
            self._land(self.limit, now)
        elif self._may_rise():
            self.limit = min(self._max_limit, self.limit + 1 + gained // STEPS)
            self._full_since = inf

    def _refused(self, began: float, now: float, *, certain: bool) -> float | None:
        """Lower the limit if the refusal is believed. Return the same as :meth:`ended`."""
        is_new = self._refusals.add(began, now, certain=certain)
        self._full_since = inf
        if self.phase is _REST:
            return None
        if self._in_flight == 0 and (certain or self._refusals.in_row > 1):
            # Nothing was accepted that is still running. A single 503 may be the failure of its own message.
            return self._start_rest(now)
        if began < self._landed_at and self.limit > self._floor <= self._in_flight:
            # A step of several is refused one by one. This one was sent before its first refusal lowered the limit.
            self._land(self.limit - 1, now)
            return 2 * self._refusals.silence
        above_proof = self.limit > self._proven <= self._in_flight
        if not is_new or not self._refusals.are_believed(certain=certain, above_proof=above_proof):
            return None
        if above_proof:
            self._floor = self._proven
            self._end_climb(now)
            self._land(self.limit - 1, now)
            return 2 * self._refusals.silence
        # What was accepted before is refused. If the last cut was not enough, this one is twice as large.
        self._cut(ceil(self.limit * CUT) << self._cuts, now)
        self._cuts = min(self._cuts + 1, 4)
        return None

    def _land(self, limit: int, now: float) -> None:
        self.phase = _HOLD
        self.limit = self._proven = self._foot = limit
        self._full_since, self._landed_at = now if self._in_flight == limit else inf, now

    def _cut(self, by: int, now: float) -> None:
        self._land(max(1, self.limit - by), now)
        self.phase = _CUT
        self._floor = self.limit
        self._probes.restart(now)

    def _start_rest(self, now: float) -> float | None:
        self._land(0, now)
        self.phase, self._floor = _REST, 1
        self.due = self._refusals.last_at = now + self._rest
        wait = self._rest if self._refusals.in_row > 1 and self._rest < LONGEST_REST else None
        self._rest = min(LONGEST_REST, LATER * self._rest)
        return wait

    def _end_rest(self, now: float) -> None:
        self._land(1, now)
        self._probes.next_at = now

    def _end_climb(self, now: float) -> None:
        """Set the time of the next probe."""
        longest = INVOCATIONS_PER_PROBE * self._latency.usual / self.limit or LONGEST_PROBE
        longest = max(1.0, min(LONGEST_PROBE, longest))
        if self.phase is _PROBE:
            self._probes.delay(now, longest)
        else:
            self._probes.follow(self._proven - self._foot, now, longest)


class Refusals:
    """The latest refusals of one function, and whether they are believed."""

    def __init__(self) -> None:
        self.in_row = 0
        """Refusals without an accepted invocation in between."""
        self.last_at = -inf
        """Time of the last one. An invocation that was sent earlier is no evidence of its own."""
        self.silence = SILENCE
        """Seconds without a refusal that are a proof."""
        self._alone = 0  # refusals that stood alone

    def add(self, began: float, now: float, *, certain: bool) -> bool:
        """Count a refusal. Return whether it was sent after the one before had come."""
        if certain:
            self.silence = min(LONGEST_SILENCE, max(SILENCE, 3 * (now - began)))
        if began >= self.last_at + self.silence:
            self.end_row()  # silence: what was sent in the place of the last one was accepted
        if began < self.last_at:
            return False
        self.in_row += 1
        self.last_at = now
        return True

    def end_row(self) -> None:
        """Count from 0 again, because an invocation was accepted."""
        if self.in_row:
            self.in_row, self._alone = 0, min(MOST_ALONE, self._alone + 1)

    def are_believed(self, *, certain: bool, above_proof: bool) -> bool:
        """Return whether those in a row show a lower capacity. If so, count from 0 again."""
        needed = 1 + (not above_proof) + (not certain or self._alone > 0)
        if self.in_row < needed:
            return False
        self.in_row, self._alone = 0, max(0, self._alone - 1)
        return True


class ProbeTimes:
    """Times of probes: ever later after failures, and in step with capacity that rises regularly (an autoscaler's)."""

    def __init__(self) -> None:
        self.next_at = 0.0
        """No probe earlier."""
        self._gap = FIRST_PROBE
        self._gains = (0, 0)  # of the last two climbs
        self._rose_at = -inf  # when the last of them ended

    def is_usual(self, gained: int) -> bool:
        """Return whether each of the last two climbs gained as much."""
        return 0 < gained == self._gains[0] == self._gains[1]

    def restart(self, now: float) -> None:
        """Set the next probe as after the first refusal."""
        self._gap = FIRST_PROBE
        self.next_at = now + FIRST_PROBE

    def delay(self, now: float, longest: float) -> None:
        """Set the next probe after a failed one, *longest* seconds from now at most."""
        self._gap = min(LATER * self._gap, longest)
        self.next_at = now + self._gap

    def follow(self, gained: int, now: float, longest: float) -> None:
        """Set the next probe after a climb, *longest* seconds from now at most."""
        self._gains = (gained, self._gains[0])
        period, self._rose_at = now - self._rose_at, now
        wait = gap = FIRST_PROBE
        if FIRST_PROBE < period < LONGEST_PERIOD:
            # If this probe is too early, the one after it comes where the period ends.
            wait, gap = EARLY * period, max(FIRST_PROBE, (1 - EARLY) * period) / LATER
        self._gap = min(gap, longest)
        self.next_at = now + min(wait, longest)
