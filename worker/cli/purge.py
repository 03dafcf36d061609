"""``queue-worker purge``."""

from __future__ import annotations

import click

from ..nats.commands import find_messages, purge
from . import settings_or_exit
from .function import count_messages, function_label, run_command


@click.command()
@click.argument("function")
@click.option("--yes", is_flag=True, help="Delete without asking.")
def command(function: str, *, yes: bool) -> None:
    """Delete all messages of FUNCTION from the queue.

    FUNCTION is name or name.namespace. Deleted messages are lost: they are not invoked, called back, or kept as dead
    letters. Invocations that run now run to their end, and are not retried.
    """
    settings = settings_or_exit().settings
    label = function_label(function, settings)
    found = run_command(settings, find_messages, label)
    if found.on_bare_subject:
        click.echo(
            f"queue-worker: {count_messages(found.on_bare_subject)} on the bare subject {settings.queue_name}"
            " may be of any function; they are left alone",
            err=True,
        )
    if not found.total:
        click.echo(f"the queue {settings.queue_name} holds nothing of {label}")
        return
    if not yes:
        click.confirm(f"{count_messages(found.total)} of {label} will be lost. Delete?", abort=True)
    click.echo(f"deleted: {count_messages(run_command(settings, purge, label))} of {label}")
