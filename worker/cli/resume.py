"""``queue-worker resume``."""

from __future__ import annotations

import click

from ..nats.commands import resume
from . import settings_or_exit
from .function import function_label, print_paused, run_command


@click.command()
@click.argument("function")
def command(function: str) -> None:
    """Start invocations of FUNCTION again, after `queue-worker pause`.

    FUNCTION is name or name.namespace.
    """
    settings = settings_or_exit().settings
    label = function_label(function, settings)
    paused = run_command(settings, resume, label)
    click.echo(f"{label} is not paused")
    print_paused(paused, settings.queue_name)
