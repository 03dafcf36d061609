"""The command line: one thin file a command, imported when it is called."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys
from typing import Any

import click

from .. import __version__
from ..config import InvalidSettingsError, LoadedSettings, load

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""What asks a server to stop."""
COMMANDS = {
    "run": "Take invocations off the queue and run them.",
    "dev": "Everything on one machine: NATS, gateway, demo functions and a worker.",
    "gateway": "Put invocations on the queue, by HTTP.",
    "submit": "Put one or many invocations on the queue.",
    "pause": "Start no more invocations of one function, on any worker.",
    "resume": "Start them again.",
    "purge": "Delete all that the queue holds of one function.",
    "config": "Print the effective settings, and where each came from.",
}


class _Lazy(click.Group):
    """A group that imports a command's file only when it is needed: `run` must not pay for `gateway`."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 -- click's
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 -- click's
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="queue-worker")
def main() -> None:
    """A queue-worker for OpenFaaS on NATS JetStream.

    Settings come from the environment, in lower case (max_inflight=10) or as QUEUE_WORKER_MAX_INFLIGHT=10.
    """


def program() -> None:
    """``queue-worker``."""
    if sys.argv[1:2] in (["run"], ["gateway"]):
        exit_on_stop_signals()
    main(prog_name="queue-worker")


def charts() -> None:
    """``jetstream-queue-worker``: `queue-worker run` under the name, and with the flags, that OpenFaaS's charts use."""
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
    """Told to stop while it is still being imported, or once more when it has stopped, a server ends at once, with 0.

    As process 1 of a container it would not even hear that: there the kernel drops a SIGTERM that has no handler.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: os._exit(0))


def ignore_stop_signals() -> None:
    """From now on no signal is heard: the process is about to end, and Python's own end would die of one."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def settings_or_exit(environment: dict[str, str] | None = None) -> LoadedSettings:
    """The settings; where some cannot be used, the message that names them all, and exit code 2."""
    try:
        return load(dict(os.environ) if environment is None else environment)
    except InvalidSettingsError as error:
        click.echo(f"queue-worker: {error}", err=True)
        raise SystemExit(2) from None


def fail(error: Any) -> None:
    """A fatal error at run time: one line, exit code 1."""
    click.echo(f"queue-worker: {error}", err=True)
    raise SystemExit(1)


def leaf_errors(error: BaseException) -> list[BaseException]:
    """Return the exceptions of a group and of the groups in it."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in leaf_errors(each)]
    return [error]
