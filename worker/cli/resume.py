"""``queue-worker resume``."""

from __future__ import annotations

import click

from ..nats.commands import resume
from . import settings_or_exit
from .function import do, in_force, label


@click.command()
@click.argument("function")
def command(function: str) -> None:
    """Start invocations of FUNCTION again, after `queue-worker pause`.

    FUNCTION is name or name.namespace.
    """
    settings = settings_or_exit().settings
    named = label(function, settings)
    paused = do(settings, resume, named)
    click.echo(f"{named} is not paused")
    in_force(paused, settings.queue_name)
