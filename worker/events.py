"""All events that the worker emits. The sinks in :mod:`worker.observe` turn them into log lines and metrics."""

from __future__ import annotations

from msgspec import Struct

from .model import Backlog, Delivery, Invocation, Outcome, Verdict

# One message.


class InvocationStarted(Struct, frozen=True, gc=False):
    invocation: Invocation
    attempt: int
    waited: float
    """Seconds from storing to this start; of later attempts it includes the back-off."""


class InvocationEnded(Struct, frozen=True, gc=False):
    invocation: Invocation
    attempt: int
    max_attempts: int
    """Attempts that the message may have."""
    outcome: Outcome
    verdict: Verdict
    duration: float
    counts: bool = True
    """Whether it counts as an attempt: not if more was sent than the function takes, to find its limit."""


class Settled(Struct, frozen=True, gc=False):
    """A delivery ended here; its settlement is on its way to the queue, unless the verdict is to abandon it."""

    verdict: Verdict


class Redelivered(Struct, frozen=True, gc=False):
    """The queue redelivered a message that this worker knows: *state* is ``running``, ``finished`` or ``early``."""

    delivery: Delivery
    state: str


class AnnotationIgnored(Struct, frozen=True, gc=False):
    function: str
    annotation: str
    value: str
    reason: str


class CallbackIgnored(Struct, frozen=True, gc=False):
    """The message has a callback URL that cannot be posted to."""

    call_id: str
    function: str
    reason: str


class CallbackPosted(Struct, frozen=True, gc=False):
    """A callback was tried.

    *result* is the status of the answer, or why there was none. *retry_in* is the wait (s) before the next try, if any.
    """

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
    """False where dead letters are switched off."""


class DeadLetterNotStored(Struct, frozen=True, gc=False):
    """A dead letter could not be stored, so the message stays on the queue."""

    delivery: Delivery
    call_id: str | None
    error: str


class WorkCrashed(Struct, frozen=True):
    """A bug in the worker ended the work on one message."""

    delivery: Delivery
    error: Exception


# Leases.


class LeasesExtended(Struct, frozen=True, gc=False):
    count: int


class LeaseExpired(Struct, frozen=True, gc=False):
    """No extension was confirmed in time, so the invocation is cancelled: another worker may have the message."""

    delivery: Delivery


# Limits.


class LimitLearned(Struct, frozen=True, gc=False):
    """The limit of a function's invocations in flight on this worker changed."""

    function: str
    limit: int


# The broker.


class Connected(Struct, frozen=True, gc=False):
    server: str
    reconnected: bool


class Disconnected(Struct, frozen=True, gc=False):
    pass


class BrokerFailure(Struct, frozen=True, gc=False):
    """An action at the broker failed, and is retried."""

    action: str
    error: str


class BrokerMisconfigured(Struct, frozen=True, gc=False):
    """The stream or consumer has become unusable; the worker retries until an operator has fixed it."""

    error: str


class ConfigDrift(Struct, frozen=True, gc=False):
    """A stream or consumer differs from the settings, and is used as it is."""

    text: str


class Created(Struct, frozen=True, gc=False):
    """A stream or consumer was missing and was created. *recreated*: it went missing while the worker ran."""

    kind: str
    name: str
    recreated: bool


class ConsumerBound(Struct, frozen=True, gc=False):
    stream: str
    consumer: str
    ack_wait: float


class SettlementUnconfirmed(Struct, frozen=True, gc=False):
    """The queue never confirmed settlements, and may redeliver their messages."""

    count: int


class BacklogRead(Struct, frozen=True, gc=False):
    backlog: Backlog


# The worker.


class Listening(Struct, frozen=True, gc=False):
    """The worker serves metrics and health."""

    address: str


class DrainStarted(Struct, frozen=True, gc=False):
    running: int
    timeout: float


class DrainExpired(Struct, frozen=True, gc=False):
    """Running invocations are cancelled and given back. *reason*: ``shutdown_timeout`` or ``second signal``."""

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
