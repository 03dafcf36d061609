"""``queue-worker run``: wires the worker to the world."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import click
import structlog
import trio

from .. import __version__
from ..backlog import watch_backlog
from ..bench import Bench, Rules
from ..config import Loaded, Settings
from ..drain import Drain
from ..events import Event, Listening
from ..heartbeat import Leases
from ..http.callbacks import open_callbacks
from ..http.functions import open_functions
from ..nats.connection import ConnectionClosed
from ..nats.queue import NatsQueue, open_queue
from ..observe.logs import configure, log_sink
from ..observe.metrics import Metrics
from ..observe.server import serve_observers
from ..policy.backoff import Backoff, Jitter
from ..policy.ledger import Ledger
from ..policy.retry import Retry
from ..ports import Callbacks, Emit, Functions, Unusable
from ..retries import Retries
from ..run import run
from . import STOPS, fail, settings_or_exit, stop_no_more

_SETTLE_WITHIN = 3.0
"""Seconds that a drain waits for the last confirmations: with the default shutdown_timeout, the whole stays below the
30 s that Kubernetes grants."""


@click.command()
@click.option("--ignored-flag", multiple=True, hidden=True)
def command(ignored_flag: tuple[str, ...]) -> None:
    """Take invocations off the queue and run them.

    Settings come from the environment; `queue-worker config` shows them. SIGTERM or SIGINT drains: no new work is
    taken, running invocations end, or are given back after shutdown_timeout. A second signal gives them back at once.
    """
    loaded = settings_or_exit()
    lines = configure(loaded.settings)
    log = structlog.get_logger()
    if ignored_flag:
        log.info("Flags ignored: this worker needs no licence and has no pprof", flags=list(ignored_flag))
    for warning in loaded.warnings:
        log.warning(warning)
    try:
        trio.run(_main, loaded, instruments=[lines])
    except* (Unusable, ConnectionClosed, OSError) as group:
        fail("; ".join(str(error) for error in _leaves(group)))
    finally:
        stop_no_more()


async def _main(loaded: Loaded) -> None:
    settings = loaded.settings
    metrics = Metrics(settings, os.environ.get("HOSTNAME") or socket.gethostname())
    log = log_sink(settings)

    def emit(event: Event) -> None:
        metrics(event)
        with suppress(OSError):  # a full disk or a closed pipe behind standard output must not stop the work
            log(event)

    with trio.open_signal_receiver(*STOPS) as stops:
        async with open_http(settings) as (functions, callbacks), open_queue(settings, emit) as queue:
            bench = bench_of(settings, queue, functions, callbacks, emit)
            async with trio.open_nursery() as beside:
                address = await beside.start(
                    serve_observers, settings.http_host, settings.http_port, metrics, _not_ready(queue, bench)
                )
                emit(Listening(address))
                beside.start_soon(watch_backlog, queue, emit)
                await run(bench, stops)
                beside.cancel_scope.cancel()


@asynccontextmanager
async def open_http(settings: Settings) -> AsyncIterator[tuple[Functions, Callbacks]]:
    """Where invocations and their results go."""
    async with open_functions(settings) as functions, open_callbacks(settings) as callbacks:
        yield functions, callbacks


def bench_of(settings: Settings, queue: NatsQueue, functions: Functions, callbacks: Callbacks, emit: Emit) -> Bench:
    """The slice of the settings that the core goes by, and its books, all new."""
    rules = Rules(
        slots=settings.max_inflight,
        retry=Retry(
            settings.max_retry_attempts,
            settings.retry_http_codes,
            Backoff(settings.initial_retry_wait, settings.max_retry_wait, settings.backoff),
        ),
        callback_attempts=settings.callback_attempts,
        callback_backoff=Backoff(settings.callback_initial_wait, settings.callback_max_wait, Jitter.EQUAL),
        dead_letters=settings.dead_letter,
        settle_within=_SETTLE_WITHIN,
        namespace=settings.default_function_name,
        user_agent=f"queue-worker/{__version__}",
    )
    return Bench(
        queue=queue,
        functions=functions,
        callbacks=callbacks,
        emit=emit,
        leases=Leases(queue, emit),
        ledger=Ledger(),
        retries=Retries(),
        drain=Drain(settings.shutdown_timeout, emit),
        rules=rules,
        dice=random.random,
        wall=time.time,
    )


def _not_ready(queue: NatsQueue, bench: Bench) -> Callable[[], str | None]:
    def reason() -> str | None:
        if bench.drain.intake.pulled:
            return "draining"
        return None if queue.ready else "not connected to NATS, or no consumer there"

    return reason


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for each in error.exceptions for leaf in _leaves(each)]
    return [error]
