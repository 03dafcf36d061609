"""Open pull requests, each served one message at a time, in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

from worker.model import AttemptCount, MessageId

from .link import Link


@dataclass(frozen=True, slots=True)
class SentDelivery:
    """A delivery as the server sends it."""

    id: MessageId
    token: str
    count: int
    sent: float
    subject: str
    payload: bytes
    inbox: str
    """Inbox of the request that it answers."""
    flow: str = ""
    num_pending: int = 0


class Client:
    """One connection, as the server sees it.

    Args:
        link: the connection to the client.
        deliver: called at the other end with a delivery.
        on_dropped: called there with a new session when requests were dropped; later requests must name that session.
        on_lost: called with flow -> number of messages when requests were dropped without a notification.
        status: called at the other end with the inbox and the status of a request that ended.
        published: called at the other end with the flow of a stored message. None: the client does not subscribe.
        announced: called at the other end with each announcement of a worker.
    """

    def __init__(
        self,
        link: Link,
        deliver: Callable[[SentDelivery], None],
        on_dropped: Callable[[int], None],
        on_lost: Callable[[dict[str, int]], None] = lambda _: None,
        *,
        status: Callable[[str, str], None] = lambda _, __: None,
        published: Callable[[str], None] | None = None,
        announced: Callable[[AttemptCount], None] = lambda _: None,
    ) -> None:
        self.link = link
        self.deliver, self.on_dropped, self.on_lost, self.status = deliver, on_dropped, on_lost, status
        self.published, self.announced = published, announced
        self.session = 0


@dataclass(slots=True, eq=False)
class Request:
    """A pull request: *batch* more messages may be sent for it, until it expires."""

    client: Client
    batch: int
    until: float
    inbox: str
    unsubscribed: bool = False
    """Whether its inbox has no subscriber left. The server detects that when it serves it or checks all requests."""

    def end(self, status: str) -> None:
        """Send a status that ends the request."""
        if not self.unsubscribed:
            self.client.link.from_broker.send("status", partial(self.client.status, self.inbox, status))


class Requests:
    """All open pull requests of a consumer."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def add(self, request: Request) -> None:
        """Append a request."""
        self._waiting.append(request)

    def of(self, client: Client) -> list[Request]:
        """List one connection's requests whose inboxes have subscribers."""
        return [request for request in self._waiting if request.client is client and not request.unsubscribed]

    def drop(self, client: Client) -> None:
        """Delete one connection's requests."""
        self._waiting = deque(request for request in self._waiting if request.client is not client)

    def take(self) -> Request | None:
        """Return the request that is next in turn, and append it again for the rest of its batch."""
        while self._waiting:
            request = self._waiting.popleft()
            if not request.unsubscribed:
                request.batch -= 1
                if request.batch:
                    self._waiting.append(request)
                return request
        return None

    def prune(self) -> None:
        """Delete the requests whose inboxes have no subscribers."""
        self._waiting = deque(request for request in self._waiting if not request.unsubscribed)

    def expire(self, now: float) -> None:
        """End the requests that have expired."""
        for request in [request for request in self._waiting if request.until <= now]:
            self._waiting.remove(request)
            request.end("408 Request Timeout")

    def next_expiry(self) -> float:
        """Return the time (s) at which the next request expires."""
        return min((request.until for request in self._waiting), default=inf)
