"""``queue-worker run``."""

from __future__ import annotations

import os

import click
import structlog
import trio

from ..config import LoadedSettings
from ..observe.log_writer import LogWriter
from ..observe.logs import configure
from ..parent.control_socket import FATAL, WorkerRank, worker_rank
from ..ports import MisconfiguredError
from . import STOP_SIGNALS, fail, ignore_stop_signals, settings_or_exit

PARENT_NUMBER = 0
"""Its number among the processes."""


@click.command()
@click.option("--ignored-flag", multiple=True, hidden=True)
def command(ignored_flag: tuple[str, ...]) -> None:
    """Take invocations off the queue and run them.

    Settings come from the environment; `queue-worker config` shows them. SIGTERM or SIGINT drains: no new work is
    taken, running invocations end, or are given back after shutdown_timeout. A second signal gives them back at once.
    """
    part = worker_rank(os.environ)
    loaded = settings_or_exit()
    several = loaded.settings.processes > 1
    number = part.number if part else PARENT_NUMBER
    lines = configure(loaded.settings, process=number if several else None)
    if part is None:
        _log_start(loaded, ignored_flag)
    try:
        if several and part is None:
            _run_parent(loaded, lines)
        else:
            _run_worker(loaded, part, lines)
    finally:
        ignore_stop_signals()


def _log_start(loaded: LoadedSettings, ignored_flag: tuple[str, ...]) -> None:
    log = structlog.get_logger()
    if ignored_flag:
        log.info("Flags ignored: this worker needs no licence and has no pprof", flags=list(ignored_flag))
    for warning in loaded.warnings:
        log.warning(warning)


def _run_parent(loaded: LoadedSettings, lines: LogWriter) -> None:
    from ..parent.processes import ExitStatus, own_command  # noqa: PLC0415 -- one process does without
    from ..parent.run import run  # noqa: PLC0415 -- the same

    ended, failed = ExitStatus(0), None
    try:
        ended = trio.run(run, loaded.settings, own_command(), os.environ, STOP_SIGNALS, instruments=[lines])
    except* OSError as group:
        failed = group  # Python 3.11.2 puts what is raised here into a group
    if failed:
        fail(_told(failed))
    if ended.reason:
        click.echo(f"queue-worker: {ended.reason}", err=True)
    raise SystemExit(ended.code)


def _run_worker(loaded: LoadedSettings, part: WorkerRank | None, lines: LogWriter) -> None:
    from ..nats.connection import ConnectionClosedError  # noqa: PLC0415 -- the parent does without, and stays small
    from .assemble import run_worker  # noqa: PLC0415 -- the same

    ended: BaseExceptionGroup[Exception] | None = None
    try:
        run_worker(loaded.settings, part, lines)
    except* (MisconfiguredError, ConnectionClosedError, OSError) as group:
        ended = group  # as above
    if ended and part and ended.subgroup(MisconfiguredError):
        part.send(FATAL, _told(ended))  # the parent says it, once for all
        raise SystemExit(1)
    if ended:
        fail(_told(ended))


def _told(group: BaseExceptionGroup[Exception]) -> str:
    return "; ".join(str(error) for error in _leaves(group))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
