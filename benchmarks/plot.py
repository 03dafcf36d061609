"""Bars and lines as SVG, readable on a white page and on a dark one. Pure functions.

No plotting library, because two kinds of picture need none: the files are small and the same
at each run, and colours can follow the reader's scheme.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from .statistics import Spread

_WIDTH, _LEFT, _RIGHT = 760, 210, 150
"""Pixels: the picture, the names on its left, the numbers on its right."""
_BAR, _GAP, _TOP = 18, 12, 40
_HEIGHT = 260
"""Pixels of a picture of lines."""
_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #57606a } .title { font-weight: 600 } .number { font-size: 12px }
.other { fill: #8c959f } .ours { fill: #2f81f7 } .spread { stroke: #57606a; stroke-width: 1.5 }
.axis { fill: none; stroke: #8c959f; stroke-width: 1 } .line { fill: none; stroke: #2f81f7; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #9198a1 } .other { fill: #656c76 } .spread { stroke: #d1d7e0 } }
</style>"""


def bars(title: str, by: Mapping[str, Sequence[float]]) -> str:
    """Draw a bar for each median, shortest first, with a whisker from minimum to maximum; ``ours`` is coloured."""
    spreads = sorted(((contender, Spread.of(each)) for contender, each in by.items()), key=lambda pair: pair[1].median)
    scale = (_WIDTH - _LEFT - _RIGHT) / max(spread.maximum for _, spread in spreads)
    parts = []
    for row, (contender, spread) in enumerate(spreads):
        top = _TOP + row * (_BAR + _GAP)
        middle, least, most = (_LEFT + scale * number for number in (spread.median, spread.minimum, spread.maximum))
        line = top + _BAR / 2
        colour, width = "ours" if contender.startswith("ours") else "other", f"{middle - _LEFT:.1f}"
        parts += [
            f'<text x="{_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(contender)}</text>',
            f'<rect class="{colour}" x="{_LEFT}" y="{top}" width="{width}" height="{_BAR}"/>',
            f'<path class="spread" d="M{least:.1f} {line}H{most:.1f}"/>',
            f'<text class="number" x="{max(middle, most) + 8:.1f}" y="{top + 13}">{spread.median:,.0f}</text>',
        ]
    return _picture(title, _TOP + len(spreads) * (_BAR + _GAP), parts)


def line(title: str, along: Sequence[float], samples: Sequence[float], unit: str) -> str:
    """Draw a line through *samples*, from zero upwards, each above its place in *along* (in whole thousands)."""
    bottom, right = _HEIGHT - 40, _WIDTH - 40
    across, up = (right - 60) / max(along), (bottom - _TOP) / (1.1 * max(samples))
    points = [f"{60 + across * x:.1f} {bottom - up * y:.1f}" for x, y in zip(along, samples, strict=True)]
    parts = [
        f'<path class="axis" d="M60 {_TOP}V{bottom}H{right}"/>',
        f'<path class="line" d="M{"L".join(points)}"/>',
        f'<text class="number" x="52" y="{bottom}" text-anchor="end">0</text>',
    ]
    parts += [
        f'<text class="number" x="{60 + across * x:.1f}" y="{bottom + 18}" text-anchor="middle">{x:,.0f}</text>'
        for x in (along[0], max(along) / 2, max(along))
    ]
    for x, y in ((along[0], samples[0]), (along[-1], samples[-1])):
        spot = f'x="{60 + across * x:.1f}" y="{bottom - up * y - 8:.1f}"'
        parts.append(f'<text class="number" {spot} text-anchor="middle">{y:.1f} {escape(unit)}</text>')
    return _picture(title, _HEIGHT, parts)


def _picture(title: str, height: float, parts: Sequence[str]) -> str:
    shape = f'viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {shape}>'
    heading = f'<text class="title" x="8" y="22">{escape(title)}</text>'
    return "\n".join([head, _STYLE, heading, *parts, "</svg>"]) + "\n"
