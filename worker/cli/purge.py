"""``queue-worker purge``."""

from __future__ import annotations

import click

from ..nats.commands import held, purge
from . import settings_or_exit
from .function import do, label, messages


@click.command()
@click.argument("function")
@click.option("--yes", is_flag=True, help="Do not ask.")
def command(function: str, *, yes: bool) -> None:
    """Delete all that the queue holds of FUNCTION.

    FUNCTION is name or name.namespace. What is deleted is lost: it is not invoked, called back, or kept as a dead
    letter. Invocations that run now run to their end, and are not tried again.
    """
    settings = settings_or_exit().settings
    named = label(function, settings)
    found = do(settings, held, named)
    if found.untold:
        click.echo(
            f"queue-worker: {messages(found.untold)} on the bare subject {settings.queue_name} may be of any function;"
            " they are left alone",
            err=True,
        )
    if not found.messages:
        click.echo(f"the queue {settings.queue_name} holds nothing of {named}")
        return
    if not yes:
        click.confirm(f"{messages(found.messages)} of {named} will be lost. Delete?", abort=True)
    click.echo(f"deleted: {messages(do(settings, purge, named))} of {named}")
