"""Metrics and health, over HTTP."""

from __future__ import annotations

import socket

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .observed import Observed

_GRACE = 0.5
"""Seconds that open requests have left when the worker ends."""


async def serve_observers(
    host: str,
    port: int,
    observed: Observed,
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; started, tells the address.

    Args:
        host: where to listen.
        port: and the port, 0 for a free one.
        observed: what is shown.
        task_status: told the address.

    Raises:
        OSError: it cannot listen there.
    """

    async def metrics(_: Request) -> Response:
        return Response(await observed.metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(_: Request) -> Response:
        return _answer("ok", "not alive", await observed.not_alive())

    async def readyz(_: Request) -> Response:
        return _answer("ready", "not ready", await observed.not_ready())

    app = Starlette(routes=[Route("/metrics", metrics), Route("/healthz", healthz), Route("/readyz", readyz)])
    config = Config()
    listener = _listen(host, port)
    address = "{}:{}".format(*listener.getsockname()[:2])
    config.bind = [f"fd://{listener.detach()}"]
    config.errorlog = None  # its lines are not ours; what matters is raised
    config.graceful_timeout = _GRACE
    config.include_server_header = False
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, app, config)
        task_status.started(address)


def _answer(good: str, bad: str, reason: str | None) -> Response:
    return PlainTextResponse(f"{bad}: {reason}\n", status_code=503) if reason else PlainTextResponse(f"{good}\n")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = f"cannot serve metrics and health on {host}:{port} (http_host, http_port): {error.strerror or error}"
        raise OSError(why) from None
