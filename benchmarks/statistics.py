"""Medians, spreads and ratios. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some samples, and their ends."""

    least: float
    middle: float
    most: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Spread:
        """Of one sample or more."""
        return cls(min(samples), median(samples), max(samples))

    def __format__(self, spec: str) -> str:
        """``1.25 (1.20-1.31)``: the middle, and the ends."""
        spec = spec or ".2f"
        return f"{self.middle:{spec}} ({self.least:{spec}}-{self.most:{spec}})"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Divide the worker's samples by a peer's, pair by pair: a disturbance longer than a run affects both."""
    return Spread.of([mine / other for mine, other in zip(ours, theirs, strict=True)])


def percentile(samples: Sequence[float], share: float) -> float:
    """Return the least sample that *share* of all (0 to 1) do not exceed: the nearest rank, without interpolation."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]
