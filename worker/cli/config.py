"""``queue-worker config``."""

from __future__ import annotations

import click

from ..config import describe
from . import settings_or_exit


@click.command()
def command() -> None:
    """Print the effective settings and the origin of each.

    Secrets are masked. The exit code is 2 where a setting is invalid.
    """
    rows = describe(settings_or_exit(warn=True))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        click.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")
