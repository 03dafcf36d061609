"""``queue-worker run``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import structlog
import trio

from ..observe.library_logs import configure_library_logs
from ..observe.log_writer import LogWriter
from ..observe.logs import configure
from ..parent.control_socket import FATAL, WorkerRank, worker_rank
from ..policy.proxies import InvalidProxyError, read_proxies
from ..ports import MisconfiguredError
from ..settings import Settings
from . import STOP_SIGNALS, caught, fail, print_crash, settings_or_exit


@click.command()
@click.option("--ignored-flag", multiple=True, hidden=True)
@click.option("--unknown-flag", multiple=True, hidden=True)
def command(ignored_flag: tuple[str, ...], unknown_flag: tuple[str, ...]) -> None:
    """Take invocations off the queue and run them.

    Settings come from the environment; `queue-worker config` shows them. SIGTERM, SIGINT or SIGHUP drains: the worker
    takes no new work, lets running invocations end, and gives them back after shutdown_timeout. A second signal gives
    them back at once.
    """
    sys.excepthook = print_crash
    rank = worker_rank(os.environ)
    loaded = settings_or_exit()
    _check_environment(os.environ)
    settings = loaded.settings
    number = None
    if settings.processes > 1:
        number = rank.number if rank else 0  # 0 is the parent
    writer = configure(settings, process=number)
    configure_library_logs()
    if rank is None:
        log = structlog.get_logger()
        if ignored_flag:
            log.info("Flags ignored: this worker needs no licence and has no pprof", flags=list(ignored_flag))
        if unknown_flag:
            log.warning("Unknown flags ignored: settings are environment variables", flags=list(unknown_flag))
        for warning in loaded.warnings:
            log.warning(warning)
    try:
        if number == 0:
            _run_parent(settings, writer)
        else:
            _run_worker(settings, rank, writer)
    finally:
        # A signal that arrives while Python finalizes would change the exit code.
        for each in (*STOP_SIGNALS, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)


def _check_environment(environment: Mapping[str, str]) -> None:
    """Exit with code 2 where a variable of other programs would make every callback fail."""
    try:
        read_proxies(environment)
    except InvalidProxyError as error:
        fail(error, code=2)
    file, directory = environment.get("SSL_CERT_FILE"), environment.get("SSL_CERT_DIR")
    try:
        if file:
            from ssl import create_default_context  # noqa: PLC0415 -- only for the check: the parent stays smaller

            create_default_context(cafile=file)
        elif directory:
            next(Path(directory).iterdir(), None)
    except OSError as error:  # also an SSLError
        name, value = ("SSL_CERT_FILE", file) if file else ("SSL_CERT_DIR", directory)
        wanted = "name a file of certificates in PEM (or a directory of them), or unset it"
        fail(f"{name} = {value!r} cannot be used: {error.strerror or error}; {wanted}", code=2)


def _run_parent(settings: Settings, writer: LogWriter) -> None:
    from ..parent.processes import run  # noqa: PLC0415 -- a single process does not need it

    with caught(OSError) as errors:
        status = trio.run(run, settings, STOP_SIGNALS, writer, instruments=[writer])
    if errors:
        fail(*errors)
    if status.reason:
        fail(status.reason, code=status.code)
    raise SystemExit(status.code)


def _run_worker(settings: Settings, rank: WorkerRank | None, writer: LogWriter) -> None:
    # Imported here, because the parent does not need them and stays smaller without.
    from ..nats.connection import ConnectionClosedError  # noqa: PLC0415
    from .assemble import run_worker  # noqa: PLC0415

    with caught(MisconfiguredError, ConnectionClosedError, OSError) as errors:
        run_worker(settings, rank, writer)
    if rank and any(isinstance(error, MisconfiguredError) for error in errors):
        rank.send(FATAL, "; ".join(map(str, errors)))  # the parent prints it, once for all processes
        raise SystemExit(1)
    if errors:
        fail(*errors)
