"""The HTTP server for metrics and health."""

from __future__ import annotations

import errno
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import httpx
import pytest
import trio

from tests.patience import LAST_RESORT
from worker import events as e
from worker.cli.assemble import join_slices
from worker.config import load
from worker.model import Invocation
from worker.observe import connections as module
from worker.observe.listeners import listen
from worker.observe.metrics import Metrics
from worker.observe.server import serve_observers


class Worker:
    """A worker whose health a test sets."""

    dead_reason: str | None = None
    busy_reason: str | None = None

    text = ""
    renderings = 0

    async def metrics(self) -> str:
        self.renderings += 1
        return self.text or "".join(Metrics(load({}).settings, "pod").slices())

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


async def test_server_cancelled_at_once_ends() -> None:
    """A server that is cancelled while it begins to accept connections ends."""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_observers, "127.0.0.1", 0, Worker()))
        nursery.cancel_scope.cancel()


async def test_server_on_the_unspecified_ipv6_address_serves_ipv4_too() -> None:
    """``http_host=::`` means all addresses of both families: probes come to the address of the pod."""
    async with trio.open_nursery() as nursery:
        address = await nursery.start(partial(serve_observers, "::", 0, Worker()))
        port = address.rpartition(":")[2]
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


@asynccontextmanager
async def serving(worker: Worker) -> AsyncIterator[int]:
    """Serve *worker* on the loopback, and yield the port."""
    async with trio.open_nursery() as nursery:
        address: str = await nursery.start(partial(serve_observers, "127.0.0.1", 0, worker))
        yield int(address.rpartition(":")[2])
        nursery.cancel_scope.cancel()


async def test_silent_connections_leave_room_for_a_probe() -> None:
    """Each connection above the limit closes the oldest, so a probe is answered beside any number of silent ones."""
    async with serving(Worker()) as port:
        silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(module.MAX_CONNECTIONS + 20)]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/healthz")).status_code == 200
        with suppress(trio.BrokenResourceError):
            assert await silent[0].receive_some(1) == b""
        for stream in silent:
            await stream.aclose()


async def test_scraper_that_does_not_read_does_not_delay_the_end() -> None:
    """The server ends when it is cancelled, although a client reads nothing of a long answer."""
    worker = Worker()
    worker.text = "x" * 20_000_000
    async with serving(worker) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        while not worker.renderings:  # noqa: ASYNC110 -- the server has no event for it
            await trio.sleep(0.01)
    await stream.aclose()


async def test_scraper_that_does_not_read_is_closed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that does not read an answer within SEND_TIMEOUT loses its connection."""
    monkeypatch.setattr(module, "SEND_TIMEOUT", 0.05)
    worker = Worker()
    worker.text = "x" * 20_000_000
    async with serving(worker) as port:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
        await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        size = 0
        await trio.sleep(0.5)
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some(1_000_000):
                size += len(data)
        assert size < len(worker.text)
        await stream.aclose()


async def test_twenty_scrapers_leave_the_loop_to_others() -> None:
    """Twenty scrapers of 2,000 functions share renderings, and another task runs between all slices of each."""
    metrics = Metrics(load({}).settings, "pod")
    for number in range(2_000):
        invocation = Invocation("c", "f", f"f{number}.fn", "POST", b"/function/f", (), b"", {}, None, "1")
        metrics(e.InvocationStarted(invocation, 1, 0.5))
    passes = rendered = slices = 0

    class Busy(Worker):
        async def metrics(self) -> str:
            nonlocal rendered, slices
            rendered += 1
            slices += sum(1 for _ in metrics.slices())
            return await join_slices(metrics)

    async def invoke() -> None:
        nonlocal passes
        while True:
            passes += 1
            await trio.lowlevel.checkpoint()

    async with serving(Busy()) as port, trio.open_nursery() as nursery:
        nursery.start_soon(invoke)
        async with trio.open_nursery() as scrapers:
            for _ in range(20):
                scrapers.start_soon(partial(_scrape, port))
        nursery.cancel_scope.cancel()
    assert rendered <= 4
    assert passes >= slices


async def _scrape(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LAST_RESORT) as client:
        for _ in range(2):
            assert "queue_worker_build_info" in (await client.get("/metrics")).text


def _has_ipv6() -> bool:
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "localhost"])
def test_listen_on_all_addresses_accepts_both_families(host: str) -> None:
    """The default address, and a name with several addresses, accept connections by IPv4 and by IPv6 on one port."""
    sockets = listen(host, 0)
    port = sockets[0].getsockname()[1]
    families = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}
    for family in {each.family for each in sockets}:
        socket.create_connection((families[family], port)).close()
    assert len(sockets) == 2 or host == "localhost"
    for each in sockets:
        each.close()


def test_listen_without_ipv6_uses_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without IPv6 the default address is IPv4's alone."""
    create = socket.create_server

    def without_ipv6(address: tuple[str, int], *, family: int, backlog: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create(address, family=family, backlog=backlog)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    (only,) = listen("0.0.0.0", 0)
    assert only.family == socket.AF_INET
    only.close()


def test_listen_on_an_unknown_name_names_the_reason() -> None:
    """A name without an address is an error with the reason."""
    with pytest.raises(OSError, match=r".+"):
        listen("256.0.0.1", 0)
