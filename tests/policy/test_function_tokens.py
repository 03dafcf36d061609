from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.model import Quota, Rate
from worker.policy.function_tokens import FunctionTokens, TokenReturn
from worker.policy.quota import CAP, RATE, RATE_WAIT, USABLE, token_count, uses_of_token


def test_room_is_limited_by_each_kind_of_token() -> None:
    """There is room for as many as there are tokens of each kind, and unlimited room without cap and rate."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=5, rate=Rate(10, 1.0)))
    assert tokens.room(0.0) == 0
    tokens.add(CAP, "a", 1, 0.0)
    assert tokens.room(0.0) == 0
    tokens.add(RATE, "b", 1, 0.0)
    assert tokens.room(0.0) == 1
    assert FunctionTokens[str](Quota()).room(0.0) == float("inf")


def test_request_missing_tokens_only_once() -> None:
    """Tokens are requested for what could start, once, and never more of a kind than exist."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=5, rate=Rate(250, 1.0)))
    assert tokens.request(3, 0.0) == {CAP: 3}
    assert tokens.request(3, 0.0) == {}
    assert tokens.request(1000, 0.0) == {CAP: 2}
    tokens.take_back(CAP, 5)
    assert tokens.request(4, 0.0) == {CAP: 4}
    for number in range(4):
        tokens.add(CAP, str(number), 1, 0.0)
    assert tokens.request(4, 0.0) == {RATE: 2}
    assert tokens.request(4, 0.0) == {}
    assert FunctionTokens[str](Quota(rate=Rate(250, 1.0))).request(1000, 0.0) == {RATE: 84}


def test_cap_token_is_in_use_until_its_invocation_ends() -> None:
    """A cap's token is free when its invocation ends, and is given back where no other one needs it."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=1))
    tokens.add(CAP, "a", 1, 0.0)
    assert tokens.start(0.0) == ("a", None)
    assert (tokens.room(0.0), tokens.take_spare(5, 0.0)) == (0, [])
    tokens.release("a")
    assert (tokens.room(9.0), tokens.take_spare(1, 9.0)) == (1, [])
    assert tokens.take_spare(0, 9.0) == [TokenReturn("a")]
    assert tokens.room(9.0) == 0


def test_rate_token_is_given_back_with_its_last_use() -> None:
    """A rate's token is given back with its last use, to be redelivered one window later."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(rate=Rate(250, 1.0)))
    tokens.add(RATE, "a", 3, 10.0)
    assert [tokens.start(at) for at in (10.0, 10.5)] == [(None, None)] * 2
    assert tokens.start(11.0) == (None, TokenReturn("a", 1.0, 10.0 + USABLE + 1.0))
    assert tokens.room(11.0) == 0


def test_take_spare_returns_expired_rate_tokens() -> None:
    """A rate's token unused in time gives no room and is returned: at once, or one window after its last use."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(rate=Rate(250, 60.0)))
    tokens.add(RATE, "a", 3, 0.0)
    tokens.add(RATE, "b", 3, 0.0)
    tokens.start(1.0)
    assert tokens.take_spare(9, USABLE - 0.01) == []
    assert tokens.room(USABLE) == 0
    before = USABLE + 60.0
    assert tokens.take_spare(9, USABLE) == [TokenReturn("a", 61.0 - USABLE, before), TokenReturn("b", 0.0, before)]


def test_take_spare_returns_tokens_above_the_demand() -> None:
    """All tokens of each kind beyond the demand are given back."""
    tokens: FunctionTokens[int] = FunctionTokens(Quota(max_inflight=9, rate=Rate(9, 1.0)))
    for number in range(4):
        tokens.add(CAP, number, 1, 0.0)
        tokens.add(RATE, 10 + number, 1, 0.0)
    assert {each.token for each in tokens.take_spare(3, 0.0)} == {3, 13}
    assert tokens.room(0.0) == 3
    assert {each.token for each in tokens.take_spare(-1, 0.0)} == {0, 1, 2, 10, 11, 12}
    assert tokens.request(-1, 0.0) == {}


@pytest.mark.parametrize("held", [True, False])
def test_remove_lost_token_frees_nothing(held: bool) -> None:
    """A token whose lease is over is neither free nor in use here."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=1))
    tokens.add(CAP, "a", 1, 0.0)
    if held:
        tokens.start(0.0)
    tokens.remove("a", held=held)
    assert (tokens.in_use, tokens.room(0.0), tokens.take_spare(0, 0.0)) == (0, 0, [])


def test_request_counts_tokens_in_use_and_free() -> None:
    """A cap's tokens that invocations hold, that are free or that are requested are not requested again."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=5))
    assert tokens.request(3, 0.0) == {CAP: 3}
    for token in "abc":
        tokens.add(CAP, token, 1, 0.0)
        assert tokens.request(3, 0.0) == {}
    for _ in range(3):
        tokens.start(0.0)
    assert tokens.in_use == 3
    tokens.release("a")
    assert tokens.in_use == 2
    assert tokens.request(2, 0.0) == {CAP: 1}
    assert tokens.request(9, 0.0) == {CAP: 1}
    assert tokens.request(9, 0.0) == {}


def test_request_counts_the_uses_that_are_here() -> None:
    """Tokens of a rate are requested only for the invocations that those here do not allow."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(rate=Rate(250, 1.0)))
    tokens.add(RATE, "a", 3, 0.0)
    assert tokens.request(3, 0.0) == {}
    assert tokens.request(7, 0.0) == {RATE: 2}


def test_take_spare_after_the_window_returns_without_delay() -> None:
    """A token whose last use is longer ago than the window is given back for its redelivery at once."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(rate=Rate(250, 1.0)))
    tokens.add(RATE, "a", 3, 0.0)
    tokens.start(1.0)
    assert tokens.take_spare(9, USABLE) == [TokenReturn("a", 0.0, USABLE + 1.0)]


def test_take_spare_after_the_quota_was_lifted_returns_all() -> None:
    """Without cap and rate no token is kept, and none is delayed by the window of the rate that was."""
    tokens: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=5, rate=Rate(250, 60.0)))
    tokens.add(CAP, "a", 1, 0.0)
    tokens.add(CAP, "b", 1, 0.0)
    tokens.add(RATE, "c", 3, 0.0)
    tokens.start(1.0)
    tokens.quota = Quota()
    assert tokens.take_spare(9, 1.0) == [TokenReturn("b"), TokenReturn("c", 0.0, USABLE)]


# The law over all workers, for any order of events and any crash


@dataclass
class Broker:
    """The tokens as JetStream has them: each stored, delayed until a time, or leased to a worker until a time."""

    quota: Quota
    at: dict[tuple[str, int], float] = field(default_factory=dict)
    """Token -> the time from which it can be delivered."""

    def __post_init__(self) -> None:
        self.at = {(kind, number): 0.0 for kind in (CAP, RATE) for number in range(token_count(self.quota, kind))}

    def take(self, kind: str, now: float) -> tuple[str, int] | None:
        found = next((token for token, at in self.at.items() if token[0] == kind and at <= now), None)
        if found:
            window = self.quota.rate.window if self.quota.rate else 0.0
            self.at[found] = float("inf") if kind == CAP else now + window + RATE_WAIT
        return found


class World:
    """Workers of one function, under one seed."""

    def __init__(self, quota: Quota, workers: int, seed: int) -> None:
        self.quota, self.rng, self.now = quota, random.Random(seed), 0.0
        self.broker = Broker(quota)
        self.workers = [FunctionTokens[tuple[str, int]](quota) for _ in range(workers)]
        self.running: list[list[tuple[str, int] | None]] = [[] for _ in range(workers)]
        self.starts: list[float] = []
        self.peak = 0

    def step(self) -> None:
        self.now += self.rng.choice((0.0, 0.01, 0.3, 2.0))
        index = self.rng.randrange(len(self.workers))
        tokens, running = self.workers[index], self.running[index]
        match self.rng.randrange(8):
            case 0 | 1 | 2:
                self.request(tokens, self.rng.randrange(12))
            case 3 | 4:
                self.start(tokens, running, self.rng.choice((0.0, 0.5, 1.0)))
            case 5 if running:
                token = running.pop(self.rng.randrange(len(running)))
                if token:
                    tokens.release(token)
            case 6:
                self.give(tokens.take_spare(self.rng.randrange(4), self.now))
            case 7 if self.rng.random() < 0.1:
                self._crash(index)

    def request(self, tokens: FunctionTokens[tuple[str, int]], demand: int) -> None:
        while missing := tokens.request(demand, self.now):
            received = False
            for kind, count in missing.items():
                for _ in range(count):
                    if token := self.broker.take(kind, self.now):
                        tokens.add(kind, token, uses_of_token(self.quota, *token), self.now)
                        received = True
                    else:
                        tokens.take_back(kind, 1)
            if not received:
                return

    def start(
        self, tokens: FunctionTokens[tuple[str, int]], running: list[tuple[str, int] | None], start_probability: float
    ) -> None:
        for _ in range(20):
            if not tokens.room(self.now) or self.rng.random() > start_probability:
                return
            held, spent = tokens.start(self.now)
            running.append(held)
            self.starts.append(self.now)
            self.peak = max(self.peak, sum(map(len, self.running)))
            if spent and (start_probability == 1.0 or self.rng.random() < 0.9):  # or the return is lost
                self.give([spent])

    def give(self, given: list[TokenReturn[tuple[str, int]]]) -> None:
        for each in given:
            if self.now < each.before:
                self.broker.at[each.token] = self.now + each.delay

    def _crash(self, index: int) -> None:
        """Crash a worker with all that it runs; its cap's tokens are redelivered after their lease, here at once."""
        leased = {token for token in self.running[index] if token}
        leased |= {each.token for each in self.workers[index].take_spare(0, self.now) if each.token[0] == CAP}
        self.broker.at |= dict.fromkeys(leased, self.now)
        self.workers[index], self.running[index] = FunctionTokens(self.quota), []


quotas = st.builds(
    Quota,
    max_inflight=st.none() | st.integers(1, 8),
    rate=st.none() | st.builds(Rate, st.integers(1, 30) | st.integers(101, 350), st.sampled_from((1.0, 60.0))),
)


@given(quotas, st.integers(1, 4), st.integers(0, 2**32))
@example(Quota(max_inflight=1, rate=Rate(1, 1.0)), 4, 0)
@example(Quota(rate=Rate(350, 1.0)), 4, 1)
def test_tokens_of_all_workers_keep_cap_and_rate(quota: Quota, workers: int, seed: int) -> None:
    """In any order of requests, starts, returns and crashes, all workers together keep the cap and the rate."""
    world = World(quota, workers, seed)
    for _ in range(300):
        world.step()
    if quota.max_inflight is not None:
        assert world.peak <= quota.max_inflight
    if quota.rate:
        for at in world.starts:
            assert sum(at <= other < at + quota.rate.window for other in world.starts) <= quota.rate.starts


def test_tokens_of_all_workers_reach_cap_and_rate() -> None:
    """Workers that always have demand use the cap and the rate in full."""
    quota = Quota(max_inflight=6, rate=Rate(20, 1.0))
    world = World(quota, 3, 0)
    for step in range(500):
        world.now = step / 100
        for index, tokens in enumerate(world.workers):
            while world.running[index]:
                if token := world.running[index].pop():
                    tokens.release(token)
            world.request(tokens, 6)
            world.start(tokens, world.running[index], 1.0)
            world.give(tokens.take_spare(6, world.now))
    assert world.peak == 6
    assert Counter(int(at) for at in world.starts) == dict.fromkeys(range(5), 20)
