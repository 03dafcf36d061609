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
@click.option("--only", multiple=True, help="Run only what begins with this name, and keep the other figures.")
@click.option("--again", is_flag=True, help="Run nothing: write the tables from the stored samples.")
def main(*, only: Sequence[str], again: bool) -> None:
    """Compare the limiter with an oracle and with greedy workers, and write the figures into docs/fairness.md."""
    if not again:
        samples = report.load(_DOCS) if only else {}
        for run in [*RUNS, *ROBUST]:
            if not only or run.name.startswith(tuple(only)):
                samples[run.name] = report.measure(run, click.echo)
        report.save(_DOCS, samples)
        for name, picture in report.plots().items():
            (_DOCS / name).write_text(picture)
    report.write(_DOCS)
    parts = {"shares": shared.table, "scale-out": scaleout.table, "real": _real}
    for name, table in parts.items():
        if not again and (not only or name in only):
            document = _DOCS / "fairness.md"
            document.write_text(between_markers(document.read_text(), name, table()))


def _real() -> str:
    result = real.run()
    share = result.rejections / real.MESSAGES
    return (
        "| figure | target | |\n| --- | --- | --- |\n"
        f"| time, of the ideal | within 3 % | {result.of_ideal:.3f} |\n"
        f"| rejections | under 0.5 % | {result.rejections} of {real.MESSAGES:,}: {share:.2%} |\n"
    )


if __name__ == "__main__":
    main()
