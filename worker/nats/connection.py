"""nats-py's client, kept usable: it connects however long that takes, and is watched for the ways it gets stuck in.

Everything here runs on the asyncio side of the bridge. What the client does wrong, and how that was found, is in
docs/architecture.md; each remedy names its quirk.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import nats.errors
import trio
from nats.aio.client import Client

from ..config import without_password
from ..events import BrokerFailure, Connected, Disconnected
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import nats_internals
from .wire import is_stored, parse_answer

T = TypeVar("T")

_API_TIMEOUT = 5.0
"""Seconds for an answer of JetStream's API: an election after a lost leader takes about as long."""
_STUCK = 3.0
"""Seconds that a reconnect may wait for its old socket to close."""
_REMIND = 10.0
"""Seconds between two reports of the same trouble."""


class ApiError(Exception):
    """JetStream's API said no."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({code}/{err_code})")
        self.code, self.err_code = code, err_code


class NoRespondersError(BrokerUnavailableError):
    """There is no such stream, no JetStream, or a server that does not know the question."""


class ConnectionClosedError(Exception):
    """The client has given up for good, on an error from which it does not recover. Only a new process helps."""


class Connection:
    """One client. *changed* is called after each time the connection came or went."""

    def __init__(self, options: dict[str, Any], emit: Emit) -> None:
        self.client = Client()
        self.changed: list[Callable[[bool], None]] = []
        self._options = options
        self._emit = emit
        self._refused: asyncio.Future[None]
        self._lost = asyncio.Event()
        """Set when the connection breaks, anew for each one."""
        self._begun = False
        self._closing = self._closed = False
        self._reconnecting_since: float | None = None
        self._read = 0
        """Bytes of messages that had come at the last look."""
        self._complaint = ("", float("-inf"))

    @property
    def up(self) -> bool:
        """Whether something can be sent now."""
        return bool(self.client.is_connected)

    async def open(self) -> None:
        """Connect, however long it takes.

        Raises:
            MisconfiguredError: the server is there and refuses our credentials.
        """
        self._begun = True
        self._refused = asyncio.get_running_loop().create_future()
        connecting = asyncio.ensure_future(
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
        self._emit(Connected(self._server, reconnected=False))
        self._tell(up=True)

    async def close(self) -> None:
        """Close, saying nothing more."""
        self._closing = True
        if self._begun:  # the client cannot close what it never opened
            nats_internals.forget_unsent(self.client)
            await self.client.close()

    async def watch(self) -> None:
        """Mend what gets stuck; to be called a few times a second.

        Raises:
            ConnectionClosedError: it cannot be mended.
        """
        client = self.client
        if self._closed and not self._closing:
            raise ConnectionClosedError(
                f"nats-py closed the connection for good: {client.last_error or 'no reason given'}"
            )
        if nats_internals.reader_died(client):
            self.complain("reading from NATS", "the reader has died; connecting again")
            await client.force_reconnect()
        if client.stats["in_bytes"] != self._read:  # whoever sends is alive
            self._read = client.stats["in_bytes"]
            nats_internals.excuse_pings(client)
        if not client.is_reconnecting:
            self._reconnecting_since = None
        elif self._reconnecting_since is None:
            self._reconnecting_since = trio.current_time()
        elif trio.current_time() - self._reconnecting_since > _STUCK:
            nats_internals.abort(client)
            self._reconnecting_since = None

    async def ask(self, subject: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request to JetStream's API: ``STREAM.INFO.x`` and the like.

        Raises:
            ApiError: it said no.
            BrokerUnavailableError: it said nothing, or there is none.
        """
        return await self.request(f"$JS.API.{subject}", json.dumps(payload).encode() if payload else b"")

    async def request(self, subject: str, payload: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
        """One request that JetStream answers with JSON.

        Raises:
            ApiError: it said no.
            BrokerUnavailableError: it said nothing, or there is none.
        """
        if not self.up:
            raise BrokerUnavailableError(f"no answer on {subject}: not connected to NATS")
        try:
            answer = await self.while_connected(
                self.client.request(subject, payload, timeout=_API_TIMEOUT, headers=headers)
            )
            said = parse_answer(answer.data)
        except nats.errors.NoRespondersError:
            raise NoRespondersError(f"nobody answers on {subject}: no such stream, or no JetStream there") from None
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise BrokerUnavailableError(f"no answer on {subject}: {error or type(error).__name__}") from None
        except ValueError as error:
            raise BrokerUnavailableError(f"{error}, on {subject}") from None
        if (no := said.get("error")) is not None:
            raise ApiError(no.get("code", 0), no.get("err_code", 0), no.get("description", ""))
        return said

    async def store(self, subject: str, payload: bytes, headers: dict[str, str]) -> None:
        """Publish, and see it stored.

        Raises:
            ApiError: it is refused.
            BrokerUnavailableError: nothing confirms it.
        """
        if not is_stored(await self.request(subject, payload, headers)):
            raise BrokerUnavailableError(f"an answer that confirms nothing, on {subject}")

    async def while_connected(self, asking: Coroutine[Any, Any, T]) -> T:
        """An answer, which can only come over the connection of its question: no longer is waited than that lasts.

        Raises:
            ConnectionError: the connection was lost.
        """
        answer, lost = asyncio.ensure_future(asking), asyncio.ensure_future(self._lost.wait())
        try:
            await asyncio.wait({answer, lost}, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done():
                raise ConnectionError("the connection was lost")
            return answer.result()
        finally:
            answer.cancel()
            lost.cancel()

    def complain(self, doing: str, error: object) -> None:
        """Report trouble that is being tried again, the same no more than every few seconds."""
        text = without_password(str(error) or type(error).__name__)
        last, at = self._complaint
        if text != last or trio.current_time() - at > _REMIND:
            self._complaint = text, trio.current_time()
            self._emit(BrokerFailure(doing, text))

    @property
    def _server(self) -> str:
        url = self.client.connected_url
        return f"{url.hostname}:{url.port}" if url else ""

    async def _on_error(self, error: Exception) -> None:
        if "authorization" in str(error).lower() and not self._refused.done() and not self.client.is_reconnecting:
            advice = "check nats_token, nats_user and nats_password, nats_nkey_seed or nats_creds_file"
            self._refused.set_exception(MisconfiguredError(f"NATS refuses our credentials ({error}): {advice}"))
        self.complain("talking to NATS" if self.up else "connecting to NATS", error)

    async def _on_disconnected(self) -> None:
        self._lost.set()
        self._lost = asyncio.Event()
        nats_internals.forget_unsent(self.client)
        if not self._closing:
            self._emit(Disconnected())
            self._tell(up=False)

    async def _on_reconnected(self) -> None:
        self._emit(Connected(self._server, reconnected=True))
        self._tell(up=True)

    async def _on_closed(self) -> None:
        # Its word for the end. Its status says closed also while it waits to try a first connection once more.
        self._closed = True
        self._tell(up=False)

    def _tell(self, *, up: bool) -> None:
        for changed in self.changed:
            changed(up)
