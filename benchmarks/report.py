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

Log = Callable[[str], None]
"""A function that prints a line of progress."""
BEGIN, END = "<!-- measured: {} -->", "<!-- its end -->"
"""The markers around the text that a run replaces."""
_SAMPLES = "performance.json"


class StoredSamples(msgspec.Struct):
    """A figure's latest samples, and a description of commit and machine."""

    how: str
    samples: dict[str, dict[str, list[float]]]


def save(docs: Path, figure: Figure, samples: Samples) -> None:
    """Store the samples beside the document, which can be written again from them."""
    stored = _load(docs)
    stored[figure.name] = StoredSamples(
        _how(), {what: {contender: [*each] for contender, each in by.items()} for what, by in samples.items()}
    )
    (docs / _SAMPLES).write_bytes(msgspec.json.format(msgspec.json.encode(_rounded(stored)), indent=1) + b"\n")


def write(docs: Path) -> None:
    """Write all stored samples into the document."""
    document = docs / "performance.md"
    text = document.read_text()
    found = _load(docs)
    assessed = [
        line for name, figure in FIGURES.items() if name in found for line in figure.assess(found[name].samples)
    ]
    text = between_markers(text, "all", lines(assessed))
    for name, stored in found.items():
        picture = ""
        if draw := FIGURES[name].picture:
            (docs / f"performance-{name}.svg").write_text(draw(stored.samples))
            picture = f"![{FIGURES[name].title}](performance-{name}.svg)\n\n"
        text = between_markers(text, name, f"{picture}{stored.how}.\n\n{table(stored.samples)}")
    document.write_text(text)


def between_markers(text: str, name: str, new: str) -> str:
    """Return *text* with *new* between the markers of *name*.

    Raises:
        ValueError: *text* has no such markers.
    """
    before, begin, rest = text.partition(BEGIN.format(name))
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"there are no markers {BEGIN.format(name)} ... {END}")
    return f"{before}{begin}\n\n{new}\n{end}{after}"


def lines(assessed: Sequence[Line]) -> str:
    """Write the table of goals."""
    signs = {True: "✓", False: "✗", None: ""}
    rows = [f"| {line.figure} | {line.goal} | {line.measured} | {signs[line.reached]} |" for line in assessed]
    return "\n".join(["| figure | reach | measured | |", "| --- | --- | --- | --- |", *rows]) + "\n"


def table(samples: Samples) -> str:
    """Write every quantity of every contender: the median, the ends, and the worker's value divided by it."""
    rows = ["| | | median | least | most | ours is |", "| --- | --- | --- | --- | --- | --- |"]
    for what, by in samples.items():
        for contender, each in by.items():
            spread = Spread.of(each)
            against = f"{ratios(by['ours'], each)}" if contender != "ours" and "ours" in by else ""
            numbers = (f"{number:,.{_digits(number)}f}" for number in (spread.median, spread.minimum, spread.maximum))
            rows.append(f"| {what} | {contender} | {' | '.join(numbers)} | {against} |")
    return "\n".join(rows) + "\n"


def _digits(number: float) -> int:
    return 0 if abs(number) >= 1000 else 1 if abs(number) >= 10 else 3


def _load(docs: Path) -> dict[str, StoredSamples]:
    file = docs / _SAMPLES
    return msgspec.json.decode(file.read_bytes(), type=dict[str, StoredSamples]) if file.exists() else {}


def _rounded(stored: dict[str, StoredSamples]) -> dict[str, StoredSamples]:
    return {
        name: StoredSamples(
            one.how,
            {w: {k: [float(f"{x:.5g}") for x in xs] for k, xs in by.items()} for w, by in one.samples.items()},
        )
        for name, one in stored.items()
    }


def _how() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 -- git of the PATH
    today = datetime.now(UTC).date().isoformat()
    machine = f"{platform.machine()} with {os.cpu_count()} cores, Python {platform.python_version()}"
    return f"{today}, commit {commit.stdout.strip() or 'unknown'}, {machine}"
