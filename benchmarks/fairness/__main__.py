"""``python -m benchmarks.fairness``: see ``--help``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from ..report import between_markers
from . import real, report, scaleout, shared
from .runs import ROBUST, RUNS

_DOCS = Path(__file__).parent.parent.parent / "docs"


@click.command()
@click.option("--only", multiple=True, help="Only runs whose names begin so; the others stay as they were measured.")
@click.option("--again", is_flag=True, help="Simulate nothing: write the tables again from what was measured.")
def main(*, only: Sequence[str], again: bool) -> None:
    """How the limiter does, beside an oracle and beside greedy workers, under virtual time: into docs/fairness.md."""
    if not again:
        samples = report.kept(_DOCS) if only else {}
        for run in [*RUNS, *ROBUST]:
            if not only or run.name.startswith(tuple(only)):
                samples[run.name] = report.measure(run, click.echo)
        report.keep(_DOCS, samples)
        for name, picture in report.plots().items():
            (_DOCS / name).write_text(picture)
    report.write(_DOCS)
    parts = {"shares": shared.table, "scale-out": scaleout.table, "real": _real}
    for name, table in parts.items():
        if not again and (not only or name in only):
            document = _DOCS / "fairness.md"
            document.write_text(between_markers(document.read_text(), name, table()))


def _real() -> str:
    came = real.real()
    share = came.rejections / real.MESSAGES
    return (
        "| figure | reach | |\n| --- | --- | --- |\n"
        f"| time of the ideal | within 3 % | {came.of_ideal:.3f} |\n"
        f"| rejections | under 0.5 % | {came.rejections} of {real.MESSAGES:,}: {share:.2%} |\n"
    )


if __name__ == "__main__":
    main()
