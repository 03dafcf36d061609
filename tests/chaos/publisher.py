"""The publisher of the messages: it keeps the queue short, and not empty, during all faults of the broker.

Some messages are published as OpenFaaS's gateway does, straight to the broker on the bare subject; the others through
this project's producer. A message that was not confirmed is published again under the same id, as any careful producer
does, until it is confirmed. So the records contain exactly the messages that the broker promised to keep.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import trio

from tests.chaos.history import PublishedMessage
from tests.e2e.stack import go_url
from tests.functions import Reply, Request
from tests.servers import NatsServer
from tests.wire import NoResponseError, WireConnection

STREAM, CONSUMER = "faas-request", "faas-workers"
BATCH_SIZE = 25
"""Number of messages that are published at once."""
MAX_BACKLOG = 300
"""Fewest unfinished messages that pause the publisher: so many that no worker waits for a message."""
_TIMEOUT = 2.0
"""Longest wait for a response of broker or producer (s)."""
_RETRY_PAUSE = 0.2
"""Pause before a failed request is sent again (s)."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function: its share of the messages, and its replies."""

    weight: int
    replies: tuple[Reply, ...]


def _after(seconds: float, status: int = 200, body: bytes = b"done") -> Reply:
    return Reply(status, body, after=seconds)


FUNCTIONS: Mapping[str, Function] = {
    "quick": Function(40, (_after(0.01),)),
    "usual": Function(30, (_after(0.08),)),
    "wide": Function(6, (_after(0.05, body=b"x" * 50_000),)),
    "refusing": Function(6, (_after(0.05, 404),)),
    "flaky": Function(8, (_after(0.05, 500), _after(0.02, 503), _after(0.05))),
    "broken": Function(4, (_after(0.02, 500),)),
    # Slower than a lease lasts, so that each invocation depends on extensions.
    "slow": Function(2, (_after(5.0),)),
}
UNDECODABLE_SHARE = 0.005
"""Share of messages that cannot be decoded."""
PRODUCER_SHARE = 0.3
"""Share of batches that go through this project's producer."""


def body_of(call_id: str) -> bytes:
    """Return the body of a message: its size and bytes follow from its call id."""
    digest = hashlib.sha256(call_id.encode()).digest()
    return digest * (digest[0] if digest[1] % 50 else 4_000)


def is_intact(request: Request) -> bool:
    """Return whether a function received method and body as they were published, to the byte."""
    return request.method == "POST" and request.body == body_of(request.call_id)


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message to publish; an *undecodable* one is not valid JSON."""

    call_id: str
    function: str = ""
    callback: str | None = None
    undecodable: bool = False

    @property
    def payload(self) -> bytes:
        """Return the message as OpenFaaS's gateway publishes it."""
        if self.undecodable:
            return b"not JSON " + self.call_id.encode()
        request = {
            "Function": self.function,
            "Method": "POST",
            "Header": {"X-Call-Id": [self.call_id]},
            "Body": base64.b64encode(body_of(self.call_id)).decode(),
            "CallbackUrl": go_url(self.callback) if self.callback else None,
        }
        return json.dumps(request).encode()

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers of the request to the producer."""
        return {"X-Call-Id": self.call_id, **({"X-Callback-Url": self.callback} if self.callback else {})}


class Publisher:
    """A publisher that works until it is finished.

    Args:
        nodes: the broker's nodes; any that responds is used.
        producer_port: the port of this project's producer.
        receiver_url: the URL of the receiver of callbacks.
        rng: random draws.
        clock: the run's clock.
    """

    def __init__(
        self,
        nodes: Sequence[NatsServer],
        producer_port: int,
        receiver_url: str,
        rng: random.Random,
        clock: Callable[[], float],
    ) -> None:
        self.published: list[PublishedMessage] = []
        self.undecodable: list[bytes] = []
        self.backlog = 0
        """Number of messages that the consumer had not finished when it was last read."""
        self.finished = False
        """Whether no more messages are needed."""
        self._nodes, self._producer_port, self._receiver_url, self._rng, self._clock = (
            nodes,
            producer_port,
            receiver_url,
            rng,
            clock,
        )
        self._wire: WireConnection | None = None
        self._http: http.client.HTTPConnection | None = None
        self._number = 0

    async def run(self) -> None:
        """Publish until there are enough messages, and repeat each batch until it is confirmed."""
        while not self.finished:
            if await self._succeeds(self._read_backlog) and self.backlog < MAX_BACKLOG:
                via_producer = self._rng.random() < PRODUCER_SHARE
                batch = [
                    self._new_message(undecodable=not via_producer and self._rng.random() < UNDECODABLE_SHARE)
                    for _ in range(BATCH_SIZE)
                ]
                publish = partial(self._post if via_producer else self._publish, batch)
                while batch:
                    await self._succeeds(publish)
            else:
                await trio.sleep(_RETRY_PAUSE / 4)

    async def num_unfinished(self) -> int:
        """Return how many messages the consumer has not finished."""
        while not await self._succeeds(self._read_backlog):
            pass
        return self.backlog

    async def _succeeds(self, request: Callable[[], None]) -> bool:
        """Run a blocking request in a thread; without a response pause, and return False."""
        try:
            await trio.to_thread.run_sync(request)
        except (NoResponseError, OSError, http.client.HTTPException):
            self._disconnect()
            await trio.sleep(_RETRY_PAUSE)
            return False
        return True

    def _disconnect(self) -> None:
        for connection in (self._wire, self._http):
            if connection:
                connection.close()
        self._wire = self._http = None

    def _read_backlog(self) -> None:
        requests = [("STREAM.INFO", b'{"subjects_filter": ">"}'), ("CONSUMER.LIST", b"")]
        responses = self._connect().request_many((f"$JS.API.{verb}.{STREAM}", body, {}) for verb, body in requests)
        stream, listed = (json.loads(response) for response in responses)
        if "error" in stream or "error" in listed:
            raise NoResponseError(str(stream.get("error") or listed.get("error")))
        # The stream's own count does not serve, because a full disk leaves acknowledged messages in the stream.
        consumers = listed["consumers"] or []
        self.backlog = sum(each["num_pending"] + each["num_ack_pending"] for each in consumers)
        if all(each["config"].get("filter_subject") for each in consumers):
            covered = {each["config"]["filter_subject"] for each in consumers}
            subjects = stream["state"].get("subjects") or {}
            self.backlog += sum(stored for subject, stored in subjects.items() if subject not in covered)

    def _publish(self, batch: list[NewMessage]) -> None:
        """Publish the rest of a batch to the broker; record it only if each message has a response."""
        responses = self._connect().request_many(
            (STREAM, message.payload, {"Nats-Msg-Id": message.call_id}) for message in batch
        )
        if refused := [response for response in responses if b'"error"' in response]:
            raise NoResponseError(refused[0].decode())
        while batch:
            self._record(batch.pop())

    def _post(self, batch: list[NewMessage]) -> None:
        """Publish the rest of a batch through the producer, one message after the other."""
        if self._http is None:
            self._http = http.client.HTTPConnection("127.0.0.1", self._producer_port, timeout=_TIMEOUT)
        while batch:
            message = batch[-1]
            self._http.request("POST", f"/async-function/{message.function}", body_of(message.call_id), message.headers)
            response = self._http.getresponse()
            response.read()
            if response.status != 202:
                raise NoResponseError(f"the producer answered {response.status}")
            self._record(batch.pop())

    def _record(self, message: NewMessage) -> None:
        if message.undecodable:
            self.undecodable.append(message.payload)
        else:
            callback = message.callback is not None
            self.published.append(PublishedMessage(message.call_id, message.function, self._clock(), callback))

    def _connect(self) -> WireConnection:
        if self._wire is None:
            for node in self._rng.sample(self._nodes, len(self._nodes)):
                try:
                    self._wire = WireConnection(node.port, {}, _TIMEOUT)
                except NoResponseError:
                    continue
                return self._wire
            raise NoResponseError("no node is up")
        return self._wire

    def _new_message(self, *, undecodable: bool) -> NewMessage:
        self._number += 1
        (function,) = self._rng.choices([*FUNCTIONS], [each.weight for each in FUNCTIONS.values()])
        callback = f"{self._receiver_url}/results" if self._rng.random() < 0.4 else None
        return NewMessage(f"call-{self._number}", function, callback, undecodable)
