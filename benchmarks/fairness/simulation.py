"""Simulate a queue, workers and functions under virtual time: a heap of events. Exact, and the same in each run."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from random import Random
from typing import Protocol

from worker.policy.limiter import Limiter
from worker.policy.retry import Backoff

from .functions import LINK, REFUSAL_TIME, Function


class Limit(Protocol):
    """The number of invocations of a function that may be in flight in a worker, with the limiter's methods."""

    limit: int
    due: float

    def tick(self, now: float) -> None: ...
    def started(self, now: float) -> None: ...
    def ended(self, began: float, now: float, status: int | None) -> float | None: ...


@dataclass(slots=True)
class FixedLimit:
    """A limit that does not adapt. It is greedy where it is as high as the worker's slots."""

    limit: int
    due: float = inf

    def tick(self, now: float) -> None:
        """Do nothing."""

    def started(self, now: float) -> None:
        """Do nothing."""

    def ended(self, began: float, now: float, status: int | None) -> float | None:  # noqa: ARG002 -- the protocol's signature
        """Return None: each outcome counts."""
        return None


@dataclass(slots=True)
class Oracle(FixedLimit):
    """A limit that the simulation sets to the capacity at each instant, divided evenly among the workers."""


@dataclass(slots=True)
class Result:
    """The figures of a run."""

    time: float = 0.0
    """Seconds to the end of the last invocation."""
    lost: int = 0
    """Messages given up after 100 attempts, OpenFaaS's ``max_retry_attempts``."""
    rejections: int = 0
    """Refusals because the capacity was used."""
    ended: dict[str, float] = field(default_factory=dict)
    """The end of the last invocation of each function."""
    served: list[tuple[float, int]] = field(default_factory=list)
    """The time and the worker of each message that is done."""
    trace: list[tuple[float, int, int]] = field(default_factory=list)
    """Time, running invocations and capacity of the first function, at each change of either."""
    limits: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    """Each second: the time, and the limits of the first function in all workers."""


class _Worker:
    def __init__(self, number: int, slots: int, limits: dict[str, Limit]) -> None:
        self.number = number
        self.slots = slots
        self.limits = limits
        self.in_flight = 0
        self.in_flight_of = dict.fromkeys(limits, 0)
        self.timers = dict.fromkeys(limits, inf)  # when each limit is to tick


class Simulation:
    """One run, until every message is done."""

    def __init__(
        self,
        functions: Sequence[Function],
        messages: Mapping[str, int],
        make_limit: Callable[[Function], Limit],
        *,
        workers: int = 1,
        slots: int = 50,
        seed: int = 0,
        backoff: Backoff | None = None,
        attempts: int = 100,
    ) -> None:
        self.now = 0.0
        self.seed = seed
        self.rng = Random(seed)  # noqa: S311 -- a simulation
        self.functions = {each.name: each for each in functions}
        self.waiting = {name: deque(range(number)) for name, number in messages.items()}
        self.left = dict(messages)
        self.backoff = backoff or Backoff()
        self.attempts = attempts
        self.workers = [_Worker(n, slots, {each.name: make_limit(each) for each in functions}) for n in range(workers)]
        self.has_oracle = all(isinstance(limit, Oracle) for each in self.workers for limit in each.limits.values())
        self.result = Result()
        self.tries: dict[tuple[str, int], int] = {}
        """Attempts that failed, by function and message."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, when: float, event: Callable[[], None]) -> None:
        """Schedule an event."""
        heapq.heappush(self._heap, (when, next(self._order), event))

    def run(self) -> Result:
        """Run until every message is done, and return the figures."""
        for function in self.functions.values():
            for when, capacity in function.changes:
                self.at(when, lambda f=function, c=capacity: self._set_capacity(f, c))  # type: ignore[misc]  # mypy knows no lambda with defaults
            if function.scaler:
                self._start_scaler(function)
            self._set_capacity(function, function.capacity)
        self.at(0.0, self._send_all)
        self.at(0.0, self._sample_limits)
        while self._heap and any(self.left.values()):
            self.now, _, event = heapq.heappop(self._heap)
            event()
        self.result.rejections = sum(each.refused for each in self.functions.values())
        return self.result

    def _sample_limits(self) -> None:
        first = next(iter(self.functions))
        self.result.limits.append((self.now, tuple(each.limits[first].limit for each in self.workers)))
        self.at(self.now + 1.0, self._sample_limits)

    # Capacity.

    def _set_capacity(self, function: Function, capacity: int) -> None:
        function.capacity = capacity
        if function.replicas is not None and function.scaler:
            while len(function.replicas) * function.scaler.max_inflight < capacity:
                function.replicas.append(0)
        if self.has_oracle:
            for number, worker in enumerate(self.workers):
                worker.limits[function.name].limit = (capacity + number) // len(self.workers)
            self._send_all()
        self._trace(function)

    def _start_scaler(self, function: Function) -> None:
        scaler = function.scaler
        assert scaler

        def scrape() -> None:
            scaler.scrape(sum(worker.in_flight_of[function.name] for worker in self.workers))
            self.at(self.now + scaler.scrape_period, scrape)

        def evaluate() -> None:
            capacity = scaler.evaluate() * scaler.max_inflight
            delay = scaler.start_time if capacity > function.capacity else 0.0
            if capacity != function.capacity:
                self.at(self.now + delay, lambda: self._set_capacity(function, capacity))
            self.at(self.now + scaler.period, evaluate)

        self.at((scaler.phase - scaler.scrape_lead) % scaler.scrape_period, scrape)
        self.at(scaler.phase, evaluate)

    def _trace(self, function: Function) -> None:
        if function is next(iter(self.functions.values())):
            self.result.trace.append((self.now, function.running, function.capacity))

    # The workers.

    def _send_all(self) -> None:
        """Fill free slots, each with the function that has fewest in flight and is below its limit."""
        idle: set[int] = set()
        while len(idle) < len(self.workers):
            for worker in self.workers:
                if worker.number in idle:
                    continue
                running, limits = worker.in_flight_of, worker.limits
                open_ = [name for name, left in self.waiting.items() if left and running[name] < limits[name].limit]
                if worker.in_flight >= worker.slots or not open_:
                    idle.add(worker.number)
                else:
                    self._send(worker, min(open_, key=running.__getitem__))

    def _send(self, worker: _Worker, name: str) -> None:
        message, began = self.waiting[name].popleft(), self.now
        worker.in_flight += 1
        worker.in_flight_of[name] += 1
        worker.limits[name].started(self.now)
        self._set_timer(worker, name)
        self.at(self.now + LINK, lambda: self._arrive(worker, name, message, began))

    def _arrive(self, worker: _Worker, name: str, message: int, began: float) -> None:
        function = self.functions[name]
        replica = function.accept(self.rng)
        if replica is None:
            function.refused += 1
            back = self.now + self.rng.uniform(*REFUSAL_TIME) + LINK
            self.at(back, lambda: self._end(worker, name, message, began, 429))
            return
        seconds, status = function.outcome(self._rng_of(name, message))
        self._trace(function)

        def release() -> None:
            function.release(replica)
            self._trace(function)

        answered = self.now + seconds
        delay = function.release_delay * self.rng.random() if function.release_delay else 0.0
        self.at(answered + delay, release)
        self.at(answered + LINK, lambda: self._end(worker, name, message, began, status))

    def _rng_of(self, name: str, message: int) -> Random:
        """Return the random numbers of one attempt. They depend on nothing else, so runs differ by the limits alone."""
        return Random(f"{self.seed} {name} {message} {self.tries.get((name, message), 0)}")  # noqa: S311 -- a simulation

    def _end(self, worker: _Worker, name: str, message: int, began: float, status: int) -> None:
        worker.in_flight_of[name] -= 1
        wait = worker.limits[name].ended(began, self.now, status)
        self._set_timer(worker, name)
        worker.in_flight -= 1
        if status == 200:
            self._finish(worker, name)
        elif wait is not None:
            self._redeliver(name, message, wait)
        else:
            tries = self.tries[name, message] = self.tries.get((name, message), 0) + 1
            if tries < self.attempts:
                self._redeliver(name, message, self.backoff.delay(tries, draw=self.rng.random()))
            else:
                self.result.lost += 1
                self._finish(worker, name)
        self._send_all()

    def _finish(self, worker: _Worker, name: str) -> None:
        self.left[name] -= 1
        self.result.time = self.result.ended[name] = self.now
        self.result.served.append((self.now, worker.number))

    def _redeliver(self, name: str, message: int, wait: float) -> None:
        """Deliver a message again after *wait*, before messages that never ran."""

        def deliver() -> None:
            self.waiting[name].appendleft(message)
            self._send_all()

        self.at(self.now + wait, deliver)

    def _set_timer(self, worker: _Worker, name: str) -> None:
        due = worker.limits[name].due
        if due < worker.timers[name]:
            worker.timers[name] = due
            self.at(max(due, self.now), lambda: self._tick(worker, name, due))

    def _tick(self, worker: _Worker, name: str, due: float) -> None:
        if worker.timers[name] != due:
            return
        worker.timers[name] = inf
        worker.limits[name].tick(self.now)
        self._set_timer(worker, name)
        self._send_all()


def limiter(slots: int) -> Callable[[Function], Limit]:
    """Return a function that makes the worker's limiter for a function."""
    return lambda _function: Limiter(slots)


def greedy(slots: int) -> Callable[[Function], Limit]:
    """Return a function that makes a limit as high as there are slots."""
    return lambda _function: FixedLimit(slots)


def oracle(_slots: int) -> Callable[[Function], Limit]:
    """Return a function that makes a limit that the simulation keeps at the capacity."""
    return lambda function: Oracle(function.capacity)
