"""``queue-worker dev``."""

from __future__ import annotations

import os
from pathlib import Path

import click
import httpx
import trio

from ..dev.children import ChildEndedError
from ..dev.demo import run_demo
from ..dev.dotenv import read_dotenv
from ..dev.run import run
from ..dev.stack import NotStartedError
from . import fail, settings_or_exit


@click.command()
@click.option("--demo", is_flag=True, help="Submit a few hundred invocations, show what becomes of them, and end.")
def command(*, demo: bool) -> None:
    """Everything on one machine: NATS, gateway, demo functions and a worker.

    Listens on the loopback, unless the settings say otherwise, and reads more settings from the file .env, if there is
    one. The demonstration takes free ports, a temporary directory and settings of its own.
    """
    failed: BaseExceptionGroup[Exception] | None = None
    try:
        if demo:
            raise SystemExit(0 if trio.run(run_demo, dict(os.environ)) else 1)
        environment = _environment()
        for warning in settings_or_exit(environment).warnings:
            click.echo(f"warning: {warning}", err=True)
        trio.run(run, environment)
    except* (NotStartedError, ChildEndedError, OSError, httpx.HTTPError) as group:
        failed = group  # Python 3.11.2 puts what is raised here into a group
    if failed:
        # What else failed follows from a child's end.
        fail(min(_leaves(failed), key=lambda error: not isinstance(error, ChildEndedError)))


def _environment() -> dict[str, str]:
    """The variables of .env, and the environment's over them."""
    try:
        return read_dotenv(Path(".env")) | os.environ
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
