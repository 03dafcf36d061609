"""Find out whether a function has become slow, from the latency of its answers.

Recent latency is compared with the usual one, as Gradient2 of Netflix's concurrency-limits does it: the limit does not
rise while latency is SLOW times as high. At SLOWER times the limit is cut in proportion, by half at most.
"""

from __future__ import annotations

from math import fsum, inf

SLOW, SLOWER = 1.5, 2.0
"""Times the usual latency: the limit does not rise; the limit is cut. The first is Gradient2's tolerance."""
FIRST_SAMPLES, SAMPLES = 10, 20
"""Latencies that are compared, and no fewer than the limit. Their mean is good to an eighth if they vary by half."""
FASTER, DRIFT = 16, 32
"""The usual latency moves by one such part of the difference, down or up. Slower up, or it would follow the load."""
CURED = 0.8
"""Part of the latency below which a cut must bring it. If load is the cause, a cut by half halves latency."""
UNTIMED, BEYOND = 200, 5
"""The highest limit before latencies were compared. Later it is BEYOND more than twice the limit of that time."""


class LatencyTracker:
    """The usual latency of one function, and whether the recent one is higher."""

    def __init__(self) -> None:
        self.usual = 0.0
        """Seconds; 0: not known."""
        self.slow = False
        """True while the limit must not rise."""
        self.max_limit = UNTIMED
        """The highest limit until latencies are compared again."""
        self.since = -inf
        """Only the latency of invocations that began then or later is to be added: others ran at another limit."""
        self._recent: list[float] = []
        self._comparisons = 0
        self._before_cut = 0.0  # the latency that a cut is to cure; inf: no cut yet, measure it again

    def add(self, latency: float, now: float, limit: int, in_flight: int) -> float:
        """Add the latency of an answer. Return the part of *limit* that is to be cut, often 0."""
        self._recent.append(latency)
        count = len(self._recent)
        if count < (SAMPLES if self.usual else FIRST_SAMPLES):
            return 0.0
        mean = fsum(self._recent) / count
        self.usual = self.usual or mean
        self.slow = mean > SLOW * self.usual
        if count < limit:  # as many may have begun before the limit changed
            return 0.0
        self._recent.clear()
        self.max_limit = 2 * limit + BEYOND
        if mean > SLOWER * self.usual:
            self.since = now
            return self._judge(mean, loaded=in_flight * 2 >= limit > 0)
        self._before_cut = 0.0
        self._comparisons += 1
        self.usual += (mean - self.usual) / min(self._comparisons, FASTER if mean < self.usual else DRIFT)
        return 0.0

    def _judge(self, mean: float, *, loaded: bool) -> float:
        if not self._before_cut:
            self._before_cut = inf  # the limit rose while this was measured: measure again at one limit
        elif mean > CURED * self._before_cut:
            self.usual, self._before_cut = mean, 0.0  # the cut did not help: load is not the cause
        elif loaded:
            self._before_cut = mean
            return 1 - max(0.5, SLOW * self.usual / mean)
        return 0.0
