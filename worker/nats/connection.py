"""nats-py's client, kept usable: it connects however long that takes, and is watched for the states it gets stuck in.

Runs on asyncio alone, so that the producer can use it, too. The defects of the client, and how they were found, are in
docs/architecture.md.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any
from urllib.parse import unquote

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..events import BrokerFailure, ConfigDrift, Connected, Disconnected
from ..policy.parse import without_password
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from ..settings import Settings
from . import nats_internals
from .pull_messages import parse_status

_ANSWER_WITHIN = 5.0
"""Seconds for an answer of JetStream: an election after a lost leader takes about as long."""
_CONNECT_WITHIN = 5.0
"""Seconds for the connection of a command, because a person waits for it."""
_STUCK = 3.0
"""Seconds that a reconnect may wait for its old socket to close."""
_REMIND = 10.0
"""Seconds between two reports of the same trouble."""


OLDEST_SERVER = (2, 10, 25)
"""The oldest nats-server that the tests are run with."""
_PAUSES = (2, 11)
"""The first nats-server that can pause a consumer. Earlier ones do not answer a request to pause one."""


class NoRespondersError(BrokerUnavailableError):
    """Nothing subscribes to a request's subject: no such stream, no JetStream, or an unknown verb of its API."""


class AnswerTimeoutError(BrokerUnavailableError):
    """No answer arrived within *seconds*."""

    def __init__(self, subject: str, seconds: float, denied: str = "") -> None:
        advice = (
            f". The server reported: {denied}. Permit that to this user, or set nats_inbox_prefix" if denied else ""
        )
        super().__init__(f"no answer on {subject} within {seconds:g} s{advice}")
        self.seconds = seconds


class ConnectionClosedError(Exception):
    """The client has closed itself on an error from which it does not recover."""


def connect_options(settings: Settings, *, name: str) -> dict[str, Any]:
    """Return the keyword arguments of ``nats.connect``, without its callbacks. *name* is for the server's list.

    Raises:
        MisconfiguredError: the settings need a package that is not installed.
    """
    if any(url.startswith("ws") for url in settings.nats_servers) and importlib.util.find_spec("aiohttp") is None:
        raise MisconfiguredError(
            "nats_url names a WebSocket: that needs aiohttp, pip install 'jetstream-queue-worker[websocket]'"
        )
    options: dict[str, Any] = {
        **_servers_and_credentials(settings),
        "name": name,
        # Three pings detect a dead connection. That has to happen well before leases expire.
        "ping_interval": min(10.0, max(1.0, settings.ack_wait / 12)),
        "max_outstanding_pings": 2,
        "connect_timeout": 5,
        "reconnect_time_wait": 0.25,
        "max_reconnect_attempts": -1,
        "skip_subject_validation": True,  # subjects come from the server, or are made of checked names
        "nkeys_seed_str": settings.nats_nkey_seed,
        "user_credentials": settings.nats_creds_file,
        "tls_handshake_first": settings.nats_tls_first,
        "inbox_prefix": settings.nats_inbox_prefix,
    }
    if settings.nats_tls_ca_file or settings.nats_tls_cert_file:
        context = ssl.create_default_context(cafile=settings.nats_tls_ca_file)
        if settings.nats_tls_cert_file:
            context.load_cert_chain(settings.nats_tls_cert_file, settings.nats_tls_key_file)
        options["tls"] = context
    return options


def _servers_and_credentials(settings: Settings) -> dict[str, Any]:
    """Return the servers' URLs, and token, user and password.

    nats-py takes the credentials in a URL as they are written; URLs write special characters as ``%40``. So they are
    decoded here. It then uses them also for the servers that a cluster announces.
    """
    options = {"token": settings.nats_token, "user": settings.nats_user, "password": settings.nats_password}
    servers = settings.nats_servers
    found = {url.rpartition("@")[0].partition("://")[2] for url in servers if "@" in url}
    if not any("%" in each for each in found):
        return options | {"servers": list(servers)}
    if len(found) > 1:
        raise MisconfiguredError(
            "nats_url has several passwords, one of them with escapes such as %40: set nats_user and nats_password"
        )
    (text,) = found
    if not any((*options.values(), settings.nats_nkey_seed, settings.nats_creds_file)):
        user, has_password, password = text.partition(":")
        names = ("user", "password") if has_password else ("token", "")
        options |= dict(zip(names, map(unquote, (user, password)), strict=True))
        options.pop("", None)
    bare = [re.sub(r"://.*@", "://", url) for url in servers]
    return options | {"servers": bare}


class Connection:
    """One client, from its connecting to its closing.

    *changed* is called after each connecting, with True, and after each loss of the connection, with False.
    """

    def __init__(self, options: dict[str, Any], emit: Emit, changed: Callable[[bool], None] = lambda _: None) -> None:
        self.client = Client()
        self._options, self._emit, self._changed = options, emit, changed
        self._refused: asyncio.Future[None]
        self._connecting: asyncio.Future[None] | None = None
        """The first connecting; None before it has begun."""
        self._closing = self._closed = False
        self._reconnecting_since: float | None = None
        self._bytes_read = 0
        """Bytes of messages received until the last look."""
        self.failure = ""
        """The last failure since the connection was made; empty where there was none."""
        self._last_report = ("", float("-inf"))
        self._foreign_at = float("-inf")
        self._denied = ""
        """The last subject that the server permitted no use of, and what for."""
        self._inbox = ""
        self._numbers = count()
        self._unanswered: dict[str, asyncio.Future[Msg | None]] = {}
        """Requests by the last token of their reply subject."""

    @property
    def up(self) -> bool:
        """Whether something can be sent now."""
        return bool(self.client.is_connected)

    @property
    def server_version(self) -> tuple[int, ...]:
        """The version of the server that the client is connected to; very high where that cannot be read."""
        try:
            version = self.client.connected_server_version
            found: tuple[int, ...] = version.major, version.minor, version.patch
        except ValueError:
            return (999,)
        return found

    @property
    def can_pause(self) -> bool:
        """Whether the server can pause a consumer."""
        return self.server_version >= _PAUSES

    async def open(self) -> None:
        """Connect, however long it takes; raise MisconfiguredError where the server refuses the credentials."""
        self._refused = asyncio.get_running_loop().create_future()
        self._connecting = connecting = asyncio.ensure_future(
            self.client.connect(
                **self._options,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                closed_cb=self._on_closed,
            )
        )
        try:
            await asyncio.wait({connecting, self._refused}, return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                self._refused.result()
            connecting.result()
        finally:
            connecting.cancel()
            self._refused.cancel()
        self._inbox = self.client.new_inbox()
        await nats_internals.listen(self.client, f"{self._inbox}.*", self._on_answer)
        self._on_connected(reconnected=False)

    async def close(self) -> None:
        """Close without an event, and send nothing more."""
        self._closing = True
        if self._connecting is not None:  # the client cannot close before it has begun to connect
            await nats_internals.end_connecting(self.client, self._connecting)
            nats_internals.forget_unsent(self.client)
            await self.client.close()

    async def watch(self) -> None:
        """Free the client from where it gets stuck, or raise ConnectionClosedError; called a few times a second."""
        client, now = self.client, asyncio.get_running_loop().time()
        if self._closed and not self._closing:
            raise ConnectionClosedError(
                f"nats-py closed the connection for good: {client.last_error or 'no reason given'}"
            )
        if nats_internals.reader_died(client):
            self.report_failure("reading from NATS", "the reader has died; connecting again")
            await client.force_reconnect()
        if client.stats["in_bytes"] != self._bytes_read:  # a server that sends is alive
            self._bytes_read = client.stats["in_bytes"]
            nats_internals.excuse_pings(client)
        if not client.is_reconnecting:
            self._reconnecting_since = None
        elif self._reconnecting_since is None:
            self._reconnecting_since = now
        elif now - self._reconnecting_since > _STUCK:
            nats_internals.abort(client)
            self._reconnecting_since = None

    async def request(
        self, subject: str, payload: bytes = b"", headers: dict[str, str] | None = None, within: float = _ANSWER_WITHIN
    ) -> Msg:
        """Publish a request, and return its answer, which can only come over the connection that the request took.

        Raises:
            NoRespondersError: nothing subscribes to the subject.
            BrokerUnavailableError: there was no answer *within* so many seconds, or before the connection was lost.
        """
        if not self.up:
            raise BrokerUnavailableError(f"no answer on {subject}: not connected to NATS")
        try:
            async with asyncio.timeout(within):
                answer = await self._exchange(subject, payload, headers)
        except TimeoutError:
            raise AnswerTimeoutError(subject, within, self._denied) from None
        except (nats.errors.Error, OSError) as error:
            raise BrokerUnavailableError(f"no answer on {subject}: {error}") from None
        if (status := parse_status(answer.headers)) and status.code == 503:
            raise NoRespondersError(f"nothing answers on {subject}: no such stream, or no JetStream there")
        return answer

    async def round_trip(self) -> None:
        """Return when all that the server had sent before has been read. A lost connection raises ConnectionError."""
        await self._exchange("", b"", None)

    async def _exchange(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> Msg:
        """Publish with a reply subject, and return what arrives there; without a *subject*, publish to that one."""
        number = str(next(self._numbers))
        inbox = f"{self._inbox}.{number}"
        answer: asyncio.Future[Msg | None] = asyncio.get_running_loop().create_future()
        self._unanswered[number] = answer
        try:
            await self.client.publish(subject or inbox, payload, inbox, headers)
            if (message := await answer) is None:
                raise ConnectionError("the connection was lost")
            return message
        finally:
            del self._unanswered[number]

    def is_inbox(self, subject: str) -> bool:
        """Return whether a subject is an inbox. A question must not make this program publish anywhere else."""
        return subject.startswith((f"{self._options['inbox_prefix']}.", "_INBOX"))

    def report_failure(self, doing: str, error: object) -> None:
        """Emit an event about something that is being tried again, the same one every ten seconds at most."""
        text, now = without_password(str(error) or type(error).__name__), asyncio.get_running_loop().time()
        self.failure = text
        last, at = self._last_report
        if text != last or now - at > _REMIND:
            self._last_report = text, now
            self._emit(BrokerFailure(doing, text))

    def report_foreign(self, doing: str, error: object) -> None:
        """Emit an event about a message that no worker sends: one every ten seconds at most."""
        now = asyncio.get_running_loop().time()
        if now - self._foreign_at > _REMIND:
            self._foreign_at = now
            self._emit(BrokerFailure(doing, without_password(str(error) or type(error).__name__)))

    def _on_answer(self, message: Msg) -> None:
        answer = self._unanswered.get(message.subject[len(self._inbox) + 1 :])
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        if "authorization" in str(error).lower() and not self._refused.done() and not self.client.is_reconnecting:
            advice = "check nats_token, nats_user and nats_password, nats_nkey_seed or nats_creds_file"
            self._refused.set_exception(MisconfiguredError(f"NATS refuses our credentials ({error}): {advice}"))
        if "permissions violation" in str(error).lower():
            self._denied = str(error)
        self.report_failure("talking to NATS" if self.up else "connecting to NATS", error)

    async def _on_disconnected(self) -> None:
        for answer in self._unanswered.values():
            if not answer.done():
                answer.set_result(None)
        nats_internals.forget_unsent(self.client)
        if not self._closing:
            self._emit(Disconnected())
            self._changed(False)

    async def _on_reconnected(self) -> None:
        self._on_connected(reconnected=True)

    def _on_connected(self, *, reconnected: bool) -> None:
        self.failure, self._denied, url = "", "", self.client.connected_url
        self._emit(Connected(f"{url.hostname}:{url.port}" if url else "", reconnected=reconnected))
        if (version := self.server_version) < OLDEST_SERVER:
            found, oldest = (".".join(map(str, each)) for each in (version, OLDEST_SERVER))
            self._emit(ConfigDrift(f"nats-server {found} is not supported: update it to {oldest} or later"))
        self._changed(True)

    async def _on_closed(self) -> None:
        # The client's is_closed is true also while it waits before another try at its first connection.
        self._closed = True
        self._changed(False)


@asynccontextmanager
async def connected(settings: Settings, name: str) -> AsyncIterator[Connection]:
    """Connect for the block, as a command does that a person waits for. *name* is for the server's list of connections.

    Raises:
        BrokerUnavailableError: there is no connection within 5 s.
        MisconfiguredError: the server refuses the credentials.
    """
    connection = Connection(connect_options(settings, name=name), lambda _: None)
    try:
        try:
            async with asyncio.timeout(_CONNECT_WITHIN):
                await connection.open()
        except TimeoutError:
            servers = without_password(",".join(settings.nats_servers))
            failure = f" ({connection.failure})" if connection.failure else ""
            raise BrokerUnavailableError(
                f"no NATS at {servers} within {_CONNECT_WITHIN:g} s{failure}:"
                " start it, or check nats_host and nats_port, or nats_url"
            ) from None
        yield connection
    finally:
        await connection.close()
