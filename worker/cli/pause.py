"""``queue-worker pause``."""

from __future__ import annotations

import click

from ..nats.commands import pause
from . import settings_or_exit
from .function import function_label, print_paused, run_command


@click.command()
@click.argument("function")
def command(function: str) -> None:
    """Start no more invocations of FUNCTION, on any worker, until `queue-worker resume`.

    FUNCTION is name or name.namespace. Its invocations go on being queued; those that run now run to their end. That
    is remembered at the broker, so workers that start later obey it too. A queue in static mode cannot do this.
    """
    settings = settings_or_exit().settings
    named = function_label(function, settings)
    paused = run_command(settings, pause, named)
    click.echo(f"{named} is paused")
    print_paused(paused, settings.queue_name)
