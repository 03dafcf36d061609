"""A gateway process under test, and requests to it; tests/conftest.py makes the fixtures known to all tests.

Three fixtures start what the tests of the gateway need: :func:`nats` and :func:`gateway` are shared by the tests of a
module, which leave them as they are. :func:`own_nats` is for one test, which may stop, freeze or fill it.
"""

from __future__ import annotations

import http.client
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.patience import LAST_RESORT
from tests.servers import NatsServer, Program, wait_until
from worker.dev.stack import free_port


@dataclass(frozen=True)
class Response:
    """A response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


class Gateway(Program):
    """``queue-worker gateway`` on a free port of the loopback, settings by keyword."""

    def __init__(self, *, tmp_path: Path, **settings: object) -> None:
        self.port = int(str(settings.get("listen_port", 0))) or free_port()
        defaults = {"listen_host": "127.0.0.1", "listen_port": self.port}
        super().__init__("worker.cli", "gateway", tmp_path=tmp_path, settings=defaults | settings)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LAST_RESORT)

    def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Response:
        """Send one request on a connection of its own, with *target* unchanged in the request line."""
        connection = self.connection()
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            if method != "GET":
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body or None)
            response = connection.getresponse()
            return Response(response.status, response.headers, response.read())
        finally:
            connection.close()

    def queue(self, below: str, body: bytes = b"", **headers: str) -> Response:
        """POST to ``/async-function/<below>``; a header's name with underscores for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", f"/async-function/{below}", body, named)

    def healthy(self) -> bool:
        """Return whether the gateway listens."""
        try:
            return self.request("GET", "/healthz").status == 200
        except OSError:
            return False

    def ready(self) -> bool:
        """Return whether the gateway listens and is connected."""
        try:
            return self.request("GET", "/readyz").status == 200
        except OSError:
            return False

    def raw(self) -> socket.socket:
        """Open a connection without HTTP."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=LAST_RESORT)


@contextmanager
def gateway_on(nats: NatsServer, tmp_path: Path, **settings: object) -> Iterator[Gateway]:
    """Start a gateway and wait until it is ready."""
    with Gateway(tmp_path=tmp_path, nats_port=nats.port, **settings) as gateway:
        wait_until(gateway.ready, "the gateway to be ready")
        yield gateway
        gateway.terminate()
        with suppress(AssertionError):  # a killed process would lose what it counted of its coverage
            gateway.wait(5)


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """Start a server with the queue's stream, for tests that do not change it."""
    with NatsServer(tmp_path_factory.mktemp("nats")) as server:
        server.make_stream()
        yield server


@pytest.fixture
def own_nats(tmp_path: Path) -> Iterator[NatsServer]:
    """Start a server with the queue's stream, which one test may stop, freeze or fill."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


@pytest.fixture(scope="module")
def gateway(
    request: pytest.FixtureRequest, nats: NatsServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Start a gateway on :func:`nats`, with the module's ``GATEWAY_SETTINGS``; no test may make it fail."""
    settings = getattr(request.module, "GATEWAY_SETTINGS", {})
    with gateway_on(nats, tmp_path_factory.mktemp("gateway"), **settings) as started:
        yield started
        assert not re.search("[Tt]raceback|Request failed", started.output)
