"""What `pause`, `resume` and `purge` have in common: a function's name, and a moment at the broker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import click
import trio

from ..config import Settings
from ..nats.commands import NotSupportedError, Session, connected
from ..nats.function_state import PauseState
from ..policy.names import split_function
from . import fail

T = TypeVar("T")


def function_label(function: str, settings: Settings) -> str:
    """``name.namespace`` of *function*, or the message that it is no function's name, and exit code 2."""
    if (split := split_function(function, settings.default_function_name)) is None:
        raise click.UsageError(
            f"not a function's name: {function[:80]!r}; write name or name.namespace,"
            " of lower-case letters, digits, - and _"
        )
    return ".".join(split)


def run_command(settings: Settings, what: Callable[[Session, str], Awaitable[T]], label: str) -> T:
    """Do it at the broker; where that fails, one line and exit code 1, or 2 where it cannot be done to this queue."""
    said = trio.run(connected, settings, lambda place: what(place, label))
    if isinstance(said, NotSupportedError):
        click.echo(f"queue-worker: {said}", err=True)
        raise SystemExit(2)
    if isinstance(said, Exception):
        fail(said)
    return said  # type: ignore[return-value]  # what is left


def print_paused(paused: Mapping[str, PauseState], queue: str) -> None:
    """Print what is paused."""
    click.echo(f"paused on {queue}:" if paused else f"paused on {queue}: nothing")
    for each, control in paused.items():
        click.echo(f"  {each}  since {control.since}" if control.since else f"  {each}")


def count_messages(count: int) -> str:
    """So many messages, in words."""
    return "1 message" if count == 1 else f"{count} messages"
