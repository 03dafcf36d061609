from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from worker.model import Abandon, Ack, AttemptCount, Delivery, Final, MessageId, Nak, Term, Verdict
from worker.policy.ledger import (
    EARLY,
    HOLD,
    NO_TOKEN,
    Action,
    Extend,
    GiveBack,
    Known,
    Ledger,
    Postpone,
    SettleAgain,
    Start,
    decide_delivery,
)

EPOCH = 1_700_000_000_000_000_000


def delivery(sequence: int = 1, count: int = 1, *, stored: int = EPOCH) -> Delivery:
    return Delivery((sequence, stored), f"{sequence}.{count}", count, 0.0, "faas-request", b"")


def nakked_ledger(count: int, attempt: int, delay: float, *, attempted: bool = True) -> Ledger:
    """Return a ledger that nakked message 1 at 100 s, as its delivery *count* and attempt *attempt*."""
    ledger = Ledger()
    ledger.classify(delivery(count=count), now=0.0)
    ledger.record(delivery(count=count), attempt, Nak(delay), counts=attempted, now=100.0)
    return ledger


# Messages without an entry in the ledger


@pytest.mark.parametrize("count", [1, 2, 57])
def test_classify_unknown_message_takes_its_delivery_count_as_attempt(count: int) -> None:
    """Without an entry for a message, its delivery count is its attempt, and it starts at once."""
    assert Ledger().classify(delivery(count=count), now=5.0) == Start(count, 0.0)


def test_classify_same_sequence_in_recreated_stream_is_another_message() -> None:
    """The same sequence in a recreated stream is another message."""
    ledger = Ledger()
    ledger.classify(delivery(), now=0.0)
    ledger.record(delivery(), 1, Ack(), counts=True, now=0.0)
    assert ledger.classify(delivery(stored=EPOCH + 1), now=0.0) == Start(1)
    assert ledger.classify(delivery(sequence=2), now=0.0) == Start(1)
    assert ledger.classify(delivery(), now=0.0) == SettleAgain(Ack())


# Messages that run, have ended, or wait for their back-off


@pytest.mark.parametrize("count", [1, 2, 9])
def test_classify_running_message_extends_its_lease(count: int) -> None:
    """While a message runs in this worker, another delivery of it with any count only extends its lease."""
    ledger = Ledger()
    assert ledger.classify(delivery(count=3), now=0.0) == Start(3)
    for now in (0.0, 1e9):
        assert ledger.classify(delivery(count=count), now=now) == Extend()


@pytest.mark.parametrize("verdict", [Ack(), Term("gave up")])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_classify_finished_message_is_settled_again(verdict: Final, count: int) -> None:
    """A message that ended in this worker is settled again at every redelivery, and never run again."""
    ledger = Ledger()
    ledger.classify(delivery(count=2), now=0.0)
    ledger.record(delivery(count=2), 2, verdict, counts=True, now=1.0)
    for now in (1.0, 1.0, 1e9):
        assert ledger.classify(delivery(count=count), now=now) == SettleAgain(verdict)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (100.0, Postpone(10.0)),
        (105.0, Postpone(5.0)),
        (108.99, Postpone(110.0 - 108.99)),
        (109.0, Start(4, 1.0)),
        (109.5, Start(4, 0.5)),
        (110.0, Start(4, 0.0)),
        (500.0, Start(4, 0.0)),
    ],
)
def test_classify_before_backoff_ends_postpones(now: float, expected: Start | Postpone) -> None:
    """A message delivered during its back-off is postponed for the rest of it, except for the last second."""
    assert nakked_ledger(3, 3, 10.0).classify(delivery(count=4), now=now) == expected


@pytest.mark.parametrize(
    ("remaining", "expected"),
    [
        (HOLD + 2**-20, Postpone(HOLD + 2**-20)),
        (HOLD, Start(2, HOLD)),
        (EARLY + 2**-20, Start(2, EARLY + 2**-20)),
        (EARLY, Start(2, 0.0)),
        (EARLY / 2, Start(2, 0.0)),
    ],
)
def test_classify_near_the_end_of_backoff_starts(remaining: float, expected: Start | Postpone) -> None:
    """More than 1 s of back-off postpones, less is waited in the worker, and 0.05 s is ignored as clock difference."""
    ledger = Ledger()
    ledger.classify(delivery(), now=0.0)
    ledger.record(delivery(), 1, Nak(remaining), counts=True, now=0.0)
    assert (EARLY, HOLD) == (0.05, 1.0)
    assert ledger.classify(delivery(count=2), now=0.0) == expected


def test_classify_postponed_message_keeps_attempts_and_wait() -> None:
    """Early deliveries change neither the end of the back-off nor the number of attempts."""
    ledger = nakked_ledger(3, 3, 60.0)
    assert ledger.classify(delivery(count=4), now=110.0) == Postpone(50.0)
    assert ledger.classify(delivery(count=5), now=120.0) == Postpone(40.0)
    assert ledger.classify(delivery(count=6), now=160.0) == Start(4, 0.0)


# Counting attempts


def test_classify_after_nak_without_attempt_is_the_same_attempt() -> None:
    """A message that was nakked unstarted, or by the drain, is redelivered as the same attempt."""
    ledger = nakked_ledger(7, 3, 0.0, attempted=False)
    assert ledger.classify(delivery(count=8), now=100.0) == Start(3)


@pytest.mark.parametrize(("count", "attempt"), [(4, 4), (5, 5), (8, 8)])
def test_classify_counts_deliveries_to_other_workers(count: int, attempt: int) -> None:
    """Each delivery to another worker counts as an attempt, and ends the back-off."""
    assert nakked_ledger(3, 3, 1000.0 if count > 4 else 0.0).classify(delivery(count=count), now=100.0) == Start(
        attempt
    )


def test_classify_subtracts_own_naks_without_attempt() -> None:
    """Naks without an attempt stay subtracted from the delivery count after deliveries to other workers."""
    ledger = nakked_ledger(7, 3, 0.0, attempted=False)
    assert ledger.classify(delivery(count=10), now=100.0) == Start(5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_classify_recreated_consumer_keeps_attempts(count: int) -> None:
    """A recreated consumer counts deliveries from one again, and the ledger adds them to its own attempts."""
    ledger = nakked_ledger(3, 3, 0.0)
    assert ledger.classify(delivery(count=count), now=100.0) == Start(3 + count)


def test_classify_recreated_consumer_keeps_the_backoff() -> None:
    """A back-off continues when the consumer that had its delay is recreated."""
    ledger = nakked_ledger(3, 3, 60.0)
    assert ledger.classify(delivery(count=1), now=110.0) == Postpone(50.0)
    assert ledger.classify(delivery(count=2), now=160.0) == Start(4)


def test_classify_redelivery_during_run_is_no_attempt() -> None:
    """A redelivery during the run does not count as an attempt of another worker."""
    ledger = Ledger()
    ledger.classify(delivery(count=1), now=0.0)
    ledger.classify(delivery(count=2), now=30.0)
    ledger.record(delivery(count=2), 1, Nak(60.0), counts=True, now=40.0)
    assert ledger.classify(delivery(count=3), now=50.0) == Postpone(50.0)
    assert ledger.classify(delivery(count=4), now=100.0) == Start(2)


def test_classify_abandoned_message_counts_deliveries_again() -> None:
    """After an abandon another worker has the message, so its delivery count is its attempt again, naks included."""
    ledger = nakked_ledger(7, 3, 0.0, attempted=False)
    assert ledger.classify(delivery(count=8), now=100.0) == Start(3)
    ledger.record(delivery(count=8), 3, Abandon(), counts=True, now=100.0)
    assert ledger.classify(delivery(count=9), now=100.0) == Start(9)


def test_abandon_keeps_the_attempts_and_the_backoff() -> None:
    """A message that did not start after all no longer runs, and its attempts and back-off stay in the memory."""
    ledger = nakked_ledger(3, 3, 60.0)
    assert ledger.classify(delivery(count=4), now=160.0) == Start(4)
    ledger.abandon(delivery(count=4))
    assert ledger.classify(delivery(count=4), now=110.0) == Postpone(50.0)
    assert ledger.classify(delivery(count=5), now=160.0) == Start(4)


# Limits of the ledger's memory


def test_ledger_full_forgets_the_oldest() -> None:
    """When the memory is full, the message that ended or was nakked longest ago is forgotten."""
    ledger = Ledger(remember=2)
    for sequence in (1, 2, 3):
        ledger.classify(delivery(sequence), now=0.0)
        ledger.record(delivery(sequence), 1, Ack(), counts=True, now=0.0)
    assert ledger.classify(delivery(1, 5), now=0.0) == Start(5)
    assert ledger.classify(delivery(2, 5), now=0.0) == SettleAgain(Ack())
    assert ledger.classify(delivery(3, 5), now=0.0) == SettleAgain(Ack())


def test_ledger_postponed_message_is_the_newest() -> None:
    """A message that was postponed is the newest in the memory again."""
    ledger = Ledger(remember=2)
    for sequence in (1, 2):
        ledger.classify(delivery(sequence), now=0.0)
        ledger.record(delivery(sequence), 1, Nak(60.0), counts=True, now=0.0)
    assert ledger.classify(delivery(1, 2), now=10.0) == Postpone(50.0)
    ledger.classify(delivery(3), now=10.0)
    ledger.record(delivery(3), 1, Ack(), counts=True, now=10.0)
    assert ledger.classify(delivery(1, 3), now=20.0) == Postpone(40.0)
    assert ledger.classify(delivery(2, 9), now=20.0) == Start(9)


def test_ledger_running_messages_are_never_forgotten() -> None:
    """The memory's limit is for messages that no longer run, because slots limit those that run."""
    ledger = Ledger(remember=1)
    for sequence in range(1, 100):
        ledger.classify(delivery(sequence), now=0.0)
    assert all(ledger.classify(delivery(sequence, 2), now=0.0) == Extend() for sequence in range(1, 100))


# Announcements of other workers


def announced(num_delivered: int, attempts: int, sequence: int = 1) -> AttemptCount:
    return AttemptCount((sequence, EPOCH), num_delivered, attempts)


@pytest.mark.parametrize(("count", "attempt"), [(2, 1), (3, 2), (9, 8)])
def test_classify_after_announcement_counts_the_attempts(count: int, attempt: int) -> None:
    """A delivery that another worker announced as none of the attempts is not counted; later ones are."""
    ledger = Ledger()
    ledger.learn(announced(1, 0))
    assert ledger.classify(delivery(count=count), now=0.0) == Start(attempt, 0.0)


def test_announced_attempts_are_carried_on() -> None:
    """A worker that retries a message of which it received an announcement announces the corrected number in turn."""
    ledger = Ledger()
    ledger.learn(announced(3, 1))
    assert ledger.classify(delivery(count=4), now=0.0) == Start(2)
    ledger.record(delivery(count=4), 2, Nak(5.0), counts=True, now=0.0)
    assert ledger.count_to_announce(delivery(count=4)) == announced(4, 2)


@pytest.mark.parametrize(("counts", "expected"), [(True, None), (False, announced(3, 2))])
def test_ledger_announces_only_naks_that_mislead(counts: bool, expected: AttemptCount | None) -> None:
    """A nak is announced where the delivery count is not the number of attempts, and only there."""
    assert nakked_ledger(3, 3, 0.0, attempted=counts).count_to_announce(delivery(count=3)) == expected


def test_ledger_announces_a_postponed_delivery() -> None:
    """A delivery before the end of its wait is no attempt, so that it is announced when it is postponed."""
    ledger = nakked_ledger(3, 3, 60.0)
    assert ledger.classify(delivery(count=4), now=110.0) == Postpone(50.0)
    assert ledger.count_to_announce(delivery(count=4)) == announced(4, 3)


@pytest.mark.parametrize("verdict", [Ack(), Term("gave up")])
def test_announcement_of_a_finished_message_is_ignored(verdict: Final) -> None:
    """An announcement cannot make a message run again that ended in this worker, and an ack is not announced."""
    ledger = Ledger()
    ledger.classify(delivery(), now=0.0)
    ledger.record(delivery(), 1, verdict, counts=True, now=0.0)
    ledger.learn(announced(5, 0))
    assert ledger.count_to_announce(delivery()) is None
    assert ledger.classify(delivery(count=6), now=0.0) == SettleAgain(verdict)


@pytest.mark.parametrize("num_delivered", [1, 2, 3])
def test_late_announcement_is_ignored(num_delivered: int) -> None:
    """An announcement about a delivery before the one that this worker had changes nothing; neither does its own."""
    ledger = nakked_ledger(3, 3, 60.0)
    ledger.learn(announced(num_delivered, 0))
    assert ledger.classify(delivery(count=4), now=110.0) == Postpone(50.0)


@pytest.mark.parametrize(("attempts", "attempt"), [(4, 4), (3, 4), (2, 3)])
def test_smaller_number_of_attempts_is_used(attempts: int, attempt: int) -> None:
    """Of the announced number and this worker's own, the smaller one is used, because an unknown delivery counts."""
    ledger = nakked_ledger(3, 2, 60.0)
    ledger.learn(announced(4, attempts))
    assert ledger.classify(delivery(count=5), now=101.0) == Start(attempt)


def test_announcement_during_a_run_keeps_it_running() -> None:
    """An announcement of a message that runs here neither ends it nor lets it start a second time."""
    ledger = Ledger()
    ledger.classify(delivery(count=1), now=0.0)
    ledger.learn(announced(1, 0))
    assert ledger.classify(delivery(count=2), now=0.0) == Extend()
    ledger.record(delivery(count=2), 1, Nak(), counts=True, now=0.0)
    assert ledger.classify(delivery(count=3), now=0.0) == Start(2)


def test_announcements_displace_only_older_announcements() -> None:
    """Announcements are bounded, and displace nothing that this worker finished."""
    ledger = Ledger(remember=2)
    ledger.classify(delivery(100), now=0.0)
    ledger.record(delivery(100), 1, Ack(), counts=True, now=0.0)
    for sequence in (1, 2, 3):
        ledger.learn(announced(1, 0, sequence))
    assert ledger.classify(delivery(100, 2), now=0.0) == SettleAgain(Ack())
    attempts = [ledger.classify(delivery(sequence, 2), now=0.0) for sequence in (1, 2, 3)]
    assert attempts == [Start(2), Start(1), Start(1)]


def test_ledger_remembers_20000_messages_by_default() -> None:
    """The ledger remembers 20,000 messages, not one more."""
    ledger = Ledger()
    for sequence in range(20_001):
        ledger.classify(delivery(sequence), now=0.0)
        ledger.record(delivery(sequence), 1, Ack(), counts=True, now=0.0)
    assert ledger.classify(delivery(0, 2), now=0.0) == Start(2)
    assert ledger.classify(delivery(1, 2), now=0.0) == SettleAgain(Ack())


@dataclass
class Remembered:
    """The past of a message, as the test recorded it."""

    attempts: int
    due: float = 0.0
    final: Final | None = None


class OnlyWorker(RuleBasedStateMachine):
    """The ledger of a queue's only worker, which gets every delivery.

    Laws of the ledger:

    - the ledger remembers at most ``remember`` messages, besides all that run;
    - a running message is never Start, and neither is a finished one in its memory;
    - the attempt of Start is one more than the attempts made; redeliveries while the message runs, naks without an
      attempt, early deliveries and a recreated consumer do not change it;
    - during the back-off a delivery is Postpone for exactly the rest of it, or Start after a wait of at most HOLD;
    - the attempt of a message that was forgotten or abandoned is its delivery count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ledger = Ledger()
        self.remember = 0
        self.counts = dict.fromkeys(range(3), 0)
        self.running: dict[int, tuple[Delivery, int]] = {}
        self.pasts: dict[int, Remembered] = {}
        """Sequence -> past of the message, in the order in which messages last ended or were nakked."""

    @initialize(remember=st.sampled_from([1, 2, 3]))
    def begin(self, remember: int) -> None:
        """Create a ledger that may have room for all messages, or not."""
        self.remember = remember
        self.ledger = Ledger(remember)

    def remember_past(self, sequence: int, known: Remembered) -> None:
        self.pasts.pop(sequence, None)
        self.pasts[sequence] = known
        if len(self.pasts) > self.remember:
            del self.pasts[next(iter(self.pasts))]

    @rule(sequence=st.integers(0, 2), later=st.sampled_from([0.0, 31 / 32, 1.0, 30.0]))
    def deliver(self, sequence: int, later: float) -> None:
        """Deliver a message in any state: a settlement may be lost, or the consumer.

        Before that, time passes in steps that floats add up exactly.
        """
        self.now += later
        self.counts[sequence] += 1
        delivered = delivery(sequence, self.counts[sequence])
        arrival = self.ledger.classify(delivered, now=self.now)
        known = self.pasts.get(sequence, Remembered(delivered.num_delivered - 1))
        remaining = known.due - self.now
        if sequence in self.running:
            assert arrival == Extend()
            self.running[sequence] = delivered, self.running[sequence][1]
        elif known.final:
            assert arrival == SettleAgain(known.final)
        elif remaining > HOLD:
            assert arrival == Postpone(remaining)
            self.remember_past(sequence, known)
        else:
            assert arrival == Start(known.attempts + 1, remaining if remaining > EARLY else 0.0)
            self.running[sequence] = delivered, known.attempts + 1

    @rule(
        sequence=st.integers(0, 2),
        verdict=st.sampled_from([Nak(0.0), Nak(1.0), Nak(2.0), Nak(60.0), Abandon(), Ack(), Term("x")]),
        attempted=st.booleans(),
    )
    def end(self, sequence: int, verdict: Verdict, attempted: bool) -> None:
        """End the job of a message, after a delivery where it has none."""
        if sequence not in self.running:
            self.deliver(sequence, 0.0)
        if sequence not in self.running:
            return
        newest, attempt = self.running.pop(sequence)
        self.ledger.record(newest, attempt, verdict, counts=attempted, now=self.now)
        match verdict:
            case Nak(delay):
                self.remember_past(sequence, Remembered(attempt - (not attempted), self.now + delay))
            case Abandon():
                self.pasts.pop(sequence, None)
            case Ack() | Term():
                self.remember_past(sequence, Remembered(attempt, final=verdict))

    @rule()
    def recreate_the_consumer(self) -> None:
        """Count all deliveries from one again."""
        self.counts = dict.fromkeys(self.counts, 0)

    @invariant()
    def memory_is_bounded(self) -> None:
        """Check that the memory is limited, and has all messages that run."""
        assert len(self.ledger._past) <= self.remember
        assert self.ledger._running == {self.id_of(sequence) for sequence in self.running}

    def id_of(self, sequence: int) -> MessageId:
        return (sequence, EPOCH)


TestOnlyWorker = OnlyWorker.TestCase
TestOnlyWorker.settings = settings(stateful_step_count=60)


# Whether a delivery starts: the whole table

START, POSTPONE = Start(3, 0.5), Postpone(20.0)
FACTS = [*product([True, False], repeat=4)]


def decided(known: Known, facts: tuple[bool, ...]) -> Action:
    newest, leased, room, token = facts
    return decide_delivery(known, newest=newest, leased=leased, room=room, token=token)


@pytest.mark.parametrize("facts", FACTS)
def test_decide_delivery_new_message_starts_or_is_given_back(facts: tuple[bool, ...]) -> None:
    """A new message starts with a lease, a slot and a token; else its newest delivery is given back if leased."""
    newest, leased, room, token = facts
    expected: Action
    if leased and room and token:
        expected = START
    elif newest and leased:
        expected = GiveBack(3, NO_TOKEN if room else 0.0)
    else:
        expected = Abandon()
    assert decided(START, facts) == expected


@pytest.mark.parametrize("facts", FACTS)
def test_decide_delivery_early_message_is_postponed(facts: tuple[bool, ...]) -> None:
    """An early message is postponed for the rest of its back-off if its delivery is the newest and leased."""
    newest, leased, _, _ = facts
    assert decided(POSTPONE, facts) == (POSTPONE if newest and leased else Abandon())


@pytest.mark.parametrize("known", [Extend(), SettleAgain(Ack())])
@pytest.mark.parametrize("facts", FACTS)
def test_decide_delivery_known_message_is_extended_or_settled_again(known: Known, facts: tuple[bool, ...]) -> None:
    """A running message is extended, and a finished one is settled again, with any other facts."""
    assert decided(known, facts) == known
