"""The gateway's process: uvicorn around the application, and the connection to NATS beside it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import os
import signal
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from .. import __version__
from ..config import Settings
from .app import Gateway
from .functions import FunctionProxy
from .logs import configure
from .publisher import Log, Publisher

_BACKLOG = 2048
"""Connections that the kernel holds until we take them."""
_KEEP_ALIVE = 75
"""Seconds to keep an idle connection: as nginx, and more than the 60 for which load balancers commonly reuse one."""
_HEADER = 64 * 1024
"""Bytes of request line and header: twice what nginx takes. uvicorn's parser has no limit of its own."""


class _Protocol(HttpToolsProtocol):
    """uvicorn's, with a limit on what stands before the body."""

    def on_message_begin(self) -> None:
        self._room = _HEADER
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._take(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._take(len(name) + len(value))
        super().on_header(name, value)

    def _take(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise ValueError(f"request line and header of more than {_HEADER} bytes")


def run(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then let the requests that are under way end.

    Raises:
        OSError: the port cannot be listened on.
        worker.ports.MisconfiguredError: NATS refuses our credentials.
    """
    log = configure(settings)
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(settings, log))


async def _serve(settings: Settings, log: Log) -> None:
    publisher = Publisher(settings, name=f"queue-worker-gateway {__version__}", log=log)
    functions = FunctionProxy(settings, log)
    sockets = _listen(settings.listen_host, settings.listen_port)
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
        # uvicorn takes these over, and when it is done raises again what it got, for these to hear.
        signal.signal(number, lambda *_: None)
    connection = asyncio.ensure_future(publisher.run())
    connection.add_done_callback(lambda _: setattr(server, "should_exit", True))  # it ends by itself only to complain
    try:
        log.info("Listening", url=_url(sockets[0]), queue=settings.queue_name, gateway_url=settings.gateway_url)
        await server.serve(sockets)
    finally:
        connection.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await connection
        await functions.close()
    log.info("Stopped")


def _listen(host: str, port: int) -> list[socket.socket]:
    """Sockets for *host*, taken before anything else is started, so that a taken port is one clear error."""
    family, _, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
        0
    ]
    try:
        return [socket.create_server(address[:2], family=family, backlog=_BACKLOG)]
    except OSError as error:
        raise OSError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's, where it is installed; it is faster, but not needed."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory
