"""The source of the messages: a queue that is never empty, and never long, whatever happens to its broker.

Some are published as OpenFaaS's gateway does, straight to the broker on the bare subject; the others go through our own
producer. What was not confirmed to be stored is published again under the same id, as any careful producer does, until
it is; so what is recorded here is exactly what was promised to be kept.
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

from tests.chaos.history import Published
from tests.e2e.stack import go_url
from tests.functions import Reply, Request
from tests.servers import NatsServer
from tests.wire import NoAnswer, Wire

STREAM, CONSUMER = "faas-request", "faas-workers"
BATCH = 25
"""Number of messages that are published at once."""
WAITING = 300
"""Fewest unfinished messages that pause the publisher: just so many that no worker ever waits for a message."""
_ANSWER = 2.0
"""Longest wait for an answer of broker or producer (s)."""
_AGAIN = 0.2
"""Pause before another try (s)."""


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
GARBLED = 0.005
"""Share of messages that cannot be decoded."""
BY_DOOR = 0.3
"""Share of batches that go through this project's producer."""


def body_of(call_id: str) -> bytes:
    """Return the body of a message: its size and bytes follow from its call id."""
    digest = hashlib.sha256(call_id.encode()).digest()
    return digest * (digest[0] if digest[1] % 50 else 4_000)


def is_whole(request: Request) -> bool:
    """Return whether a function received method and body as they were published, to the byte."""
    return request.method == "POST" and request.body == body_of(request.call_id)


@dataclass(frozen=True, slots=True)
class Draft:
    """A message to be published; a *garbled* one cannot be decoded."""

    call_id: str
    function: str = ""
    callback: str | None = None
    garbled: bool = False

    @property
    def payload(self) -> bytes:
        """Return the message as OpenFaaS's gateway publishes it."""
        if self.garbled:
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


class Supply:
    """A publisher that works until there is enough.

    Args:
        nodes: the broker's; any that answers is used.
        door: the port of our own producer.
        results: the URL of the receiver of callbacks.
        rng: chance.
        clock: the run's clock.
    """

    def __init__(
        self, nodes: Sequence[NatsServer], door: int, results: str, rng: random.Random, clock: Callable[[], float]
    ) -> None:
        self.published: list[Published] = []
        self.garbled: list[bytes] = []
        self.waiting = 0
        """Number of messages that the consumer had not finished at the last look."""
        self.enough = False
        """Whether no more messages are wanted."""
        self._nodes, self._door, self._results, self._rng, self._clock = nodes, door, results, rng, clock
        self._wire: Wire | None = None
        self._posts: http.client.HTTPConnection | None = None
        self._number = 0

    async def run(self) -> None:
        """Publish until there are enough messages, and repeat each batch until it is confirmed."""
        while not self.enough:
            if await self._asked(self._look) and self.waiting < WAITING:
                by_door = self._rng.random() < BY_DOOR
                batch = [self._draft(garbled=not by_door and self._rng.random() < GARBLED) for _ in range(BATCH)]
                publish = partial(self._post if by_door else self._publish, batch)
                while batch:
                    await self._asked(publish)
            else:
                await trio.sleep(_AGAIN / 4)

    async def left(self) -> int:
        """Return how many messages the consumer is not done with."""
        while not await self._asked(self._look):
            pass
        return self.waiting

    async def _asked(self, question: Callable[[], None]) -> bool:
        """Run a blocking request in a thread; without an answer pause, and return False."""
        try:
            await trio.to_thread.run_sync(question)
        except (NoAnswer, OSError, http.client.HTTPException):
            self._hang_up()
            await trio.sleep(_AGAIN)
            return False
        return True

    def _hang_up(self) -> None:
        for connection in (self._wire, self._posts):
            if connection:
                connection.close()
        self._wire = self._posts = None

    def _look(self) -> None:
        questions = [("STREAM.INFO", b'{"subjects_filter": ">"}'), ("CONSUMER.LIST", b"")]
        answers = self._connected().request_many((f"$JS.API.{verb}.{STREAM}", body, {}) for verb, body in questions)
        stream, listed = (json.loads(answer) for answer in answers)
        if "error" in stream or "error" in listed:
            raise NoAnswer(str(stream.get("error") or listed.get("error")))
        # The stream's own count does not serve, because a full disk leaves acknowledged messages in the stream.
        consumers = listed["consumers"] or []
        self.waiting = sum(each["num_pending"] + each["num_ack_pending"] for each in consumers)
        if all(each["config"].get("filter_subject") for each in consumers):
            covered = {each["config"]["filter_subject"] for each in consumers}
            subjects = stream["state"].get("subjects") or {}
            self.waiting += sum(stored for subject, stored in subjects.items() if subject not in covered)

    def _publish(self, batch: list[Draft]) -> None:
        """Publish the rest of a batch to the broker; without an answer to each message none is recorded."""
        answers = self._connected().request_many(
            (STREAM, draft.payload, {"Nats-Msg-Id": draft.call_id}) for draft in batch
        )
        if refused := [answer for answer in answers if b'"error"' in answer]:
            raise NoAnswer(refused[0].decode())
        while batch:
            self._stored(batch.pop())

    def _post(self, batch: list[Draft]) -> None:
        """Publish the rest of a batch through the producer, one message after the other."""
        if self._posts is None:
            self._posts = http.client.HTTPConnection("127.0.0.1", self._door, timeout=_ANSWER)
        while batch:
            draft = batch[-1]
            self._posts.request("POST", f"/async-function/{draft.function}", body_of(draft.call_id), draft.headers)
            response = self._posts.getresponse()
            response.read()
            if response.status != 202:
                raise NoAnswer(f"the producer answered {response.status}")
            self._stored(batch.pop())

    def _stored(self, draft: Draft) -> None:
        if draft.garbled:
            self.garbled.append(draft.payload)
        else:
            callback = draft.callback is not None
            self.published.append(Published(draft.call_id, draft.function, self._clock(), callback))

    def _connected(self) -> Wire:
        if self._wire is None:
            for node in self._rng.sample(self._nodes, len(self._nodes)):
                try:
                    self._wire = Wire(node.port, {}, _ANSWER)
                except NoAnswer:
                    continue
                return self._wire
            raise NoAnswer("no node is up")
        return self._wire

    def _draft(self, *, garbled: bool) -> Draft:
        self._number += 1
        (function,) = self._rng.choices([*FUNCTIONS], [each.weight for each in FUNCTIONS.values()])
        callback = f"{self._results}/results" if self._rng.random() < 0.4 else None
        return Draft(f"call-{self._number}", function, callback, garbled)
