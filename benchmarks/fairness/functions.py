"""Functions as the gateway shows them: capacity that comes and goes, latency, refusals; and OpenFaaS's autoscaler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from random import Random

LINK = 0.001
"""Seconds from the worker to the function, and as many back."""
REFUSING = (0.001, 0.009)
"""Seconds that the function, or the gateway before it, takes to refuse: from, to."""

Latency = Callable[[Random, int, int], float]
"""Seconds for an invocation, of: chance, how many run with it, capacity."""


def fixed(seconds: float) -> Latency:
    """Always the same."""
    return lambda _dice, _running, _capacity: seconds


def noisy(seconds: float, sigma: float = 0.5) -> Latency:
    """Lognormal with this median: at the default sigma one in twenty takes more than 2.3 times as long."""
    return lambda dice, _running, _capacity: seconds * dice.lognormvariate(0.0, sigma)


def shared(seconds: float, cores: int) -> Latency:
    """Slower in proportion once more run than there are cores."""
    return lambda dice, running, _capacity: seconds * max(1.0, (running + 1) / cores) * dice.lognormvariate(0.0, 0.1)


@dataclass(slots=True)
class Function:
    """One function, all its replicas together."""

    name: str
    latency: Latency
    capacity: int
    changes: Sequence[tuple[float, int]] = ()
    """When the capacity becomes what."""
    scaler: Scaler | None = None
    errors: float = 0.0
    """Part of the invocations that end in a 503 of the function's own."""
    hangs: float = 0.0
    """Part of the invocations that end as a 504, after *timeout*."""
    timeout: float = 60.0
    late: float = 0.0
    """Seconds, at most, from an answer's leaving to its place being free."""
    replicas: list[int] | None = None
    """What runs in each, where a request goes to one of them by chance; else to one that is free, if any is."""
    running: int = 0
    refused: int = 0

    def takes(self, dice: Random) -> int | None:
        """One more arrives: the replica that takes it; None where it is refused."""
        if self.replicas is None:
            if self.running >= self.capacity:
                return None
            self.running += 1
            return 0
        assert self.scaler
        ready = self.capacity // self.scaler.each
        chosen = dice.randrange(ready) if ready else 0
        if not ready or self.replicas[chosen] >= self.scaler.each:
            return None
        self.replicas[chosen] += 1
        self.running += 1
        return chosen

    def left(self, replica: int) -> None:
        """One ended."""
        self.running -= 1
        if self.replicas is not None:
            self.replicas[replica] -= 1

    def outcome(self, dice: Random) -> tuple[float, int]:
        """How long it runs, and what it says in the end."""
        chance = dice.random()
        if chance < self.hangs:
            return self.timeout, 504
        return self.latency(dice, self.running - 1, self.capacity), 503 if chance > 1 - self.errors else 200


@dataclass(slots=True)
class Scaler:
    """OpenFaaS's autoscaler, scaling on capacity: see docs/fairness.md for the model and its sources."""

    each: int = 5
    """``max_inflight`` of a replica."""
    target: float = 5 * 0.9
    """In flight a replica that it aims at: ``com.openfaas.scale.target`` times ``target-proportion``."""
    most: int = 10
    """``com.openfaas.scale.max``."""
    phase: float = 0.0
    """Seconds from the start of the run to the first evaluation."""
    start: float = 2.0
    """Seconds until a new replica is ready."""
    before: float = 1.0
    """Seconds from a reading of the gauge to the next evaluation."""
    scrape: float = 5.0
    period: float = 15.0
    window: int = 10
    """Scrapes that the load is the highest of: 45 s at one each 5 s."""
    wanted: int = 1
    seen: list[int] = field(default_factory=list)

    def scraped(self, inflight: int) -> None:
        """The gauge is read."""
        self.seen = [*self.seen, inflight][-self.window :]

    def evaluate(self) -> int:
        """How many replicas there should be."""
        load = max(self.seen, default=0)
        self.wanted = max(1, min(self.most, ceil(load / self.target)))
        return self.wanted
