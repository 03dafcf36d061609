"""What a worker makes of the tokens that it is handed. No broker: what it says is looked at."""

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


class Said:
    """Queue, quotas and consumer in one: all that a wallet says."""

    def __init__(self, clock: MockClock) -> None:
        self.clock = clock
        self.wanted: dict[str, int] = {}
        self.given: list[tuple[int, float, float]] = []
        """Number, delay and until when it may be said."""
        self.extended: list[Callable[[], None]] = []
        self.changed: list[str] = []
        self.leases = Leases(self, lambda _: None)  # type: ignore[arg-type]  # of a queue it takes this much
        self.leases.set_ack_wait(ACK_WAIT)
        parts: Any = self
        self.wallet = TokenStore(parts, parts, self.leases, self.changed.append)

    def extend(self, delivery: Delivery, confirmed: Callable[[], None], *, before: float) -> None:  # noqa: ARG002 -- the port's
        self.extended.append(confirmed)

    def give_back(self, token: Delivery, *, delay: float = 0.0, before: float) -> None:
        self.given.append((int(token.subject.rpartition(".")[2]), delay, before - trio.current_time()))

    def add_credit(self, count: int, flow: str) -> None:
        self.wanted[flow] = self.wanted.get(flow, 0) + count

    def balance(self, wish: int) -> None:
        consumer: Any = self
        self.wallet.balance(FN, wish, consumer)

    def take(self, kind: str, number: int, count: int = 1, *, confirm: bool = True) -> None:
        """Hand it a token."""
        now = trio.current_time()
        subject = f"QUOTAS.q.{kind}.{FN}.{number}"
        self.wallet.receive(Delivery((number + 1, 7), f"t{count}", count, now, subject, b"", token_flow(kind, FN)))
        if confirm:
            self.extended.pop()()


async def test_who_is_not_limited_needs_none(autojump_clock: MockClock) -> None:
    """There is room for any number, nothing is wanted, and an invocation holds nothing."""
    said = Said(autojump_clock)
    said.wallet.set_quota(FN, Quota(weight=3))
    assert said.wallet.room(FN) == float("inf")
    said.balance(9)
    assert said.wanted == {}
    assert said.wallet.start(FN) is None
    said.wallet.finish(FN, None)


async def test_a_token_counts_once_we_are_known_to_keep_it(autojump_clock: MockClock) -> None:
    """One that was merely handed out can be handed to others by a server that restarts."""
    said = Said(autojump_clock)
    said.wallet.set_quota(FN, Quota(max_inflight=5))
    said.balance(2)
    assert said.wanted == {token_flow(CAP, FN): 2}
    said.take(CAP, 0, confirm=False)
    assert said.wallet.room(FN) == 0
    said.extended.pop()()
    assert said.wallet.room(FN) == 1
    assert said.changed == [FN]


async def test_what_was_handed_to_us_twice_we_have_once(autojump_clock: MockClock) -> None:
    """Before it counts, when it is free, and when an invocation holds it: the newest delivery is the one to answer."""
    said = Said(autojump_clock)
    said.wallet.set_quota(FN, Quota(max_inflight=5))
    said.take(CAP, 0, confirm=False)
    said.take(CAP, 0, 2, confirm=False)
    (confirmed,) = said.extended
    confirmed()
    said.take(CAP, 0, 3, confirm=False)
    assert said.wallet.room(FN) == 1
    held = said.wallet.start(FN)
    assert held
    said.take(CAP, 0, 4, confirm=False)
    assert said.wallet.room(FN) == 0
    assert held.delivery.token == "t4"
    said.wallet.finish(FN, held)
    said.balance(0)
    assert said.given == [(0, 0.0, ACK_WAIT * 2 / 3)]
    said.take(CAP, 0, 5)
    assert said.wallet.room(FN) == 1


async def test_a_cap_s_token_is_kept_and_given_back(autojump_clock: MockClock) -> None:
    """It is extended for as long as it is here, and not after that."""
    said = Said(autojump_clock)
    said.wallet.set_quota(FN, Quota(max_inflight=5))
    said.take(CAP, 0)
    said.take(CAP, 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(said.leases.run)
        await trio.sleep(ACK_WAIT / 3 + 1)
        assert len(said.extended) == 2
        for confirmed in said.extended:
            confirmed()
        said.extended.clear()
        said.wallet.give_back_unused()
        assert sorted(said.given) == [(0, 0.0, ACK_WAIT * 2 / 3 - 1), (1, 0.0, ACK_WAIT * 2 / 3 - 1)]
        await trio.sleep(ACK_WAIT)
        assert said.extended == []
        nursery.cancel_scope.cancel()


async def test_a_lease_that_is_lost_ends_what_holds_it(autojump_clock: MockClock) -> None:
    """The invocation is cancelled, and neither its token nor a free one is used or given back by us again."""
    said = Said(autojump_clock)
    said.wallet.set_quota(FN, Quota(max_inflight=5))
    said.take(CAP, 0)
    said.take(CAP, 1)
    held = said.wallet.start(FN)
    assert held
    async with trio.open_nursery() as nursery:
        nursery.start_soon(said.leases.run)
        with trio.CancelScope() as scope:
            held.guard(scope)
            await trio.sleep_forever()
        assert trio.current_time() == ACK_WAIT * 2 / 3  # extensions go unconfirmed
        nursery.cancel_scope.cancel()
    said.wallet.finish(FN, held)
    assert said.wallet.room(FN) == 0
    said.balance(0)
    assert said.given == []


async def test_a_rate_s_token_is_not_extended(autojump_clock: MockClock) -> None:
    """It is used up, or given back when it is too old; from when we asked to keep it."""
    said = Said(autojump_clock)
    said.wallet.set_quota(FN, Quota(rate=Rate(2, 60.0)))
    said.take(RATE, 0, confirm=False)
    await trio.sleep(1)
    said.extended.pop()()
    said.take(RATE, 1)
    assert said.wallet.start(FN) is None
    assert said.given == [(0, 60.0, USABLE + 60.0 - 1)]
    assert said.wallet.room(FN) == 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(said.leases.run)
        await trio.sleep(USABLE)
        assert said.wallet.room(FN) == 0
        said.balance(1)
        assert said.given[1:] == [(1, 0.0, 60.0)]
        await trio.sleep(10 * ACK_WAIT)
        assert said.extended == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("quota", [Quota(max_inflight=1), Quota(), None])
async def test_a_token_that_is_too_many_is_given_back(autojump_clock: MockClock, quota: Quota | None) -> None:
    """After a cap was lowered, or lifted, or of a function that nobody knows: the adapter takes it off the queue."""
    said = Said(autojump_clock)
    if quota:
        said.wallet.set_quota(FN, Quota(max_inflight=5))
        said.balance(2)
        said.wallet.set_quota(FN, quota)
    said.take(CAP, 1)
    assert [number for number, _, _ in said.given] == [1]
    if quota and quota.max_inflight:
        assert said.wallet.room(FN) == 0


async def test_what_does_not_come_is_wanted_again(autojump_clock: MockClock) -> None:
    """What was returned is lacking once more."""
    said = Said(autojump_clock)
    said.wallet.set_quota(FN, Quota(max_inflight=5))
    said.balance(2)
    said.balance(2)
    assert said.wanted == {token_flow(CAP, FN): 2}
    said.wallet.take_back(token_flow(CAP, FN), 2)
    said.balance(2)
    assert said.wanted == {token_flow(CAP, FN): 4}
