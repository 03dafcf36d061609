"""The values that flow through the worker: data without behaviour.

They are structs of msgspec, which are created in C: 0.06 µs each, where a frozen dataclass takes 0.7 to 1.0. None can
be part of a cycle, so the garbage collector does not track them (``gc=False``); :class:`Crashed` is the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from msgspec import Struct

MessageId = tuple[int, int]
"""Stream sequence and time of storing (ns since the epoch): one message, also after the stream was recreated."""

Headers = tuple[tuple[bytes, bytes], ...]
"""Header fields in order, names as they were written."""

SHARED = ""
"""The flow that carries the whole queue where all workers share one consumer: static mode."""

CALLBACKS = "callbacks/"
"""The flow of the stored callbacks. No subject of a queue has a slash."""


class Delivery(Struct, frozen=True, gc=False):
    """One message, as the queue delivered it once."""

    id: MessageId
    token: str
    """The reply subject: the right to settle and extend this delivery."""
    num_delivered: int
    """Number of deliveries of this message by the queue, including this one. See docs/guarantees.md."""
    received_at: float
    """Time of arrival (s, Trio's clock)."""
    subject: str
    payload: bytes
    flow: str = SHARED
    """The flow of the message; see :class:`worker.ports.Consumer`."""
    num_pending: int = 0
    """Messages of the flow that the queue had never delivered when it delivered this one."""


class StoredBody(Struct, frozen=True, gc=False, rename="pascal"):
    """The reference to a large body in the object store. No program but the one that stored it can guess its name."""

    name: str
    size: int
    """Bytes."""
    digest: str
    """Its hash as object stores of NATS write it: ``SHA-256=`` and base64 for URLs."""


NO_ANNOTATIONS: Mapping[str, str] = MappingProxyType({})
"""The annotations of a message that has none: its producer may not know the function's. They change no quota."""


class Invocation(Struct, frozen=True, gc=False):
    """The HTTP request to a function that a message asks for."""

    call_id: str
    function: str
    """The name as the message has it, ``name`` or ``name.namespace``."""
    label: str
    """``name.namespace``: the function's name in metrics."""
    method: str
    target: bytes
    """Request target below the gateway's URL: ``/function/<function><path>[?<query>]``, escaped."""
    headers: Headers
    body: bytes
    annotations: Mapping[str, str]
    callback: str | None
    """Absolute http(s) URL that receives the result."""
    started: str
    """X-Start-Time: the time at which the invocation was accepted (ns since the epoch)."""
    stored_body: StoredBody | None = None
    """The reference to the body, where it is too large for a message; then *body* is empty."""


# Outcomes: what happened to an attempt.


class Responded(Struct, frozen=True, gc=False):
    """The function answered."""

    status: int
    headers: Headers = ()
    body: bytes = b""
    """Empty if no callback needs it."""
    size: int = 0
    """Bytes of body that were read."""
    truncated: bool = False
    """Whether the body exceeded the limit; then *body* is its beginning."""
    redirected: bool = False
    """Whether this is the answer to the same request with a clean path, to which a redirect led."""
    release: Callable[[], None] | None = None
    """Function that must be called when a large *body* is not needed any more: its memory is counted."""


class NoResponse(Struct, frozen=True, gc=False):
    """The connection was refused or reset, the name did not resolve, or the answer is not HTTP: counts as 502."""

    reason: str


class TimedOut(Struct, frozen=True, gc=False):
    """``upstream_timeout`` passed: counts as 504."""

    after: float


class NotSent(Struct, frozen=True, gc=False):
    """This machine could not connect: no descriptors, memory or ports, no answer of a name server.

    The function has no part in it.
    """

    reason: str


class Malformed(Struct, frozen=True, gc=False):
    """The message cannot be decoded, or its large body is lost, so the function got no request."""

    reason: str


class Interrupted(Struct, frozen=True, gc=False):
    """The drain cancelled the attempt."""


class LeaseLost(Struct, frozen=True, gc=False):
    """The attempt was cancelled because the queue may have given the message to another worker."""


class Crashed(Struct, frozen=True):
    """A bug in the worker ended the attempt."""

    error: Exception


Attempted = Responded | NoResponse | TimedOut
"""The outcomes of a request that was sent."""

Outcome = Attempted | NotSent | Malformed | Interrupted | LeaseLost | Crashed


# Verdicts: what to do with a delivery.


class Ack(Struct, frozen=True, gc=False):
    """The message is done: remove it from the queue."""


class Nak(Struct, frozen=True, gc=False):
    """Deliver the message again, *delay* seconds from now at the earliest."""

    delay: float = 0.0


class Term(Struct, frozen=True, gc=False):
    """The message is given up: store a dead letter with this reason, then remove it from the queue."""

    reason: str


class Abandon(Struct, frozen=True, gc=False):
    """Send nothing: another worker may have the message."""


Final = Ack | Term
Settlement = Ack | Nak | Term
Verdict = Settlement | Abandon


# Quotas: how much one function may have.


class Rate(Struct, frozen=True, gc=False):
    """At most *starts* in every window of *window* seconds."""

    starts: int
    window: float


class Quota(Struct, frozen=True, gc=False):
    """The limits in a function's annotations; see :mod:`worker.policy.quota`."""

    weight: int = 1
    max_inflight: int | None = None
    """Most invocations at once, over all workers."""
    rate: Rate | None = None
    """Most starts, over all workers."""


# Notices: what a consumer receives besides deliveries.


class QueueShared(Struct, frozen=True, gc=False):
    """Notice that all messages arrive by the flow :data:`SHARED`, whose pending messages are not counted."""


class StoredCount(Struct, frozen=True, gc=False):
    """The messages of a flow that are stored now: pending, running on any worker, or between two attempts."""

    flow: str
    messages: int


class PendingCount(Struct, frozen=True, gc=False):
    """The messages of a flow that have never been delivered."""

    flow: str
    messages: int


class Published(Struct, frozen=True, gc=False):
    """One more message of a flow was stored."""

    flow: str


class CreditReturned(Struct, frozen=True, gc=False):
    """Credit of a flow for which no message will arrive."""

    flow: str
    count: int


class FlowEnded(Struct, frozen=True, gc=False):
    """Nothing of a flow is stored, and no message will arrive for its credit."""

    flow: str


class PausedFunctions(Struct, frozen=True, gc=False):
    """The labels of all functions that are paused."""

    functions: frozenset[str]


class Receipt(Struct, frozen=True, gc=False):
    """Notice that asks for a receipt: *received* is called once all notices before this one are applied."""

    received: Callable[[], None]


class QuotaChanged(Struct, frozen=True, gc=False):
    """All workers have agreed on a function's quota."""

    function: str
    """Its label, ``name.namespace``."""
    quota: Quota


class AttemptCount(Struct, frozen=True, gc=False):
    """Announcement of the attempts among a message's first deliveries, where these are not as many.

    A worker that naks such a message announces it, because the queue counts deliveries only.
    """

    id: MessageId
    num_delivered: int
    attempts: int


FlowNotice = StoredCount | PendingCount | Published | CreditReturned | FlowEnded
Notice = QueueShared | FlowNotice | PausedFunctions | QuotaChanged | AttemptCount | Receipt


# Other values.


class DeadLetter(Struct, frozen=True, gc=False):
    """A message that was given up, with the data to find out why."""

    delivery: Delivery
    reason: str
    attempts: int
    call_id: str | None
    """None, like *function* and *status*, if the message could not be decoded or no function responded."""
    function: str | None
    status: int | None
    stored_body: StoredBody | None = None
    """The message's large body, which is kept for as long as the dead letter."""
    kind: str = ""
    """``callback`` if the payload is a stored callback; empty if it is a message of the queue."""


class Callback(Struct, frozen=True, gc=False):
    """One POST with the result of an invocation."""

    url: str
    headers: Headers
    body: bytes
    stored_body: StoredBody | None = None
    """The reference to the body, where it is too large for a stored callback; then *body* is empty."""

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return self.stored_body.size if self.stored_body else len(self.body)


class Busy(Struct, frozen=True, gc=False):
    """A receiver's answer of 429 or 503 with a Retry-After header."""

    status: int
    retry_after: str


class Refused(Struct, frozen=True, gc=False):
    """A callback was not sent, because the rules about receivers forbid it. A retry would not help."""

    reason: str
    """The rule and the setting, for the operator."""


CallbackResult = int | str | Refused
"""The status of a receiver's answer, a text that explains why there was none, or that nothing was sent."""
PostResult = CallbackResult | Busy


class StoredCallback(Struct, frozen=True, gc=False):
    """A callback that failed, with the data to send it again."""

    callback: Callback
    call_id: str
    function: str
    """``name.namespace``."""
    ended_at: float
    """Time at which the invocation ended (s since the epoch)."""
    not_before: float
    """Time before which it is not sent again (s since the epoch)."""


class Backlog(Struct, frozen=True, gc=False):
    """The counts of a stream's messages."""

    last_sequence: int
    """Messages that the stream has ever stored."""
    by_subject: Mapping[str, int]
    """Messages that are stored now, pending or running, by subject."""
