"""The core's ports: protocols that adapters and fakes implement. All pass one conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from .events import Event
from .model import (
    AttemptCount,
    Attempted,
    Backlog,
    Callback,
    DeadLetter,
    Delivery,
    Invocation,
    Malformed,
    Notice,
    NotSent,
    PostResult,
    Quota,
    Settlement,
    StoredBody,
    StoredCallback,
)


class BrokerUnavailableError(Exception):
    """The broker did not answer, or did not confirm that it stored a message."""


class MisconfiguredError(Exception):
    """The stream or consumer at the broker cannot be used, and waiting does not help. The text is for the operator."""


class BodyLostError(Exception):
    """A large body is not stored any more, or is damaged: waiting does not help."""


class Consumer(Protocol):
    """The queue's messages, requested by credit for each *flow*.

    A flow is a series of messages that are delivered in order and separately from all others: one distinct subject, or
    the whole queue where all workers share one consumer. A flow begins with a :class:`~worker.model.QueueShared`, a
    :class:`~worker.model.StoredCount` or a :class:`~worker.model.PendingCount`, and ends with a
    :class:`~worker.model.FlowEnded`. In between the consumer reports the stored messages at every change, and
    repeats the report for a flow without credit.

    Credit lasts across lost connections and recreated consumers, until its messages arrive, it is returned, or the flow
    ends. Never do more messages arrive than there was credit.
    """

    ack_wait: float
    """Seconds that the queue waits for a settlement or an extension before it redelivers a message. The value may
    change when a consumer is recreated."""

    def add_credit(self, count: int, flow: str) -> None:
        """Request *count* more messages of a flow."""

    def recall_credit(self, flow: str) -> None:
        """Cancel the credit of a flow for which no message is on its way.

        One :class:`~worker.model.CreditReturned` follows soon, perhaps with a count of zero.
        """

    async def receive(self) -> Sequence[Delivery | Notice]:
        """Wait until a delivery or notice has arrived, and return all of them in order."""

    async def stop(self) -> Sequence[Delivery]:
        """Cancel all credit, and return the deliveries that had arrived or were on their way."""


class Queue(Protocol):
    """The broker. Settling and extending only append to the outbox, so they cannot be cancelled half-way."""

    async def consume(self) -> Consumer:
        """Return a consumer of the queue, or of this worker's partition; create a stream or consumer that is missing.

        Wait for the broker without a limit. :class:`MisconfiguredError` is raised if the existing stream or consumer
        cannot be used, or the broker refuses the credentials.
        """

    def settle(
        self, delivery: Delivery, settlement: Settlement, *, before: float, body: StoredBody | None = None
    ) -> None:
        """End a delivery. The settlement is sent again until the queue confirms it; then a stored *body* is deleted.

        A :class:`Nak` is not sent after *before* (s, Trio's clock), when another worker may have the message: the queue
        would redeliver a message that runs. An :class:`Ack` or :class:`Term` stays true, and is sent even then.
        """

    def announce(self, count: AttemptCount) -> None:
        """Notify the other workers of a message's attempts, before a settlement of it that is noted after this call.

        Only those that are connected now receive it, as a notice.
        """

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        """Extend a lease by an ack wait from now on, not after *before*; call *confirmed* once it is confirmed."""

    async def wait_settled(self) -> None:
        """Wait until every settlement so far is confirmed."""

    async def store_dead_letter(self, letter: DeadLetter) -> None:
        """Store a dead letter, and keep its large body for as long.

        Raise :class:`BrokerUnavailableError` if the broker did not confirm it.
        """

    async def store_callback(self, stored: StoredCallback, key: str) -> None:
        """Store a callback; raise :class:`BrokerUnavailableError` if the broker did not confirm it.

        It arrives as a delivery of the flow :data:`worker.model.CALLBACKS`, at any worker that has credit for that
        flow. With the same *key* it is stored once, for a while. A body that is too large for a message is stored
        beside it, as a large body.
        """

    async def backlog(self) -> Backlog:
        """Return the counts of the stream's messages; raise :class:`BrokerUnavailableError` without an answer."""


class Quotas(Protocol):
    """The quotas of functions, which all workers enforce together by tokens; see :mod:`worker.policy.quota`.

    Tokens arrive as deliveries of flows that are named after their kind and their function: ``quota/cap/echo.fn`` and
    ``quota/rate/echo.fn``. They are requested and recalled like the messages of any flow. A cap's token has a lease, as
    a message has, for as long as an invocation runs; a rate's needs none.
    """

    def agreed(self, function: str) -> Quota | None:
        """Return a function's agreed quota, None if there never was one; :class:`QuotaChanged` reports changes."""

    def propose(self, function: str, quota: Quota, stored: int) -> None:
        """Propose the quota in a message that was stored at time *stored* (ns since the epoch).

        All workers use the newest message's quota, once they have agreed on it.
        """

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        """Return a token, to be redelivered *delay* seconds from now. Like a nak it is not sent after *before*."""


class Bodies(Protocol):
    """Large bodies, which are stored beside the queue."""

    def read(self, body: StoredBody) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a body, whose iterator yields it part by part. Nothing is requested before its first part is awaited.

        The iterator raises :class:`BodyLostError`, before the last part, if the body is not there as it was stored, and
        :class:`BrokerUnavailableError` without an answer.
        """


class Functions(Protocol):
    """The functions, behind a gateway or reached directly."""

    async def invoke(self, invocation: Invocation) -> Attempted | NotSent | Malformed:
        """Send the request and wait for the response, at most ``upstream_timeout``. No response raises an exception."""


class Callbacks(Protocol):
    """The receivers of results."""

    async def post(self, callback: Callback) -> PostResult:
        """Post a callback once, and return the result.

        A status of 429 or 503 with a Retry-After header is returned with that header. :class:`BodyLostError` is raised
        if the stored body is not there as it was stored; then the receiver has got no complete request.
        """


Emit = Callable[[Event], None]
"""Passes an event to the observers. It returns at once and never raises."""
