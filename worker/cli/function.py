"""``queue-worker pause``, ``resume`` and ``purge``: the commands that act on one function."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import click

from ..nats import commands
from ..nats.commands import NotSupportedError, Session, StoredPauses, session
from ..nats.function_state import READ_AGAIN
from ..nats.presence import WITHIN, WorkerReport
from ..policy.names import parse_function
from ..ports import BrokerUnavailableError, MisconfiguredError
from ..settings import Settings
from . import fail, settings_or_exit

T = TypeVar("T")

_UNCONFIRMED = 4
"""The exit code where a change is stored, but not all workers have confirmed it."""


@click.command()
@click.argument("function")
def pause(function: str) -> None:
    """Start no more invocations of FUNCTION, on any worker, until `queue-worker resume`.

    FUNCTION is name or name.namespace. Its invocations are still queued; those that run now run to their end. The
    command returns when all workers have confirmed the pause. Its exit code is 4 where one has not within 5 s. The
    pause is stored in NATS, so workers that start later apply it too. A queue in static mode cannot pause a function.
    """
    _set_pause(function, commands.pause, "paused")


@click.command()
@click.argument("function")
def resume(function: str) -> None:
    """Start invocations of FUNCTION again, after `queue-worker pause`.

    FUNCTION is name or name.namespace. The workers confirm it, as a pause.
    """
    _set_pause(function, commands.resume, "not paused")


@click.command()
@click.argument("function")
@click.option("--yes", is_flag=True, help="Delete without asking.")
def purge(function: str, *, yes: bool) -> None:
    """Delete all messages of FUNCTION from the queue.

    FUNCTION is name or name.namespace. Deleted messages are lost: they are not invoked, called back, or kept as dead
    letters. Invocations that run now run to their end, and are not retried.
    """
    settings, label = _settings_and_label(function)
    queue, found = settings.queue_name, _run(settings, commands.find_messages, label)
    if found.on_bare_subject:
        where = f"{_messages(found.on_bare_subject)} on the bare subject {queue}"
        click.echo(f"queue-worker: {where} may be of any function; they are left alone", err=True)
    if not found.total:
        click.echo(f"the queue {queue} holds nothing of {label}")
        return
    if not yes:
        click.confirm(f"{_messages(found.total)} of {label} will be lost. Delete?", abort=True)
    click.echo(f"deleted: {_messages(_run(settings, commands.purge, label))} of {label}")


def _set_pause(function: str, command: Callable[[Session, str], Awaitable[StoredPauses]], result: str) -> None:
    settings, label = _settings_and_label(function)
    stored = _run(settings, command, label)
    confirmed, unconfirmed = len(stored.workers.confirmed), _unconfirmed(stored.workers)
    if unconfirmed:
        click.echo(f"{label} is stored as {result}: confirmed by {_workers(confirmed)}, but not by all")
    elif confirmed:
        click.echo(f"{label} is {result}: confirmed by {_workers(confirmed)}")
    else:
        click.echo(f"{label} is {result}: no worker runs now, and those that start later apply it")
    click.echo(f"paused on {settings.queue_name}:{'' if stored.paused else ' nothing'}")
    for name, state in stored.paused.items():
        click.echo(f"  {name}  since {state.since}" if state.since else f"  {name}")
    if unconfirmed:
        fail(
            f"{unconfirmed}. A worker that continues, or connects again, applies the change within {READ_AGAIN:g} s."
            " Run the command again to see whether all have",
            code=_UNCONFIRMED,
        )


def _unconfirmed(report: WorkerReport) -> str:
    """Return which workers have not confirmed; empty where all have."""
    problems = [report.problem] if report.problem else []
    if report.silent:
        problems.append(f"no answer from {', '.join(sorted(report.silent))}")
    return f"{'; '.join(problems)} within {WITHIN:g} s" if problems else ""


def _settings_and_label(function: str) -> tuple[Settings, str]:
    """Return the settings, and *function* as ``name.namespace``; exit with code 2 where one is invalid."""
    settings = settings_or_exit().settings
    try:
        return settings, ".".join(parse_function(function, settings.default_function_name))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _run(settings: Settings, command: Callable[[Session, str], Awaitable[T]], label: str) -> T:
    """Run *command* for the function *label*; exit with code 1 where it fails, or 2 where the mode rules it out."""

    async def run() -> T:
        async with session(settings) as opened:
            return await command(opened, label)

    try:
        return asyncio.run(run())
    except (BrokerUnavailableError, MisconfiguredError, NotSupportedError) as error:
        fail(error, code=2 if isinstance(error, NotSupportedError) else 1)


def _workers(count: int) -> str:
    return "1 worker" if count == 1 else f"{count} workers"


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"
