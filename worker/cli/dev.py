"""``queue-worker dev``."""

from __future__ import annotations

import os
from pathlib import Path

import click
import httpx
import trio
from dotenv.parser import Binding, parse_stream

from ..dev.demo import run_demo
from ..dev.run import run
from ..dev.stack import ChildEndedError, NotStartedError
from . import caught, fail, settings_or_exit


@click.command()
@click.option("--demo", is_flag=True, help="Submit a few hundred invocations, show their outcomes, and end.")
def command(*, demo: bool) -> None:
    """Run everything on one machine: NATS, gateway, demo functions and a worker.

    Listens on the loopback, unless the settings name other addresses. Reads more settings from the file .env, if there
    is one. The demonstration uses free ports, a temporary directory and settings of its own.
    """
    with caught(NotStartedError, ChildEndedError, OSError, httpx.HTTPError) as errors:
        if demo:
            raise SystemExit(0 if trio.run(run_demo, os.environ) else 1)
        try:
            environment = read_dotenv(Path(".env")) | os.environ
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        settings_or_exit(environment, warn=True)
        trio.run(run, environment)
    if errors:
        # When a child has ended, the other errors are consequences of that.
        fail(min(errors, key=lambda error: not isinstance(error, ChildEndedError)))


def read_dotenv(path: Path) -> dict[str, str]:
    """Return the variables that the file *path* sets; none where there is no such file.

    Raises:
        ValueError: python-dotenv skips a line, or sets a name that no variable can have. The text names the line.
        OSError: the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as file:
            bindings = list(parse_stream(file))
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not text in UTF-8") from None
    for binding in bindings:
        if not _is_usable(binding):
            text = binding.original.string
            blank_lines = text[: len(text) - len(text.lstrip())].count("\n")
            raise ValueError(f"{path}, line {binding.original.line + blank_lines}: not NAME=VALUE")
    return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}


def _is_usable(binding: Binding) -> bool:
    """Return whether *binding* is a comment, or sets a variable that a child process can inherit."""
    if binding.error or "\0" in binding.original.string:
        return False
    return binding.key is None or (binding.key.isidentifier() and binding.value is not None)
