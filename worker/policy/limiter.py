"""How many invocations of one function may be in flight: found out from what comes back, and followed as it changes.

A function takes so many at once and no more; how many is for it to say (429), and replicas come and go. The limit
climbs while what is sent is taken, and stays at what was taken when something is refused. Its parts, and whose:

* **Slow start** (TCP, RFC 5681): from 1, a little more with each proof that all in flight was taken. A proof is an
  answer, or silence: a refusal comes back in milliseconds, so what runs for clearly longer was taken. Waiting for
  answers, as Netflix's concurrency-limits does, would take a function of 2 s half a minute to fill.
* **Climb** until the first refusal, by 1 and then in steps that grow with what the climb has gained: few refusals where
  capacity comes a replica at a time, yet thousands are reached in seconds. Where the last two climbs gained as much as
  each other (replicas are alike), the next one stops there, with no refusal at all.
* **Hold**: a refusal says exactly how many were taken, so the limit stays there. AIMD's saw-tooth would leave a part of
  the function idle for ever, and be refused at each tooth.
* **Probe**: only a refusal can tell that nothing is free, so now and then one more is sent. Each probe that fails is
  followed by a longer rest; where capacity rises at regular times, as under an autoscaler, the next waits for its time.
* **Cut**: refusals in a row at a limit that was good mean that capacity fell, or that another worker has it. A tenth
  goes, twice as much if that is not enough. Who has more is refused more often and loses more, while all climb alike:
  workers drift to equal shares (Chiu and Jain, 1989) and know nothing of each other.
* **Rest**: a function that refuses all that is in flight is left alone, ever longer; the limit is 0 for so long.
* **Latency**: functions that refuse nothing grow slow instead. Recent latency is compared with the usual, as Gradient2
  of concurrency-limits does it: no climb above 1.5 times (its tolerance); above 2 the limit is cut by the gradient, by
  half at most (its bound). Latency that a cut does not cure is not the load's: it is the new usual.

429 is taken at its word, unless refusals often stand alone: then replicas refuse one by one while others are free, or
the function says it for reasons of its own. 502, 503 and 504 have other causes too: one between two good answers says
nothing. The figures are in docs/fairness.md.
"""

from __future__ import annotations

from math import ceil, fsum, inf

BUSY = 429
DOUBTFUL = frozenset({502, 503, 504})
"""What overload looks like where it is not said, and what a bug looks like too."""
SILENCE, LONGEST_SILENCE = 0.05, 1.0
"""Seconds of silence that prove that something was taken: three times what the last refusal took, within these. The
first is several round trips in a cluster. The second: where refusals are slow (a gateway that waits), so are we."""
CLIMB = 8
"""Of so many that a climb has gained, one more is risked at each step: a ninth too many at worst."""
FIRST_PROBE, LONGEST_PROBE = 2.0, 30.0
"""Seconds from a refusal to the next probe, at first and at most: two refusals a minute in the long run, or"""
PER_PROBE = 400
"""invocations for each probe, should that be sooner: 0.25 % of refusals. Half of the 0.5 % that we promise."""
LATER = 1.3
"""Times as long after each that failed: what is free has been so for a quarter of the time since, at most."""
SOON, REGULAR = 0.8, 60.0
"""Part of the time between the last two rises, after which we look for the next; and seconds that this time may have. A
little early, so as not to drift behind: whoever comes late under OpenFaaS's autoscaler misses its next evaluation."""
CUT = 0.1
"""Part of the limit that goes. Small: what runs is running, and one more refusal doubles it."""
ALONE = 3
"""Refusals that stood alone count up to so many; those in a row take one off. Above 0, one refusal is not believed."""
FIRST_REST, LONGEST_REST = 0.25, 30.0
"""Seconds that a function which takes nothing is left alone, LATER times as long each time. While they grow, which is
for two minutes, its refusals are no attempts; but for the first, which may be the message's own fault."""
SLOW, SLOWER = 1.5, 2.0
"""Times the usual latency: no more climbing; a cut."""
FIRST_SAMPLES, SAMPLES = 10, 20
"""Latencies compared at once, and no fewer than the limit: their mean is good to an eighth where they vary by half."""
FASTER, DRIFT = 16, 32
"""The usual latency moves by such a part of the difference, down or up. Up more slowly, or it would follow the load."""
CURED = 0.8
"""Part of the latency below which a cut must bring it to have helped. A cut by half halves it, if it was the load."""
UNTIMED, BEYOND = 200, 5
"""The limit climbs no higher before there is a latency; then to twice where it was last compared, and so many."""


class Limiter:
    """The limit of one function in one worker.

    Args:
        most: what the limit never exceeds (the worker's slots).
    """

    def __init__(self, most: int) -> None:
        self.limit = 1
        """Invocations that may be in flight now, at most *most*; 0 only while *due* says until when."""
        self.due = inf
        """When :meth:`tick` may raise the limit by itself; inf: never."""
        self._most = most
        self._flying = 0
        self._good = 1  # what was filled and taken last; above it, we climb
        self._foot = 0  # where the climb began
        self._floor = 1  # what the refusals of one burst do not go below
        self._filled = inf  # when as many as the limit were in flight, since it last changed
        self._look = 0.0  # no climbing before
        self._gap = FIRST_PROBE
        self._gains = (0, 0)  # of the last two climbs
        self._rose = -inf  # when the last of them ended
        self._turned = -inf  # when the limit last went down
        self._cuts = 0  # in a row
        self._row = 0  # refusals in a row
        self._alone = 0  # how often a refusal stood alone, lately
        self._refused_at = -inf
        self._rest = FIRST_REST
        self._silence = SILENCE
        self._usual = 0.0  # latency
        self._compared = 0  # how often
        self._slow = False
        self._most_timed = UNTIMED
        self._ill = 0.0  # latency when it was last found slower
        self._since = -inf  # latencies of what began earlier tell of another limit
        self._recent: list[float] = []

    def started(self, now: float) -> None:
        """One more is in flight."""
        self._flying += 1
        if self._flying >= self.limit and self._filled == inf:
            self._filled = now
            self._plan()

    def tick(self, now: float) -> None:
        """The time is *due*."""
        if now < self.due:
            return
        if self.limit == 0:
            self._land(1, now)
            self._look = now
        elif self._flying < self.limit:
            self._filled = inf  # unused just now: the proof has to come anew
        else:
            self._taken(now)
        self._plan()

    def ended(self, began: float, now: float, status: int | None) -> float | None:
        """One ended.

        Args:
            began: when :meth:`started` was told of it.
            now: the time, on the same clock.
            status: what it counts as: 502 without an answer, 504 without one in time; None where we stopped it.

        Returns:
            None: the outcome is like any other. Or seconds: we sent more than the function takes, to find out; the
            message goes back for so long, and it was no attempt.
        """
        self._flying -= 1
        wait = None
        if status == BUSY or status in DOUBTFUL:
            wait = self._refused(began, now, certain=status == BUSY)
        elif status is not None:
            if began >= self._refused_at:
                self._was_alone()
            if began >= self._since:
                self._timed(now - began, now)
            if began >= self._filled:
                self._rest = FIRST_REST  # not for silence: who refuses slowly would be tried without end, uncounted
                self._taken(now)
        self._plan()
        return wait

    def _plan(self) -> None:
        if self.limit:
            may = self._filled < inf and self._may_climb()
            self.due = max(self._look, self._filled + self._silence) if may else inf

    def _may_climb(self) -> bool:
        return self.limit < min(self._most, self._most_timed) and not self._slow

    def _taken(self, now: float) -> None:
        """As many as the limit were in flight, and all were taken: climb, if it is time."""
        self._cuts, self._good = 0, self.limit
        if 0 < self.limit - self._foot == self._gains[0] == self._gains[1]:
            self._climbed(now)
            self._land(self.limit, now)
        elif now >= self._look and self._may_climb():
            self.limit = min(self._most, self.limit + 1 + (self.limit - self._foot) // CLIMB)
            self._filled = inf

    def _refused(self, began: float, now: float, *, certain: bool) -> float | None:
        """One was refused, or it looks so. What it says of the limit."""
        burst = began < self._turned and self.limit > self._floor <= self._flying
        climbing = burst or self.limit > self._good <= self._flying  # more were in flight than had been good
        if certain:
            self._silence = min(LONGEST_SILENCE, max(SILENCE, 3 * (now - began)))
        if began >= self._refused_at + self._silence:
            self._was_alone()
        after = began >= self._refused_at
        if after:
            self._row += 1
            self._refused_at = now
        self._filled = inf
        if self.limit == 0:
            return None
        if self._flying == 0 and (certain or self._row > 1):
            return self._leave_alone(now)
        if burst:
            self._land(self.limit - 1, now)
            return 2 * self._silence
        if not after or self._row <= (not climbing) + (not certain or self._alone > 0):
            return None
        self._row, self._alone = 0, max(0, self._alone - 1)
        if climbing:
            self._floor = self._good
            self._climbed(now)
            self._land(self.limit - 1, now)
            return 2 * self._silence
        self._cut(ceil(self.limit * CUT) << self._cuts, now)
        self._cuts = min(self._cuts + 1, 4)
        return None

    def _was_alone(self) -> None:
        """What was sent in the place of what was refused was taken."""
        self._alone = min(ALONE, self._alone + (self._row > 0))
        self._row = 0

    def _land(self, limit: int, now: float) -> None:
        self.limit = self._good = self._foot = limit
        self._filled, self._turned = now if self._flying == limit else inf, now

    def _cut(self, by: int, now: float) -> None:
        self._land(max(1, self.limit - by), now)
        self._floor = self.limit
        self._gap = FIRST_PROBE
        self._look = now + FIRST_PROBE

    def _leave_alone(self, now: float) -> float | None:
        self._land(0, now)
        self._floor = 1
        self.due = self._refused_at = now + self._rest
        wait = self._rest if self._row > 1 and self._rest < LONGEST_REST else None
        self._rest = min(LONGEST_REST, LATER * self._rest)
        return wait

    def _climbed(self, now: float) -> None:
        """A climb ended. When to try the next?"""
        gained = self._good - self._foot
        longest = PER_PROBE * self._usual / self.limit if self._usual else LONGEST_PROBE
        longest = max(1.0, min(LONGEST_PROBE, longest))
        self._gap *= LATER
        wait = self._gap
        if gained:
            self._gains = (gained, self._gains[0])
            pace, self._rose = now - self._rose, now
            regular = FIRST_PROBE < pace < REGULAR
            wait = SOON * pace if regular else FIRST_PROBE
            self._gap = max(FIRST_PROBE, (1 - SOON) * pace) / LATER if regular else FIRST_PROBE
        self._gap = min(self._gap, longest)
        self._look = now + min(wait, longest)

    def _timed(self, latency: float, now: float) -> None:
        """An answer came after *latency*: has the function become slow?"""
        self._recent.append(latency)
        count = len(self._recent)
        if count < (SAMPLES if self._usual else FIRST_SAMPLES):
            return
        mean = fsum(self._recent) / count
        self._usual = self._usual or mean
        self._slow = mean > SLOW * self._usual
        if count < self.limit:  # those that were in flight before the last change tell nothing of it
            return
        self._recent.clear()
        self._most_timed = 2 * self.limit + BEYOND
        if mean <= SLOWER * self._usual:
            self._ill = 0.0
            self._compared += 1
            self._usual += (mean - self._usual) / min(self._compared, FASTER if mean < self._usual else DRIFT)
            return
        self._since = now
        if self._ill and mean > CURED * self._ill:  # also with fewer in flight: it is not the load
            self._usual, self._ill = mean, 0.0
        elif not self._ill:
            self._ill = inf  # measured while it climbed: again, at one limit
        elif self._flying * 2 >= self.limit > 0:
            self._cut(int(self.limit * (1 - max(0.5, SLOW * self._usual / mean))), now)
            self._ill = mean
