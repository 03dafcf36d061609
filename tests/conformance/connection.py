"""A small NATS connection for Trio: many concurrent requests, each response with the time at which it arrived."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import trio

_connections = count()


@dataclass(frozen=True, slots=True)
class ReceivedMessage:
    """A message. *at*: wall-clock time (s); *status*: status of a message without data, as ``408 Request Timeout``."""

    at: float
    reply: str
    status: str
    data: bytes


OnMessage = Callable[[ReceivedMessage], None]


class Connection:
    """One connection. :meth:`run` reads; the other methods send, or register callbacks for messages."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._lock = trio.Lock()
        self._out = bytearray()
        self._numbers = count(1)
        self._callbacks: dict[str, OnMessage] = {}
        self._reply_callbacks: dict[str, OnMessage] = {}
        self._inbox = f"_INBOX.{next(_connections)}"
        self.publish_line(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}')
        self.publish_line(f"SUB {self._inbox}.answer.* 0".encode())

    def publish_line(self, line: bytes) -> None:
        """Queue a line of the protocol for the next flush."""
        self._out += line + b"\r\n"

    def publish(self, subject: str, reply: str, payload: bytes = b"") -> None:
        """Queue a message for the next flush."""
        self.publish_line(f"PUB {subject} {reply} {len(payload)}".encode())
        self.publish_line(payload)

    def subscribe(self, on_message: OnMessage) -> tuple[str, str]:
        """Subscribe to a new inbox, and return its subject and its subscription id."""
        number = str(next(self._numbers))
        self._callbacks[number] = on_message
        self.publish_line(f"SUB {self._inbox}.{number} {number}".encode())
        return f"{self._inbox}.{number}", number

    def unsubscribe(self, subscription: str) -> None:
        """End a subscription."""
        self.publish_line(f"UNSUB {subscription}".encode())

    def new_reply_subject(self, on_message: OnMessage) -> str:
        """Return a new reply subject, and register the callback for messages to it."""
        subject = f"{self._inbox}.answer.{next(self._numbers)}"
        self._reply_callbacks[subject] = on_message
        return subject

    async def request(self, subject: str, body: object = None) -> dict[str, Any]:
        """Send a request to JetStream's API, and return the response."""
        replied, replies = trio.Event(), list[bytes]()

        def on_reply(message: ReceivedMessage) -> None:
            replies.append(message.data)
            replied.set()

        self.publish(subject, self.new_reply_subject(on_reply), b"" if body is None else json.dumps(body).encode())
        await self.flush()
        await replied.wait()
        result: dict[str, Any] = json.loads(replies[0])
        assert "error" not in result, (subject, result)
        return result

    async def flush(self) -> None:
        """Send all queued lines."""
        async with self._lock:
            if self._out:
                out, self._out = bytes(self._out), bytearray()
                await self._stream.send_all(out)

    async def run(self) -> None:
        """Read until the server ends the connection."""
        data = bytearray()
        try:
            while received := await self._stream.receive_some():
                data += received
                while size := self._handle_first(data):
                    del data[:size]
                await self.flush()
        except trio.BrokenResourceError:
            return

    def _handle_first(self, data: bytearray) -> int:
        """Handle the first message of *data*, and return its size, or 0 if it is incomplete."""
        end = data.find(b"\r\n") + 2
        if end < 2:
            return 0
        verb, *words = data[: end - 2].decode().split(" ")
        if verb == "PING":
            self.publish_line(b"PONG")
        assert verb in ("INFO", "PING", "PONG", "MSG", "HMSG"), data[:200]
        if verb not in ("MSG", "HMSG"):
            return end
        size = int(words[-1])
        if len(data) < end + size + 2:
            return 0
        self._dispatch(words, data[end : end + size], int(words[-2]) if verb == "HMSG" else 0)
        return end + size + 2

    def _dispatch(self, words: list[str], content: bytearray, headers: int) -> None:
        subject, subscription, *more = words
        reply = more[0] if len(more) == (3 if headers else 2) else ""
        status = content[:headers].split(b"\r\n")[0].decode().partition(" ")[2]
        on_message = self._reply_callbacks.get(subject) if subscription == "0" else self._callbacks.get(subscription)
        if on_message:
            on_message(ReceivedMessage(time.time(), reply, status, bytes(content[headers:])))
