"""``python -m benchmarks``: see ``--help``."""

from __future__ import annotations

import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from tests.servers import NatsServer

from . import report
from .contenders import PYTHON, Contender, ContenderMissingError, go
from .figures import FIGURES
from .machine import REST, many_files, pin
from .model import Figure, Session
from .programs import RunFailedError

_MIN_PAIRS = 5
"""Fewest pairs with which figures are written into the documents."""
_DOCS = Path(__file__).parent.parent / "docs"


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*FIGURES]), help="Only these figures.")
@click.option("--pairs", default=_MIN_PAIRS, show_default=True, help="Number of runs of each contender.")
@click.option("--peer", "names", multiple=True, help="Only these peers: go, go_full, uvloop_aiohttp, ...")
@click.option("--long", is_flag=True, help="Also figures that take many minutes.")
@click.option(
    "--write/--print", default=None, help="Write into docs/ (by default with five pairs or more and all peers)."
)
@click.option("--again", is_flag=True, help="Measure nothing: write the tables again from the stored samples.")
def main(*, only: Sequence[str], pairs: int, names: Sequence[str], long: bool, write: bool | None, again: bool) -> None:
    """Measure the speed of the worker and of its peers, on the same work in the same run."""
    if again:
        report.write(_DOCS)
        return
    chosen = [figure for figure in FIGURES.values() if figure.name in only or (not only and (long or not figure.long))]
    write = (pairs >= _MIN_PAIRS and not names) if write is None else write
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that running programs are stopped too
    many_files()
    pin(REST)
    with _session(pairs, names) as session:
        failed = [figure.name for figure in chosen if not _measured(session, figure, write=write)]
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


def _measured(session: Session, figure: Figure, *, write: bool) -> bool:
    click.echo(f"\n== {figure.title} ({figure.name})")
    try:
        samples = figure.measure(session)
    except RunFailedError as failed:
        click.echo(str(failed), err=True)
        return False
    if not samples:
        return True
    click.echo("\n" + report.table(samples) + "\n" + report.lines(figure.assess(samples)))
    if write:
        report.save(_DOCS, figure, samples)
        report.write(_DOCS)
    return True


@contextmanager
def _session(pairs: int, names: Sequence[str]) -> Iterator[Session]:
    started_at = time.monotonic()

    def log(line: str) -> None:
        click.echo(f"{time.monotonic() - started_at:6.0f} s  {line}")

    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name, NatsServer(Path(name)) as nats:
        peers = [peer for peer in _peers(Path(name), log) if not names or peer.name in names]
        yield Session(Path(name), pairs, peers, log, nats)


def _peers(directory: Path, log: report.Log) -> list[Contender]:
    peers = [*PYTHON]
    try:
        peers += [go(directory, full=False), go(directory, full=True)]
    except ContenderMissingError as missing:
        log(str(missing))
    return peers


if __name__ == "__main__":
    main()
