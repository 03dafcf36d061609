"""One worker process: the core connected to NATS, HTTP, logs and metrics."""

from __future__ import annotations

import dataclasses
import gc
import os
import random
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from functools import partial

import structlog
import trio

from .. import __version__
from ..drain import Drain
from ..events import Event, Listening
from ..heartbeat import Leases
from ..http.callbacks import open_callbacks
from ..http.functions import open_functions
from ..nats.queue import NatsQueue, open_queue
from ..observe.log_metrics import LogMetrics
from ..observe.log_writer import LogWriter
from ..observe.logs import log_sink
from ..observe.metrics import Metrics
from ..parent.control_socket import METRICS, WorkerRank
from ..policy.callback_schedule import CallbackSchedule
from ..policy.flow import Flow
from ..policy.ledger import Ledger
from ..policy.limiter import Limiter
from ..policy.names import label_of
from ..policy.processes import open_files_warning, share, share_minimums
from ..policy.receivers import Receivers
from ..policy.retry import Backoff, Jitter, Retry
from ..run import run, watch_backlog
from ..services import CoreConfig, Services
from ..settings import Settings
from ..timers import Timers
from . import STOP_SIGNALS

_SETTLE_WITHIN = 3.0
"""Seconds that a drain waits for the last confirmations. With the default shutdown_timeout, the sum is below
Kubernetes's 30 s."""


def run_worker(settings: Settings, rank: WorkerRank | None, writer: LogWriter) -> None:
    """Run the worker until a drain has ended. A single process, with no *rank*, serves metrics and health itself.

    The errors, in a group: MisconfiguredError (the stream or a consumer cannot be used), ConnectionClosedError (the
    connection was lost for good), and OSError (the port is taken).
    """
    _tune_garbage_collector()
    metrics = Metrics(settings, os.environ.get("HOSTNAME") or socket.gethostname())
    metrics.registry.register(LogMetrics(writer))
    if rank:
        settings = dataclasses.replace(
            settings,
            max_inflight=share(settings.max_inflight, rank.count, rank.number),
            function_minimums=share_minimums(settings.function_minimums or (), rank.count, rank.number),
        )
    if warning := open_files_warning(_raise_open_files(), settings.max_inflight):
        structlog.get_logger().warning(warning)
    try:
        trio.run(_main, settings, metrics, rank, instruments=[writer])
    finally:
        if rank:
            rank.send(METRICS, "".join(metrics.slices()))


def _raise_open_files() -> int:
    """Raise the limit of open files to the hard one, as Go does: each connection is a file. Return the new limit."""
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports a limit that it does not accept
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _tune_garbage_collector() -> None:
    """Run the garbage collector less often, and never over the modules: this saves 6 of 130 µs per message (measured).

    No object of a message is part of a cycle, unless something fails, so counting references frees them.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


async def _main(settings: Settings, metrics: Metrics, rank: WorkerRank | None) -> None:
    log = log_sink(settings)

    def emit(event: Event) -> None:
        metrics(event)
        log(event)

    with trio.open_signal_receiver(*STOP_SIGNALS) as stops:
        async with (
            open_queue(settings, emit) as queue,
            open_functions(settings, queue.bodies) as functions,
            open_callbacks(settings, emit, bodies=queue.bodies) as callbacks,
        ):
            services = Services(
                queue=queue,
                quotas=queue.quotas,
                functions=functions,
                callbacks=callbacks,
                emit=emit,
                leases=Leases(queue, emit),
                ledger=Ledger(),
                receivers=Receivers(settings.callback_timeout),
                schedule=CallbackSchedule(_callback_retry(settings), settings.callback_max_age),
                timers=Timers(),
                drain=Drain(settings.shutdown_timeout, emit),
                config=_core_config(settings),
                rng=random.random,
                utc_now=time.time,
            )
            observed = _Observed(metrics, queue, services)
            results = functions.results
            metrics.watch_results(lambda: results.used, lambda: results.waiting)
            async with trio.open_nursery() as beside:
                beside.start_soon(results.report_waits, emit)
                if rank is None:
                    from ..observe.server import serve_observers  # noqa: PLC0415 -- one of several does not need it

                    serve = partial(serve_observers, settings.http_host, settings.http_port, observed)
                    emit(Listening(await beside.start(serve)))
                else:
                    beside.start_soon(_serve_parent, rank, observed, services.drain)
                beside.start_soon(watch_backlog, queue, emit)
                await run(services, stops)
                beside.cancel_scope.cancel()


async def _serve_parent(rank: WorkerRank, observed: _Observed, drain: Drain) -> None:
    """Answer the parent's queries. When the parent has ended, drain, because no other process would end this one."""
    await rank.serve(observed)
    if not drain.intake.cancel_called:
        signal.raise_signal(signal.SIGTERM)


def _core_config(settings: Settings) -> CoreConfig:
    """Return the settings that the core needs."""
    backoff = Backoff(settings.initial_retry_wait, settings.max_retry_wait, settings.backoff)
    return CoreConfig(
        slots=settings.max_inflight,
        retry=Retry(settings.max_retry_attempts, settings.retry_http_codes, backoff),
        callback_attempts=settings.callback_attempts,
        callback_backoff=Backoff(settings.callback_initial_wait, settings.callback_max_wait, Jitter.EQUAL),
        callback_durable=settings.callback_durable,
        callback_max_age=settings.callback_max_age,
        callback_retry=_callback_retry(settings),
        dead_letters=settings.dead_letter,
        settle_within=_SETTLE_WITHIN,
        namespace=settings.default_function_name,
        user_agent=f"queue-worker/{__version__}",
        make_flow=partial(_new_flow, settings),
    )


def _callback_retry(settings: Settings) -> Backoff:
    return Backoff(settings.callback_retry_initial_wait, settings.callback_retry_max_wait, Jitter.EQUAL)


def _new_flow(settings: Settings, name: str) -> Flow:
    """Make the state of a flow. The bare subject and a shared consumer belong to no single function."""
    if not name.startswith(f"{settings.queue_name}."):
        return Flow(name)
    function = label_of(settings.queue_name, name)
    learned = Limiter(settings.max_inflight) if settings.limiter_enabled else None
    return Flow(name, function, learned, min_slots=settings.minimums.get(function, 0))


async def join_slices(metrics: Metrics) -> str:
    """Return all series as one text; invocations go on between the slices."""
    slices = []
    for each in metrics.slices():
        slices.append(each)
        await trio.lowlevel.checkpoint()
    return "".join(slices)


class _Observed:
    """See :class:`worker.observe.WorkerStatus`."""

    def __init__(self, metrics: Metrics, queue: NatsQueue, services: Services) -> None:
        self._metrics, self._queue, self._services = metrics, queue, services

    async def metrics(self) -> str:
        return await join_slices(self._metrics)

    async def not_alive(self) -> str | None:
        return None  # an answer is itself the proof that the loop runs

    async def not_ready(self) -> str | None:
        if self._services.drain.intake.cancel_called:
            return "draining"
        return self._queue.obstacle or None
