"""The messages of a queue and its functions between two readings, in virtual time."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.policy.freshness import Step
from worker.policy.queue_counts import FRESH, USABLE, QueueCounts

A, B = "q.0.a.fn", "q.0.b.fn"


def counts_at(now: float, messages: int, **limits: int) -> QueueCounts:
    """Return counts with one reading."""
    counts = QueueCounts(limits.get("queue"), limits.get("function"))
    counts.begin_reading(now)
    counts.read(now, messages, messages, {A: messages})
    return counts


def test_reading_by_age_is_used_refreshed_or_waited_for() -> None:
    """At most four readings a second; a call waits where none can be used, and not where the last one failed."""
    counts = QueueCounts(10, None)
    assert counts.step(0.0) is Step.WAIT
    counts.begin_reading(0.0)
    counts.read(0.01, 3, 3, {})
    assert counts.step(FRESH - 0.01) is Step.USE
    assert counts.step(FRESH) is Step.REFRESH
    assert counts.step(USABLE) is Step.WAIT
    counts.begin_reading(10.0)
    counts.fail_reading(11.0)
    assert counts.step(11.1) is Step.USE
    assert counts.step(11.5) is Step.REFRESH
    assert counts.step(16.0) is Step.WAIT


def test_functions_are_forgotten_while_no_reading_succeeds() -> None:
    """A producer that may not read counts keeps none of the names that callers invent, and counts on what is open."""
    counts = counts_at(0.0, 2, function=3)
    counts.begin(A)
    for second in range(1, 20):
        counts.begin_reading(float(second))
        for number in range(100):
            counts.begin(f"q.0.f{second}-{number}.fn")
            counts.end(f"q.0.f{second}-{number}.fn", stored=True)
        counts.fail_reading(second + 0.5)
    assert len(counts._functions) == 1
    counts.begin_reading(20.0)
    counts.end(A, stored=True)
    counts.read(20.1, 2, 2, {A: 2})
    full = counts.full(A, 20.2)
    assert full
    assert full.count == 3


def test_slow_readings_are_followed_by_pauses() -> None:
    """A reading of a second is followed by three to four without one, and can be used for longer."""
    counts = QueueCounts(10, None)
    counts.begin_reading(0.0)
    counts.read(1.0, 20, 20, {})
    assert counts.step(3.9) is Step.USE
    assert counts.step(4.0) is Step.REFRESH
    assert counts.full(A, 7.9)
    assert not counts.full(A, 8.1)


def test_queue_is_full_at_its_limit_exactly() -> None:
    """Calls fill the queue up to its limit, also those that are being stored; one that fails frees its place."""
    counts = counts_at(0.0, 7, queue=10)
    for _ in range(3):
        assert not counts.full(A, 0.1)
        counts.begin(A)
    assert counts.full(A, 0.1)
    counts.end(A, stored=False)
    assert not counts.full(A, 0.1)
    counts.begin(A)
    counts.end(A, stored=True)
    full = counts.full(B, 0.1)
    assert full
    assert (full.limit, full.count) == ("max_queued", 10)


def test_function_is_full_at_its_limit_while_others_are_not() -> None:
    """The limit of one function leaves the others alone."""
    counts = counts_at(0.0, 2, function=3)
    counts.begin(A)
    full = counts.full(A, 0.1)
    assert full
    assert (full.limit, full.count) == ("max_queued_per_function", 3)
    assert not counts.full(B, 0.1)


def test_count_without_a_usable_reading_rejects_nothing() -> None:
    """Without a reading, or with one that is too old, calls are taken."""
    counts = QueueCounts(1, 1)
    for _ in range(5):
        assert not counts.full(A, 0.0)
        counts.begin(A)
    counts = counts_at(0.0, 10, queue=1)
    assert counts.full(A, USABLE)
    assert not counts.full(A, USABLE + 0.1)


def test_retry_after_follows_the_drain() -> None:
    """Retry-After is the time in which workers finish what is too much, as fast as between the last two readings."""

    def retry_after(messages: int, last_seq: int) -> int:
        counts = counts_at(0.0, 100, queue=10)
        counts.begin_reading(1.0)
        counts.read(1.0, messages, last_seq, {})
        full = counts.full(A, 1.0)
        assert full
        return full.retry_after

    first = counts_at(0.0, 100, queue=10).full(A, 0.0)
    assert first
    assert first.retry_after == 5  # one reading shows no drain
    assert retry_after(50, 100) == 1  # 50 a second: 41 take a second
    assert retry_after(90, 100) == 9  # 10 a second: 81 take 8.1 s
    assert retry_after(90, 150) == 2  # 50 came and 60 left
    assert retry_after(99, 100) == 60  # at most
    assert retry_after(100, 100) == 30  # nothing leaves
    assert retry_after(15, 15) == 5  # another stream of that name


class Counts(RuleBasedStateMachine):
    """One producer against a stream: stores begin, end and fail, workers finish messages, readings take their time."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.now = QueueCounts(6, 4), 0.0
        self.stream = {A: 0, B: 0}
        self.last_seq = 0
        self.open: list[str] = []
        self.answer: tuple[int, int, dict[str, int]] | None = None
        self.reading, self.sent_at = False, 0.0
        self.read()

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.3]))
    def wait(self, seconds: float) -> None:
        if not self.reading:
            self.read()
        elif self.now - self.sent_at > 1:  # so that the last reading stays usable
            self.answer = None
            self.take_reading()
            self.receive_reading()
        self.now += seconds

    @rule(subject=st.sampled_from([A, B]))
    def begin(self, subject: str) -> None:
        if not self.counts.full(subject, self.now):
            self.counts.begin(subject)
            self.open.append(subject)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), stored=st.booleans())
    def end(self, data: st.DataObject, stored: bool) -> None:
        subject = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.stream[subject] += stored
        self.last_seq += stored
        self.counts.end(subject, stored=stored)

    @rule(subject=st.sampled_from([A, B]))
    def finish(self, subject: str) -> None:
        self.stream[subject] = max(0, self.stream[subject] - 1)

    @precondition(lambda self: not self.reading)
    @rule()
    def send_reading(self) -> None:
        self.counts.begin_reading(self.now)
        self.reading, self.answer, self.sent_at = True, None, self.now

    @precondition(lambda self: self.reading and self.answer is None)
    @rule()
    def take_reading(self) -> None:
        self.answer = sum(self.stream.values()), self.last_seq, {each: n for each, n in self.stream.items() if n}

    @precondition(lambda self: self.answer is not None)
    @rule()
    def receive_reading(self) -> None:
        assert self.answer is not None
        self.counts.read(self.now, *self.answer)
        self.reading, self.answer = False, None

    def read(self) -> None:
        """Send, take and receive a reading."""
        self.send_reading()
        self.take_reading()
        self.receive_reading()

    @invariant()
    def limits_hold(self) -> None:
        """Check that neither the queue nor a function has more messages than its limit, stored or being stored."""
        assert sum(self.stream.values()) + len(self.open) <= 6
        for subject, messages in self.stream.items():
            assert messages + self.open.count(subject) <= 4

    def teardown(self) -> None:
        """Check that nothing stays counted: when all is stored and read, the counts are those of the stream."""
        while self.open:
            self.counts.end(self.open.pop(), stored=False)
        if self.reading:
            self.answer = None
            self.take_reading()
            self.receive_reading()
        self.stream = {A: 0, B: 0}
        self.read()
        self.read()
        for _ in range(4):
            assert not self.counts.full(A, self.now)
            self.counts.begin(A)
        assert self.counts.full(A, self.now)


TestCounts = Counts.TestCase
