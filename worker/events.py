"""Every observable thing, on one page. The sinks in :mod:`worker.observe` turn them into log lines and metrics."""

from __future__ import annotations

from dataclasses import dataclass

from .model import Backlog, Delivery, Invocation, Outcome, Verdict

# One message.


@dataclass(frozen=True, slots=True)
class InvocationStarted:
    invocation: Invocation
    attempt: int
    waited: float
    """From being stored to being started (s); between attempts it includes the back-off."""


@dataclass(frozen=True, slots=True)
class InvocationEnded:
    invocation: Invocation
    attempt: int
    attempts: int
    """How many it may have."""
    outcome: Outcome
    verdict: Verdict
    duration: float


@dataclass(frozen=True, slots=True)
class Settled:
    """The end of a delivery was decided, and noted to be told to the queue."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Redelivered:
    """The queue handed out again what we know: *how* is ``running``, ``finished`` or ``early``."""

    delivery: Delivery
    how: str


@dataclass(frozen=True, slots=True)
class AnnotationIgnored:
    function: str
    annotation: str
    value: str
    accepted: str


@dataclass(frozen=True, slots=True)
class CallbackIgnored:
    """The message names a callback that cannot be posted to."""

    call_id: str
    function: str
    reason: str


@dataclass(frozen=True, slots=True)
class CallbackPosted:
    """*result*: the status of the answer, or why there was none. *again_in*: when the next try follows, if one does."""

    invocation: Invocation
    result: int | str
    delivered: bool
    again_in: float | None
    duration: float


@dataclass(frozen=True, slots=True)
class DeadLettered:
    delivery: Delivery
    call_id: str | None
    function: str | None
    reason: str
    attempts: int
    stored: bool
    """False where dead letters are switched off, and nothing was kept."""


@dataclass(frozen=True, slots=True)
class DeadLetterRefused:
    """It could not be stored, so the message stays on the queue and is tried again."""

    delivery: Delivery
    call_id: str | None
    error: str


@dataclass(frozen=True, slots=True)
class WorkCrashed:
    """A bug of ours, met by one message."""

    delivery: Delivery
    error: Exception


# Leases.


@dataclass(frozen=True, slots=True)
class LeasesExtended:
    count: int


@dataclass(frozen=True, slots=True)
class LeaseExpired:
    """No extension was confirmed in time, so another worker may have the message: its invocation is cancelled."""

    delivery: Delivery


# The broker.


@dataclass(frozen=True, slots=True)
class Connected:
    server: str
    again: bool


@dataclass(frozen=True, slots=True)
class Disconnected:
    pass


@dataclass(frozen=True, slots=True)
class BrokerTrouble:
    """Something failed that is being tried again."""

    doing: str
    error: str


@dataclass(frozen=True, slots=True)
class BrokerRefused:
    """What we found at the broker has become unusable while we ran; tried again until someone mends it."""

    error: str


@dataclass(frozen=True, slots=True)
class Surprise:
    """Something at the broker is not as the settings say, and is used as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Made:
    """A stream or consumer was missing and has been made. *again*: it went missing while we ran."""

    what: str
    name: str
    again: bool


@dataclass(frozen=True, slots=True)
class ConsumerBound:
    stream: str
    consumer: str
    ack_wait: float


@dataclass(frozen=True, slots=True)
class SettlementUnconfirmed:
    """The queue never confirmed a settlement; it may hand the message out again."""

    count: int


@dataclass(frozen=True, slots=True)
class BacklogRead:
    backlog: Backlog


# The worker.


@dataclass(frozen=True, slots=True)
class Listening:
    """Metrics and health are served."""

    address: str


@dataclass(frozen=True, slots=True)
class DrainStarted:
    running: int
    timeout: float


@dataclass(frozen=True, slots=True)
class DrainExpired:
    """Running invocations are cancelled and given back. *why*: ``shutdown_timeout`` or ``second signal``."""

    running: int
    why: str


@dataclass(frozen=True, slots=True)
class DrainEnded:
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
    | DeadLetterRefused
    | WorkCrashed
)
LeaseEvent = LeasesExtended | LeaseExpired
BrokerEvent = (
    Connected
    | Disconnected
    | BrokerTrouble
    | BrokerRefused
    | Surprise
    | Made
    | ConsumerBound
    | SettlementUnconfirmed
    | BacklogRead
)
WorkerEvent = Listening | DrainStarted | DrainExpired | DrainEnded
Event = MessageEvent | LeaseEvent | BrokerEvent | WorkerEvent
