"""Callbacks: results are posted to any http or https URL that a caller named, if the rules allow its receiver.

httpcore sends them, the library below httpx: only there the address of a connection can be checked.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache, partial

import httpcore
import httpx
import trio

from ..model import Busy, Callback, Headers, PostResult, Refused
from ..policy.callback_access import CallbackAccess
from ..policy.proxies import Proxies, read_proxies
from ..policy.receiver_patterns import ReceiverPatterns
from ..policy.signature import WEBHOOK_ID, BodySignatures, sign
from ..ports import Bodies, BrokerUnavailableError, Emit
from ..settings import Settings
from .callback_keys import CallbackKeys
from .client_pools import CLOSE_TIMEOUT, ClientPools, open_client_pools
from .failures import describe_failure
from .functions import NoBodies, basic_auth
from .receiver_network import ReceiverNetwork, ReceiverRefusedError
from .transport import MAX_IDLE

MAX_PER_RECEIVER = 256
"""Concurrent callbacks to one receiver: common web servers accept this many (nginx: 512 connections a process).

A slow receiver delays only its own callbacks beyond this number, each by up to ``callback_timeout``. The callbacks of
all receivers together are bounded by :mod:`worker.policy.receivers`.
"""
_MAX_DRAINED = 65_536
"""Bytes of a response that are read so that its connection can be reused; with more the connection is closed."""
_DRAIN_TIME = 0.2
"""Seconds for which they are read. A response whose end takes longer costs more than a new connection."""

_SLICE = 65_536
"""Bytes of a body that are passed to httpcore at once."""
_SIGNED_IN_PLACE = 262_144
"""Bytes of a body that are signed at once (0.2 ms); a larger one is signed in a thread."""
_PORTS = {"http": 80, "https": 443}
_FAILURES = (
    *(httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, httpcore.ProxyError),
    *(httpcore.UnsupportedProtocol, httpx.InvalidURL, OSError, ValueError),
)
"""Errors that prevent an answer."""


class HttpCallbacks:
    """See :class:`worker.ports.Callbacks`. No redirect is followed."""

    def __init__(
        self,
        pools: ClientPools[httpcore.AsyncConnectionPool],
        receivers: _ReceiverRules,
        keys: CallbackKeys,
        bodies: Bodies,
        *,
        timeout: float,
        utc_now: Callable[[], float],
    ) -> None:
        self._pools, self._receivers, self._keys = pools, receivers, keys
        self._bodies, self._timeout, self._utc_now = bodies, timeout, utc_now

    async def post(self, callback: Callback) -> PostResult:
        """See :meth:`worker.ports.Callbacks.post`. The wait for other callbacks to the same receiver is not timed."""
        body = _Slices(callback.body)
        try:
            url = httpx.URL(callback.url)
            if reason := self._receivers.refusal(url):
                return Refused(reason)
            async with self._pools.client(f"{url.scheme}://{url.netloc.decode()}") as client:
                with trio.fail_after(self._timeout):
                    headers = [*_request_headers(url, callback), *await self._signatures(url, callback)]
                    async with self._content(callback, body) as content:
                        request = httpcore.Request("POST", _httpcore_url(url), headers=headers, content=content)
                        response = await client.handle_async_request(request)
                await _end(response)
                return _answer(response)
        except ReceiverRefusedError as error:
            return Refused(str(error))
        except trio.TooSlowError:
            return f"no answer within {self._timeout:g} s"
        except BrokerUnavailableError as error:
            return f"the body cannot be read: {error}"
        except _FAILURES as error:
            return describe_failure(error)
        finally:
            body.clear()

    @asynccontextmanager
    async def _content(self, callback: Callback, slices: _Slices) -> AsyncIterator[bytes | AsyncIterable[bytes]]:
        if callback.stored_body:
            async with self._bodies.read(callback.stored_body) as parts:
                yield parts
        else:
            yield callback.body if len(callback.body) <= _SLICE else slices

    async def _signatures(self, url: httpx.URL, callback: Callback) -> Headers:
        """Return the signatures. A stored body is read for them, and again to be sent: memory holds a part of it."""
        secrets = self._keys.current.secrets_for(_host(url), _port(url))
        message_id = next((value for name, value in callback.headers if name == WEBHOOK_ID), b"")
        if secrets and callback.stored_body:
            signer = BodySignatures(secrets, message_id, now=int(self._utc_now()))
            async with self._bodies.read(callback.stored_body) as parts:
                async for part in parts:
                    signer.update(part)
            return signer.headers()
        signing = partial(sign, secrets, message_id, callback.body, now=int(self._utc_now()))
        if secrets and len(callback.body) > _SIGNED_IN_PLACE:
            return await trio.to_thread.run_sync(signing)
        return signing()


class _ReceiverRules:
    """Applies the rules to a URL: before the request where a proxy connects, else to the address of the connection."""

    def __init__(self, access: CallbackAccess, proxies: Proxies) -> None:
        self._access, self._proxies = access, proxies

    def refusal(self, url: httpx.URL) -> str | None:
        """Return why a callback must not be sent, if that can be decided before a connection."""
        if self._is_gateway(url):
            return self._access.gateway_refusal(url.raw_path.decode())
        if not self.proxy_of(url):
            return None
        return self._access.refusal(_host(url), _port(url), None)

    def proxy_of(self, url: httpx.URL) -> str | None:
        """Return the URL of the proxy for a receiver."""
        return self._proxies.proxy_of(str(url))

    def network(self, url: httpx.URL) -> ReceiverNetwork:
        """Return the network for a receiver, which checks addresses."""
        return ReceiverNetwork(None if self._is_gateway(url) or self.proxy_of(url) else self._access.refusal)

    def _is_gateway(self, url: httpx.URL) -> bool:
        return self._access.is_gateway((url.scheme, _host(url), _port(url)))


@asynccontextmanager
async def open_callbacks(
    settings: Settings, emit: Emit, utc_now: Callable[[], float] = time.time, *, bodies: Bodies | None = None
) -> AsyncIterator[HttpCallbacks]:
    """Open :class:`HttpCallbacks`, and close their connections at the end. *bodies*: none where callbacks have none.

    Raises:
        MisconfiguredError: the file of signing keys cannot be used.
    """
    # The context is created when it is first needed: loading the certificates takes a while.
    context = cache(partial(httpx.create_ssl_context, verify=not settings.tls_insecure))

    gateway = httpx.URL(settings.gateway_url)
    origin = gateway.scheme, _host(gateway).rstrip("."), _port(gateway)
    allow, deny = settings.callback_allow or ReceiverPatterns(), settings.callback_deny or ReceiverPatterns()
    receivers = _ReceiverRules(CallbackAccess(origin, allow, deny), read_proxies(os.environ))
    keys = CallbackKeys(settings.callback_secret_file)

    def client(origin: str) -> httpcore.AsyncConnectionPool:
        url = httpx.URL(origin)
        return httpcore.AsyncConnectionPool(
            ssl_context=context() if url.scheme == "https" else None,
            proxy=_proxy(proxy) if (proxy := receivers.proxy_of(url)) else None,
            keepalive_expiry=MAX_IDLE,
            network_backend=receivers.network(url),
        )

    async with open_client_pools(client, max_per_origin=MAX_PER_RECEIVER) as pools, trio.open_nursery() as nursery:
        nursery.start_soon(keys.follow, emit)
        timeout = settings.callback_timeout
        yield HttpCallbacks(pools, receivers, keys, bodies or NoBodies(), timeout=timeout, utc_now=utc_now)
        nursery.cancel_scope.cancel()


def _host(url: httpx.URL) -> str:
    """Return the host as it is looked up, and as rules write it; httpx's ``host`` has decoded ``xn--`` names."""
    return url.raw_host.decode("ascii")


def _port(url: httpx.URL) -> int:
    return url.port or _PORTS.get(url.scheme, 0)


def _httpcore_url(url: httpx.URL) -> httpcore.URL:
    return httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)


def _proxy(proxy: str) -> httpcore.Proxy:
    url = httpx.URL(proxy)
    auth = (url.username.encode(), url.password.encode()) if url.userinfo else None
    return httpcore.Proxy(_httpcore_url(url), auth=auth)


def _request_headers(url: httpx.URL, callback: Callback) -> list[tuple[bytes, bytes]]:
    """Return the headers of the request; user and password of the URL replace an Authorization of the function."""
    headers = [(b"Host", url.netloc), *callback.headers]
    if url.userinfo:
        headers = [field for field in headers if field[0].lower() != b"authorization"]
        headers.append((b"Authorization", basic_auth(url.userinfo)))
    return [*headers, (b"Content-Length", b"%d" % callback.size)]


def _answer(response: httpcore.Response) -> int | Busy:
    if response.status in (429, 503):
        for name, value in response.headers:
            if name.lower() == b"retry-after":
                return Busy(response.status, value.decode("latin-1"))
    return response.status


class _Slices:
    """A large body in slices: TLS would copy it as a whole, twice."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def clear(self) -> None:
        """Release the body: httpcore's objects refer to each other, so they stay in memory for a while."""
        self._body = b""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._body), _SLICE):
            yield self._body[start : start + _SLICE]


async def _end(response: httpcore.Response) -> None:
    """End a response whose status has arrived, which is the answer. Read a short body, to reuse the connection."""
    with trio.move_on_after(_DRAIN_TIME), suppress(*_FAILURES):
        read = 0
        async for part in response.aiter_stream():
            read += len(part)
            if read > _MAX_DRAINED:
                break
    with trio.move_on_after(CLOSE_TIMEOUT):  # this closes the connection of a response that has not ended
        await response.aclose()
