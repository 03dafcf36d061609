"""The gateway's process: uvicorn around the application, and the connection to NATS beside it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import importlib.util
import resource
import signal
import socket
from collections.abc import AsyncIterator, Generator
from typing import cast

import structlog
import uvicorn
from starlette.types import ASGIApp
from structlog.typing import FilteringBoundLogger
from uvicorn._types import ASGI3Application

from ..observe import logs
from ..observe.library_logs import configure_library_logs
from ..observe.listeners import addresses, is_loopback, listen
from ..policy.parse import without_password
from ..settings import Settings
from .annotations import FunctionLookup
from .api import MAX_CONNECTIONS as MAX_API_CONNECTIONS
from .api import ApiProxy
from .app import Gateway
from .authentication import Authentication
from .caller import CallerConnection
from .connections import LIMITED, Connections
from .credentials import Credentials
from .functions import MAX_CONNECTIONS as MAX_FUNCTION_CONNECTIONS
from .functions import FunctionProxy
from .metrics import GatewayMetrics, serve_metrics
from .overload import Limits
from .publisher import Publisher
from .routes import Router, for_observers, public_metrics, with_cors

_BACKLOG = 2048
"""Connections that the kernel holds until the server accepts them."""
_ACCEPTED_AT_ONCE = 100
"""Connections that are accepted before others are served again: each takes a file."""
_OTHER_FILES = 50
"""Files besides connections to callers and functions: NATS, the log, modules, the event loop."""
_UNSENT = 128 * 1024
"""Bytes of a response that the kernel takes before it is clear that the caller reads them (Linux). The kernel's own
buffer, of megabytes, would be refilled too seldom to see whether a slow caller reads at all."""

_OBSERVERS = 100
"""Connections to the port for metrics and health."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Server(uvicorn.Server):
    """uvicorn's server, which leaves signals to :func:`_stop_by_signals`.

    uvicorn sets its handlers late, and a signal before that would be lost.
    """

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave the handlers as they are."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # asyncio takes the number that it accepts at once for the kernel's backlog, too.
        for each in sockets or ():
            each.listen(_BACKLOG)


def run(settings: Settings) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP, then finish the running requests.

    Raises:
        OSError: the port is taken.
        worker.ports.MisconfiguredError: NATS refuses the credentials.
    """
    logs.configure(settings)
    log: FilteringBoundLogger = structlog.get_logger()
    configure_library_logs()
    uvloop = importlib.import_module("uvloop") if importlib.util.find_spec("uvloop") else None  # faster, but optional
    with asyncio.Runner(loop_factory=getattr(uvloop, "new_event_loop", None)) as runner:
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)  # as the worker does: no object of a call is part of a cycle
        try:
            runner.run(_serve(settings, log))
        finally:
            for number in _STOP_SIGNALS:  # one that arrives while Python finalizes would change the exit code
                signal.signal(number, signal.SIG_IGN)


async def _serve(settings: Settings, log: FilteringBoundLogger) -> None:
    publisher = Publisher(settings, log)
    functions = FunctionProxy(settings, log)
    now = asyncio.get_running_loop().time
    credentials = Credentials(settings, now)
    authentication = Authentication(settings, credentials, now, log)
    api = ApiProxy(settings, authentication, credentials, log) if settings.proxy_all else None
    lookup = FunctionLookup(settings, credentials, log)
    limits = Limits(settings, publisher, log)
    listeners = _listen(settings.listen_host, settings.listen_port)
    connections = Connections(_max_connections(settings, log), settings.client_timeout, log)
    metrics = GatewayMetrics(
        connections, lambda: publisher.connected, limits.rejected, lambda: lookup.unknown, passes_on=settings.proxy_all
    )
    gateway = Gateway(settings, publisher, functions, log, lookup=lookup, limits=limits)
    scrapes = serve_metrics(metrics)
    public = public_metrics(scrapes, authentication, local=is_loopback(listeners))
    app = metrics.counted(with_cors(Router(gateway, public, api), settings.cors_origins or ()))
    server = _server(app, connections, settings)
    _stop_by_signals(server)
    connection = asyncio.ensure_future(publisher.run())
    connection.add_done_callback(lambda _: setattr(server, "should_exit", True))  # it ends only with an error
    try:
        url = f"http://{addresses(listeners[:1])}"
        log.info("Listening", url=url, queue=settings.queue_name, gateway_url=without_password(settings.gateway_url))
        if api and not authentication.required:
            log.warning("proxy_all without basic_auth or api_token_file: only gateway_url itself protects /system/")
        async with _observers(for_observers(gateway, scrapes), settings, log):
            await server.serve(listeners)
    finally:
        connection.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connection
        await limits.close()
        await lookup.close()
        for proxy in filter(None, (functions, api)):
            await proxy.close()
    log.info("Stopped")


def _server(app: ASGIApp, connections: Connections, settings: Settings) -> uvicorn.Server:
    return _Server(
        uvicorn.Config(
            cast("ASGI3Application", app),
            http=type("Caller", (CallerConnection,), {"all": connections}),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_ACCEPTED_AT_ONCE,
            callback_notify=connections.check,
            timeout_notify=0,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
        )
    )


@contextlib.asynccontextmanager
async def _observers(app: ASGIApp, settings: Settings, log: FilteringBoundLogger) -> AsyncIterator[None]:
    """Serve metrics and health on ``http_host`` and ``metrics_port`` until the block is left, if the port is free.

    The producer can do its work without them: on a machine with several programs the port may be taken.
    """
    host, port = settings.http_host, settings.metrics_port
    try:
        listeners = listen(host, port)
    except OSError as error:
        log.warning(
            "No metrics are served; set metrics_port to a free port", address=f"{host}:{port}", error=str(error)
        )
        yield
        return
    log.info("Serving metrics and health", address=f"http://{addresses(listeners)}")
    server = _server(app, Connections(_OBSERVERS, settings.client_timeout, log), settings)
    serving = asyncio.ensure_future(server.serve(listeners))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def _stop_by_signals(server: uvicorn.Server) -> None:
    """Let a signal stop *server* in order, also before it serves; a second SIGINT stops it at once."""
    for number in _STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN or number != signal.SIGHUP:  # nohup switches it off
            signal.signal(number, server.handle_exit)


def _max_connections(settings: Settings, log: FilteringBoundLogger) -> int:
    """Raise the limit of open files to the hard one, as the worker does, and return how many connections fit it."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS reports a limit that it does not accept
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return settings.max_connections
    others = (
        MAX_FUNCTION_CONNECTIONS + MAX_API_CONNECTIONS + _OBSERVERS + 2 * LIMITED + _ACCEPTED_AT_ONCE + _OTHER_FILES
    )
    fitting = max(files - others, files // 4)
    if fitting < settings.max_connections:
        log.warning(
            "The limit of open files is too low for max_connections; raise it (ulimit -n)",
            open_files=files,
            needed=settings.max_connections + others,
            max_connections=fitting,
        )
    return min(fitting, settings.max_connections)


def _listen(host: str, port: int) -> list[socket.socket]:
    """Bind and listen, before anything else starts, so that a taken port is one clear error (OSError)."""
    try:
        listeners = listen(host, port, backlog=_BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from None
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # accepted connections inherit it
        for each in listeners:
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
    return listeners
