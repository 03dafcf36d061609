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

    FUNCTION is name or name.namespace. Its invocations are still queued; those that run now run to their end. The pause
    is stored in NATS, so workers that start later apply it too. A queue in static mode cannot pause a function.
    """
    settings = settings_or_exit().settings
    label = function_label(function, settings)
    paused = run_command(settings, pause, label)
    click.echo(f"{label} is paused")
    print_paused(paused, settings.queue_name)
