"""Function mode: which flows there are, and a consumer for each of which something is wanted.

A flow is found as soon as a message for it is stored, and without asking the server all the time: by *an ear that ends
by itself, then one look*. The ear is a plain subscription to the queue's subjects that the server ends after a few
messages; when it is used up we wait a little, begin a new one, and then look once at what the stream holds. So a quiet
queue is heard at once and costs nothing, and a busy one costs a few copies and one look per interval. What nobody heard
is found by a look every two seconds. Where subscribing is not permitted, the looks are all there is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import count

import msgspec
import nats.errors
import trio
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from ..config import Settings
from ..events import BrokerMisconfigured
from ..model import PendingCount, Published, StoredCount
from ..ports import BrokerUnavailableError, Emit, MisconfiguredError
from . import nats_internals, topology
from .connection import Connection
from .jetstream import JetStream
from .layout import FUNCTION, ConsumerSet
from .pull_consumer import PullConsumer
from .wire import ApiError, ErrorCode

HEARD = 8
"""Messages after which an ear is used up."""
PAUSE = 0.04
"""Seconds between two looks at least."""
LOOK = 2.0
"""Seconds between two looks at most."""
_SHARE = 4
"""A look may take one in so many seconds, however much the stream holds."""
_MAKERS = 8
"""Consumers that are made at the same time: on three servers one takes 60 ms (measured)."""
_CALM = 0.25
"""Seconds before a flow that was lost is looked for: an election may have taken its consumer, for some seconds."""
_GRACE = 10.0
"""Seconds after the threshold when a flow is gone whether its consumer is or not: who deleted that may be another."""
_AGAIN, _LATER, _AT_ONCE = 1.0, 5.0, 0.01
"""Seconds before another try to make a consumer: usually, where somebody must mend something, and where we did."""


class OneShotSubscription:
    """Hears of a subject's messages, a few.

    Args:
        connection: its client.
        subject: the subject.
        hear: told the subject of each message.
        used_up: told when nothing more will be heard.
    """

    def __init__(
        self, connection: Connection, subject: str, hear: Callable[[str], None], used_up: Callable[[], None]
    ) -> None:
        self._connection, self._subject, self._hear, self._used_up = connection, subject, hear, used_up
        self._left = 0
        self._subscription: Subscription | None = None

    async def begin(self) -> None:
        """Listen, unless it does."""
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
        """Hear nothing more."""
        self._left = 0
        if self._subscription:
            subscription, self._subscription = self._subscription, None
            with suppress(nats.errors.Error):  # the server ended it before
                await subscription.unsubscribe()

    def _on_message(self, message: Msg) -> None:
        self._left -= 1
        self._hear(message.subject)
        if self._left == 0:
            self._used_up()


class SubjectDiscovery:
    """The flows of a queue that are a subject each.

    Args:
        connection: to whom to talk.
        settings: with the stream's name as it is at the server.
        flows: where they are told.
        emit: told what is wrong.
        look: looks at the stream; what it finds is to be given to :meth:`seen`.
    """

    def __init__(
        self,
        jetstream: JetStream,
        settings: Settings,
        flows: PullConsumer,
        *,
        emit: Emit,
        look: Callable[[], Awaitable[object]],
    ) -> None:
        self.ready = False
        """Whether we know what the stream holds."""
        self.crowded = False
        """Whether the stream may have no more consumers."""
        self._ours: Callable[[str], bool] | None = None
        """Which subjects are flows of ours; nothing where none is, and nothing is looked for."""
        self._taken: frozenset[str] = frozenset()
        self._names: dict[str, str] = {}
        connection = jetstream.connection
        self._connection, self.settings, self._flows, self._emit, self._look = connection, settings, flows, emit, look
        self._jetstream = jetstream
        self._ears = [
            OneShotSubscription(connection, each, self._heard, self.look_soon) for each in topology.subjects(settings)
        ]
        self._told: dict[str, int] = {}
        """What was last told of each flow."""
        self._empty: dict[str, float] = {}
        """Since when a flow has had nothing stored."""
        self._stale = 0.0
        """When what is told already is told again."""
        self._soon = asyncio.Event()
        self._looked = float("-inf")
        self._took = 0.0
        self._unmade: asyncio.Queue[str] = asyncio.Queue()

    def begin(self, ours: Callable[[str], bool]) -> None:
        """Look for flows. *ours*: which subjects are."""
        if self._ours is None:
            self._ours = ours
            self.look_soon()

    def know(self, layout: ConsumerSet) -> None:
        """Which names are taken by retired consumers, and what those are called that others have made meanwhile."""
        self._taken = frozenset(each.name for each in layout.retired)
        self._names = {each.subjects[0]: each.name for each in layout.live if each.layout == FUNCTION}

    async def end(self) -> None:
        """Have no flows, and look for none."""
        self._ours, self.ready = None, False
        self.forget()
        for ear in self._ears:
            await ear.end()

    def look_soon(self) -> None:
        """Something may have changed."""
        self._soon.set()

    def make(self, flow: str) -> None:
        """Something is wanted of a flow: it needs its consumer."""
        self._flows.open(flow).creating = True
        self._unmade.put_nowait(flow)

    def lost(self, flow: str) -> None:
        """A flow's consumer is gone. If something of it is stored, it is found anew."""
        self._empty.pop(flow, None)
        if self._told.pop(flow, None) is not None or self._flows.find(flow):
            self._flows.close(flow)
            asyncio.get_running_loop().call_later(_CALM, self.look_soon)

    def stored(self, subject: str) -> int:
        """How many messages a subject has, as far as we know. What is not ours to know counts as one."""
        return self._told.get(subject, 0) if self.ready else 1

    def forget(self) -> None:
        """No flow is there, of those that are told."""
        for flow in [*self._told]:
            self.lost(flow)

    async def run(self) -> None:
        """Find flows and make consumers, until cancelled."""
        await asyncio.gather(self._find(), *(self._make() for _ in range(_MAKERS)))

    # Finding.

    def seen(self, stored: Mapping[str, int]) -> None:
        """What a look at the stream has found."""
        if self._ours is None:
            return
        now = trio.current_time()
        self._looked, self.ready = now, True
        again = now >= self._stale
        if again:
            self._stale = now + LOOK
        for subject, messages in stored.items():
            if self._told.get(subject) == messages and not (again and not self._outstanding(subject)):
                continue
            if self._ours(subject):
                self._tell_stored(subject, messages)
        for subject in self._told.keys() - stored.keys():
            if self._told[subject]:
                self._tell_stored(subject, 0)
            elif now - self._empty.setdefault(subject, now) >= self.settings.consumer_inactive_threshold + _GRACE:
                self.lost(subject)

    def _heard(self, subject: str) -> None:
        if subject in self._told:
            self._told[subject] += 1
            self._empty.pop(subject, None)
            self._flows.notify(Published(subject))
        elif self._ours and self._ours(subject):
            self._tell_stored(subject, 1)

    def _tell_stored(self, subject: str, messages: int) -> None:
        self._told[subject] = messages
        self._empty.pop(subject, None)
        self._flows.notify(StoredCount(subject, messages))

    def _outstanding(self, flow: str) -> int:
        puller = self._flows.find(flow)
        return puller.outstanding if puller else 0

    async def _find(self) -> None:
        while True:
            self._soon.clear()
            if self._connection.up and self._ours:
                await self._hear_and_look()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._soon.wait(), max(0.0, self._looked + LOOK - trio.current_time()) or LOOK)
            pause = max(PAUSE, _SHARE * self._took)
            if (wait := self._looked + pause - trio.current_time()) > 0:
                await asyncio.sleep(wait)

    async def _hear_and_look(self) -> None:
        began = trio.current_time()
        try:
            for ear in self._ears:
                await ear.begin()
            await self._look()
        except (ApiError, BrokerUnavailableError, nats.errors.Error, OSError) as error:
            self._connection.report_failure("looking at the stream", error)
        self._took = trio.current_time() - began

    # Making.

    async def _make(self) -> None:
        while True:
            flow = await self._unmade.get()
            if self._flows.find(flow):
                again = await self._make_one(flow)
                puller = self._flows.find(flow)
                if puller and again and puller.wanted:
                    asyncio.get_running_loop().call_later(again, partial(self._unmade.put_nowait, flow))
                elif puller:
                    puller.creating = False

    async def _make_one(self, flow: str) -> float:
        """In how many seconds that must be tried again; zero: it is made."""
        numbers = (topology.flow_config(self.settings, flow, number) for number in count(1))
        config = next(each for each in numbers if each.name not in self._taken)
        if (name := self._names.get(flow)) and name not in self._taken:
            config = msgspec.structs.replace(config, name=name, durable_name=name)
        try:
            info = await topology.ensure_consumer(self._jetstream, self.settings, config, lambda _: None, again=False)
        except MisconfiguredError as error:
            self._emit(BrokerMisconfigured(str(error)))
            return _LATER
        except (ApiError, BrokerUnavailableError) as error:
            if (
                isinstance(error, ApiError)
                and error.err_code == ErrorCode.MAXIMUM_CONSUMERS_LIMIT
                and await self._allow_more()
            ):
                return _AT_ONCE
            self._connection.report_failure(f"making a consumer for {flow}", error)
            return _LATER if self.crowded else _AGAIN
        self.crowded = False
        if puller := self._flows.find(flow):
            self._flows.ack_wait = min(self._flows.ack_wait, info.ack_wait)
            self._flows.notify(PendingCount(flow, info.num_pending))
            puller.bind(f"$JS.API.CONSUMER.MSG.NEXT.{self.settings.nats_stream}.{config.name}")
        return 0.0

    async def _allow_more(self) -> bool:
        try:
            self.crowded = not await topology.allow_more_consumers(self._jetstream, self.settings, self._emit)
        except (ApiError, BrokerUnavailableError):  # no permission
            self.crowded = True
        return not self.crowded
