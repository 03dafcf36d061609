"""The messages in each inbox of a broker's clients, every answer and every look at the numbers, by half ticks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from math import floor

from .script import TICK


class Trace:
    """The trace of one script."""

    def __init__(self) -> None:
        self.seen: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        """By where it was seen: when (in ticks, by halves), and what."""

    def note(self, where: str, time: float, what: str) -> None:
        """*time*: seconds since the start."""
        self.seen[where].append((floor(time / TICK * 2) / 2, what))

    def look(self, time: float, numbers: Mapping[str, int]) -> None:
        """Note the consumer's and the stream's numbers."""
        self.note("numbers", time, " ".join(f"{name}={number}" for name, number in numbers.items()))

    def without(self, last: Collection[str]) -> dict[str, list[tuple[float, str]]]:
        """All, but in each place only up to the first of *last*."""
        kept = {}
        for where, lines in self.seen.items():
            end = next((number for number, (_, what) in enumerate(lines, 1) if what in last), None)
            kept[where] = lines[:end]
        return kept


def side_by_side(one: Trace, other: Trace) -> str:
    """Two traces, what differs marked."""
    lines = []
    for where in sorted({*one.seen, *other.seen}, key=lambda name: (name.rstrip("0123456789"), len(name), name)):
        left, right = one.seen[where], other.seen[where]
        for number in range(max(len(left), len(right))):
            a, b = (f"{side[number][0]:4} {side[number][1]}" if number < len(side) else "" for side in (left, right))
            lines.append(f"{'  ' if a == b else '! '}{where:12} {a:60} {b}")
    return "\n".join(lines)
