"""Simulated functions: capacity that changes, latency, refusals, and OpenFaaS's autoscaler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import ceil
from random import Random

LINK = 0.001
"""Seconds from the worker to the function, and from the function to the worker."""
REFUSAL_TIME = (0.001, 0.009)
"""Shortest and longest time in which the function, or the gateway before it, refuses (s)."""

Latency = Callable[[Random, int, int], float]
"""Seconds that an invocation takes, from: random numbers, invocations that run beside it, capacity."""


def fixed(seconds: float) -> Latency:
    """Return a latency that is always the same."""
    return lambda _rng, _running, _capacity: seconds


def noisy(seconds: float, sigma: float = 0.5) -> Latency:
    """Return a lognormal latency with this median. By default one in twenty takes 2.3 times as long or longer."""
    return lambda rng, _running, _capacity: seconds * rng.lognormvariate(0.0, sigma)


def shared(seconds: float, cores: int) -> Latency:
    """Return a latency that grows in proportion when more invocations run than there are cores."""
    return lambda rng, running, _capacity: seconds * max(1.0, (running + 1) / cores) * rng.lognormvariate(0.0, 0.1)


@dataclass(slots=True)
class Function:
    """One function with all its replicas."""

    name: str
    latency: Latency
    capacity: int
    changes: Sequence[tuple[float, int]] = ()
    """Pairs of a time and the capacity from then on."""
    scaler: Scaler | None = None
    errors: float = 0.0
    """Part of the invocations that end in a 503 of the function's own."""
    hangs: float = 0.0
    """Part of the invocations that end as a 504, after *timeout*."""
    timeout: float = 60.0
    release_delay: float = 0.0
    """Longest time from the sending of a response until its place is free (s)."""
    replicas: list[int] | None = None
    """Invocations in each replica, if requests go to replicas at random. None: each goes to a replica with room."""
    running: int = 0
    refused: int = 0

    def accept(self, rng: Random) -> int | None:
        """Accept an invocation and return its replica, or return None to refuse it."""
        if self.replicas is None:
            if self.running >= self.capacity:
                return None
            self.running += 1
            return 0
        assert self.scaler
        ready = self.capacity // self.scaler.max_inflight
        chosen = rng.randrange(ready) if ready else 0
        if not ready or self.replicas[chosen] >= self.scaler.max_inflight:
            return None
        self.replicas[chosen] += 1
        self.running += 1
        return chosen

    def release(self, replica: int) -> None:
        """Free the place of an invocation that ended."""
        self.running -= 1
        if self.replicas is not None:
            self.replicas[replica] -= 1

    def outcome(self, rng: Random) -> tuple[float, int]:
        """Return how many seconds an accepted invocation takes, and its status."""
        chance = rng.random()
        if chance < self.hangs:
            return self.timeout, 504
        return self.latency(rng, self.running - 1, self.capacity), 503 if chance > 1 - self.errors else 200


@dataclass(slots=True)
class Scaler:
    """OpenFaaS's autoscaler, scaling on capacity. docs/fairness.md describes the model and its sources."""

    max_inflight: int = 5
    """``max_inflight`` of a replica."""
    target: float = 5 * 0.9
    """Invocations in flight for each replica: ``com.openfaas.scale.target`` times ``target-proportion``."""
    max_replicas: int = 10
    """``com.openfaas.scale.max``."""
    phase: float = 0.0
    """Seconds from the start of the run to the first evaluation."""
    start_time: float = 2.0
    """Seconds until a new replica is ready."""
    scrape_lead: float = 1.0
    """Seconds from a reading of the gauge to the next evaluation."""
    scrape_period: float = 5.0
    period: float = 15.0
    window: int = 10
    """Readings of which the highest is the load: 45 s at one each 5 s."""
    readings: list[int] = field(default_factory=list)

    def scrape(self, in_flight: int) -> None:
        """Record a reading of the gauge."""
        self.readings = [*self.readings, in_flight][-self.window :]

    def evaluate(self) -> int:
        """Return how many replicas there should be."""
        load = max(self.readings, default=0)
        return max(1, min(self.max_replicas, ceil(load / self.target)))
