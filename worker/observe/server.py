"""Metrics and health, over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Callable

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from .metrics import Metrics

_GRACE = 0.5
"""Seconds that open requests have left when the worker ends."""


async def serve_observers(
    host: str,
    port: int,
    metrics: Metrics,
    not_ready: Callable[[], str | None],
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; started, tells the address.

    Args:
        host: where to listen.
        port: and the port, 0 for a free one.
        metrics: what ``/metrics`` shows.
        not_ready: why the worker is not ready to work, None when it is.
        task_status: told the address.

    Raises:
        OSError: it cannot listen there.
    """

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")  # that it answers at all is the health of the loop

    async def readyz(_: Request) -> Response:
        if reason := not_ready():
            return PlainTextResponse(f"not ready: {reason}\n", status_code=503)
        return PlainTextResponse("ready\n")

    app = Starlette(routes=[Route("/metrics", show_metrics), Route("/healthz", healthz), Route("/readyz", readyz)])
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


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        why = f"cannot serve metrics and health on {host}:{port} (http_host, http_port): {error.strerror or error}"
        raise OSError(why) from None
