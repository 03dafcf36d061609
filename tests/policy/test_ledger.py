from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from worker.model import Abandon, Ack, Delivery, Final, MessageId, Nak, Term, Verdict
from worker.policy.ledger import EARLY, HOLD, Extend, Ledger, Postpone, SettleAgain, Start

EPOCH = 1_700_000_000_000_000_000


def delivery(sequence: int = 1, count: int = 1, *, stored: int = EPOCH) -> Delivery:
    return Delivery((sequence, stored), f"{sequence}.{count}", count, 0.0, "faas-request", b"")


def given_back(count: int, attempt: int, delay: float, *, attempted: bool = True) -> Ledger:
    """A ledger that had message 1 as delivery *count*, as attempt *attempt*, and gave it back at 100 s."""
    ledger = Ledger()
    ledger.classify(delivery(count=count), now=0.0)
    ledger.record(delivery(count=count), attempt, Nak(delay), counts=attempted, now=100.0)
    return ledger


# What it says of a message that it does not know.


@pytest.mark.parametrize("count", [1, 2, 57])
def test_a_message_it_never_had_is_the_attempt_that_the_queue_counts(count: int) -> None:
    """Without memory of a message the delivery count stands for the attempts, and nothing is waited for."""
    assert Ledger().classify(delivery(count=count), now=5.0) == Start(count, 0.0)


def test_another_stream_has_other_messages() -> None:
    """The same sequence in a stream made anew is another message."""
    ledger = Ledger()
    ledger.classify(delivery(), now=0.0)
    ledger.record(delivery(), 1, Ack(), counts=True, now=0.0)
    assert ledger.classify(delivery(stored=EPOCH + 1), now=0.0) == Start(1)
    assert ledger.classify(delivery(sequence=2), now=0.0) == Start(1)
    assert ledger.classify(delivery(), now=0.0) == SettleAgain(Ack())


# Its three laws.


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_running_message_is_not_run_again(count: int) -> None:
    """While it runs here, every other delivery of it is the same lease, whatever its count."""
    ledger = Ledger()
    assert ledger.classify(delivery(count=3), now=0.0) == Start(3)
    for now in (0.0, 1e9):
        assert ledger.classify(delivery(count=count), now=now) == Extend()


@pytest.mark.parametrize("verdict", [Ack(), Term("gave up")])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_finished_message_is_settled_again(verdict: Final, count: int) -> None:
    """What ended here is told to the queue again, as often as it asks, and never run again."""
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
def test_a_message_that_comes_early_waits(now: float, expected: Start | Postpone) -> None:
    """Before its back-off is over it goes back for the rest of it; the last second is waited out here."""
    assert given_back(3, 3, 10.0).classify(delivery(count=4), now=now) == expected


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
def test_the_bounds_of_early(remaining: float, expected: Start | Postpone) -> None:
    """More than a second goes back, less is held, and a twentieth of one is what two clocks may differ by."""
    ledger = Ledger()
    ledger.classify(delivery(), now=0.0)
    ledger.record(delivery(), 1, Nak(remaining), counts=True, now=0.0)
    assert (EARLY, HOLD) == (0.05, 1.0)
    assert ledger.classify(delivery(count=2), now=0.0) == expected


def test_a_message_given_back_early_keeps_its_attempts_and_its_wait() -> None:
    """However often it comes early, the wait ends when it was to end, and no attempt is counted."""
    ledger = given_back(3, 3, 60.0)
    assert ledger.classify(delivery(count=4), now=110.0) == Postpone(50.0)
    assert ledger.classify(delivery(count=5), now=120.0) == Postpone(40.0)
    assert ledger.classify(delivery(count=6), now=160.0) == Start(4, 0.0)


# What it counts.


def test_what_was_not_attempted_does_not_count() -> None:
    """A message given back unstarted, or to shut down, comes again as the same attempt."""
    ledger = given_back(7, 3, 0.0, attempted=False)
    assert ledger.classify(delivery(count=8), now=100.0) == Start(3)


@pytest.mark.parametrize(("count", "attempt"), [(4, 4), (5, 5), (8, 8)])
def test_what_others_had_counts(count: int, attempt: int) -> None:
    """Each delivery that went elsewhere meanwhile counts as an attempt, and its wait is over."""
    assert given_back(3, 3, 1000.0 if count > 4 else 0.0).classify(delivery(count=count), now=100.0) == Start(attempt)


def test_hand_backs_stay_uncounted_when_others_had_it() -> None:
    """What we know that the queue's count overstates stays taken off."""
    ledger = given_back(7, 3, 0.0, attempted=False)
    assert ledger.classify(delivery(count=10), now=100.0) == Start(5)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_consumer_made_anew_does_not_reset_the_attempts(count: int) -> None:
    """Its counts begin at one again: what we had before is added to what the new consumer has handed out."""
    ledger = given_back(3, 3, 0.0)
    assert ledger.classify(delivery(count=count), now=100.0) == Start(3 + count)


def test_a_consumer_made_anew_does_not_end_the_wait() -> None:
    """A back-off holds against a consumer that has forgotten it."""
    ledger = given_back(3, 3, 60.0)
    assert ledger.classify(delivery(count=1), now=110.0) == Postpone(50.0)
    assert ledger.classify(delivery(count=2), now=160.0) == Start(4)


def test_the_newest_delivery_is_what_counts_go_on_from() -> None:
    """A redelivery while it ran is not taken for an attempt by someone else."""
    ledger = Ledger()
    ledger.classify(delivery(count=1), now=0.0)
    ledger.classify(delivery(count=2), now=30.0)
    ledger.record(delivery(count=2), 1, Nak(60.0), counts=True, now=40.0)
    assert ledger.classify(delivery(count=3), now=50.0) == Postpone(50.0)
    assert ledger.classify(delivery(count=4), now=100.0) == Start(2)


def test_what_was_abandoned_is_forgotten() -> None:
    """Others have it, and what they do cannot be counted here: the queue's count stands again, hand-backs and all."""
    ledger = given_back(7, 3, 0.0, attempted=False)
    assert ledger.classify(delivery(count=8), now=100.0) == Start(3)
    ledger.record(delivery(count=8), 3, Abandon(), counts=True, now=100.0)
    assert ledger.classify(delivery(count=9), now=100.0) == Start(9)


# What it remembers.


def test_the_oldest_is_forgotten_first() -> None:
    """Memory is bounded: past the bound, what was ended or given back longest ago is forgotten."""
    ledger = Ledger(remember=2)
    for sequence in (1, 2, 3):
        ledger.classify(delivery(sequence), now=0.0)
        ledger.record(delivery(sequence), 1, Ack(), counts=True, now=0.0)
    assert ledger.classify(delivery(1, 5), now=0.0) == Start(5)
    assert ledger.classify(delivery(2, 5), now=0.0) == SettleAgain(Ack())
    assert ledger.classify(delivery(3, 5), now=0.0) == SettleAgain(Ack())


def test_giving_back_is_remembered_anew() -> None:
    """A message that came early and went back is the newest again."""
    ledger = Ledger(remember=2)
    for sequence in (1, 2):
        ledger.classify(delivery(sequence), now=0.0)
        ledger.record(delivery(sequence), 1, Nak(60.0), counts=True, now=0.0)
    assert ledger.classify(delivery(1, 2), now=10.0) == Postpone(50.0)
    ledger.classify(delivery(3), now=10.0)
    ledger.record(delivery(3), 1, Ack(), counts=True, now=10.0)
    assert ledger.classify(delivery(1, 3), now=20.0) == Postpone(40.0)
    assert ledger.classify(delivery(2, 9), now=20.0) == Start(9)


def test_what_runs_is_never_forgotten() -> None:
    """The bound is on messages that no longer run: those that do are bounded by the worker's slots."""
    ledger = Ledger(remember=1)
    for sequence in range(1, 100):
        ledger.classify(delivery(sequence), now=0.0)
    assert all(ledger.classify(delivery(sequence, 2), now=0.0) == Extend() for sequence in range(1, 100))


def test_memory_by_default() -> None:
    """Twenty thousand messages are remembered, and not one more."""
    ledger = Ledger()
    for sequence in range(20_001):
        ledger.classify(delivery(sequence), now=0.0)
        ledger.record(delivery(sequence), 1, Ack(), counts=True, now=0.0)
    assert ledger.classify(delivery(0, 2), now=0.0) == Start(2)
    assert ledger.classify(delivery(1, 2), now=0.0) == SettleAgain(Ack())


@dataclass
class Known:
    """What happened to a message, told from outside."""

    attempts: int
    due: float = 0.0
    final: Final | None = None


class OnlyWorker(RuleBasedStateMachine):
    """The ledger of a queue's only worker, which gets every delivery.

    Its laws:

    - it remembers at most as many messages as it was told to, and every one that runs;
    - a running message is never Start, and neither is a finished one that it remembers;
    - the attempt it gives is one more than the attempts that were made, however often the message was handed out while
      it ran, given back unstarted, came early, or was handed out by a consumer made anew;
    - before the back-off is over it is Postpone with exactly the rest of it, or Start with no more to wait than HOLD;
    - what it has forgotten, or abandoned, is the attempt that the queue counts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ledger = Ledger()
        self.remember = 0
        self.counts = dict.fromkeys(range(3), 0)
        self.running: dict[int, tuple[Delivery, int]] = {}
        self.known: dict[int, Known] = {}
        """In the order in which they were last ended or given back."""

    @initialize(remember=st.sampled_from([1, 2, 3]))
    def begin(self, remember: int) -> None:
        """Some ledgers have room for every message there is."""
        self.remember = remember
        self.ledger = Ledger(remember)

    def keep(self, sequence: int, known: Known) -> None:
        self.known.pop(sequence, None)
        self.known[sequence] = known
        if len(self.known) > self.remember:
            del self.known[next(iter(self.known))]

    @rule(sequence=st.integers(0, 2), later=st.sampled_from([0.0, 31 / 32, 1.0, 30.0]))
    def hand_out(self, sequence: int, later: float) -> None:
        """The queue hands out a message, whatever we know of it: it may not have heard, or have lost its consumer.

        Time passes meanwhile, in steps that floats add up exactly.
        """
        self.now += later
        self.counts[sequence] += 1
        handed = delivery(sequence, self.counts[sequence])
        arrival = self.ledger.classify(handed, now=self.now)
        known = self.known.get(sequence, Known(handed.num_delivered - 1))
        remaining = known.due - self.now
        if sequence in self.running:
            assert arrival == Extend()
            self.running[sequence] = handed, self.running[sequence][1]
        elif known.final:
            assert arrival == SettleAgain(known.final)
        elif remaining > HOLD:
            assert arrival == Postpone(remaining)
            self.keep(sequence, known)
        else:
            assert arrival == Start(known.attempts + 1, remaining if remaining > EARLY else 0.0)
            self.running[sequence] = handed, known.attempts + 1

    @rule(
        sequence=st.integers(0, 2),
        verdict=st.sampled_from([Nak(0.0), Nak(1.0), Nak(2.0), Nak(60.0), Abandon(), Ack(), Term("x")]),
        attempted=st.booleans(),
    )
    def end(self, sequence: int, verdict: Verdict, attempted: bool) -> None:
        """A message's job ends. Where it has none it is handed out first, and may get one."""
        if sequence not in self.running:
            self.hand_out(sequence, 0.0)
        if sequence not in self.running:
            return
        newest, attempt = self.running.pop(sequence)
        self.ledger.record(newest, attempt, verdict, counts=attempted, now=self.now)
        match verdict:
            case Nak(delay):
                self.keep(sequence, Known(attempt - (not attempted), self.now + delay))
            case Abandon():
                self.known.pop(sequence, None)
            case Ack() | Term():
                self.keep(sequence, Known(attempt, final=verdict))

    @rule()
    def make_the_consumer_anew(self) -> None:
        """All counts begin again."""
        self.counts = dict.fromkeys(self.counts, 0)

    @invariant()
    def memory_is_bounded(self) -> None:
        """And holds what runs."""
        assert len(self.ledger._past) <= self.remember
        assert self.ledger._running == {self.id_of(sequence) for sequence in self.running}

    def id_of(self, sequence: int) -> MessageId:
        return (sequence, EPOCH)


TestOnlyWorker = OnlyWorker.TestCase
TestOnlyWorker.settings = settings(stateful_step_count=60)
