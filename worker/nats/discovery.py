"""Function mode: finds the subjects that have messages.

A subject is found as soon as a message on it is stored, and without a request to the server all the time: by
*a subscription that ends by itself, then one look*. The server ends the subscription to the queue's subjects after a
few messages. Then the worker waits a little, subscribes again, and asks once what the stream stores. So a quiet queue
costs nothing, and a busy one costs a few copies and one request in each interval. A message that no subscription
received is found by a look every two seconds. Where subscribing is not permitted, only the looks remain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

import nats.errors
import trio
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..model import Published, StoredCount
from ..ports import BrokerUnavailableError
from . import nats_internals
from .connection import Connection
from .pull_consumer import PullConsumer
from .wire import ApiError

HEARD = 8
"""Messages after which a subscription ends."""
PAUSE = 0.04
"""Seconds between two looks at least."""
LOOK = 2.0
"""Seconds between two looks at most."""
_SHARE = 4
"""A look may take one in so many seconds, however much the stream stores."""
_CALM = 0.25
"""Seconds before a flow that was lost is looked for: an election may have made its consumer unavailable, for some
seconds."""
_GRACE = 10.0
"""Seconds after the threshold when a flow ends without the deletion of its consumer, which another worker may have
seen to."""


class OneShotSubscription:
    """A subscription that ends after :data:`HEARD` messages; then *ended* is called."""

    def __init__(
        self, connection: Connection, subject: str, received: Callable[[str], None], ended: Callable[[], None]
    ) -> None:
        self._connection, self._subject, self._received, self._ended = connection, subject, received, ended
        self._left = 0
        self._subscription: Subscription | None = None

    async def begin(self) -> None:
        """Subscribe, unless the subscription has not ended."""
        if self._left <= 0:
            self._left = HEARD
            try:
                self._subscription = await nats_internals.listen(
                    self._connection.client, self._subject, self._on_message
                )
                await self._subscription.unsubscribe(HEARD)
            except (nats.errors.Error, OSError):
                self._left = 0
                raise

    async def end(self) -> None:
        """Unsubscribe."""
        self._left = 0
        subscription, self._subscription = self._subscription, None
        if subscription:
            with suppress(nats.errors.Error):  # the server ended it before
                await subscription.unsubscribe()

    def _on_message(self, message: Msg) -> None:
        self._left -= 1
        self._received(message.subject)
        if self._left == 0:
            self._ended()


class SubjectDiscovery:
    """The flows that are a subject each.

    Args:
        threshold: seconds after which a subject without messages is no flow any more.
        look: looks at the stream, and calls :meth:`set_stored`.
    """

    def __init__(
        self,
        connection: Connection,
        subjects: tuple[str, ...],
        threshold: float,
        flows: PullConsumer,
        look: Callable[[], Awaitable[object]],
    ) -> None:
        self.ready = False
        """Whether it is known what the stream stores."""
        self._is_flow: Callable[[str], bool] | None = None
        """Whether a subject is a flow of this worker; None where no subject is looked for."""
        self._connection, self._threshold, self._flows, self._look = connection, threshold, flows, look
        self._subscriptions = [
            OneShotSubscription(connection, each, self._on_published, self.look_soon) for each in subjects
        ]
        self._stored: dict[str, int] = {}
        """Messages of each flow, as last notified."""
        self._empty_since: dict[str, float] = {}
        self._repeat_at = 0.0
        """The time from which flows are notified also of an unchanged count."""
        self._soon = asyncio.Event()
        self._looked_at = float("-inf")
        self._look_took = 0.0

    def begin(self, is_flow: Callable[[str], bool]) -> None:
        """Find the subjects that are flows of this worker."""
        if self._is_flow is None:
            self._is_flow = is_flow
            self.look_soon()

    async def end(self) -> None:
        """End all flows, and find no subjects any more."""
        self._is_flow, self.ready = None, False
        self.forget()
        for each in self._subscriptions:
            await each.end()

    def look_soon(self) -> None:
        """Look at the stream as soon as the shortest pause has passed."""
        self._soon.set()

    def lost(self, flow: str) -> None:
        """End a flow, because its consumer is gone. Where messages are stored, it is found again."""
        self._empty_since.pop(flow, None)
        if self._stored.pop(flow, None) is not None or self._flows.find(flow):
            self._flows.close(flow)
            asyncio.get_running_loop().call_later(_CALM, self.look_soon)

    def forget(self) -> None:
        """End all flows."""
        for flow in [*self._stored]:
            self.lost(flow)

    def set_stored(self, stored: Mapping[str, int]) -> None:
        """Notify of what a look at the stream found, by subject."""
        if self._is_flow is None:
            return
        now = trio.current_time()
        self._looked_at, self.ready = now, True
        # A count is repeated now and then where nothing is wanted of the flow: the scheduler may have taken back its
        # credit, and a subscription's copy may have been lost.
        repeat = now >= self._repeat_at
        if repeat:
            self._repeat_at = now + LOOK
        for subject, messages in stored.items():
            if self._stored.get(subject) == messages and not (repeat and not self._outstanding(subject)):
                continue
            if self._is_flow(subject):
                self._set(subject, messages)
        for subject in self._stored.keys() - stored.keys():
            if self._stored[subject]:
                self._set(subject, 0)
            elif now - self._empty_since.setdefault(subject, now) >= self._threshold + _GRACE:
                self.lost(subject)

    async def run(self) -> None:
        """Find flows until cancelled."""
        while True:
            self._soon.clear()
            if self._connection.up and self._is_flow:
                await self._subscribe_and_look()
            patience = max(0.0, self._looked_at + LOOK - trio.current_time()) or LOOK
            with suppress(TimeoutError):
                async with asyncio.timeout(patience):  # wait_for of Python 3.11 may lose a cancellation
                    await self._soon.wait()
            pause = max(PAUSE, _SHARE * self._look_took)
            if (wait := self._looked_at + pause - trio.current_time()) > 0:
                await asyncio.sleep(wait)

    async def _subscribe_and_look(self) -> None:
        began = trio.current_time()
        try:
            for each in self._subscriptions:
                await each.begin()
            await self._look()
        except (ApiError, BrokerUnavailableError, nats.errors.Error, OSError) as error:
            self._connection.report_failure("looking at the stream", error)
        self._look_took = trio.current_time() - began

    def _on_published(self, subject: str) -> None:
        if subject in self._stored:
            self._stored[subject] += 1
            self._empty_since.pop(subject, None)
            self._flows.notify(Published(subject))
        elif self._is_flow and self._is_flow(subject):
            self._set(subject, 1)

    def _set(self, subject: str, messages: int) -> None:
        self._stored[subject] = messages
        self._empty_since.pop(subject, None)
        self._flows.notify(StoredCount(subject, messages))

    def _outstanding(self, flow: str) -> int:
        pull = self._flows.find(flow)
        return pull.credit.outstanding if pull else 0
