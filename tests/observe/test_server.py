"""Metrics and health, over HTTP."""

from __future__ import annotations

from functools import partial

import httpx
import pytest
import trio

from worker.config import load
from worker.observe.metrics import Metrics
from worker.observe.server import serve_observers


async def test_health_readiness_and_metrics() -> None:
    """/healthz answers always, /readyz with the reason while not ready, /metrics in Prometheus' format."""
    reason: str | None = "draining"
    serve = partial(serve_observers, "127.0.0.1", 0, Metrics(load({}).settings, "pod"), lambda: reason)
    async with trio.open_nursery() as nursery:
        url = f"http://{await nursery.start(serve)}"
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/healthz")).status_code == 200
            answer = await client.get("/readyz")
            assert (answer.status_code, answer.text) == (503, "not ready: draining\n")
            reason = None
            assert (await client.get("/readyz")).status_code == 200
            metrics = await client.get("/metrics")
            assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert "queue_worker_nats_reconnect_total 0.0" in metrics.text
            assert (await client.get("/nothing")).status_code == 404
            assert (await client.post("/metrics")).status_code == 405
        nursery.cancel_scope.cancel()


async def test_a_port_in_use_is_an_error_that_names_it() -> None:
    """The worker does not run unseen."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    expected = rf"on 127.0.0.1:{port} \(http_host, http_port\): .*in use"
    with pytest.raises(OSError, match=expected):
        await serve_observers("127.0.0.1", port, Metrics(load({}).settings, "pod"), lambda: None)
    await listener.aclose()
