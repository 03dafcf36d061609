"""The books of a pull consumer: what was wanted is asked for once, and never more."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.nats.credit import (
    DEFAULT_BATCH,
    EXPIRES,
    HEARTBEAT,
    MAX_REQUESTS,
    MAX_REQUESTS_OF_MANY,
    SILENCE,
    Credit,
    Request,
)


def _asked(credit: Credit, now: float = 0.0) -> list[Request]:
    requests = []
    while request := credit.next_request(now):
        requests.append(request)
    return requests


def test_all_that_is_wanted_is_asked_for_at_once() -> None:
    """An idle consumer asks for everything in one request."""
    credit = Credit()
    credit.add(50)
    assert [request.batch for request in _asked(credit)] == [50]
    assert (credit.unrequested, credit.outstanding) == (0, 50)


def test_a_request_asks_for_no_more_than_the_setting_allows() -> None:
    """consumer_pull_max_messages bounds one request; as many lanes as there are share the rest."""
    credit = Credit(max_batch=10)
    credit.add(100)
    assert [request.batch for request in _asked(credit)] == [10] * MAX_REQUESTS


def test_what_is_on_its_way_can_be_started_in_a_moment() -> None:
    """However much room there is, only so much is asked for at a time: what waits in a socket nobody else can have."""
    credit = Credit()
    credit.add(10_000)
    assert [request.batch for request in _asked(credit)] == [DEFAULT_BATCH] * MAX_REQUESTS


def test_a_full_request_does_not_wait_for_a_larger_one() -> None:
    """As large as it may be, it is worth its cost, even if a quarter of the credit were more."""
    credit = Credit(max_batch=10)
    credit.add(100)
    first, *_ = _asked(credit)
    for _ in range(10):
        credit.received(first.inbox, 0.0)
    credit.add(-41)
    assert credit.unrequested == 19
    assert [request.batch for request in _asked(credit)] == [10]


def test_small_requests_wait_while_another_is_open() -> None:
    """A quarter of the credit must be free before a second request is worth its cost."""
    credit = Credit()
    credit.add(40)
    (first,) = _asked(credit)
    for _ in range(9):
        credit.received(first.inbox, 0.0)
        credit.add(1)
    assert _asked(credit) == []
    credit.received(first.inbox, 0.0)
    credit.add(1)
    assert [request.batch for request in _asked(credit)] == [10]


def test_a_quarter_is_of_all_there_ever_was_room_for() -> None:
    """Credit that grew counts whole, what is asked for already and what is not: a quarter of 40 is 10, not 5."""
    credit = Credit()
    credit.add(10)
    (first,) = _asked(credit)
    credit.add(30)
    assert [request.batch for request in _asked(credit)] == [30]
    for room in range(1, 11):
        credit.received(first.inbox, 0.0)
        credit.add(1)
        assert [request.batch for request in _asked(credit)] == ([10] if room == 10 else [])


def test_more_than_was_asked_for_is_made_good() -> None:
    """What comes into a lane that brings nothing more takes room that is then not asked for."""
    credit = Credit()
    credit.add(1)
    (first,) = _asked(credit)
    for _ in range(3):
        credit.received(first.inbox, 0.0)
    assert (credit.unrequested, credit.outstanding) == (-2, 0)
    credit.add(2)
    assert _asked(credit) == []
    credit.add(1)
    assert [request.batch for request in _asked(credit)] == [1]


def test_lanes_are_numbered() -> None:
    """From zero: their numbers tell their inboxes apart."""
    assert [lane.number for lane in Credit().inboxes] == list(range(MAX_REQUESTS))


def test_a_small_request_goes_out_when_nothing_is_open() -> None:
    """With a single free slot and no open request, one message is asked for at once."""
    credit = Credit()
    credit.add(40)
    (first,) = _asked(credit)
    for _ in range(40):
        credit.received(first.inbox, 0.0)
    credit.add(1)
    assert [request.batch for request in _asked(credit)] == [1]


def test_what_a_request_did_not_bring_is_asked_for_again() -> None:
    """An expired request gives its rest back to be asked for."""
    credit = Credit()
    credit.add(5)
    (first,) = _asked(credit)
    credit.received(first.inbox, 0.0)
    credit.end_request(first.inbox)
    assert [request.batch for request in _asked(credit)] == [4]


def test_silence_is_two_missed_heartbeats() -> None:
    """A request of which nothing was heard is given up after two heartbeats and a second, not before."""
    credit = Credit()
    credit.add(1)
    (first,) = _asked(credit, now=100.0)
    credit.sign_of_life(first.inbox, 103.0)
    assert credit.silent(103.0 + SILENCE) == []
    assert credit.silent(103.1 + SILENCE) == [first.inbox]


def test_a_message_is_a_sign_of_life() -> None:
    """What has just brought something is not silent."""
    credit = Credit()
    credit.add(2)
    (first,) = _asked(credit, now=100.0)
    credit.received(first.inbox, 105.0)
    assert credit.silent(105.0 + SILENCE) == []
    assert credit.silent(105.1 + SILENCE) == [first.inbox]


def test_a_lane_without_request_is_never_silent() -> None:
    """Only open requests have heartbeats."""
    assert Credit().silent(1e9) == []


def test_silence_while_we_did_not_listen_does_not_count() -> None:
    """After the process itself stood still, each request has a full silence again."""
    credit = Credit()
    credit.add(1)
    _asked(credit, now=0.0)
    credit.excuse_silence(1000.0)
    assert credit.silent(1000.0 + SILENCE) == []


def test_how_long_a_request_is_open_and_may_be_silent() -> None:
    """As docs/architecture.md tells; nats-server refuses a heartbeat of more than half the expiry."""
    assert (EXPIRES, HEARTBEAT, SILENCE) == (30.0, 5.0, 11.0)
    assert HEARTBEAT * 2 <= EXPIRES


def test_what_is_given_back_is_wanted_no_more() -> None:
    """All that was asked for and did not come, and all that was not asked for yet."""
    credit = Credit(max_batch=4)
    credit.add(20)
    first, *_ = _asked(credit)
    credit.received(first.inbox, 0.0)
    assert credit.take_back() == 19
    assert (credit.unrequested, credit.outstanding) == (0, 0)
    assert _asked(credit) == []


def test_nothing_is_given_back_where_too_much_came() -> None:
    """What came beyond what was wanted is made good first."""
    credit = Credit()
    credit.received(None, 0.0)
    assert credit.take_back() == 0
    credit.add(3)
    assert [request.batch for request in _asked(credit)] == [2]


def test_after_giving_back_a_quarter_is_of_what_is_wanted_since() -> None:
    """What there was room for long ago does not make small requests wait."""
    credit = Credit()
    credit.add(40)
    _asked(credit)
    credit.take_back()
    credit.add(4)
    (first,) = _asked(credit)
    credit.received(first.inbox, 0.0)
    credit.add(1)
    assert [request.batch for request in _asked(credit)] == [1]


def test_a_flow_among_many_has_fewer_lanes() -> None:
    """Each has a fraction of the credit: half of it is worth a second request."""
    credit = Credit(max_requests=MAX_REQUESTS_OF_MANY)
    credit.add(4)
    (first,) = _asked(credit)
    credit.received(first.inbox, 0.0)
    credit.add(1)
    assert _asked(credit) == []
    credit.received(first.inbox, 0.0)
    credit.add(1)
    assert [request.batch for request in _asked(credit)] == [2]


class Conservation(RuleBasedStateMachine):
    """Whatever the server does, in whatever order, no more comes than was wanted, and nothing wanted is forgotten."""

    def __init__(self) -> None:
        super().__init__()
        self.credit = Credit()
        self.wanted = self.came = self.returned = 0
        self.late = 0
        """What the server may still send into inboxes that were given up."""

    @rule(more=st.integers(1, 60))
    def want(self, more: int) -> None:
        self.credit.add(more)
        self.wanted += more

    @rule()
    def ask(self) -> None:
        before = self.credit.unrequested
        request = self.credit.next_request(0.0)
        if request:
            assert 0 < request.batch <= before
            assert request.inbox.outstanding == request.batch

    @precondition(lambda self: self.credit.outstanding)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        lane = data.draw(st.sampled_from([lane for lane in self.credit.inboxes if lane.outstanding]))
        self.credit.received(lane, 0.0)
        self.came += 1

    @rule(number=st.integers(0, MAX_REQUESTS - 1))
    def deliver_too_much(self, number: int) -> None:
        """A request may outlive a connection, so more can come into a lane than was asked for there."""
        if not self.credit.inboxes[number].outstanding:
            self.credit.received(self.credit.inboxes[number], 0.0)
            self.came += 1

    @precondition(lambda self: self.late)
    @rule()
    def deliver_late(self) -> None:
        self.credit.received(None, 0.0)
        self.late -= 1
        self.came += 1

    @rule(number=st.integers(0, MAX_REQUESTS - 1))
    def end(self, number: int) -> None:
        self.credit.end_request(self.credit.inboxes[number])

    @rule(number=st.integers(0, MAX_REQUESTS - 1))
    def give_up(self, number: int) -> None:
        self.late = min(self.late + self.credit.inboxes[number].outstanding, 100)
        self.credit.end_request(self.credit.inboxes[number])

    @rule()
    def recall(self) -> None:
        """Interest has ended, and what was on its way has come; but for what comes by way of other servers."""
        self.late = min(self.late + self.credit.outstanding, 100)
        back = self.credit.take_back()
        assert back >= 0
        assert self.credit.unrequested <= 0
        self.returned += back

    @invariant()
    def nothing_lost_or_made(self) -> None:
        assert self.credit.unrequested + self.credit.outstanding + self.came + self.returned == self.wanted
        assert all(lane.outstanding >= 0 for lane in self.credit.inboxes)
        assert self.credit.outstanding == sum(lane.outstanding for lane in self.credit.inboxes)

    @invariant()
    def something_is_open_when_something_is_wanted(self) -> None:
        """Liveness: with room, and all lanes' requests answered or ended, the next call asks."""
        if self.credit.unrequested > 0 and not self.credit.outstanding:
            request = self.credit.next_request(0.0)
            assert request
            assert request.batch == self.credit.outstanding


TestConservation = Conservation.TestCase
TestConservation.settings = settings(stateful_step_count=60)
