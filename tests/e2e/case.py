"""One message for one function, on a worker that many tests share because the start of a worker takes long."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import Any

from tests.e2e.stack import Queue, Worker, go_url, message
from tests.functions import Functions, Reply, Request
from tests.wire import StoredMessage

ATTEMPTS = 4
WAITS = [0.05, 0.1, 0.2]
"""Seconds between the shared worker's attempts."""
SETTINGS: dict[str, object] = {
    "max_retry_attempts": ATTEMPTS,
    "callback_durable": "false",
    "debug": "true",
}
"""The shared worker's settings, in addition to those of all tests. Its timeouts are long, for busy machines."""
TIMEOUT = 0.5
"""Timeout of invocations and callbacks of the worker for tests about timeouts (s)."""
SHORT_TIMEOUTS: dict[str, object] = {
    "max_retry_attempts": 100,
    "callback_attempts": 100,
    "callback_durable": "false",
    "upstream_timeout": f"{TIMEOUT:g}s",
    "callback_timeout": f"{TIMEOUT:g}s",
}
"""The settings of the worker for timeouts. On a busy machine a good answer may be late too: hence many attempts."""
STARTED = "1646739420463153513"
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Shared:
    """The queue, servers and worker that the cases share."""

    queue: Queue
    functions: Functions
    receiver: Functions
    worker: Worker


class Case:
    """A function, a receiver of its callbacks, and a call id, each used by this case only."""

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.queue, self.worker = shared.queue, shared.worker
        self.name = f"case-{next(_numbers)}"
        self.call_id = f"call-of-{self.name}"
        self.payload = b""
        self._logged = len(shared.worker.lines())

    def answer(self, *replies: Reply) -> None:
        """Set the function's answers."""
        self.shared.functions.answer(self.name, *replies)

    def answer_callbacks(self, *replies: Reply) -> None:
        """Set the answers of the receiver of callbacks."""
        self.shared.receiver.answer(self.name, *replies)

    @property
    def callback(self) -> str:
        """Return the URL of this case's receiver of callbacks."""
        return f"{self.shared.receiver.url}/{self.name}"

    def put(self, *, annotations: dict[str, str] | None = None, callback: str | None = None, **fields: Any) -> None:
        """Publish the message on the queue, with the URL *callback* in the gateway's form."""
        usual: dict[str, Any] = {
            "Header": {"X-Call-Id": [self.call_id], "X-Start-Time": [STARTED]},
            "Annotations": annotations or {},
            "CallbackUrl": go_url(callback) if callback else None,
        }
        self.payload = message(self.name, body=b"input", **(usual | fields))
        self.queue.put(self.payload)

    def run(self, *replies: Reply, **message: Any) -> int:
        """Put the message, set the function's replies, wait for the end, and return how often it was sent."""
        if replies:
            self.answer(*replies)
        self.put(**message)
        self.queue.wait_empty()
        return len(self.requests)

    @property
    def requests(self) -> list[Request]:
        """Return the requests that the function received."""
        return self.shared.functions.of(self.call_id)

    @property
    def callbacks(self) -> list[Request]:
        """Return the callbacks that the receiver received."""
        return self.shared.receiver.to(self.name)

    @property
    def called_back(self) -> Request:
        """Return the only callback."""
        (request,) = self.callbacks
        return request

    @property
    def gaps(self) -> list[float]:
        """Return the seconds from each answer to the next request."""
        return list(self.shared.functions.gaps(self.call_id))

    @property
    def dead_letters(self) -> list[StoredMessage]:
        """Return the dead letters of the message."""
        return [letter for letter in self.queue.dead_letters() if letter.headers.get("X-Call-Id") == self.call_id]

    @property
    def dead_letter(self) -> StoredMessage:
        """Return the only dead letter of the message, after a check that it holds the message."""
        (letter,) = self.dead_letters
        assert letter.data == self.payload
        return letter

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Return the worker's log lines since the case began."""
        return self.worker.lines()[self._logged :]

    @property
    def waits(self) -> list[float]:
        """Return the waits between attempts in these lines (s)."""
        return [line["retry_in"] for line in self.lines if "retry_in" in line]

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """Return the warnings in these lines."""
        return [line for line in self.lines if line["level"] == "warning"]
