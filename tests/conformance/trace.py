"""The messages in each inbox of a broker's clients, all confirmations and all numbers read, by half ticks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from math import floor

from .script import TICK


class Trace:
    """The trace of one script."""

    def __init__(self) -> None:
        self.entries: defaultdict[str, list[tuple[float, str]]] = defaultdict(list)
        """Inbox or other place -> time (in ticks, by halves) and text of each entry."""

    def note(self, where: str, time: float, what: str) -> None:
        """Record an entry. *time*: seconds since the start."""
        self.entries[where].append((floor(time / TICK * 2) / 2, what))

    def note_numbers(self, time: float, numbers: Mapping[str, int]) -> None:
        """Record the consumer's and the stream's numbers."""
        self.note("numbers", time, " ".join(f"{name}={number}" for name, number in numbers.items()))

    def until_first(self, last: Collection[str]) -> dict[str, list[tuple[float, str]]]:
        """Return all entries, but of each place only those up to the first of *last*."""
        entries = {}
        for where, lines in self.entries.items():
            end = next((number for number, (_, what) in enumerate(lines, 1) if what in last), None)
            entries[where] = lines[:end]
        return entries


def side_by_side(one: Trace, other: Trace) -> str:
    """Return two traces as text, with differences marked."""
    lines = []
    for where in sorted({*one.entries, *other.entries}, key=lambda name: (name.rstrip("0123456789"), len(name), name)):
        left, right = one.entries[where], other.entries[where]
        for number in range(max(len(left), len(right))):
            a, b = (f"{side[number][0]:4} {side[number][1]}" if number < len(side) else "" for side in (left, right))
            lines.append(f"{'  ' if a == b else '! '}{where:12} {a:60} {b}")
    return "\n".join(lines)
