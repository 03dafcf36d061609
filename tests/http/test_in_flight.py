"""Two thousand exchanges in flight at once: plain, over TLS, and callbacks."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import trio
import trustme
from trio.testing import MockClock

from tests.http.invocations import invocation
from tests.http.server import LOOPBACK, OK, Script, Server, Stream, ignore, serving
from tests.servers import ROOT
from worker.config import load
from worker.http.callbacks import MAX_PER_RECEIVER, open_callbacks
from worker.http.functions import open_functions
from worker.model import Callback, Responded
from worker.settings import Settings

MANY = 2000


@pytest.fixture(autouse=True)
def _no_timeouts(mock_clock: MockClock) -> None:
    """Stop the clock, so that no timeout passes on a busy machine."""


@pytest.fixture(autouse=True)
def _enough_files() -> Iterator[None]:
    """Allow for both ends of each connection, which this process has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 3 * MANY)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def all_together(number: int) -> Script:
    """Return a script that answers no request before *number* have arrived, then each."""
    all_arrived = trio.Event()

    async def script(server: Server, stream: Stream) -> None:
        while await server.read(stream):
            if len(server.requests) == number:
                all_arrived.set()
            await all_arrived.wait()
            await stream.send_all(OK)

    return script


async def _at_once(number: int, do: Callable[[], Awaitable[object]]) -> list[object]:
    results: list[object] = []

    async def one() -> None:
        results.append(await do())

    async with trio.open_nursery() as nursery:
        for _ in range(number):
            nursery.start_soon(one)
    return results


def _settings(gateway: str) -> Settings:
    return load({"gateway_url": gateway, "max_inflight": str(MANY)}).settings


async def test_invoke_two_thousand_times_at_once() -> None:
    """Two thousand requests arrive before the first response, and the next two thousand reuse the connections."""
    async with (
        serving(all_together(MANY)) as server,
        open_functions(_settings(f"http://127.0.0.1:{server.port}")) as functions,
    ):
        for _ in range(2):
            results = await _at_once(MANY, lambda: functions.invoke(invocation()))
            assert results == [Responded(200, ((b"Content-Length", b"2"),), b"", 2, False)] * MANY
        assert server.connections == MANY


@pytest.fixture
def tls_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Yield the URL of a TLS server that answers after MANY requests; its certificate is trusted."""
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "cert.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0), backlog=MANY) as listener:
        arguments = [str(listener.fileno()), str(tmp_path / "cert.pem"), str(MANY)]
        command = [sys.executable, "-m", "tests.http.tls_server", *arguments]
        server = subprocess.Popen(command, pass_fds=[listener.fileno()], cwd=ROOT)
        port = listener.getsockname()[1]
    yield f"https://127.0.0.1:{port}"
    server.kill()
    server.wait()


async def test_invoke_two_thousand_times_at_once_over_tls(tls_gateway: str) -> None:
    """Two thousand requests over TLS arrive before the first response, because each connection has its own client."""
    async with open_functions(_settings(tls_gateway)) as functions:
        results = await _at_once(MANY, lambda: functions.invoke(invocation()))
        assert results == [Responded(200, ((b"Content-Length", b"2"),), b"", 2, False)] * MANY


async def test_post_two_thousand_callbacks_at_once() -> None:
    """Two thousand callbacks are posted, of which those to one receiver share MAX_PER_RECEIVER connections."""
    async with (
        serving(all_together(MAX_PER_RECEIVER)) as server,
        open_callbacks(load(LOOPBACK).settings, ignore) as callbacks,
    ):
        url = f"http://127.0.0.1:{server.port}/"
        assert await _at_once(MANY, lambda: callbacks.post(Callback(url, (), b"x"))) == [200] * MANY
        assert (server.connections, len(server.requests)) == (MAX_PER_RECEIVER, MANY)
