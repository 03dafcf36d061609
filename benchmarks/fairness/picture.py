"""Draw lines over time as SVG, like the plots of :mod:`benchmarks.plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from ..plot import _picture

_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 600, 40, 230
_STYLES = {
    "capacity": "stroke:#d4a72c;stroke-dasharray:5 4",
    "limiter": "stroke:#2f81f7",
    "greedy": "stroke:#8c959f",
}
"""Style of a line by the first word of its name."""


def draw(title: str, lines: Mapping[str, Sequence[tuple[float, float]]], until: float) -> str:
    """Draw each line from 0 to *until* seconds, with its name at its right."""
    highest = max(y for points in lines.values() for _, y in points) or 1.0
    across, up = (_RIGHT - _LEFT) / until, (_BOTTOM - _TOP) / (1.05 * highest)
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>']
    for number, (name, points) in enumerate(lines.items()):
        spots = [f"{_LEFT + across * x:.1f} {_BOTTOM - up * y:.1f}" for x, y in points if x <= until]
        style = _STYLES[name.partition(" ")[0].partition(",")[0]]
        parts.append(f'<path class="line" style="{style}" d="M{"L".join(spots)}"/>')
        parts.append(f'<path class="line" style="{style}" d="M{_RIGHT + 6} {_TOP + 16 + 20 * number}h16"/>')
        parts.append(f'<text class="number" x="{_RIGHT + 26}" y="{_TOP + 20 + 20 * number}">{escape(name)}</text>')
    for x in range(0, int(until) + 1, 60):
        spot = f'x="{_LEFT + across * x:.1f}" y="{_BOTTOM + 18}"'
        parts.append(f'<text class="number" {spot} text-anchor="middle">{x} s</text>')
    for y in (highest / 2, highest):
        spot = f'x="{_LEFT - 8}" y="{_BOTTOM - up * y + 4:.1f}"'
        parts.append(f'<text class="number" {spot} text-anchor="end">{y:.0f}</text>')
    return _picture(title, _BOTTOM + 30, parts)


def each_second(trace: Sequence[tuple[float, int, int]], column: int, until: float) -> list[tuple[float, float]]:
    """Return the mean over each second of a step function that is given by its changes."""
    sums, at, value = [0.0] * (int(until) + 1), 0.0, 0
    for now, *values in [*trace, (until, 0, 0)]:
        while at < now and int(at) < len(sums):
            end = min(now, int(at) + 1.0)
            sums[int(at)] += value * (end - at)
            at = end
        value = values[column]
    return [(second + 0.5, total) for second, total in enumerate(sums[:-1])]
