"""The core's ports: protocols that adapters and fakes implement. All pass one conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .events import Event
from .model import Attempted, Backlog, Callback, DeadLetter, Delivery, Invocation, Notice, Quota, Settlement


class BrokerUnavailableError(Exception):
    """The broker did not answer, or did not confirm that it stored a message."""


class Consumer(Protocol):
    """The queue, read by credit, one *flow* beside the other.

    A flow is a series of messages that are delivered in order and separately from all others: one distinct subject, or
    the whole queue where all workers share one consumer. A flow begins with a :class:`~worker.model.QueueShared`, a
    :class:`~worker.model.StoredCount` or a :class:`~worker.model.PendingCount`, and ends with a
    :class:`~worker.model.FlowEnded`. In between the consumer reports what is stored whenever it sees a change, and
    repeats that for a flow without credit.

    Credit lasts across lost connections and recreated consumers, until its messages arrive, it is returned, or the flow
    ends. No more messages than credit arrive, however the server and the network behave.
    """

    ack_wait: float
    """How long (s) the queue waits for a settlement or an extension before it redelivers a message. It may change when
    a consumer is recreated."""

    def add_credit(self, count: int, flow: str) -> None:
        """Request *count* more messages of a flow."""

    def recall_credit(self, flow: str) -> None:
        """Take back the credit of a flow for which no message is on its way.

        One :class:`~worker.model.CreditReturned` follows soon, perhaps with a count of zero.
        """

    async def receive(self) -> Sequence[Delivery | Notice]:
        """Return all that has arrived, in order; wait until there is something."""

    async def stop(self) -> Sequence[Delivery]:
        """Request nothing more, and return the deliveries that had arrived or were on their way."""


class Queue(Protocol):
    """The broker. Settling and extending only queue what is to be sent, so they cannot be cancelled half-way."""

    async def consume(self) -> Consumer:
        """Return a consumer of the queue, or of this worker's partition of it; create what is missing.

        Waits for the broker as long as it takes.

        Raises:
            worker.ports.MisconfiguredError: the stream or consumer found there cannot work, or credentials are refused.
        """

    def settle(self, delivery: Delivery, settlement: Settlement, *, before: float) -> None:
        """End a delivery. The settlement is sent again until the queue confirms it.

        A :class:`Nak` is not sent after *before* (s, the worker's clock), when another worker may have the message: it
        would have the queue redeliver what that worker runs. An :class:`Ack` or :class:`Term` states a fact about the
        message that stays true, and is sent even then.
        """

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        """Extend a lease by an ack wait from now on, not after *before*; call *confirmed* once it is confirmed."""

    async def wait_settled(self) -> None:
        """Wait until every settlement so far is confirmed."""

    async def store_dead_letter(self, letter: DeadLetter) -> None:
        """Store a dead letter.

        Raises:
            BrokerUnavailableError: it was not confirmed.
        """

    async def backlog(self) -> Backlog:
        """Return what the stream holds now.

        Raises:
            BrokerUnavailableError: the queue did not answer.
        """


class Quotas(Protocol):
    """The quotas of functions, which all workers keep together by tokens; see :mod:`worker.policy.quota`.

    Tokens arrive as deliveries of flows that are named after their kind and their function: ``quota/cap/echo.fn`` and
    ``quota/rate/echo.fn``. They are requested and recalled like the messages of any flow. A cap's token has a lease, as
    a message has, for as long as an invocation runs; a rate's needs none.
    """

    def agreed(self, function: str) -> Quota | None:
        """Return the quota that all workers have agreed on for a function; None where there never was one.

        The consumer reports changes as :class:`~worker.model.QuotaChanged`.
        """

    def propose(self, function: str, quota: Quota, stored: int) -> None:
        """Propose the quota in a message that was stored at that time (ns since the epoch).

        The newest message's quota is used by all workers, once they have agreed.
        """

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        """Give a token back, to be redelivered *delay* seconds from now; like a NAK it is not sent after *before*."""


class MisconfiguredError(Exception):
    """The stream or consumer at the broker cannot work, and waiting does not help. The text is for the operator."""


class Functions(Protocol):
    """The functions."""

    async def invoke(self, invocation: Invocation) -> Attempted:
        """Send the request and wait for its answer, at most ``upstream_timeout``. No answer of a server raises."""


class Callbacks(Protocol):
    """The receivers of results."""

    async def post(self, callback: Callback) -> int | str:
        """Send a callback once, and return the response's status, or why there was none."""


Emit = Callable[[Event], None]
"""Passes an event to the observers. It returns at once and never raises."""
