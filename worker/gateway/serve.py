"""The gateway's process: uvicorn around the application, and the connection to NATS beside it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import signal
import socket

import structlog
import uvicorn
from structlog.typing import FilteringBoundLogger
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..config import Settings
from ..observe import logs
from .app import Gateway
from .functions import FunctionProxy
from .publisher import Publisher

_BACKLOG = 2048
"""Connections that the kernel holds until the server accepts them."""
_KEEP_ALIVE = 75
"""Seconds to keep an idle connection: as nginx, and more than the 60 for which load balancers commonly reuse one."""
_MAX_HEADER = 64 * 1024
"""Bytes of request line and header: twice nginx's limit. uvicorn's parser has none."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with a limit for request line and header."""

    def on_message_begin(self) -> None:
        self._header_left = _MAX_HEADER
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count_header(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count_header(len(name) + len(value))
        super().on_header(name, value)

    def _count_header(self, size: int) -> None:
        self._header_left -= size
        if self._header_left < 0:
            raise ValueError(f"request line and header of more than {_MAX_HEADER} bytes")


class _LibraryHandler(logging.Handler):
    """Handler that passes the messages of uvicorn and other libraries to the gateway's log."""

    def emit(self, record: logging.LogRecord) -> None:
        trace = {"traceback": logging.Formatter().formatException(record.exc_info)} if record.exc_info else {}
        structlog.get_logger().warning(record.getMessage().strip(), source=record.name, **trace)


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish the running requests.

    Raises:
        OSError: the port is taken.
        worker.ports.MisconfiguredError: NATS refuses the credentials.
    """
    logs.configure(settings)
    log: FilteringBoundLogger = structlog.get_logger()
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryHandler()], force=True)
    uvloop = importlib.import_module("uvloop") if importlib.util.find_spec("uvloop") else None  # faster, but optional
    with asyncio.Runner(loop_factory=getattr(uvloop, "new_event_loop", None)) as runner:
        runner.run(_serve(settings, log))


async def _serve(settings: Settings, log: FilteringBoundLogger) -> None:
    publisher = Publisher(settings, log)
    functions = FunctionProxy(settings, log)
    listener = listen(settings.listen_host, settings.listen_port)
    server = uvicorn.Server(
        uvicorn.Config(
            Gateway(settings, publisher, functions, log),
            http=_Protocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE,
            timeout_graceful_shutdown=max(1, round(settings.shutdown_timeout)),
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn replaces these handlers, and raises the signal again when it has stopped.
        signal.signal(number, lambda *_: None)
    connection = asyncio.ensure_future(publisher.run())
    connection.add_done_callback(lambda _: setattr(server, "should_exit", True))  # it ends only with an error
    try:
        host, port = listener.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log.info("Listening", url=url, queue=settings.queue_name, gateway_url=settings.gateway_url)
        await server.serve([listener])
    finally:
        connection.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connection
        await functions.close()
    log.info("Stopped")


def listen(host: str, port: int) -> socket.socket:
    """Bind and listen, before anything else starts, so that a taken port is one clear error (OSError).

    ``::``, and ``0.0.0.0`` where there is IPv6, is every address of both families.
    """
    every = "::" if host in ("0.0.0.0", "::") and _ipv6() else host  # noqa: S104 -- compared, not bound
    try:
        flags = socket.AI_PASSIVE
        family, _, _, _, address = socket.getaddrinfo(every or None, port, type=socket.SOCK_STREAM, flags=flags)[0]
        return socket.create_server(address[:2], family=family, backlog=_BACKLOG, dualstack_ipv6=address[0] == "::")
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
        raise OSError(f"cannot listen on {host}:{port}: {reason}") from None


def _ipv6() -> bool:
    """Return whether this machine has IPv6, and sockets for both families: a container may have it switched off."""
    try:
        with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True):
            return True
    except (OSError, ValueError):
        return False
