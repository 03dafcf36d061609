"""One connection to NATS for as long as the process runs, and publishes on it that count only once they are confirmed.

nats-py's own asynchronous publish loses the reason of a refusal (its reply handler raises it where nobody looks), and
its synchronous one costs a task per message, so confirmations are matched here: one inbox, one future a message.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from ..config import Settings, without_password
from ..nats import nats_internals
from ..nats.options import connect_options
from ..nats.wire import is_stored, parse_answer
from ..ports import BrokerUnavailableError, MisconfiguredError
from .message import Message

_CONFIRMED_WITHIN = 5.0
"""Seconds for a PubAck: an election after a lost leader takes about as long."""
_STUCK = 3.0
"""Seconds that a reconnect may wait for its old socket to close."""
_WATCH = 0.5
"""Seconds between two looks at the connection."""
_LINES = len("NATS/1.0\r\n\r\n")
_MESSAGE_TOO_BIG = 10054
_WRONG_STREAM = 10060
"""JetStream's error codes."""


class MessageTooLargeError(Exception):
    """It would not fit the server's limit of a message, headers and base64 included."""


class Log(Protocol):
    """What is used of structlog's loggers."""

    def debug(self, event: str, **fields: Any) -> object: ...
    def info(self, event: str, **fields: Any) -> object: ...
    def warning(self, event: str, **fields: Any) -> object: ...
    def error(self, event: str, **fields: Any) -> object: ...


@dataclass(frozen=True, slots=True)
class _Link:
    """One life of the client, from its connecting to its closing."""

    client: Client
    inbox: str
    waiting: dict[str, asyncio.Future[Msg]]


class Publisher:
    """The way onto the stream.

    Args:
        settings: all settings.
        name: what the server's connection list shows.
        log: told of what happens to the connection.
    """

    def __init__(self, settings: Settings, *, name: str, log: Log) -> None:
        self._settings = settings
        self._options = connect_options(settings, name=name)
        self._log = log
        self._link: _Link | None = None
        self._numbers = itertools.count()
        self._closing = False
        self._trouble = ""

    @property
    def connected(self) -> bool:
        """Whether something can be published now."""
        return self._link is not None and bool(self._link.client.is_connected)

    def max_body_bytes(self) -> int:
        """How large (bytes) a body can be: base64 makes four bytes of three.

        Raises:
            BrokerUnavailableError: there is no connection, so nobody knows.
        """
        return int(self._up().client.max_payload) * 3 // 4

    def _up(self) -> _Link:
        if self._link is None or not self._link.client.is_connected:
            raise BrokerUnavailableError(f"not connected to NATS{f': {self._trouble}' if self._trouble else ''}")
        return self._link

    @property
    def trouble(self) -> str:
        """What went wrong with the connection last."""
        return self._trouble

    async def run(self, connected: Callable[[], None] = lambda: None) -> None:
        """Stay connected until cancelled; a client that closes itself for good is replaced.

        Args:
            connected: called after each connecting.

        Raises:
            MisconfiguredError: the server is there and refuses our credentials.
        """
        while True:
            client = await self._connect()
            self._log.info("Connected", nats=_server(client))
            connected()
            try:
                await self._watch(client)
            finally:
                self._closing, self._link = True, None
                nats_internals.forget_unsent(client)
                await client.close()
                self._closing = False

    async def _connect(self) -> Client:
        client = Client()
        refused: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        async def on_error(error: Exception) -> None:
            if "authorization" in str(error).lower() and not refused.done() and self._link is None:
                refused.set_result(None)
            self._complain(error)

        async def on_disconnected() -> None:
            if not self._closing:
                self._log.warning("Disconnected from NATS; requests get 503 until it is back")
            nats_internals.forget_unsent(client)
            self._fail_waiting()

        async def on_reconnected() -> None:
            self._trouble = ""
            self._log.warning("Reconnected", nats=_server(client))

        connecting = asyncio.ensure_future(
            client.connect(
                **self._options, error_cb=on_error, disconnected_cb=on_disconnected, reconnected_cb=on_reconnected
            )
        )
        try:
            await asyncio.wait({connecting, refused}, return_when=asyncio.FIRST_COMPLETED)
            if not connecting.done():
                raise MisconfiguredError(
                    "NATS refuses our credentials: check nats_token, nats_user and nats_password, nats_nkey_seed"
                    " or nats_creds_file"
                )
            connecting.result()
        finally:
            connecting.cancel()
        link = _Link(client, client.new_inbox(), {})

        async def on_answer(answer: Msg) -> None:
            future = link.waiting.get(answer.subject.rpartition(".")[2])
            if future is not None and not future.done():
                future.set_result(answer)

        await client.subscribe(f"{link.inbox}.*", cb=on_answer)
        self._link = link
        self._trouble = ""
        return client

    async def _watch(self, client: Client) -> None:
        """Mend what gets stuck in nats-py, until it cannot be mended."""
        loop = asyncio.get_running_loop()
        since: float | None = None
        while not client.is_closed:
            if nats_internals.reader_died(client):
                await client.force_reconnect()
            if not client.is_reconnecting:
                since = None
            elif since is None:
                since = loop.time()
            elif loop.time() - since > _STUCK:
                nats_internals.abort(client)
                since = None
            await asyncio.sleep(_WATCH)
        self._complain(client.last_error or "nats-py closed the connection for good")
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        """What was sent may or may not have been stored, and no confirmation will come."""
        for future in self._link.waiting.values() if self._link else ():
            if not future.done():
                future.set_exception(
                    BrokerUnavailableError("the connection to NATS was lost before the message was confirmed")
                )

    def _complain(self, error: object) -> None:
        text = without_password(str(error) or type(error).__name__)
        if text != self._trouble:
            self._trouble = text
            self._log.warning("Trouble with NATS; trying again", error=text)

    async def publish(self, message: Message) -> bool:
        """Store *message*; True where the stream had it already, by its call id.

        Raises:
            MessageTooLargeError: it cannot be stored.
            BrokerUnavailableError: nothing confirmed the message. Sent again with the same call id, it is not stored
                twice.
        """
        link = self._up()
        headers = {"Nats-Msg-Id": message.call_id, "Nats-Expected-Stream": self._settings.nats_stream}
        size = len(message.payload) + _LINES + sum(len(name) + len(value) + 4 for name, value in headers.items())
        if size > link.client.max_payload:  # more, and the server would close the connection
            raise MessageTooLargeError(
                f"as a message it takes {size} bytes, and NATS's max_payload is {link.client.max_payload}"
            )
        token = str(next(self._numbers))
        future = link.waiting[token] = asyncio.get_running_loop().create_future()
        try:
            await link.client.publish(message.subject, message.payload, f"{link.inbox}.{token}", headers)
            async with asyncio.timeout(_CONFIRMED_WITHIN):
                return self._confirmed(message, await future)
        except TimeoutError:
            detail = f" ({self._trouble})" if self._trouble else ""
            raise BrokerUnavailableError(
                f"stream {self._settings.nats_stream} did not confirm within {_CONFIRMED_WITHIN:g} s{detail}"
            ) from None
        except nats.errors.Error as error:
            raise BrokerUnavailableError(without_password(str(error))) from None
        finally:
            del link.waiting[token]

    def _confirmed(self, message: Message, answer: Msg) -> bool:
        stream = self._settings.nats_stream
        if answer.headers and answer.headers.get("Status") == "503":
            raise BrokerUnavailableError(
                f"no stream takes the subject {message.subject}: start a worker, which makes the stream {stream},"
                " or see that JetStream runs and the stream's subjects cover the queue's"
            )
        try:
            said = parse_answer(answer.data)
        except ValueError as error:
            raise BrokerUnavailableError(f"{error}, on {message.subject}") from None
        if (no := said.get("error")) is None:
            if not is_stored(said):
                raise BrokerUnavailableError(f"an answer that confirms nothing, on {message.subject}")
            return bool(said.get("duplicate"))
        code, text = no.get("err_code"), no.get("description", "refused")
        if code == _MESSAGE_TOO_BIG:
            raise MessageTooLargeError(f"stream {stream} has a limit of its own for a message: {text}")
        if code == _WRONG_STREAM:
            raise BrokerUnavailableError(
                f"another stream than {stream} takes the subject {message.subject}: check nats_stream and queue_name"
            )
        raise BrokerUnavailableError(f"stream {stream} refuses: {text}")


def _server(client: Client) -> str:
    url = client.connected_url
    return f"{url.hostname}:{url.port}" if url else ""
