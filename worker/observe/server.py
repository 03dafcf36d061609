"""HTTP server for metrics, liveness and readiness."""

from __future__ import annotations

import trio
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from . import WorkerStatus
from .connections import serve_connections
from .listeners import addresses, listen
from .shared_rendering import SharedRendering


async def serve_observers(
    host: str, port: int, worker: WorkerStatus, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve ``/metrics``, ``/healthz`` and ``/readyz`` of a worker until cancelled.

    Port 0 is a free one; *task_status* gets the bound addresses.

    Raises:
        OSError: the address or port cannot be bound.
    """
    rendering = SharedRendering(worker.metrics)

    async def metrics(_: Request) -> Response:
        return Response(await rendering.get(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(_: Request) -> Response:
        return _health("ok", "not alive", await worker.not_alive())

    async def readyz(_: Request) -> Response:
        return _health("ready", "not ready", await worker.not_ready())

    app = Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)])
    config = Config()
    config.errorlog = None  # Hypercorn's lines are not in the worker's log format; its errors are raised
    config.include_server_header = False
    try:
        sockets = listen(host, port)
    except OSError as error:
        why = f"cannot serve metrics and health on {host}:{port} (http_host, http_port): {error}"
        raise OSError(why) from None
    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in sockets]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rendering.run)
        nursery.start_soon(serve_connections, app, config, listeners)
        task_status.started(addresses(sockets))


def _health(good: str, bad: str, reason: str | None) -> Response:
    return PlainTextResponse(f"{bad}: {reason}\n", status_code=503) if reason else PlainTextResponse(f"{good}\n")
