"""Every observable thing, on one page. The sinks in :mod:`worker.observe` turn them into log lines and metrics."""

from __future__ import annotations

from msgspec import Struct

from .model import Backlog, Delivery, Invocation, Outcome, Verdict

# One message.


class InvocationStarted(Struct, frozen=True, gc=False):
    invocation: Invocation
    attempt: int
    waited: float
    """From being stored to being started (s); between attempts it includes the back-off."""


class InvocationEnded(Struct, frozen=True, gc=False):
    invocation: Invocation
    attempt: int
    max_attempts: int
    """How many it may have."""
    outcome: Outcome
    verdict: Verdict
    duration: float
    counts: bool = True
    """Whether it counts as an attempt: not where more was sent than the function takes, to learn that."""


class Settled(Struct, frozen=True, gc=False):
    """The end of a delivery was decided, and noted to be told to the queue."""

    verdict: Verdict


class Redelivered(Struct, frozen=True, gc=False):
    """The queue handed out again what we know: *how* is ``running``, ``finished`` or ``early``."""

    delivery: Delivery
    state: str


class AnnotationIgnored(Struct, frozen=True, gc=False):
    function: str
    annotation: str
    value: str
    reason: str


class CallbackIgnored(Struct, frozen=True, gc=False):
    """The message names a callback that cannot be posted to."""

    call_id: str
    function: str
    reason: str


class CallbackPosted(Struct, frozen=True, gc=False):
    """*result*: the status of the answer, or why there was none. *again_in*: when the next try follows, if one does."""

    invocation: Invocation
    result: int | str
    delivered: bool
    retry_in: float | None
    duration: float


class DeadLettered(Struct, frozen=True, gc=False):
    delivery: Delivery
    call_id: str | None
    function: str | None
    reason: str
    attempts: int
    stored: bool
    """False where dead letters are switched off, and nothing was kept."""


class DeadLetterNotStored(Struct, frozen=True, gc=False):
    """It could not be stored, so the message stays on the queue and is tried again."""

    delivery: Delivery
    call_id: str | None
    error: str


class WorkCrashed(Struct, frozen=True):
    """A bug of ours, met by one message."""

    delivery: Delivery
    error: Exception


# Leases.


class LeasesExtended(Struct, frozen=True, gc=False):
    count: int


class LeaseExpired(Struct, frozen=True, gc=False):
    """No extension was confirmed in time, so another worker may have the message: its invocation is cancelled."""

    delivery: Delivery


# Limits.


class LimitLearned(Struct, frozen=True, gc=False):
    """How many invocations of a function may be in flight here, from now on."""

    function: str
    limit: int


# The broker.


class Connected(Struct, frozen=True, gc=False):
    server: str
    reconnected: bool


class Disconnected(Struct, frozen=True, gc=False):
    pass


class BrokerFailure(Struct, frozen=True, gc=False):
    """Something failed that is being tried again."""

    action: str
    error: str


class BrokerMisconfigured(Struct, frozen=True, gc=False):
    """What we found at the broker has become unusable while we ran; tried again until someone mends it."""

    error: str


class ConfigDrift(Struct, frozen=True, gc=False):
    """Something at the broker is not as the settings say, and is used as it is."""

    text: str


class Created(Struct, frozen=True, gc=False):
    """A stream or consumer was missing and has been made. *again*: it went missing while we ran."""

    kind: str
    name: str
    recreated: bool


class ConsumerBound(Struct, frozen=True, gc=False):
    stream: str
    consumer: str
    ack_wait: float


class SettlementUnconfirmed(Struct, frozen=True, gc=False):
    """The queue never confirmed a settlement; it may hand the message out again."""

    count: int


class BacklogRead(Struct, frozen=True, gc=False):
    backlog: Backlog


# The worker.


class Listening(Struct, frozen=True, gc=False):
    """Metrics and health are served."""

    address: str


class DrainStarted(Struct, frozen=True, gc=False):
    running: int
    timeout: float


class DrainExpired(Struct, frozen=True, gc=False):
    """Running invocations are cancelled and given back. *why*: ``shutdown_timeout`` or ``second signal``."""

    running: int
    reason: str


class DrainEnded(Struct, frozen=True, gc=False):
    seconds: float
    unconfirmed: bool


MessageEvent = (
    InvocationStarted
    | InvocationEnded
    | Settled
    | Redelivered
    | AnnotationIgnored
    | CallbackIgnored
    | CallbackPosted
    | DeadLettered
    | DeadLetterNotStored
    | WorkCrashed
)
LeaseEvent = LeasesExtended | LeaseExpired
LimitEvent = LimitLearned
BrokerEvent = (
    Connected
    | Disconnected
    | BrokerFailure
    | BrokerMisconfigured
    | ConfigDrift
    | Created
    | ConsumerBound
    | SettlementUnconfirmed
    | BacklogRead
)
WorkerEvent = Listening | DrainStarted | DrainExpired | DrainEnded
Event = MessageEvent | LeaseEvent | LimitEvent | BrokerEvent | WorkerEvent
