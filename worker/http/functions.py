"""Invocations: HTTP requests to the gateway's ``/function/`` path."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import partial
from urllib.parse import unquote_to_bytes

import httpx
import trio
from msgspec.structs import replace

from ..model import Attempted, Invocation, Malformed, NoResponse, NotSent, Responded, StoredBody, TimedOut
from ..policy.redirect import REDIRECTS, clean_target
from ..ports import Bodies, BodyLostError, BrokerUnavailableError
from ..settings import Settings
from .client_pools import LIMITS, ClientPools, open_client_pools
from .failures import describe_failure, local_failure
from .http11 import UNRESERVED, Fields, ResponseParser, StreamedBody
from .names import open_names
from .result_memory import ResultMemory, ResultParser
from .transport import PlainTransport, open_transport


class HttpFunctions:
    """See :class:`worker.ports.Functions`.

    The gateway is near, so no proxy is used, whatever the environment names. Cookies have no place between a queue and
    a function, so requests and responses pass unchanged. Of redirects only one to the clean path is followed.
    """

    def __init__(self, settings: Settings, transport: PlainTransport | TlsTransport, bodies: Bodies) -> None:
        url = httpx.URL(settings.gateway_url)
        self._prefix, self._host = url.raw_path.rstrip(b"/"), (b"Host", url.netloc)
        self._origin = f"{url.scheme}://{url.netloc.decode('ascii')}"
        self._timeout, self._max_body = settings.upstream_timeout, settings.max_response_bytes
        self.results = ResultMemory(settings.max_results_bytes)
        self._transport, self._bodies = transport, bodies
        self._credentials = basic_auth(url.userinfo) if url.userinfo else None

    async def invoke(self, invocation: Invocation) -> Attempted | NotSent | Malformed:
        """See :meth:`worker.ports.Functions.invoke`."""
        deadline = trio.current_time() + self._timeout
        attempted = await self._attempt(invocation, self._prefix + invocation.target)
        if not (isinstance(attempted, Responded) and attempted.status in REDIRECTS):
            return attempted
        if (clean := self._clean_target(invocation, attempted)) is None:
            return attempted
        if attempted.release:
            attempted.release()
        with trio.move_on_at(deadline):
            attempted = await self._attempt(invocation, clean)
            return replace(attempted, redirected=True) if isinstance(attempted, Responded) else attempted
        return TimedOut(self._timeout)

    async def _attempt(self, invocation: Invocation, target: bytes) -> Attempted | NotSent | Malformed:
        """Send the request once. The memory of a result is counted until its release."""
        method = invocation.method.upper()
        if invocation.callback is None:
            return await self._exchange(
                invocation, method, target, ResponseParser(method, self._max_body, keep_body=False)
            )
        response = ResultParser(method, self._max_body, self.results)
        attempted: Attempted | NotSent | Malformed | None = None
        try:
            attempted = await self._exchange(invocation, method, target, response)
        finally:
            if response.reservation and not isinstance(attempted, Responded):
                response.reservation.release()
        if response.reservation and isinstance(attempted, Responded):
            response.reservation.shrink(len(attempted.body))
            return replace(attempted, release=response.reservation.release)
        return attempted

    async def _exchange(
        self, invocation: Invocation, method: str, target: bytes, response: ResponseParser
    ) -> Attempted | NotSent | Malformed:
        fields = [self._host, *invocation.headers]
        if self._credentials and not any(name.lower() == b"authorization" for name, _ in invocation.headers):
            fields.append((b"Authorization", self._credentials))
        try:
            if (stored := invocation.stored_body) is None:
                await self._transport.exchange(method, target, fields, invocation.body, response)
            else:
                async with self._bodies.read(stored) as parts:
                    await self._transport.exchange(method, target, fields, StreamedBody(stored.size, parts), response)
        except trio.TooSlowError:
            return TimedOut(self._timeout)
        except BodyLostError as error:
            return Malformed(str(error))
        except BrokerUnavailableError as error:
            return NotSent(f"the body cannot be read: {error}")
        except (httpx.TransportError, OSError) as error:
            if local := local_failure(error):
                return NotSent(f"this machine could not connect: {local}")
            return NoResponse(describe_failure(error))
        body = bytes(response.body)
        response.body.clear()  # now, so that memory holds a result once
        return Responded(response.status, tuple(response.headers), body, response.size, response.truncated)

    def _clean_target(self, invocation: Invocation, response: Responded) -> bytes | None:
        """Return the target of a redirect to the same path, but clean; None for any other redirect."""
        location = next((value for name, value in response.headers if name.lower() == b"location"), b"")
        root = f"{self._prefix.decode('ascii')}/function/{invocation.function}"
        requested = f"{self._origin}{self._prefix.decode('ascii')}{invocation.target.decode('ascii')}"
        clean = clean_target(requested, root, location.decode("latin-1"))
        return None if clean is None else clean.encode("ascii")


def basic_auth(userinfo: bytes) -> bytes:
    """Return the value of an Authorization header (RFC 7617) for the part of a URL before the ``@``."""
    user, _, password = userinfo.partition(b":")
    return b"Basic " + b64encode(unquote_to_bytes(user) + b":" + unquote_to_bytes(password))


class TlsTransport:
    """Client for an https URL, through httpx. It does the same as :class:`PlainTransport`."""

    def __init__(self, url: httpx.URL, pools: ClientPools[httpx.AsyncHTTPTransport], exchange_timeout: float) -> None:
        self._url, self._pools, self._timeout = url, pools, exchange_timeout

    async def exchange(
        self, method: str, target: bytes, fields: Fields, body: bytes | StreamedBody, response: ResponseParser
    ) -> None:
        """See :meth:`PlainTransport.exchange`."""
        content: bytes | AsyncIterator[bytes]
        if isinstance(body, bytes):
            content = body
        else:
            fields, content = [*fields, (b"Content-Length", b"%d" % len(body))], body.parts
        request = httpx.Request(method, self._url, headers=fields, content=content, extensions={"target": target})
        with trio.fail_after(self._timeout) as scope:
            async with self._pools.client("") as client, aclosing(await client.handle_async_request(request)) as answer:
                response.status, response.headers = answer.status_code, answer.headers.raw
                async for part in answer.aiter_raw():
                    response.on_body(part)
                    if response.size > UNRESERVED and not response.reserve((memory := trio.Event()).set):
                        left, scope.deadline = scope.deadline - trio.current_time(), math.inf
                        await memory.wait()
                        scope.deadline = trio.current_time() + left
                    if response.complete:  # truncated
                        break


class NoBodies:
    """See :class:`worker.ports.Bodies`: there is no object store."""

    @asynccontextmanager
    async def read(self, body: StoredBody) -> AsyncIterator[AsyncIterator[bytes]]:
        """See :meth:`worker.ports.Bodies.read`."""
        raise BodyLostError(f"there is no object store: {body.name}")
        yield


@asynccontextmanager
async def open_functions(settings: Settings, bodies: Bodies | None = None) -> AsyncIterator[HttpFunctions]:
    """Open :class:`HttpFunctions`, and close their connections at the end. *bodies*: none where messages have none."""
    bodies = bodies or NoBodies()
    url = httpx.URL(settings.gateway_url)
    if url.scheme == "http":
        host, port, timeout = url.raw_host.decode("ascii"), url.port or 80, settings.upstream_timeout
        async with open_transport(host, port, max_idle=settings.max_inflight, exchange_timeout=timeout) as transport:
            yield HttpFunctions(settings, transport, bodies)
    else:
        context = httpx.create_ssl_context()
        port, transports = url.port or 443, partial(httpx.AsyncHTTPTransport, verify=context, limits=LIMITS)
        async with (
            open_names(url.raw_host.decode("ascii"), port),
            open_client_pools(lambda _: transports(), max_per_origin=settings.max_inflight) as pools,
        ):
            yield HttpFunctions(settings, TlsTransport(url, pools, settings.upstream_timeout), bodies)
