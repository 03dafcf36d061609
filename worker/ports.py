"""Every way the worker touches the world. Adapters and fakes implement these and pass one conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from .events import Event
from .model import Attempted, Backlog, Callback, DeadLetter, Delivery, Invocation, Notice, Quota, Settlement


class BrokerUnavailableError(Exception):
    """The queue did not confirm that it keeps what we gave it."""


class Consumer(Protocol):
    """The queue, read by credit, one *flow* beside the other.

    A flow is what is handed out in order and apart from all else: one distinct subject with its messages, or the whole
    queue where one consumer is shared by all of it. Which there are is the queue's to tell: it begins with
    a :class:`~worker.model.StoredCount` or a :class:`~worker.model.PendingCount`, and ends with a
    :class:`~worker.model.FlowEnded`.
    In between it is told what is stored whenever that has been seen to change, and again if nothing was wanted of it.

    What was wanted and has not come yet stays wanted across lost connections and consumers made anew, until it is
    returned or the flow is gone; no more than that is ever handed to us, however the server or the network behave.
    """

    ack_wait: float
    """How long (s) the queue waits for a settlement or an extension before it gives a message out again. It may change
    when a consumer is made anew."""

    def add_credit(self, count: int, flow: str) -> None:
        """There is room for *more* deliveries of a flow than were wanted so far."""

    def recall_credit(self, flow: str) -> None:
        """Room is needed elsewhere: give back what is wanted of a flow and not on its way.

        It comes as :class:`~worker.model.CreditReturned`, soon, once, and perhaps with a count of zero.
        """

    async def receive(self) -> Sequence[Delivery | Notice]:
        """All that has come, in the order of arrival, at least one."""

    async def stop(self) -> Sequence[Delivery]:
        """Ask for nothing more. What had arrived, or was already on its way, is returned unstarted."""


class Queue(Protocol):
    """The broker. Settling and extending only note down what is to be sent, so they cannot be cancelled half-way."""

    async def consume(self) -> Consumer:
        """All of the queue, or of our part of it; what is missing is made.

        Waits for the broker as long as it takes.

        Raises:
            worker.ports.MisconfiguredError: the stream or consumer found there cannot work, or the broker refuses us.
        """

    def settle(self, delivery: Delivery, settlement: Settlement, *, before: float) -> None:
        """End a delivery. It is said again until the queue confirms it.

        A :class:`Nak` is not said after *before* (s, the worker's clock), when someone else may have the message: a
        late one would give out again what they are running. An :class:`Ack` or :class:`Term` tells a fact about the
        message that stays true, and is said even then.
        """

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        """Ask for another ack wait from now on, not after *before*. *confirmed* is called once the queue has heard."""

    async def wait_settled(self) -> None:
        """Return when every settlement so far is confirmed."""

    async def store_dead_letter(self, letter: DeadLetter) -> None:
        """Store a dead letter.

        Raises:
            BrokerUnavailableError: its storing was not confirmed.
        """

    async def backlog(self) -> Backlog:
        """What the stream holds now.

        Raises:
            BrokerUnavailableError: the queue did not answer.
        """


class Quotas(Protocol):
    """What single functions may have, kept over all workers by tokens; see :mod:`worker.policy.quota`.

    Tokens come as deliveries of flows that are named after their kind and their function: ``quota/cap/echo.fn`` and
    ``quota/rate/echo.fn``. They are wanted and recalled as those of any flow are. A cap's is kept by a lease, as
    a message is, for as long as an invocation runs; a rate's needs none.
    """

    def agreed(self, function: str) -> Quota | None:
        """What is agreed on for a function; None where nothing ever was.

        Changes are told as :class:`~worker.model.QuotaChanged`, which the consumer's flows bring.
        """

    def propose(self, function: str, quota: Quota, stored: int) -> None:
        """What a message says of its function that was stored then (ns since the epoch).

        The newest one's word counts, for all workers, once they have agreed.
        """

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        """Give a token back: others can have it *delay* seconds from now. Not said after *before*, as of a NAK."""


class MisconfiguredError(Exception):
    """What we found at the broker cannot work, and waiting will not help. The text is for the operator."""


class Functions(Protocol):
    """Where invocations go."""

    async def invoke(self, invocation: Invocation) -> Attempted:
        """Send the request and wait for its answer, at most ``upstream_timeout``. What a server does never raises."""


class Callbacks(Protocol):
    """Where results go."""

    async def post(self, callback: Callback) -> int | str:
        """Send once: the response's status, or why there was none."""


Emit = Callable[[Event], None]
"""Tell the observers. It returns at once and never raises."""
