"""The command line: thin modules with the commands, each imported when its command is called."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


def program() -> None:
    """Start ``queue-worker``."""
    if sys.argv[1:2] in (["run"], ["gateway"]):
        exit_on_stop_signals()
    main(prog_name="queue-worker")


def charts() -> None:
    """Start `queue-worker run` under the name ``jetstream-queue-worker``, with the charts' flags."""
    exit_on_stop_signals()
    ignored, rest, arguments = [], [], iter(sys.argv[1:])
    for argument in arguments:
        if not (flag := re.fullmatch(r"--?(license-file|license|pprof)(=.*)?", argument)):
            rest.append(argument)
            continue
        ignored += ["--ignored-flag", flag[1]]
        if flag[1] != "pprof" and flag[2] is None:
            next(arguments, None)  # Go takes the value of a flag from the next argument too
    main(["run", *ignored, *rest], prog_name="jetstream-queue-worker")


def exit_on_stop_signals() -> None:
    """End the process at once, with exit code 0, on a stop signal before or after the server's own handlers are set.

    Without this handler, process 1 of a container ignores SIGTERM: the kernel drops a signal that has no handler there.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))


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
    click.echo(f"queue-worker: {'; '.join(map(str, errors))}", err=True)
    raise SystemExit(code)


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
