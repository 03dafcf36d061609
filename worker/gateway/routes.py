"""The producer's paths: its own, and what ``proxy_all`` passes on. Around them are CORS and the count of requests."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .app import ASYNC, SYNC
from .authentication import Authentication

HEALTH = ("/healthz", "/readyz")
METRICS = "/metrics"
INTERNAL = {"X-OpenFaaS-Internal": "queue-worker"}
"""Marks an answer that is the producer's own, on paths whose answers are passed back."""
_EXPOSED = (
    *("X-Call-Id", "X-Start-Time", "X-Duration-Seconds", "Idempotent-Replayed", "Location", "Retry-After"),
    "X-OpenFaaS-Internal",
)
"""Headers of responses that a script may read besides the usual ones."""
_PREFLIGHT_AGE = 600
"""Seconds for which a browser keeps the answer to a preflight request: as Starlette does by default."""


ROUTES = ("async-function", "function", "own", "other")
"""The classes of paths."""


def route_class(target: str) -> str:
    """Return the class of a path: the label ``route`` of metrics."""
    if target.startswith(ASYNC):
        return "async-function"
    if target.startswith(SYNC):
        return "function"
    return "own" if target in HEALTH or target == METRICS else "other"


class Router:
    """The application for all paths: *gateway* for its own, *metrics* for ``/metrics``, and *api* for all others."""

    def __init__(self, gateway: ASGIApp, metrics: ASGIApp, api: ASGIApp | None) -> None:
        self._gateway, self._metrics, self._api = gateway, metrics, api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        target = scope["raw_path"].decode("ascii")
        app = self._gateway
        if target == METRICS:
            app = self._metrics
        elif self._api is not None and route_class(target) == "other":
            app = self._api
        if app is self._gateway:
            await app(scope, receive, send)
            return
        try:
            await app(scope, receive, send)
        except HTTPException as rejection:
            headers = dict(rejection.headers or {}) | INTERNAL
            response = PlainTextResponse(f"{rejection.detail}\n", rejection.status_code, headers)
            await response(scope, receive, send)


def public_metrics(metrics: ASGIApp, authentication: Authentication, *, local: bool) -> ASGIApp:
    """Return the application for ``/metrics`` where callers come from: for authenticated ones, or if it is *local*."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if not local and not authentication.required:
            raise HTTPException(404, "metrics are served on metrics_port; here only where callers authenticate")
        if not local:
            authentication.check(scope["headers"])
        await metrics(scope, receive, send)

    return serve


def for_observers(gateway: ASGIApp, metrics: ASGIApp) -> ASGIApp:
    """Return the application of the port for Prometheus and the kubelet: metrics and health only."""
    unknown = PlainTextResponse("no such path: there are /metrics, /healthz and /readyz\n", 404)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        target = scope["raw_path"].decode("ascii")
        app = metrics if target == METRICS else gateway if target in HEALTH else unknown
        await app(scope, receive, send)

    return serve


def with_cors(app: ASGIApp, origins: tuple[str, ...]) -> ASGIApp:
    """Let scripts of *origins* read the answers of *app*, and answer their preflight requests.

    Requests of other origins are left as they are: a function may have rules of its own.
    """
    if not origins:
        return app
    cors = CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"),
        allow_headers=("*",),
        expose_headers=_EXPOSED,
        max_age=_PREFLIGHT_AGE,
    )
    allowed = {origin.encode() for origin in origins}

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        origin = next((value for name, value in scope["headers"] if name == b"origin"), None)
        known = origin is not None and (origin in allowed or b"*" in allowed)
        await (cors if known else app)(scope, receive, send)

    return serve
