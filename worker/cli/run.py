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
from . import STOP_SIGNALS, fail, ignore_stop_signals, leaf_errors, settings_or_exit

PARENT_NUMBER = 0
"""Number of the parent in the log field ``process``."""


@click.command()
@click.option("--ignored-flag", multiple=True, hidden=True)
def command(ignored_flag: tuple[str, ...]) -> None:
    """Take invocations off the queue and run them.

    Settings come from the environment; `queue-worker config` shows them. SIGTERM or SIGINT drains: the worker takes no
    new work, lets running invocations end, and gives them back after shutdown_timeout. A second signal gives them back
    at once.
    """
    rank = worker_rank(os.environ)
    loaded = settings_or_exit()
    has_processes = loaded.settings.processes > 1
    number = rank.number if rank else PARENT_NUMBER
    writer = configure(loaded.settings, process=number if has_processes else None)
    if rank is None:
        _log_start(loaded, ignored_flag)
    try:
        if has_processes and rank is None:
            _run_parent(loaded, writer)
        else:
            _run_worker(loaded, rank, writer)
    finally:
        ignore_stop_signals()


def _log_start(loaded: LoadedSettings, ignored_flag: tuple[str, ...]) -> None:
    log = structlog.get_logger()
    if ignored_flag:
        log.info("Flags ignored: this worker needs no licence and has no pprof", flags=list(ignored_flag))
    for warning in loaded.warnings:
        log.warning(warning)


def _run_parent(loaded: LoadedSettings, writer: LogWriter) -> None:
    from ..parent.processes import ExitStatus, own_command  # noqa: PLC0415 -- a single process does not need them
    from ..parent.run import run  # noqa: PLC0415 -- the same

    status, failed = ExitStatus(0), None
    try:
        status = trio.run(run, loaded.settings, own_command(), os.environ, STOP_SIGNALS, instruments=[writer])
    except* OSError as group:
        failed = group  # Python 3.11.2 puts an exception that is raised here into a group
    if failed:
        fail(_text(failed))
    if status.reason:
        click.echo(f"queue-worker: {status.reason}", err=True)
    raise SystemExit(status.code)


def _run_worker(loaded: LoadedSettings, rank: WorkerRank | None, writer: LogWriter) -> None:
    # Imported here, because the parent does not need them and stays smaller without.
    from ..nats.connection import ConnectionClosedError  # noqa: PLC0415
    from .assemble import run_worker  # noqa: PLC0415

    failed: BaseExceptionGroup[Exception] | None = None
    try:
        run_worker(loaded.settings, rank, writer)
    except* (MisconfiguredError, ConnectionClosedError, OSError) as group:
        failed = group  # as above
    if failed and rank and failed.subgroup(MisconfiguredError):
        rank.send(FATAL, _text(failed))  # the parent prints it, once for all processes
        raise SystemExit(1)
    if failed:
        fail(_text(failed))


def _text(group: BaseExceptionGroup[Exception]) -> str:
    return "; ".join(str(error) for error in leaf_errors(group))
