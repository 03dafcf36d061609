"""All events that the worker emits. The sinks in :mod:`worker.observe` turn them into log lines and metrics."""

from __future__ import annotations

from msgspec import Struct

from .model import Backlog, CallbackResult, DeadLetter, Delivery, Invocation, Outcome, Verdict


class Event(Struct, frozen=True, gc=False):
    """The base of all events."""


# One message.


class InvocationStarted(Event, frozen=True):
    invocation: Invocation
    attempt: int
    waited: float
    """Seconds from storing to this start; of later attempts it includes the back-off."""


class InvocationEnded(Event, frozen=True):
    invocation: Invocation
    attempt: int
    max_attempts: int
    """Attempts that the message may have."""
    outcome: Outcome
    verdict: Verdict
    duration: float
    counts: bool = True
    """Whether it counts as an attempt: not if more was sent than the function takes, to find its limit."""


class Settled(Event, frozen=True):
    """A delivery ended here; its settlement is on its way to the queue, unless the verdict is to abandon it."""

    verdict: Verdict


class Redelivered(Event, frozen=True):
    """The queue redelivered a message that this worker knows: *state* is ``running``, ``finished`` or ``early``."""

    delivery: Delivery
    state: str


class AnnotationIgnored(Event, frozen=True):
    function: str
    annotation: str
    value: str
    reason: str


class CallbackIgnored(Event, frozen=True):
    """The message has a callback URL that cannot be posted to."""

    call_id: str
    function: str
    reason: str


class CallbackPosted(Event, frozen=True):
    """A callback was tried.

    *retry_in* is the wait (s) before the next try, if any.
    """

    call_id: str
    function: str
    receiver: str
    """Scheme, host and port: the rest of a URL may be secret."""
    result: CallbackResult
    delivered: bool
    retry_in: float | None
    duration: float
    stored: bool = False
    """Whether it came from the stored callbacks."""


class CallbackStored(Event, frozen=True):
    """A callback that had failed, or had no room, is stored."""

    call_id: str
    function: str


class CallbackNotStored(Event, frozen=True):
    """A callback could not be stored, so it stays in the worker's memory."""

    call_id: str
    function: str
    error: str


class CallbackDiscarded(Event, frozen=True):
    """A callback is lost: neither it nor its dead letter could be stored."""

    call_id: str
    function: str
    receiver: str


class StoredCallbacksRead(Event, frozen=True):
    """The stored callbacks of all workers were counted."""

    messages: int
    oldest: float
    """Seconds since the oldest one was stored; 0 without any."""


class CallbackKeysLoaded(Event, frozen=True):
    """The file with the keys that sign callbacks has changed."""

    path: str
    keys: int


class CallbackKeysRejected(Event, frozen=True):
    """The file of signing keys cannot be used any more; callbacks are still signed with its last keys."""

    path: str
    error: str


class DeadLettered(Event, frozen=True):
    letter: DeadLetter
    stored: bool
    """False where dead letters are switched off."""


class DeadLetterNotStored(Event, frozen=True):
    """A dead letter could not be stored, so the message stays on the queue."""

    letter: DeadLetter
    error: str


class WorkCrashed(Event, frozen=True, gc=True):
    """A bug in the worker ended the work on one message."""

    delivery: Delivery
    error: Exception


class ResultMemoryUnavailable(Event, frozen=True):
    """Results that have callbacks are not read on, because others use all the memory for results."""

    waiting: int
    longest: float
    """Seconds for which the first of them has waited."""
    held: int
    """Bytes of the results that are kept."""
    limit: int


# Leases and limits.


class LeasesExtended(Event, frozen=True):
    count: int


class LeaseExpired(Event, frozen=True):
    """No extension was confirmed in time, so the invocation is cancelled: another worker may have the message."""

    delivery: Delivery


class LimitLearned(Event, frozen=True):
    """The limit of a function's invocations in flight on this worker changed."""

    function: str
    limit: int


# The broker.


class Connected(Event, frozen=True):
    server: str
    reconnected: bool


class Disconnected(Event, frozen=True):
    pass


class BrokerFailure(Event, frozen=True):
    """An action at the broker failed, and is retried."""

    action: str
    error: str


class BrokerMisconfigured(Event, frozen=True):
    """The stream or consumer has become unusable; the worker retries until an operator has fixed it."""

    error: str


class FaultsEnded(Event, frozen=True):
    """Stream and consumers can be used again, after one or more :class:`BrokerMisconfigured`."""


class ConfigDrift(Event, frozen=True):
    """A stream or consumer differs from the settings, and is used as it is."""

    text: str


class Created(Event, frozen=True):
    """A stream or consumer was missing and was created. *recreated*: it went missing while the worker ran."""

    kind: str
    name: str
    recreated: bool


class ConsumerBound(Event, frozen=True):
    stream: str
    consumer: str
    ack_wait: float


class SettlementUnconfirmed(Event, frozen=True):
    """The queue never confirmed settlements, and may redeliver their messages."""

    count: int


class LeftoversDeleted(Event, frozen=True):
    """Large bodies were deleted to which no message referred: a producer or a worker had ended in between."""

    count: int


class BacklogRead(Event, frozen=True):
    backlog: Backlog


# The worker.


class Listening(Event, frozen=True):
    address: str
    """Address of the server for metrics and health."""


class DrainStarted(Event, frozen=True):
    running: int
    timeout: float


class DrainExpired(Event, frozen=True):
    """Running invocations are cancelled and given back. *reason*: ``shutdown_timeout`` or ``second signal``."""

    running: int
    reason: str


class DrainEnded(Event, frozen=True):
    seconds: float
    unconfirmed: bool
