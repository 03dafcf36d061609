"""Medians, spreads and ratios. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some samples, and their extremes."""

    minimum: float
    median: float
    maximum: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Compute the spread of at least one sample."""
        return cls(min(samples), median(samples), max(samples))

    def __format__(self, spec: str) -> str:
        """Return ``1.25 (1.20-1.31)``: the median, and the extremes."""
        spec = spec or ".2f"
        return f"{self.median:{spec}} ({self.minimum:{spec}}-{self.maximum:{spec}})"


def ratios(own: Sequence[float], peers: Sequence[float]) -> Spread:
    """Divide the worker's samples by a peer's, pair by pair: a disturbance longer than a run affects both."""
    return Spread.of([mine / other for mine, other in zip(own, peers, strict=True)])


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the least sample that *share* of all (0 to 1) do not exceed: the nearest rank, without interpolation."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]
