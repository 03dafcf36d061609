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
from .contenders import PYTHON, Contender, Missing, go
from .figures import FIGURES
from .machine import REST, many_files, pin
from .model import Figure, Session
from .programs import Failed

_ENOUGH = 5
"""Pairs from which on figures are written down."""
_DOCS = Path(__file__).parent.parent / "docs"


@click.command()
@click.option("--only", multiple=True, type=click.Choice([*FIGURES]), help="Only these figures.")
@click.option("--pairs", default=_ENOUGH, show_default=True, help="How often each contender has its turn.")
@click.option("--peer", "names", multiple=True, help="Only these peers: go, go_full, uvloop_aiohttp, ...")
@click.option("--long", is_flag=True, help="Also what takes many minutes.")
@click.option(
    "--write/--print", default=None, help="Write into docs/ (by default with five pairs or more and all peers)."
)
@click.option("--again", is_flag=True, help="Measure nothing: write the tables again from what was measured.")
def main(*, only: Sequence[str], pairs: int, names: Sequence[str], long: bool, write: bool | None, again: bool) -> None:
    """Measure the speed of the worker and of its peers, on the same work in the same run."""
    if again:
        report.write(_DOCS)
        return
    chosen = [figure for figure in FIGURES.values() if figure.name in only or (not only and (long or not figure.long))]
    write = (pairs >= _ENOUGH and not names) if write is None else write
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that what runs is stopped too
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
    except Failed as failed:
        click.echo(str(failed), err=True)
        return False
    if not samples:
        return True
    click.echo("\n" + report.table(samples) + "\n" + report.lines(figure.judge(samples)))
    if write:
        report.keep(_DOCS, figure, samples)
        report.write(_DOCS)
    return True


@contextmanager
def _session(pairs: int, names: Sequence[str]) -> Iterator[Session]:
    begun = time.monotonic()

    def say(line: str) -> None:
        click.echo(f"{time.monotonic() - begun:6.0f} s  {line}")

    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name, NatsServer(Path(name)) as nats:
        peers = [peer for peer in _peers(Path(name), say) if not names or peer.name in names]
        yield Session(Path(name), pairs, peers, say, nats)


def _peers(directory: Path, say: report.Say) -> list[Contender]:
    peers = [*PYTHON]
    try:
        peers += [go(directory, full=False), go(directory, full=True)]
    except Missing as missing:
        say(str(missing))
    return peers


if __name__ == "__main__":
    main()
