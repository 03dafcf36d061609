"""The common parts of `pause`, `resume` and `purge`: a function's name, and the errors of a command."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import click

from ..config import Settings
from ..nats.commands import NotSupportedError, Session, session
from ..nats.function_state import PauseState
from ..policy.names import parse_function
from ..ports import BrokerUnavailableError, MisconfiguredError
from . import fail

T = TypeVar("T")


def function_label(function: str, settings: Settings) -> str:
    """Return ``name.namespace`` of *function*; exit with code 2 where that is no function's name."""
    try:
        return ".".join(parse_function(function, settings.default_function_name))
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def run_command(settings: Settings, command: Callable[[Session, str], Awaitable[T]], label: str) -> T:
    """Run *command* for the function *label*; exit with code 1 where it fails, or 2 where the mode rules it out."""

    async def run() -> T:
        async with session(settings) as opened:
            return await command(opened, label)

    try:
        return asyncio.run(run())
    except (BrokerUnavailableError, MisconfiguredError) as error:
        fail(error)
    except NotSupportedError as error:
        fail(error, code=2)


def print_paused(paused: Mapping[str, PauseState], queue: str) -> None:
    """Print the functions that are paused."""
    click.echo(f"paused on {queue}:" if paused else f"paused on {queue}: nothing")
    for label, state in paused.items():
        click.echo(f"  {label}  since {state.since}" if state.since else f"  {label}")


def count_messages(count: int) -> str:
    """Return a number of messages in words."""
    return "1 message" if count == 1 else f"{count} messages"
