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


def test_without_tokens_nothing_starts() -> None:
    """There is room for as many as there are tokens of each kind, and for any number where nothing is limited."""
    purse: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=5, rate=Rate(10, 1.0)))
    assert purse.room(0.0) == 0
    purse.add(CAP, "a", 1, 0.0)
    assert purse.room(0.0) == 0
    purse.add(RATE, "b", 1, 0.0)
    assert purse.room(0.0) == 1
    assert FunctionTokens[str](Quota()).room(0.0) == float("inf")


def test_what_is_lacking_is_wanted_once() -> None:
    """As many as could start; a rate's tokens by what they are worth; never more than there are."""
    purse: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=5, rate=Rate(250, 1.0)))
    assert purse.request(3, 0.0) == {CAP: 3}
    assert purse.request(3, 0.0) == {}
    assert purse.request(1000, 0.0) == {CAP: 2}
    purse.take_back(CAP, 5)
    assert purse.request(4, 0.0) == {CAP: 4}
    for number in range(4):
        purse.add(CAP, str(number), 1, 0.0)
    assert purse.request(4, 0.0) == {RATE: 2}
    assert purse.request(4, 0.0) == {}
    assert FunctionTokens[str](Quota(rate=Rate(250, 1.0))).request(1000, 0.0) == {RATE: 84}


def test_a_cap_s_token_is_with_an_invocation_until_that_has_ended() -> None:
    """Then it is free for the next, or given back where there is none."""
    purse: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=1))
    purse.add(CAP, "a", 1, 0.0)
    assert purse.start(0.0) == ("a", None)
    assert (purse.room(0.0), purse.take_spare(5, 0.0)) == (0, [])
    purse.release("a")
    assert (purse.room(9.0), purse.take_spare(1, 9.0)) == (1, [])
    assert purse.take_spare(0, 9.0) == [TokenReturn("a")]
    assert purse.room(9.0) == 0


def test_a_rate_s_token_is_given_back_with_its_last_use() -> None:
    """A window after that it comes again."""
    purse: FunctionTokens[str] = FunctionTokens(Quota(rate=Rate(250, 1.0)))
    purse.add(RATE, "a", 3, 10.0)
    assert [purse.start(at) for at in (10.0, 10.5)] == [(None, None)] * 2
    assert purse.start(11.0) == (None, TokenReturn("a", 1.0, 10.0 + USABLE + 1.0))
    assert purse.room(11.0) == 0


def test_what_is_not_used_in_time_is_given_back() -> None:
    """Unused at once, else a window after its last use; and it is no room any more."""
    purse: FunctionTokens[str] = FunctionTokens(Quota(rate=Rate(250, 60.0)))
    purse.add(RATE, "a", 3, 0.0)
    purse.add(RATE, "b", 3, 0.0)
    purse.start(1.0)
    assert purse.take_spare(9, USABLE - 0.01) == []
    assert purse.room(USABLE) == 0
    before = USABLE + 60.0
    assert purse.take_spare(9, USABLE) == [TokenReturn("a", 61.0 - USABLE, before), TokenReturn("b", 0.0, before)]


def test_what_nobody_needs_is_given_back() -> None:
    """Of each kind all that is more than would start."""
    purse: FunctionTokens[int] = FunctionTokens(Quota(max_inflight=9, rate=Rate(9, 1.0)))
    for number in range(4):
        purse.add(CAP, number, 1, 0.0)
        purse.add(RATE, 10 + number, 1, 0.0)
    assert {each.token for each in purse.take_spare(3, 0.0)} == {3, 13}
    assert purse.room(0.0) == 3
    assert {each.token for each in purse.take_spare(-1, 0.0)} == {0, 1, 2, 10, 11, 12}
    assert purse.request(-1, 0.0) == {}


@pytest.mark.parametrize("held", [True, False])
def test_a_token_that_is_lost_is_nobody_s(held: bool) -> None:
    """Its lease is over, so it is neither free nor with anyone here."""
    purse: FunctionTokens[str] = FunctionTokens(Quota(max_inflight=1))
    purse.add(CAP, "a", 1, 0.0)
    if held:
        purse.start(0.0)
    purse.remove("a", held=held)
    assert (purse.in_use, purse.room(0.0), purse.take_spare(0, 0.0)) == (0, 0, [])


# The law: over all workers, whatever they do and whoever dies.


@dataclass
class Broker:
    """Tokens as JetStream has them: each here, away until a time, or with someone until a time."""

    quota: Quota
    at: dict[tuple[str, int], float] = field(default_factory=dict)
    """When each can be had."""

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
        self.quota, self.chance, self.now = quota, random.Random(seed), 0.0
        self.broker = Broker(quota)
        self.purses = [FunctionTokens[tuple[str, int]](quota) for _ in range(workers)]
        self.running: list[list[tuple[str, int] | None]] = [[] for _ in range(workers)]
        self.starts: list[float] = []
        self.most = 0

    def step(self) -> None:
        self.now += self.chance.choice((0.0, 0.01, 0.3, 2.0))
        who = self.chance.randrange(len(self.purses))
        purse, running = self.purses[who], self.running[who]
        match self.chance.randrange(8):
            case 0 | 1 | 2:
                self.want(purse, self.chance.randrange(12))
            case 3 | 4:
                self.start(purse, running, self.chance.choice((0.0, 0.5, 1.0)))
            case 5 if running:
                token = running.pop(self.chance.randrange(len(running)))
                if token:
                    purse.release(token)
            case 6:
                self.give(purse.take_spare(self.chance.randrange(4), self.now))
            case 7 if self.chance.random() < 0.1:
                self._die(who)

    def want(self, purse: FunctionTokens[tuple[str, int]], wish: int) -> None:
        while lacks := purse.request(wish, self.now):
            came = False
            for kind, count in lacks.items():
                for _ in range(count):
                    if token := self.broker.take(kind, self.now):
                        purse.add(kind, token, uses_of_token(self.quota, *token), self.now)
                        came = True
                    else:
                        purse.take_back(kind, 1)
            if not came:
                return

    def start(
        self, purse: FunctionTokens[tuple[str, int]], running: list[tuple[str, int] | None], eager: float
    ) -> None:
        for _ in range(20):
            if not purse.room(self.now) or self.chance.random() > eager:
                return
            held, spent = purse.start(self.now)
            running.append(held)
            self.starts.append(self.now)
            self.most = max(self.most, sum(map(len, self.running)))
            if spent and (eager == 1.0 or self.chance.random() < 0.9):  # or it is never heard
                self.give([spent])

    def give(self, given: list[TokenReturn[tuple[str, int]]]) -> None:
        for each in given:
            if self.now < each.before:
                self.broker.at[each.token] = self.now + each.delay

    def _die(self, who: int) -> None:
        """It and what it runs is gone; its cap's tokens come back once their lease is over, which we make now."""
        mine = {token for token in self.running[who] if token}
        mine |= {each.token for each in self.purses[who].take_spare(0, self.now) if each.token[0] == CAP}
        self.broker.at |= dict.fromkeys(mine, self.now)
        self.purses[who], self.running[who] = FunctionTokens(self.quota), []


quotas = st.builds(
    Quota,
    max_inflight=st.none() | st.integers(1, 8),
    rate=st.none() | st.builds(Rate, st.integers(1, 30) | st.integers(101, 350), st.sampled_from((1.0, 60.0))),
)


@given(quotas, st.integers(1, 4), st.integers(0, 2**32))
@example(Quota(max_inflight=1, rate=Rate(1, 1.0)), 4, 0)
@example(Quota(rate=Rate(350, 1.0)), 4, 1)
def test_no_more_than_agreed(quota: Quota, workers: int, seed: int) -> None:
    """Whatever workers want, start, give back, or take to their graves: never more than the cap or the rate."""
    world = World(quota, workers, seed)
    for _ in range(300):
        world.step()
    if quota.max_inflight is not None:
        assert world.most <= quota.max_inflight
    if quota.rate:
        for at in world.starts:
            assert sum(at <= other < at + quota.rate.window for other in world.starts) <= quota.rate.starts


def test_all_that_is_agreed_can_be_had() -> None:
    """The law is not kept by starting nothing: workers that always want more have the cap and the rate to the full."""
    quota = Quota(max_inflight=6, rate=Rate(20, 1.0))
    world = World(quota, 3, 0)
    for step in range(500):
        world.now = step / 100
        for who, purse in enumerate(world.purses):
            while world.running[who]:
                if token := world.running[who].pop():
                    purse.release(token)
            world.want(purse, 6)
            world.start(purse, world.running[who], 1.0)
            world.give(purse.take_spare(6, world.now))
    assert world.most == 6
    assert Counter(int(at) for at in world.starts) == dict.fromkeys(range(5), 20)
