"""A worker's use of the tokens that it receives. There is no broker: the tests check the calls of the ports."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from worker.heartbeat import Leases
from worker.model import Delivery, Quota, Rate
from worker.policy.quota import CAP, RATE, USABLE, token_flow
from worker.token_store import TokenStore

ACK_WAIT = 60.0
FN = "echo.fn"


class FakePorts:
    """A fake of queue, quotas and consumer in one, which records the calls of a token store."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.credit: dict[str, int] = {}
        self.given_back: list[tuple[int, float, float]] = []
        """Number of the token, delay (s), and seconds in which its NAK may be sent."""
        self.extensions: list[Callable[[], None]] = []
        self.extended: list[tuple[str, float]] = []
        """Reply subject of each extended token, and seconds in which its extension may be sent."""
        self.changed: list[str] = []
        self.leases = Leases(self, lambda _: None)  # type: ignore[arg-type]  # leases use only ``extend`` of a queue
        self.leases.set_ack_wait(ACK_WAIT)
        parts: Any = self
        self.store = TokenStore(parts, parts, self.leases, self.changed.append)

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:
        self.extensions.append(confirmed)
        self.extended.append((delivery.token, before - trio.current_time()))

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        self.given_back.append((int(token.subject.rpartition(".")[2]), delay, before - trio.current_time()))

    def add_credit(self, count: int, flow: str) -> None:
        self.credit[flow] = self.credit.get(flow, 0) + count

    def balance(self, desired: int) -> None:
        consumer: Any = self
        self.store.balance(FN, desired, consumer)

    def take(self, kind: str, number: int, count: int = 1, *, confirm: bool = True) -> None:
        """Deliver a token to the store."""
        now = trio.current_time()
        subject = f"QUOTAS.q.{kind}.{FN}.{number}"
        self.store.receive(Delivery((number + 1, 7), f"t{count}", count, now, subject, b"", token_flow(kind, FN)))
        if confirm:
            self.extensions.pop()()


async def test_store_without_limits_requests_no_token(autojump_clock: MockClock) -> None:
    """A function without a cap or rate has unlimited room, and the store requests no token for it."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(weight=3))
    assert fake.store.room(FN) == float("inf")
    fake.balance(9)
    assert fake.credit == {}
    assert fake.store.start(FN) is None
    fake.store.finish(FN, None)


async def test_token_unconfirmed_does_not_count(autojump_clock: MockClock) -> None:
    """A token counts only after its first extension is confirmed, because a restarted server may deliver it twice."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    fake.balance(2)
    assert fake.credit == {token_flow(CAP, FN): 2}
    fake.take(CAP, 0, confirm=False)
    assert fake.store.room(FN) == 0
    fake.extensions.pop()()
    assert fake.store.room(FN) == 1
    assert fake.changed == [FN]


async def test_token_delivered_twice_counts_once(autojump_clock: MockClock) -> None:
    """A token that is delivered again, in any state, counts once, and its newest delivery is the one to settle."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    fake.take(CAP, 0, confirm=False)
    fake.take(CAP, 0, 2, confirm=False)
    (confirmed,) = fake.extensions
    confirmed()
    fake.take(CAP, 0, 3, confirm=False)
    assert fake.store.room(FN) == 1
    held = fake.store.start(FN)
    assert held
    fake.take(CAP, 0, 4, confirm=False)
    assert fake.store.room(FN) == 0
    assert held.delivery.token == "t4"
    fake.store.finish(FN, held)
    fake.balance(0)
    assert fake.given_back == [(0, 0.0, ACK_WAIT * 2 / 3)]
    fake.take(CAP, 0, 5)
    assert fake.store.room(FN) == 1


async def test_token_of_cap_is_extended_until_given_back(autojump_clock: MockClock) -> None:
    """The token of a cap is extended until the store gives it back, and not after that."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    fake.take(CAP, 0)
    fake.take(CAP, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fake.leases.run)
        await trio.sleep(ACK_WAIT / 3 + 1)
        assert len(fake.extensions) == 2
        for confirmed in fake.extensions:
            confirmed()
        fake.extensions.clear()
        fake.store.give_back_unused()
        assert sorted(fake.given_back) == [(0, 0.0, ACK_WAIT * 2 / 3 - 1), (1, 0.0, ACK_WAIT * 2 / 3 - 1)]
        await trio.sleep(ACK_WAIT)
        assert fake.extensions == []
        nursery.cancel_scope.cancel()


async def test_token_with_lost_lease_cancels_its_invocation(autojump_clock: MockClock) -> None:
    """A lost lease of a token cancels its invocation, and the store neither uses nor returns a lost token."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    fake.take(CAP, 0)
    fake.take(CAP, 1)
    held = fake.store.start(FN)
    assert held
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fake.leases.run)
        with trio.CancelScope() as scope:
            held.guard(scope)
            await trio.sleep_forever()
        assert trio.current_time() == ACK_WAIT * 2 / 3  # extensions go unconfirmed
        nursery.cancel_scope.cancel()
    fake.store.finish(FN, held)
    assert fake.store.room(FN) == 0
    fake.balance(0)
    assert fake.given_back == []


async def test_token_of_rate_is_not_extended(autojump_clock: MockClock) -> None:
    """The token of a rate is used once, or given back when it is too old, counted from the request to extend it."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(rate=Rate(2, 60.0)))
    fake.take(RATE, 0, confirm=False)
    await trio.sleep(1)
    fake.extensions.pop()()
    fake.take(RATE, 1)
    assert fake.store.start(FN) is None
    assert fake.given_back == [(0, 60.0, USABLE + 60.0 - 1)]
    assert fake.store.room(FN) == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fake.leases.run)
        await trio.sleep(USABLE)
        assert fake.store.room(FN) == 0
        fake.balance(1)
        assert fake.given_back[1:] == [(1, 0.0, 60.0)]
        await trio.sleep(10 * ACK_WAIT)
        assert fake.extensions == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("quota", [Quota(max_inflight=1), Quota(), None])
async def test_token_beyond_the_cap_is_given_back(autojump_clock: MockClock, quota: Quota | None) -> None:
    """A surplus token is given back after its cap was lowered or removed, and where the function is unknown."""
    fake = FakePorts(autojump_clock)
    if quota:
        fake.store.set_quota(FN, Quota(max_inflight=5))
        fake.balance(2)
        fake.store.set_quota(FN, quota)
    fake.take(CAP, 1)
    assert [number for number, _, _ in fake.given_back] == [1]
    if quota and quota.max_inflight:
        assert fake.store.room(FN) == 0


async def test_store_after_returned_credit_requests_again(autojump_clock: MockClock) -> None:
    """The store requests tokens again after their credit was returned."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    fake.balance(2)
    fake.balance(2)
    assert fake.credit == {token_flow(CAP, FN): 2}
    fake.store.take_back(token_flow(CAP, FN), 2)
    fake.balance(2)
    assert fake.credit == {token_flow(CAP, FN): 4}


@pytest.mark.parametrize(("quota", "kind"), [(Quota(max_inflight=2), CAP), (Quota(rate=Rate(2, 1.0)), RATE)])
@pytest.mark.parametrize("late", [False, True])
async def test_token_lost_before_it_counts_is_requested_again(
    autojump_clock: MockClock, quota: Quota, kind: str, *, late: bool
) -> None:
    """The store requests another token for each that it lost before its extension was confirmed, if ever it is."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, quota)
    fake.balance(2)
    fake.take(kind, 0, confirm=False)
    fake.take(kind, 1, confirm=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fake.leases.run)
        await trio.sleep(ACK_WAIT)
        nursery.cancel_scope.cancel()
    if late:
        fake.extensions[0]()
    fake.balance(2)
    assert fake.credit == {token_flow(kind, FN): 4}
    fake.extensions[1]()
    fake.balance(2)
    assert fake.credit == {token_flow(kind, FN): 4}
    assert fake.store.room(FN) == 0
    fake.take(kind, 0, 2)
    assert fake.store.room(FN) == 1


async def test_token_of_rate_confirmed_too_late_is_not_given_back(autojump_clock: MockClock) -> None:
    """A rate's token whose confirmation takes longer than a window and its use is left to the queue's ack wait."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(rate=Rate(1, 1.0)))
    fake.balance(1)
    fake.take(RATE, 0, confirm=False)
    await trio.sleep(USABLE + 1)
    fake.extensions.pop()()
    assert fake.store.room(FN) == 0
    fake.balance(1)
    assert fake.given_back == []
    assert fake.credit == {token_flow(RATE, FN): 2}


async def test_token_is_extended_before_its_lease_is_lost(autojump_clock: MockClock) -> None:
    """A token is extended when it arrives, and not after two thirds of the ack wait, when its lease is lost."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    fake.take(CAP, 0, confirm=False)
    assert fake.extended == [("t1", ACK_WAIT * 2 / 3)]


@pytest.mark.parametrize("lost", ["surplus", "redelivered"])
async def test_token_that_adds_nothing_is_requested_again(autojump_clock: MockClock, lost: str) -> None:
    """One more token is requested for each that was above the cap, or that was here already."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=4))
    fake.balance(3)
    fake.take(CAP, 0)
    if lost == "surplus":
        fake.take(CAP, 4)
    else:
        fake.take(CAP, 0, 2, confirm=False)
    fake.balance(3)
    assert fake.credit == {token_flow(CAP, FN): 4}


async def test_token_lost_alone_is_requested_alone(autojump_clock: MockClock) -> None:
    """Where one of three requested tokens is lost before it counts, one more is requested."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    fake.balance(3)
    fake.take(CAP, 0, confirm=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fake.leases.run)
        await trio.sleep(ACK_WAIT)
        nursery.cancel_scope.cancel()
    fake.balance(3)
    assert fake.credit == {token_flow(CAP, FN): 4}


async def test_store_with_enough_rate_tokens_requests_none(autojump_clock: MockClock) -> None:
    """The store requests no tokens of a rate while it has enough of them."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(rate=Rate(9, 1.0)))
    fake.balance(2)
    fake.take(RATE, 0)
    fake.take(RATE, 1)
    fake.balance(2)
    assert (fake.credit, fake.given_back, fake.store.room(FN)) == ({token_flow(RATE, FN): 2}, [], 2)


async def test_finish_frees_the_token_for_the_next_invocation(autojump_clock: MockClock) -> None:
    """The token of an invocation that has ended starts the next one, and stays leased."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    fake.take(CAP, 0)
    held = fake.store.start(FN)
    assert fake.store.room(FN) == 0
    fake.store.finish(FN, held)
    assert (fake.store.room(FN), fake.given_back) == (1, [])
    assert fake.store.start(FN) is held


async def test_lowered_cap_gives_back_the_tokens_above_it(autojump_clock: MockClock) -> None:
    """Tokens above a lowered cap are given back: free ones at once, the others when their invocations have ended."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(max_inflight=5))
    for number in (4, 0, 3, 1):
        fake.take(CAP, number)
    high, low = fake.store.start(FN), fake.store.start(FN)
    fake.store.set_quota(FN, Quota(max_inflight=2))
    assert ([number for number, _, _ in fake.given_back], fake.store.room(FN)) == ([3], 1)
    fake.store.finish(FN, high)
    assert ([number for number, _, _ in fake.given_back], fake.store.room(FN)) == ([3, 4], 1)
    fake.store.finish(FN, low)
    assert ([number for number, _, _ in fake.given_back], fake.store.room(FN)) == ([3, 4], 2)


async def test_give_back_unused_keeps_the_window_of_a_used_token(autojump_clock: MockClock) -> None:
    """A rate's token with uses left is given back at the end of a worker, to be redelivered a window after its use."""
    fake = FakePorts(autojump_clock)
    fake.store.set_quota(FN, Quota(rate=Rate(300, 60.0)))
    fake.take(RATE, 0)
    fake.store.start(FN)
    await trio.sleep(1)
    fake.store.give_back_unused()
    assert fake.given_back == [(0, 59.0, USABLE + 59.0)]
