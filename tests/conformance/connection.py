"""A NATS connection of a page, for Trio: many requests under way, each answer with the time at which it came."""

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
class Came:
    """A message. *at*: wall-clock time (s); *status*: of one that is only that, such as ``408 Request Timeout``."""

    at: float
    reply: str
    status: str
    data: bytes


Hear = Callable[[Came], None]


class Connection:
    """One connection. :meth:`run` reads; the others send, or note down what to do with what comes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._lock = trio.Lock()
        self._out = bytearray()
        self._numbers = count(1)
        self._hearers: dict[str, Hear] = {}
        self._answers: dict[str, Hear] = {}
        self._inbox = f"_INBOX.{next(_connections)}"
        self.publish_line(b'CONNECT {"verbose":false,"headers":true,"no_responders":true}')
        self.publish_line(f"SUB {self._inbox}.answer.* 0".encode())

    def publish_line(self, line: bytes) -> None:
        """Have a line of the protocol sent with the next flush."""
        self._out += line + b"\r\n"

    def publish(self, subject: str, reply: str, payload: bytes = b"") -> None:
        """Have a message sent with the next flush."""
        self.publish_line(f"PUB {subject} {reply} {len(payload)}".encode())
        self.publish_line(payload)

    def subscribe(self, hear: Hear) -> tuple[str, str]:
        """Subscribe to a new inbox, and return its subject and its subscription."""
        number = str(next(self._numbers))
        self._hearers[number] = hear
        self.publish_line(f"SUB {self._inbox}.{number} {number}".encode())
        return f"{self._inbox}.{number}", number

    def unsubscribe(self, subscription: str) -> None:
        """End a subscription."""
        self.publish_line(f"UNSUB {subscription}".encode())

    def expect(self, hear: Hear) -> str:
        """Return a new reply subject, whose answers go to the callback."""
        subject = f"{self._inbox}.answer.{next(self._numbers)}"
        self._answers[subject] = hear
        return subject

    async def request(self, subject: str, body: object = None) -> dict[str, Any]:
        """Send a request to JetStream's API, and return the answer."""
        answered, answers = trio.Event(), list[bytes]()

        def hear(came: Came) -> None:
            answers.append(came.data)
            answered.set()

        self.publish(subject, self.expect(hear), b"" if body is None else json.dumps(body).encode())
        await self.flush()
        await answered.wait()
        result: dict[str, Any] = json.loads(answers[0])
        assert "error" not in result, (subject, result)
        return result

    async def flush(self) -> None:
        """Send all."""
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
                while size := self._take(data):
                    del data[:size]
                await self.flush()
        except trio.BrokenResourceError:
            return

    def _take(self, data: bytearray) -> int:
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
        self._hear(words, data[end : end + size], int(words[-2]) if verb == "HMSG" else 0)
        return end + size + 2

    def _hear(self, words: list[str], content: bytearray, headers: int) -> None:
        subject, subscription, *more = words
        reply = more[0] if len(more) == (3 if headers else 2) else ""
        status = content[:headers].split(b"\r\n")[0].decode().partition(" ")[2]
        hear = self._answers.get(subject) if subscription == "0" else self._hearers.get(subscription)
        if hear:
            hear(Came(time.time(), reply, status, bytes(content[headers:])))
