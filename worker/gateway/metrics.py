"""The producer's metrics. Labels have values of this module only, and statuses, so callers cannot add series."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from .connections import Connections
from .routes import INTERNAL, route_class

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds: a call is queued in a few milliseconds, and a function answers within upstream_timeout, a minute."""
REASONS = {
    401: "unauthenticated",
    404: "unknown",
    405: "method",
    408: "slow",
    413: "too-large",
    414: "too-large",
    422: "call-id-reused",
    429: "too-many",
    431: "too-large",
    502: "no-answer",
    503: "unavailable",
    504: "no-answer",
    508: "loop",
}
"""Reasons for which the producer itself rejects a request, by status. All others are invalid requests."""
_OWN_HEADERS = [(name.lower().encode(), value.encode()) for name, value in INTERNAL.items()]


class GatewayMetrics:
    """All series of one producer."""

    def __init__(self, connections: Connections, connected: Callable[[], bool], *, passes_on: bool) -> None:
        self._passed_back = ("function", "other") if passes_on else ("function",)
        """Routes whose answers are those of other servers, unless they are marked."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here
        self.registry = CollectorRegistry()

        def metric(kind: Callable[..., Any], name: str, text: str, *labels: str, **options: Any) -> Any:
            return kind(f"queue_worker_gateway_{name}", text, labels, registry=self.registry, **options)

        # This is the order of the table in docs/operations.md.
        self._requests = metric(Counter, "requests", "Requests answered, by status", "route", "code")
        self._duration = metric(
            Histogram, "request_duration_seconds", "From a request's header to its answer", "route", buckets=_BUCKETS
        )
        self._inflight = metric(Gauge, "requests_inflight", "Requests being answered", "route")
        self._queued = metric(Counter, "queued", "Calls stored in the queue, without repeats")
        self._repeated = metric(Counter, "repeated", "Repeated calls, which are not queued again")
        self._rejected = metric(Counter, "rejected", "Requests rejected by the gateway itself", "reason")
        nats = metric(Gauge, "nats_connected", "1 while connected to NATS")
        nats.set_function(lambda: float(connected()))
        metric(Info, "build", "The version that runs").info({"version": __version__})
        self.registry.register(_ConnectionCollector(connections))
        ProcessCollector(registry=self.registry)

    def render(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self.registry)

    def counted(self, app: ASGIApp) -> ASGIApp:
        """Return *app* with its requests counted."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            route, began, status = route_class(scope["raw_path"].decode("ascii")), monotonic(), 0

            async def send_counted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    if status >= 400:
                        self._count_rejected(route, status, message["headers"])
                    elif status == 202 and route == "async-function":
                        repeated = any(name == b"idempotent-replayed" for name, _ in message["headers"])
                        (self._repeated if repeated else self._queued).inc()
                await send(message)

            inflight = self._inflight.labels(route)
            inflight.inc()
            try:
                await app(scope, receive, send_counted)
            finally:
                inflight.dec()
                self._requests.labels(route, code_label(status)).inc()
                self._duration.labels(route).observe(monotonic() - began)

        return serve

    def _count_rejected(self, route: str, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        passed_back = route in self._passed_back and not any(each in _OWN_HEADERS for each in headers)
        if not passed_back:
            self._rejected.labels(REASONS.get(status, "invalid")).inc()


def code_label(status: int) -> str:
    """Return the label of a status. ``none`` is a request without an answer, because its caller was gone."""
    return str(status) if 100 <= status <= 599 else "none" if status == 0 else "other"


def serve_metrics(metrics: GatewayMetrics) -> ASGIApp:
    """Return the application for ``/metrics``."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(metrics.render(), media_type=CONTENT_TYPE)(scope, receive, send)

    return serve


class _ConnectionCollector(Collector):
    """The series of the connections, read from them when Prometheus asks."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def collect(self) -> Iterator[Metric]:
        prefix, connections = "queue_worker_gateway_", self._connections
        opened = GaugeMetricFamily(f"{prefix}connections", "Open connections of callers, by state", labels=["state"])
        for state, count in connections.count().items():
            opened.add_metric([state], count)
        yield opened
        yield CounterMetricFamily(
            f"{prefix}connections_closed", "Connections closed for a new one, at max_connections", connections.closed
        )
        bad = CounterMetricFamily(
            f"{prefix}invalid_requests", "Requests rejected before their path was read, by status", labels=["code"]
        )
        for status, count in sorted(connections.rejected.items()):
            bad.add_metric([str(status)], count)
        yield bad
