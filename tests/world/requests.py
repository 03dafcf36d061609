"""Who waits for messages: pull requests, each served one message at a time, in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

from worker.model import MessageId

from .link import Link


@dataclass(frozen=True, slots=True)
class HandedOut:
    """A delivery as it goes over the wire."""

    id: MessageId
    token: str
    count: int
    sent: float
    subject: str
    payload: bytes
    inbox: str
    """Of the request that it answers."""
    flow: str = ""
    behind: int = 0


class Client:
    """What a server knows of one connection.

    Args:
        link: the way there.
        deliver: what a delivery does at the other end.
        dismiss: what is told there when requests were dropped; later ones count only if they name the session told.
        abandon: called when requests for so many messages of each flow were dropped and nothing is told.
        status: what a request's end does at the other end: its inbox, and the status.
        published: what the storing of a message does at the other end: its flow. None: it does not listen.
    """

    def __init__(
        self,
        link: Link,
        deliver: Callable[[HandedOut], None],
        dismiss: Callable[[int], None],
        abandon: Callable[[dict[str, int]], None] = lambda _: None,
        *,
        status: Callable[[str, str], None] = lambda _, __: None,
        published: Callable[[str], None] | None = None,
    ) -> None:
        self.link = link
        self.deliver, self.dismiss, self.abandon, self.status = deliver, dismiss, abandon, status
        self.published = published
        self.session = 0


@dataclass(slots=True, eq=False)
class Request:
    """A pull: *batch* more may be sent there, until it expires."""

    client: Client
    batch: int
    until: float
    inbox: str
    gone: bool = False
    """Nobody listens there any more. The server finds that out when it wants to serve it, or looks around."""

    def end(self, status: str) -> None:
        """Tell it that nothing more will come."""
        if not self.gone:
            self.client.link.down.send("status", partial(self.client.status, self.inbox, status))


class Requests:
    """All that wait."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: Request) -> None:
        """One more."""
        self._waiting.append(request)

    def of(self, client: Client) -> list[Request]:
        """One connection's, that somebody listens for."""
        return [request for request in self._waiting if request.client is client and not request.gone]

    def drop(self, client: Client) -> None:
        """Forget one connection's."""
        self._waiting = deque(request for request in self._waiting if request.client is not client)

    def take(self) -> Request | None:
        """The one whose turn it is to be sent a message; it waits for the rest of its batch at the end."""
        while self._waiting:
            request = self._waiting.popleft()
            if not request.gone:
                request.batch -= 1
                if request.batch:
                    self._waiting.append(request)
                return request
        return None

    def look_around(self) -> None:
        """Forget those that nobody listens for."""
        self._waiting = deque(request for request in self._waiting if not request.gone)

    def expire(self, now: float) -> None:
        """End those whose time is over."""
        for request in [request for request in self._waiting if request.until <= now]:
            self._waiting.remove(request)
            request.end("408 Request Timeout")

    def next_end(self) -> float:
        """When one will expire."""
        return min((request.until for request in self._waiting), default=inf)
