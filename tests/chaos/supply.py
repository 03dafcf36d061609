"""Where the messages come from: a queue that is never empty, and never long, whatever happens to its broker.

A batch whose storing was not confirmed is published again under the same ``Nats-Msg-Id``, as any careful producer
does, until it is; so what is recorded here is exactly what the broker promised to keep.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from tests.chaos.ledger import Published
from tests.e2e.functions import Reply, Request
from tests.e2e.stack import go_url
from tests.servers import NatsServer
from tests.wire import NoAnswer, Wire

STREAM = "faas-request"
BATCH = 25
"""Messages published at once."""
WAITING = 300
"""Messages in the stream above which none are published: so many that no worker ever waits for one, and no more."""
_ANSWER = 2.0
"""Longest wait for the broker (s)."""
_AGAIN = 0.2
"""Seconds before another try."""


@dataclass(frozen=True, slots=True)
class Function:
    """A function, and how much of the supply is for it."""

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
    # Longer than the leases of the run, so that it lives by their being extended.
    "slow": Function(2, (_after(5.0),)),
}
GARBLED = 0.005
"""Share of messages that cannot be understood."""


def body_of(call_id: str) -> bytes:
    """The body of a message: of a size, and of bytes, that follow from its call id."""
    digest = hashlib.sha256(call_id.encode()).digest()
    return digest * (digest[0] if digest[1] % 50 else 4_000)


def is_whole(request: Request) -> bool:
    """Whether a function was sent what was published, to the byte."""
    return request.method == "POST" and request.body == body_of(request.call_id)


class Supply:
    """Publishes until told to stop.

    Args:
        nodes: the broker's; the first that answers is used.
        results: the URL of the receiver of callbacks.
        dice: chance.
        clock: the run's clock.
    """

    def __init__(
        self, nodes: Sequence[NatsServer], results: str, dice: random.Random, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.published: list[Published] = []
        self.garbled: list[bytes] = []
        self.waiting = 0
        """Messages in the stream, when last asked."""
        self.enough = False
        """No more are wanted."""
        self._nodes, self._results, self._dice, self._clock = nodes, results, dice, clock
        self._wire: Wire | None = None
        self._number = 0

    async def run(self) -> None:
        """Publish until there is enough, each batch until it is confirmed."""
        while not self.enough:
            if await self._asked(self._look) and self.waiting < WAITING:
                batch = [self._message() for _ in range(BATCH)]
                while not await self._asked(lambda batch=batch: self._publish(batch)):  # type: ignore[misc]  # mypy cannot infer a default's type
                    pass
            else:
                await trio.sleep(_AGAIN / 4)

    async def left(self) -> int:
        """How many messages the stream holds."""
        while not await self._asked(self._look):
            pass
        return self.waiting

    async def _asked(self, question: Callable[[], bool]) -> bool:
        """Ask in a thread; False where there was no answer, after a pause."""
        try:
            return await trio.to_thread.run_sync(question)
        except NoAnswer:
            if self._wire:
                self._wire.close()
                self._wire = None
            await trio.sleep(_AGAIN)
            return False

    def _look(self) -> bool:
        (answer,) = self._connected().request_many([(f"$JS.API.STREAM.INFO.{STREAM}", b"", {})])
        said = json.loads(answer)
        if "error" in said:
            raise NoAnswer(str(said["error"]))
        self.waiting = said["state"]["messages"]
        return True

    def _publish(self, batch: Sequence[tuple[Published | None, bytes, str]]) -> bool:
        answers = self._connected().request_many(
            (STREAM, payload, {"Nats-Msg-Id": identity}) for _, payload, identity in batch
        )
        if refused := [answer for answer in answers if b'"error"' in answer]:
            raise NoAnswer(refused[0].decode())
        for message, payload, _ in batch:
            if message:
                self.published.append(message)
            else:
                self.garbled.append(payload)
        return True

    def _connected(self) -> Wire:
        if self._wire is None:
            for node in self._dice.sample(self._nodes, len(self._nodes)):
                try:
                    self._wire = Wire(node.port, {}, _ANSWER)
                except NoAnswer:
                    continue
                return self._wire
            raise NoAnswer("no node is up")
        return self._wire

    def _message(self) -> tuple[Published | None, bytes, str]:
        self._number += 1
        call_id = f"call-{self._number}"
        if self._dice.random() < GARBLED:
            return None, b"not JSON " + call_id.encode(), call_id
        (function,) = self._dice.choices([*FUNCTIONS], [each.weight for each in FUNCTIONS.values()])
        callback = self._dice.random() < 0.4
        request = {
            "Function": function,
            "Method": "POST",
            "Header": {"X-Call-Id": [call_id]},
            "Body": base64.b64encode(body_of(call_id)).decode(),
            "CallbackUrl": go_url(f"{self._results}/results") if callback else None,
        }
        return Published(call_id, function, self._clock(), callback), json.dumps(request).encode(), call_id
