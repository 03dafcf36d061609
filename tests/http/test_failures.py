"""Causes of errors: what a log line has to name, on real TLS connections."""

from __future__ import annotations

import datetime as dt
import errno
import itertools
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
import trustme

from tests.http.invocations import invocation
from tests.http.server import LOOPBACK, Server, Stream, ignore, serving
from worker.config import load
from worker.http.callbacks import open_callbacks
from worker.http.failures import describe_failure, local_failure
from worker.http.functions import open_functions
from worker.model import Callback, NoResponse

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@asynccontextmanager
async def _tls_server(certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """Run a server with this certificate, and yield its port."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def handshake(stream: trio.SocketStream) -> None:
        tls = trio.SSLStream(stream, context, server_side=True)
        try:
            await tls.do_handshake()
        except trio.BrokenResourceError:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handshake, 0, host="127.0.0.1"))
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("expired", "the certificate is not valid: certificate has expired"),
        ("unknown authority", "the certificate is not valid: unable to get local issuer certificate"),
        (
            "another host",
            "the certificate is not valid: IP address mismatch, certificate is not valid for '127.0.0.1'.",
        ),
    ],
)
async def test_tls_failure_names_its_cause(
    kind: str, cause: str, monkeypatch: pytest.MonkeyPatch, tmp_path: str
) -> None:
    """An invalid certificate is named with its reason, for callbacks and for an https gateway_url."""
    authority, stranger = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(f"{tmp_path}/ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", f"{tmp_path}/ca.pem")
    issuer = stranger if kind == "unknown authority" else authority
    expires = LONG_AGO if kind == "expired" else None
    certificate = issuer.issue_cert("example.com" if kind == "another host" else "127.0.0.1", not_after=expires)
    async with _tls_server(certificate) as port:
        url = f"https://127.0.0.1:{port}"
        async with open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
            assert await callbacks.post(Callback(f"{url}/cb", (), b"")) == cause
        async with open_functions(load({"gateway_url": url}).settings) as functions:
            assert await functions.invoke(invocation()) == NoResponse(cause)


async def test_tls_to_a_plain_server_names_its_cause() -> None:
    """A server that does not speak TLS is named as that."""

    async def script(_: Server, stream: Stream) -> None:
        await stream.receive_some(1)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving(script) as server, open_callbacks(load(LOOPBACK).settings, ignore) as callbacks:
        result = await callbacks.post(Callback(f"https://127.0.0.1:{server.port}/", (), b""))
    assert result in ("TLS failed: wrong version number", "TLS failed: record layer failure")


def _chain(*errors: BaseException) -> BaseException:
    """Return the first error, each caused by the next."""
    for outer, inner in itertools.pairwise(errors):
        outer.__cause__ = inner
    return errors[0]


def test_describe_failure_without_text_names_the_inner_error() -> None:
    """The reason of the operating system is added to the first text of a chain; without any text the type is left."""
    refused = OSError(errno.ECONNREFUSED, "Connection refused")
    assert describe_failure(_chain(httpx.ConnectError(""), refused)) == "[Errno 111] Connection refused"
    assert describe_failure(_chain(httpx.ConnectError("no way"), refused)) == "no way: Connection refused"
    grouped = _chain(httpx.ConnectError("no way"), ExceptionGroup("all", [ValueError(), refused]))
    assert describe_failure(grouped) == "no way: Connection refused"
    assert describe_failure(httpx.ReadError("")) == "ReadError"
    loop = httpx.ReadError("")
    loop.__cause__ = loop
    assert describe_failure(loop) == "ReadError"


@pytest.mark.parametrize(
    "inner",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address"),
        socket.gaierror(socket.EAI_MEMORY, "Memory allocation failure"),
        socket.gaierror(socket.EAI_SYSTEM, "System error"),
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"),
        RuntimeError("can't start new thread"),
    ],
)
def test_local_failure_is_found_in_the_chain(inner: Exception) -> None:
    """A lack of descriptors, ports, memory, threads or name servers is this machine's, anywhere in the chain."""
    grouped = _chain(httpx.ConnectError("x"), OSError("y"), ExceptionGroup("all", [OSError(111, "refused"), inner]))
    assert local_failure(grouped) is not None
    assert local_failure(inner) is not None


@pytest.mark.parametrize(
    "inner",
    [
        OSError(errno.ECONNREFUSED, "refused"),
        socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
        socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"),
        socket.gaierror(socket.EAI_ADDRFAMILY, "Address family for hostname not supported"),
        socket.gaierror(socket.EAI_FAMILY, "ai_family not supported"),
        socket.gaierror(socket.EAI_SERVICE, "Servname not supported for ai_socktype"),
        socket.gaierror(socket.EAI_SOCKTYPE, "ai_socktype not supported"),
        socket.gaierror(socket.EAI_BADFLAGS, "Bad value for ai_flags"),
        socket.gaierror(socket.EAI_OVERFLOW, "Argument buffer overflow"),
        UnicodeError("label too long"),
        ssl.SSLError(1, "x"),
        RuntimeError("x"),
    ],
)
def test_local_failure_of_another_machine_is_none(inner: BaseException) -> None:
    """Refusals, unknown names and TLS errors are not this machine's."""
    assert local_failure(_chain(httpx.ConnectError("x"), inner)) is None
