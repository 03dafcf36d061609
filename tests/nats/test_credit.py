"""Requests for the credit of a flow: all of it, and never more."""

from __future__ import annotations

from typing import NamedTuple

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
    PullInbox,
)


class Request(NamedTuple):
    """A request as it was sent."""

    inbox: PullInbox
    batch: int


def send_requests(credit: Credit, now: float = 0.0) -> list[Request]:
    requests = []
    while inbox := credit.next_request(now):
        requests.append(Request(inbox, inbox.outstanding))
    return requests


def test_next_request_nothing_open_takes_all_credit() -> None:
    """The first request is for all the credit."""
    credit = Credit()
    credit.add(50)
    assert [request.batch for request in send_requests(credit)] == [50]
    assert (credit.unrequested, credit.outstanding) == (0, 50)


def test_next_request_max_batch_limits_each() -> None:
    """consumer_pull_max_messages limits each request, and the rest of the credit is requested by further ones."""
    credit = Credit(max_batch=10)
    credit.add(100)
    assert [request.batch for request in send_requests(credit)] == [10] * MAX_REQUESTS


def test_next_request_large_credit_is_limited_by_default() -> None:
    """Large credit is requested in parts, because no other worker can get the messages that wait in a socket."""
    credit = Credit()
    credit.add(10_000)
    assert [request.batch for request in send_requests(credit)] == [DEFAULT_BATCH] * MAX_REQUESTS


def test_next_request_full_batch_is_sent_while_another_is_open() -> None:
    """A request of the largest size is sent although a quarter of the credit is more."""
    credit = Credit(max_batch=10)
    credit.add(100)
    first, *_ = send_requests(credit)
    for _ in range(10):
        credit.received(first.inbox, 0.0)
    credit.add(-41)
    assert credit.unrequested == 19
    assert [request.batch for request in send_requests(credit)] == [10]


def test_next_request_small_waits_while_another_is_open() -> None:
    """A second request is sent once a quarter of the credit is unrequested."""
    credit = Credit()
    credit.add(40)
    (first,) = send_requests(credit)
    for _ in range(9):
        credit.received(first.inbox, 0.0)
        credit.add(1)
    assert send_requests(credit) == []
    credit.received(first.inbox, 0.0)
    credit.add(1)
    assert [request.batch for request in send_requests(credit)] == [10]


def test_next_request_minimum_counts_all_credit() -> None:
    """The minimum of a second request is a quarter of all the credit, requested or not: of 40 it is 10, not 5."""
    credit = Credit()
    credit.add(10)
    (first,) = send_requests(credit)
    credit.add(30)
    assert [request.batch for request in send_requests(credit)] == [30]
    for room in range(1, 11):
        credit.received(first.inbox, 0.0)
        credit.add(1)
        assert [request.batch for request in send_requests(credit)] == ([10] if room == 10 else [])


def test_received_more_than_requested_reduces_credit() -> None:
    """A message beyond what was requested uses credit that is then not requested."""
    credit = Credit()
    credit.add(1)
    (first,) = send_requests(credit)
    for _ in range(3):
        credit.received(first.inbox, 0.0)
    assert (credit.unrequested, credit.outstanding) == (-2, 0)
    credit.add(2)
    assert send_requests(credit) == []
    credit.add(1)
    assert [request.batch for request in send_requests(credit)] == [1]


def test_replace_leaves_no_credit_in_the_old_inbox() -> None:
    """A replaced inbox gets no more requests; what arrives there later uses credit that is then not requested."""
    credit = Credit(max_batch=2)
    credit.add(4)
    old, _ = (request.inbox for request in send_requests(credit))
    credit.replace(old)
    assert old not in credit.inboxes
    assert (len(credit.inboxes), credit.unrequested, credit.outstanding) == (MAX_REQUESTS, 2, 2)
    credit.received(old, 0.0)
    assert (credit.unrequested, credit.outstanding) == (1, 2)
    assert [request.batch for request in send_requests(credit)] == [1]


def test_next_request_single_message_is_requested_when_nothing_is_open() -> None:
    """Credit for one message is requested at once while no request is open."""
    credit = Credit()
    credit.add(40)
    (first,) = send_requests(credit)
    for _ in range(40):
        credit.received(first.inbox, 0.0)
    credit.add(1)
    assert [request.batch for request in send_requests(credit)] == [1]


def test_end_request_rest_is_requested_again() -> None:
    """The rest of an expired request is requested again."""
    credit = Credit()
    credit.add(5)
    (first,) = send_requests(credit)
    credit.received(first.inbox, 0.0)
    credit.end_request(first.inbox)
    assert [request.batch for request in send_requests(credit)] == [4]


def test_silent_two_missed_heartbeats_end_the_request() -> None:
    """A request has ended after two heartbeats and a second without a sign of life, not before."""
    credit = Credit()
    credit.add(1)
    (first,) = send_requests(credit, now=100.0)
    first.inbox.last_sign = 103.0
    assert credit.silent(103.0 + SILENCE) == []
    assert credit.silent(103.1 + SILENCE) == [first.inbox]


def test_received_is_a_sign_of_life() -> None:
    """A request that has just brought a message is not silent."""
    credit = Credit()
    credit.add(2)
    (first,) = send_requests(credit, now=100.0)
    credit.received(first.inbox, 105.0)
    assert credit.silent(105.0 + SILENCE) == []
    assert credit.silent(105.1 + SILENCE) == [first.inbox]


def test_silent_inbox_without_request_is_left_out() -> None:
    """An inbox without an open request is never silent."""
    assert Credit().silent(1e9) == []


def test_excuse_silence_begins_a_full_silence() -> None:
    """After this process was suspended, each request has a full silence again."""
    credit = Credit()
    credit.add(1)
    send_requests(credit, now=0.0)
    credit.excuse_silence(1000.0)
    assert credit.silent(1000.0 + SILENCE) == []


def test_expires_and_silence_are_as_documented() -> None:
    """A request expires and is silent as docs/architecture.md has it."""
    assert (EXPIRES, HEARTBEAT, SILENCE) == (30.0, 5.0, 11.0)
    assert HEARTBEAT * 2 <= EXPIRES


def test_take_back_returns_all_credit_without_message() -> None:
    """Taking back returns what was requested and did not arrive, and what was not requested."""
    credit = Credit(max_batch=4)
    credit.add(20)
    first, *_ = send_requests(credit)
    credit.received(first.inbox, 0.0)
    assert credit.take_back() == 19
    assert (credit.unrequested, credit.outstanding) == (0, 0)
    assert send_requests(credit) == []


def test_take_back_after_surplus_returns_nothing() -> None:
    """No credit is taken back where more messages arrived than were requested."""
    credit = Credit()
    credit.received(credit.inboxes[0], 0.0)
    assert credit.take_back() == 0
    credit.add(3)
    assert [request.batch for request in send_requests(credit)] == [2]


def test_take_back_resets_the_minimum() -> None:
    """After taking back, the minimum of a request depends only on credit added later."""
    credit = Credit()
    credit.add(40)
    send_requests(credit)
    credit.take_back()
    credit.add(4)
    (first,) = send_requests(credit)
    credit.received(first.inbox, 0.0)
    credit.add(1)
    assert [request.batch for request in send_requests(credit)] == [1]


def test_next_request_flow_of_many_has_two_requests() -> None:
    """A flow among many has two open requests; half of its credit is the minimum of the second."""
    credit = Credit(max_requests=MAX_REQUESTS_OF_MANY)
    credit.add(4)
    (first,) = send_requests(credit)
    credit.received(first.inbox, 0.0)
    credit.add(1)
    assert send_requests(credit) == []
    credit.received(first.inbox, 0.0)
    credit.add(1)
    assert [request.batch for request in send_requests(credit)] == [2]


class Conservation(RuleBasedStateMachine):
    """The law of conservation, under any answers in any order: no more messages arrive than there is credit for."""

    def __init__(self) -> None:
        super().__init__()
        self.credit = Credit()
        self.added = self.received = self.returned = 0
        self.undelivered = 0
        """Messages that the server may still send into replaced inboxes."""
        self.replaced: list[PullInbox] = []

    @rule(more=st.integers(1, 60))
    def add(self, more: int) -> None:
        self.credit.add(more)
        self.added += more

    @rule()
    def request(self) -> None:
        before = self.credit.unrequested
        if inbox := self.credit.next_request(0.0):
            assert 0 < inbox.outstanding <= before
            assert self.credit.unrequested == before - inbox.outstanding

    @precondition(lambda self: self.credit.outstanding)
    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        inbox = data.draw(st.sampled_from([inbox for inbox in self.credit.inboxes if inbox.outstanding]))
        self.credit.received(inbox, 0.0)
        self.received += 1

    @rule(number=st.integers(0, MAX_REQUESTS - 1))
    def deliver_too_much(self, number: int) -> None:
        """Deliver a message beyond what was requested, because a request may outlive its connection."""
        if not self.credit.inboxes[number].outstanding:
            self.credit.received(self.credit.inboxes[number], 0.0)
            self.received += 1

    @precondition(lambda self: self.undelivered)
    @rule(data=st.data())
    def deliver_late(self, data: st.DataObject) -> None:
        self.credit.received(data.draw(st.sampled_from(self.replaced)), 0.0)
        self.undelivered -= 1
        self.received += 1

    @rule(number=st.integers(0, MAX_REQUESTS - 1))
    def end(self, number: int) -> None:
        self.credit.end_request(self.credit.inboxes[number])

    @rule(number=st.integers(0, MAX_REQUESTS - 1))
    def give_up(self, number: int) -> None:
        inbox = self.credit.inboxes[number]
        self.undelivered = min(self.undelivered + inbox.outstanding, 100)
        self._replace(inbox)

    def _replace(self, inbox: PullInbox) -> None:
        self.credit.replace(inbox)
        self.replaced.append(inbox)

    @rule()
    def recall(self) -> None:
        """Take the credit back when interest ended and deliveries arrived, except those through other servers."""
        self.undelivered = min(self.undelivered + self.credit.outstanding, 100)
        for inbox in [*self.credit.inboxes]:
            self._replace(inbox)
        back = self.credit.take_back()
        assert back >= 0
        assert self.credit.unrequested <= 0
        self.returned += back

    @invariant()
    def nothing_lost_or_made(self) -> None:
        assert self.credit.unrequested + self.credit.outstanding + self.received + self.returned == self.added
        assert all(inbox.outstanding >= 0 for inbox in self.credit.inboxes)
        assert self.credit.outstanding == sum(inbox.outstanding for inbox in self.credit.inboxes)

    @invariant()
    def unrequested_credit_is_requested(self) -> None:
        """Check liveness: with credit and no open request, the next call returns a request."""
        if self.credit.unrequested > 0 and not self.credit.outstanding:
            inbox = self.credit.next_request(0.0)
            assert inbox
            assert inbox.outstanding == self.credit.outstanding


TestConservation = Conservation.TestCase
TestConservation.settings = settings(stateful_step_count=60)


def test_received_without_credit_is_no_debt_of_tokens() -> None:
    """A token that was not requested leaves later credit alone: its worker would wait for as many forever."""
    for debts, requested in ((True, []), (False, [1])):
        credit = Credit(debts=debts)
        credit.add(1)
        (first,) = send_requests(credit)
        (inbox,) = credit.silent(SILENCE + 1.0)
        credit.replace(inbox)  # a server that was suspended answers both requests
        (second,) = send_requests(credit)
        for request in (first, second):
            credit.received(request.inbox, 0.0)
        credit.add(1)
        assert [request.batch for request in send_requests(credit)] == requested


def test_received_without_credit_is_counted_where_credit_waits() -> None:
    """A token that arrives over an earlier request uses up credit that was not requested again."""
    credit = Credit(debts=False)
    credit.add(1)
    (first,) = send_requests(credit)
    credit.replace(first.inbox)
    credit.received(first.inbox, 0.0)
    assert (credit.unrequested, send_requests(credit)) == (0, [])
