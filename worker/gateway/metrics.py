"""The producer's metrics. Labels have values of this module only, and statuses, so callers cannot add series."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from time import monotonic
from typing import Any

import prometheus_client
from prometheus_client import CollectorRegistry, Gauge, Info, ProcessCollector, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from .connections import Connections
from .overload import LIMITS
from .routes import INTERNAL, ROUTES, route_class

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

    def __init__(
        self,
        connections: Connections,
        connected: Callable[[], bool],
        limited: Mapping[str, int],
        without_annotations: Callable[[], int],
        *,
        passes_on: bool,
    ) -> None:
        self._passed_back = ("function", "other") if passes_on else ("function",)
        """Routes whose answers are those of other servers, unless they are marked."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no types here
        self.registry = CollectorRegistry()

        def metric(kind: Callable[..., Any], name: str, text: str, *labels: str, **options: Any) -> Any:
            return kind(f"queue_worker_gateway_{name}", text, labels, registry=self.registry, **options)

        # This is the order of the table in docs/operations.md.
        self._by_route = {route: _RouteCounts() for route in ROUTES}
        self._queued = self._repeated = 0
        self.registry.register(_RouteCollector(self._by_route, lambda: (self._queued, self._repeated)))
        self._rejected = metric(
            prometheus_client.Counter, "rejected", "Requests rejected by the gateway itself", "reason"
        )
        nats = metric(Gauge, "nats_connected", "1 while connected to NATS")
        nats.set_function(lambda: float(connected()))
        metric(Info, "build", "The version that runs").info({"version": __version__})
        self.registry.register(_ConnectionCollector(connections))
        self.registry.register(_CallCollector(limited, without_annotations))
        ProcessCollector(registry=self.registry)

    def render(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self.registry)

    def counted(self, app: ASGIApp) -> ASGIApp:
        """Return *app* with its requests counted."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            route, began, status = route_class(scope["raw_path"].decode("ascii")), monotonic(), 0
            counts = self._by_route[route]

            async def send_counted(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    if status >= 400:
                        self._count_rejected(route, status, message["headers"])
                    elif status == 202 and route == "async-function":
                        repeated = any(name == b"idempotent-replayed" for name, _ in message["headers"])
                        self._repeated += repeated
                        self._queued += not repeated
                await send(message)

            counts.inflight += 1
            try:
                await app(scope, receive, send_counted)
            finally:
                counts.inflight -= 1
                counts.add(status, monotonic() - began)

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


class _RouteCounts:
    """The numbers of one route. The library's own counters take a lock for each change."""

    __slots__ = ("by_bucket", "by_status", "inflight", "seconds")

    def __init__(self) -> None:
        self.inflight = 0
        self.by_status: dict[int, int] = {}
        self.by_bucket = [0] * (len(_BUCKETS) + 1)
        self.seconds = 0.0

    def add(self, status: int, seconds: float) -> None:
        """Count an answer."""
        self.by_status[status] = self.by_status.get(status, 0) + 1
        self.by_bucket[bisect_left(_BUCKETS, seconds)] += 1
        self.seconds += seconds


class _RouteCollector(Collector):
    """The series of requests by route, and of calls that were queued or repeated."""

    def __init__(self, by_route: Mapping[str, _RouteCounts], calls: Callable[[], tuple[int, int]]) -> None:
        self._by_route, self._calls = by_route, calls

    def collect(self) -> Iterator[Metric]:
        prefix = "queue_worker_gateway_"
        requests = CounterMetricFamily(f"{prefix}requests", "Requests answered, by status", labels=["route", "code"])
        text = "From a request's header to its answer"
        duration = HistogramMetricFamily(f"{prefix}request_duration_seconds", text, labels=["route"])
        inflight = GaugeMetricFamily(f"{prefix}requests_inflight", "Requests being answered", labels=["route"])
        for route, counts in self._by_route.items():
            by_code = Counter[str]()
            for status, count in counts.by_status.items():
                by_code[code_label(status)] += count
            for code, count in sorted(by_code.items()):
                requests.add_metric([route, code], count)
            bounds = [*map(str, map(float, _BUCKETS)), "+Inf"]
            duration.add_metric([route], [*zip(bounds, accumulate(counts.by_bucket), strict=True)], counts.seconds)
            inflight.add_metric([route], counts.inflight)
        yield from (requests, duration, inflight)
        queued, repeated = self._calls()
        yield CounterMetricFamily(f"{prefix}queued", "Calls stored in the queue, without repeats", queued)
        yield CounterMetricFamily(f"{prefix}repeated", "Repeated calls, which are not queued again", repeated)


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


class _CallCollector(Collector):
    """The series of calls that limits rejected, or whose function was not known, read when Prometheus asks."""

    def __init__(self, limited: Mapping[str, int], without_annotations: Callable[[], int]) -> None:
        self._limited, self._without_annotations = limited, without_annotations

    def collect(self) -> Iterator[Metric]:
        prefix = "queue_worker_gateway_"
        limited = CounterMetricFamily(f"{prefix}limited", "Calls rejected with 429, by setting", labels=["limit"])
        for limit in LIMITS:
            limited.add_metric([limit], self._limited.get(limit, 0))
        yield limited
        text = "Calls that were queued while the annotations of their function were not known"
        yield CounterMetricFamily(f"{prefix}without_annotations", text, self._without_annotations())
