"""The measurements as tables and plots in docs/performance.md."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from .figures import FIGURES
from .model import Figure, Line, Samples
from .statistics import Spread, ratios

Say = Callable[[str], None]
"""A function that prints a line of progress."""
BEGIN, END = "<!-- measured: {} -->", "<!-- its end -->"
"""Around what a run replaces; the text around it stays."""
_KEPT = "performance.json"


class Kept(msgspec.Struct):
    """A figure's latest samples, and what they were measured on."""

    how: str
    samples: dict[str, dict[str, list[float]]]


def keep(docs: Path, figure: Figure, samples: Samples) -> None:
    """Put the samples beside the document, from which it can be written again."""
    kept = _kept(docs)
    kept[figure.name] = Kept(_how(), {what: {who: [*each] for who, each in by.items()} for what, by in samples.items()})
    (docs / _KEPT).write_bytes(msgspec.json.format(msgspec.json.encode(_rounded(kept)), indent=1) + b"\n")


def write(docs: Path) -> None:
    """Write all that is kept into the document."""
    document = docs / "performance.md"
    text = document.read_text()
    found = _kept(docs)
    judged = [line for name, figure in FIGURES.items() if name in found for line in figure.judge(found[name].samples)]
    text = between_markers(text, "all", lines(judged))
    for name, kept in found.items():
        picture = ""
        if draw := FIGURES[name].picture:
            (docs / f"performance-{name}.svg").write_text(draw(kept.samples))
            picture = f"![{FIGURES[name].title}](performance-{name}.svg)\n\n"
        text = between_markers(text, name, f"{picture}{kept.how}.\n\n{table(kept.samples)}")
    document.write_text(text)


def between_markers(text: str, name: str, new: str) -> str:
    """*text* with *new* in the place that it has for *name*.

    Raises:
        ValueError: it has none.
    """
    before, begin, rest = text.partition(BEGIN.format(name))
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"there is no place for it: {BEGIN.format(name)} ... {END}")
    return f"{before}{begin}\n\n{new}\n{end}{after}"


def lines(judged: Sequence[Line]) -> str:
    """Write the table of goals."""
    signs = {True: "✓", False: "✗", None: ""}
    rows = [f"| {line.figure} | {line.reach} | {line.measured} | {signs[line.reached]} |" for line in judged]
    return "\n".join(["| figure | reach | measured | |", "| --- | --- | --- | --- |", *rows]) + "\n"


def table(samples: Samples) -> str:
    """Write every quantity of every contender: the median, the ends, and the worker's value divided by it."""
    rows = ["| | | median | least | most | ours is |", "| --- | --- | --- | --- | --- | --- |"]
    for what, by in samples.items():
        for who, each in by.items():
            spread = Spread.of(each)
            against = f"{ratios(by['ours'], each)}" if who != "ours" and "ours" in by else ""
            numbers = (f"{number:,.{_digits(number)}f}" for number in (spread.middle, spread.least, spread.most))
            rows.append(f"| {what} | {who} | {' | '.join(numbers)} | {against} |")
    return "\n".join(rows) + "\n"


def _digits(number: float) -> int:
    return 0 if abs(number) >= 1000 else 1 if abs(number) >= 10 else 3


def _kept(docs: Path) -> dict[str, Kept]:
    file = docs / _KEPT
    return msgspec.json.decode(file.read_bytes(), type=dict[str, Kept]) if file.exists() else {}


def _rounded(kept: dict[str, Kept]) -> dict[str, Kept]:
    return {
        name: Kept(
            one.how, {w: {k: [float(f"{x:.5g}") for x in xs] for k, xs in by.items()} for w, by in one.samples.items()}
        )
        for name, one in kept.items()
    }


def _how() -> str:
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 -- whichever git there is
    today = datetime.now(UTC).date().isoformat()
    machine = f"{platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"{today}, commit {commit.stdout.strip() or 'unknown'}, {machine}"
