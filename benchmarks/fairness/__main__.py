"""``python -m benchmarks.fairness``: see ``--help``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from . import report
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


if __name__ == "__main__":
    main()
