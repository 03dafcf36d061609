"""A queue, workers and functions under virtual time: a heap of what happens next. Exact, and the same at each run."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Protocol

from worker.policy.backoff import Backoff
from worker.policy.limiter import Limiter

from .functions import LINK, REFUSING, Function


class Limits(Protocol):
    """How many of a function may be in flight in a worker."""

    limit: int
    due: float

    def tick(self, now: float) -> None: ...
    def started(self, now: float) -> None: ...
    def ended(self, began: float, now: float, status: int | None) -> float | None: ...


@dataclass(slots=True)
class Always:
    """The same limit always: greedy, where it is the worker's slots."""

    limit: int
    due: float = float("inf")

    def tick(self, now: float) -> None:
        """Nothing."""

    def started(self, now: float) -> None:
        """Nothing."""

    def ended(self, began: float, now: float, status: int | None) -> float | None:  # noqa: ARG002 -- a limit's signature
        """As usual."""
        return None


@dataclass(slots=True)
class Oracle(Always):
    """Told the capacity at each instant (among all workers: shared evenly)."""


@dataclass(slots=True)
class Result:
    """What a run came to."""

    time: float = 0.0
    """Seconds to the end of the last invocation."""
    lost: int = 0
    """Given up after 100 attempts, OpenFaaS's ``max_retry_attempts``."""
    rejections: int = 0
    """Refusals for want of capacity."""
    peak: int = 0
    """Most in flight."""
    ended: dict[str, float] = field(default_factory=dict)
    """By function: the end of its last one."""
    first: dict[str, float] = field(default_factory=dict)
    """By function: the end of its first one."""
    served: list[tuple[float, int]] = field(default_factory=list)
    """When, by which worker."""
    trace: list[tuple[float, int, int]] = field(default_factory=list)
    """When, what ran, what the capacity was: at each change of either, thinned."""
    limits: list[tuple[float, tuple[int, ...]]] = field(default_factory=list)
    """Each second: every worker's limit of the first function."""


class _Worker:
    def __init__(self, number: int, slots: int, limits: dict[str, Limits]) -> None:
        self.number = number
        self.slots = slots
        self.flying = 0
        self.by = dict.fromkeys(limits, 0)
        self.limits = limits
        self.set = dict.fromkeys(limits, float("inf"))


class Simulation:
    """Runs until every message is done."""

    def __init__(
        self,
        functions: Sequence[Function],
        messages: Mapping[str, int],
        limits: Callable[[Function], Limits],
        *,
        workers: int = 1,
        slots: int = 50,
        seed: int = 0,
        backoff: Backoff | None = None,
        attempts: int = 100,
    ) -> None:
        self.now = 0.0
        self.seed = seed
        self.dice = Random(seed)  # noqa: S311 -- a simulation
        self.functions = {each.name: each for each in functions}
        self.ready = {name: deque(range(number)) for name, number in messages.items()}
        self.left = dict(messages)
        self.backoff = backoff or Backoff()
        self.attempts = attempts
        self.workers = [_Worker(n, slots, {each.name: limits(each) for each in functions}) for n in range(workers)]
        self.oracle = all(isinstance(limit, Oracle) for each in self.workers for limit in each.limits.values())
        self.result = Result()
        self.tries: dict[tuple[str, int], int] = {}
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Later."""
        heapq.heappush(self._heap, (when, next(self._order), what))

    def run(self) -> Result:
        """The whole of it."""
        for function in self.functions.values():
            for when, capacity in function.changes:
                self.at(when, lambda f=function, c=capacity: self._capacity(f, c))  # type: ignore[misc]  # mypy knows no lambda with defaults
            if function.scaler:
                self._scaling(function)
            self._capacity(function, function.capacity)
        self.at(0.0, self._fill)
        self.at(0.0, self._sample)
        while self._heap and any(self.left.values()):
            self.now, _, what = heapq.heappop(self._heap)
            what()
        self.result.rejections = sum(each.refused for each in self.functions.values())
        return self.result

    def _sample(self) -> None:
        first = next(iter(self.functions))
        self.result.limits.append((self.now, tuple(each.limits[first].limit for each in self.workers)))
        self.at(self.now + 1.0, self._sample)

    # Capacity.

    def _capacity(self, function: Function, capacity: int) -> None:
        function.capacity = capacity
        if function.replicas is not None and function.scaler:
            while len(function.replicas) * function.scaler.each < capacity:
                function.replicas.append(0)
        if self.oracle:
            for number, worker in enumerate(self.workers):
                part = (capacity + number) // len(self.workers)
                worker.limits[function.name].limit = part
            self._fill()
        self._traced(function)

    def _scaling(self, function: Function) -> None:
        scaler = function.scaler
        assert scaler

        def scrape() -> None:
            scaler.scraped(sum(worker.by[function.name] for worker in self.workers))
            self.at(self.now + scaler.scrape, scrape)

        def evaluate() -> None:
            capacity = scaler.evaluate() * scaler.each
            delay = scaler.start if capacity > function.capacity else 0.0
            if capacity != function.capacity:
                self.at(self.now + delay, lambda: self._capacity(function, capacity))
            self.at(self.now + scaler.period, evaluate)

        self.at((scaler.phase - scaler.before) % scaler.scrape, scrape)
        self.at(scaler.phase, evaluate)

    def _traced(self, function: Function) -> None:
        trace = self.result.trace
        self.result.peak = max(self.result.peak, function.running)
        if function is next(iter(self.functions.values())):
            trace.append((self.now, function.running, function.capacity))

    # The workers.

    def _fill(self) -> None:
        """As many as there are slots, to the function that has fewest in flight of those that may have more."""
        starved: set[int] = set()
        while len(starved) < len(self.workers):
            for worker in self.workers:
                if worker.number in starved:
                    continue
                may = [n for n, w in self.ready.items() if w and worker.by[n] < worker.limits[n].limit]
                if worker.flying >= worker.slots or not may:
                    starved.add(worker.number)
                else:
                    self._send(worker, min(may, key=worker.by.__getitem__))

    def _send(self, worker: _Worker, name: str) -> None:
        message, began = self.ready[name].popleft(), self.now
        worker.flying += 1
        worker.by[name] += 1
        worker.limits[name].started(self.now)
        self._watch(worker, name)
        self.at(self.now + LINK, lambda: self._arrive(worker, name, message, began))

    def _arrive(self, worker: _Worker, name: str, message: int, began: float) -> None:
        function = self.functions[name]
        replica = function.takes(self.dice)
        if replica is None:
            function.refused += 1
            back = self.now + self.dice.uniform(*REFUSING) + LINK
            self.at(back, lambda: self._ended(worker, name, message, began, 429))
            return
        lasts, status = function.outcome(self._dice_of(name, message))
        self._traced(function)

        def leave() -> None:
            function.left(replica)
            self._traced(function)

        answered = self.now + lasts
        self.at(answered + function.late * self.dice.random() if function.late else answered, leave)
        self.at(answered + LINK, lambda: self._ended(worker, name, message, began, status))

    def _dice_of(self, name: str, message: int) -> Random:
        """The message's own chance, the same whoever sends it and when: so that runs differ by the limits alone."""
        return Random(f"{self.seed} {name} {message} {self.tries.get((name, message), 0)}")  # noqa: S311 -- a simulation

    def _ended(self, worker: _Worker, name: str, message: int, began: float, status: int) -> None:
        worker.by[name] -= 1
        wait = worker.limits[name].ended(began, self.now, status)
        self._watch(worker, name)
        if status == 200:
            self._done(worker, name)
        elif wait is None:
            tries = self.tries[name, message] = self.tries.get((name, message), 0) + 1
            if tries >= self.attempts:
                self.result.lost += 1
                self._done(worker, name)
            else:
                self._later(worker, name, message, self.backoff.delay(tries, draw=self.dice.random()))
        else:
            self._later(worker, name, message, wait)
        self._fill()

    def _done(self, worker: _Worker, name: str) -> None:
        worker.flying -= 1
        self.left[name] -= 1
        self.result.time = self.result.ended[name] = self.now
        self.result.first.setdefault(name, self.now)
        self.result.served.append((self.now, worker.number))

    def _later(self, worker: _Worker, name: str, message: int, wait: float) -> None:
        """It comes back, before those that never ran."""
        worker.flying -= 1

        def back() -> None:
            self.ready[name].appendleft(message)
            self._fill()

        self.at(self.now + wait, back)

    def _watch(self, worker: _Worker, name: str) -> None:
        due = worker.limits[name].due
        if due < worker.set[name]:
            worker.set[name] = due
            self.at(max(due, self.now), lambda: self._tick(worker, name, due))

    def _tick(self, worker: _Worker, name: str, due: float) -> None:
        if worker.set[name] != due:
            return
        worker.set[name] = float("inf")
        worker.limits[name].tick(self.now)
        self._watch(worker, name)
        self._fill()


def ours(slots: int) -> Callable[[Function], Limits]:
    """The limiter."""
    return lambda _function: Limiter(slots)


def greedy(slots: int) -> Callable[[Function], Limits]:
    """As many as there are slots."""
    return lambda _function: Always(slots)


def oracle(_slots: int) -> Callable[[Function], Limits]:
    """Told."""
    return lambda function: Oracle(function.capacity)
