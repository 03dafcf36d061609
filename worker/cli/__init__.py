"""The command line: thin modules with the commands, each imported when its command is called."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import NoReturn

import click

from .. import __version__
from ..config import InvalidSettingsError, LoadedSettings, describe, load

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Signals that ask a server to stop."""
COMMANDS = {
    "run": "Take invocations off the queue and run them.",
    "dev": "Run everything on one machine: NATS, gateway, demo functions and a worker.",
    "gateway": "Put invocations on the queue, by HTTP.",
    "submit": "Put one or many invocations on the queue.",
    "pause": "Start no more invocations of one function, on any worker.",
    "resume": "Start invocations of a paused function again.",
    "purge": "Delete all messages of one function from the queue.",
    "config": "Print the effective settings and the origin of each.",
}
_MODULES = {"pause": "function", "resume": "function", "purge": "function"}
"""Modules of several commands. `config` is in this one; any other command is ``command`` in the module of its name."""


class _Lazy(click.Group):
    """A group that imports a command's module only when it is needed: `run` must not pay for `gateway`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's
        if cmd_name in self.commands or cmd_name not in COMMANDS:
            return self.commands.get(cmd_name)
        module = importlib.import_module(f"{__name__}.{_MODULES.get(cmd_name, cmd_name)}")
        command: click.Command = getattr(module, cmd_name if cmd_name in _MODULES else "command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="queue-worker")
def main() -> None:
    """Run, feed and control a queue-worker for OpenFaaS on NATS JetStream.

    Settings come from the environment, in lower case (max_inflight=10) or as QUEUE_WORKER_MAX_INFLIGHT=10.
    """


@main.command()
def config() -> None:
    """Print the effective settings and the origin of each.

    Secrets are masked. The exit code is 2 where a setting is invalid.
    """
    rows = describe(settings_or_exit(warn=True))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, value, origin in rows:
        click.echo(f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}")


def settings_or_exit(environment: Mapping[str, str] = os.environ, *, warn: bool = False) -> LoadedSettings:
    """Load the settings, and print their warnings if *warn*; exit with code 2 where some are invalid."""
    try:
        loaded = load(environment)
    except InvalidSettingsError as error:
        fail(error, code=2)
    for warning in loaded.warnings if warn else ():
        click.echo(f"warning: {warning}", err=True)
    return loaded


def fail(*errors: object, code: int = 1) -> NoReturn:
    """Print fatal errors as one line, and exit; code 1 is an error at run time, 2 a bad usage."""
    print_error(f"queue-worker: {'; '.join(map(str, errors))}")
    raise SystemExit(code)


def print_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of an error that no code expects (``sys.excepthook``), as :func:`print_error` does."""
    print_error("".join(traceback.format_exception(kind, error, trace)).rstrip())


def print_error(text: str) -> None:
    """Print *text* to standard error, but wait at most a second if nothing reads it: the process is about to end."""
    from ..observe.log_writer import LogWriter  # noqa: PLC0415 -- needed only once, at the end

    writer = LogWriter(sys.stderr.fileno())
    writer.error(text.encode(errors="backslashreplace"))
    writer.close()


@contextmanager
def caught(*kinds: type[Exception]) -> Iterator[list[BaseException]]:
    """Catch the block's errors of these *kinds*, alone or in groups; the yielded list has them when the block ends."""
    errors: list[BaseException] = []
    try:
        yield errors
    except* kinds as group:
        errors += _leaves(group)


def _leaves(error: BaseException) -> list[BaseException]:
    """Return the exceptions of a group and of the groups in it."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
