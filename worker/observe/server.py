"""HTTP server for metrics, liveness and readiness."""

from __future__ import annotations

import socket

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from . import WorkerStatus

_GRACE = 0.5
"""Seconds that open requests may take after the server is cancelled."""


async def serve_observers(
    host: str, port: int, worker: WorkerStatus, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve ``/metrics``, ``/healthz`` and ``/readyz`` of a worker until cancelled.

    Port 0 is a free one; *task_status* gets the bound ``host:port``.

    Raises:
        OSError: the address or port cannot be bound.
    """

    async def metrics(_: Request) -> Response:
        return Response(await worker.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(_: Request) -> Response:
        return _health("ok", "not alive", await worker.not_alive())

    async def readyz(_: Request) -> Response:
        return _health("ready", "not ready", await worker.not_ready())

    app = Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)])
    config = Config()
    listener = _listen(host, port)
    bound, number = listener.getsockname()[:2]
    address = f"[{bound}]:{number}" if ":" in bound else f"{bound}:{number}"
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None  # Hypercorn's lines are not in the worker's log format; its errors are raised
    config.graceful_timeout = _GRACE
    config.include_server_header = False
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, app, config)
        task_status.started(address)


def _health(good: str, bad: str, reason: str | None) -> Response:
    return PlainTextResponse(f"{bad}: {reason}\n", status_code=503) if reason else PlainTextResponse(f"{good}\n")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, dualstack_ipv6=host == "::")
    except OSError as error:
        why = f"cannot serve metrics and health on {host}:{port} (http_host, http_port): {error.strerror or error}"
        raise OSError(why) from None
