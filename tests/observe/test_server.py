"""The HTTP server for metrics and health."""

from __future__ import annotations

from functools import partial

import httpx
import pytest
import trio

from worker.config import load
from worker.observe.metrics import Metrics
from worker.observe.server import serve_observers


class Worker:
    """A worker whose health a test sets."""

    dead_reason: str | None = None
    busy_reason: str | None = None

    async def metrics(self) -> str:
        return Metrics(load({}).settings, "pod").render_text().decode()

    async def not_alive(self) -> str | None:
        return self.dead_reason

    async def not_ready(self) -> str | None:
        return self.busy_reason


async def test_server_reports_health_readiness_and_metrics() -> None:
    """/healthz and /readyz independently return 200, or 503 with the reason; /metrics has Prometheus' format."""
    worker = Worker()
    serve = partial(serve_observers, "127.0.0.1", 0, worker)
    async with trio.open_nursery() as nursery:
        url = f"http://{await nursery.start(serve)}"
        async with httpx.AsyncClient(base_url=url) as client:
            for path, good, bad in (("/healthz", "ok", "not alive"), ("/readyz", "ready", "not ready")):
                worker.dead_reason = worker.busy_reason = None
                answer = await client.get(path)
                assert (answer.status_code, answer.text) == (200, f"{good}\n")
                setattr(worker, {"/healthz": "busy_reason", "/readyz": "dead_reason"}[path], "the other")
                assert (await client.get(path)).status_code == 200
                worker.dead_reason = worker.busy_reason = "a reason"
                answer = await client.get(path)
                assert (answer.status_code, answer.text) == (503, f"{bad}: a reason\n")
            metrics = await client.get("/metrics")
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert "queue_worker_nats_reconnect_total 0.0" in metrics.text
            assert (await client.get("/nothing")).status_code == 404
            assert (await client.post("/metrics")).status_code == 405
        nursery.cancel_scope.cancel()


async def test_server_on_the_unspecified_ipv6_address_serves_ipv4_too() -> None:
    """``http_host=::`` means all addresses of both families: probes come to the address of the pod."""
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(serve_observers, "::", 0, Worker()))
        host, _, port = address.rpartition(":")
        assert host == "[::]"
        async with httpx.AsyncClient() as client:
            for each in ("127.0.0.1", "[::1]"):
                assert (await client.get(f"http://{each}:{port}/healthz")).status_code == 200
        nursery.cancel_scope.cancel()


async def test_server_on_a_used_port_fails_with_its_address() -> None:
    """A port that is in use raises an error with the address and the settings, so that the worker does not start."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    expected = rf"on 127.0.0.1:{port} \(http_host, http_port\): .*in use"
    with pytest.raises(OSError, match=expected):
        await serve_observers("127.0.0.1", port, Worker())
    await listener.aclose()
