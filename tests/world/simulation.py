"""A whole life of a queue, from a plan: messages, functions, workers that come and go, signals and faults.

A plan is a value that prints as the code that makes it, and decides all, the order of tasks included. So what a test
found is lived through again, step by step, from what it printed::

    simulate(Plan(messages=(Planned(script=(reply(503),)),), faults=(Fault("cut", at=1.0, seconds=3.0),), schedule=7))
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import trio
from msgspec import structs
from trio._core import _run as scheduler
from trio.testing import MockClock

from worker.model import Responded
from worker.policy.backoff import Backoff, Jitter
from worker.policy.retry import Retry

from .faults import Fault, Nemesis
from .functions import Answer, Deployment, Reply, brief
from .server import Message
from .standstill import Gates
from .world import Hired, World

SETTLE_WITHIN = 3.0
"""Seconds that a drain waits for the last confirmations, as the command sets it."""
REST = 1000.0
"""Seconds after the last message has left in which everything must come to rest: more than any call or callback takes
here, waits between included."""


@dataclass(frozen=True, slots=True, repr=False)
class Planned:
    """One message, published at *at* (s)."""

    script: tuple[Reply, ...] = ()
    callback: tuple[Answer, ...] | None = None
    at: float = 0.0
    function: int = 0
    """Which of the plan's functions it invokes."""
    annotations: tuple[tuple[str, str], ...] = ()
    payload: bytes | None = None
    """Instead of all that; then nothing is invoked."""

    __repr__ = brief


@dataclass(frozen=True, slots=True, repr=False)
class Shift:
    """One worker, from *starts* (s) on."""

    starts: float = 0.0
    stops: float | None = None
    """When the first signal comes; without, it stays until the queue is empty."""
    hurry_after: float | None = None
    """When the second signal comes, counted from the first."""

    __repr__ = brief


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """All that is decided beforehand. Times in seconds from the start."""

    messages: tuple[Planned, ...]
    functions: tuple[Deployment, ...] = ()
    workers: tuple[Shift, ...] = (Shift(),)
    """When all of them have gone and work is left, one more comes."""
    faults: tuple[Fault, ...] = ()
    slots: int = 2
    attempts: int = 3
    initial: float = 1.0
    longest: float = 10.0
    backoff: str = "exponential"
    callback_attempts: int = 3
    callback_initial: float = 1.0
    callback_longest: float = 5.0
    dead_letters: bool = True
    ack_wait: float = 30.0
    latency: float = 0.001
    shutdown_timeout: float = 25.0
    by_function: bool = False
    """Each function has a consumer of its own."""
    learns: bool = False
    """Then workers learn how many of it may be in flight."""
    schedule: int = 0
    """Decides in which order Trio runs what can run at once, and what the workers' dice show."""

    __repr__ = brief

    @property
    def retry(self) -> Retry:
        """The workers' policy."""
        return Retry(self.attempts, backoff=Backoff(self.initial, self.longest, Jitter(self.backoff)))


class Life:
    """What came of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = MockClock(autojump_threshold=0)
        self.world = World(self.clock, ack_wait=plan.ack_wait, latency=plan.latency, by_function=plan.by_function)
        self.workers = self.world.workers
        self.nemesis = Nemesis(self.world)
        self.free: dict[str, int] = {}
        """Slots that were free in the workers that stayed, when all had come to rest."""
        self._messages: dict[int, Message] = {}
        self._leaving: set[str] = set()
        self._started: dict[str, float] = {}

    @property
    def messages(self) -> list[Message]:
        """In the order of the plan."""
        return [self._messages[number] for number in range(len(self._messages))]

    def started_at(self, worker: Hired) -> float:
        """When it started."""
        return self._started[worker.name]

    def trace(self) -> list[str]:
        """All that was told, said, called and posted, with its time."""
        told = [f"{at!r} {worker.name} {each!r}" for worker in self.workers for at, each in worker.log]
        said = [repr(heard) for heard in self.world.server.heard]
        calls = [f"{call!r}" for call in self.world.outside.calls]
        return [*told, *said, *calls, *(f"{post!r}" for post in self.world.outside.posts)]

    async def live(self) -> Life:
        """From the first message to the last worker's end."""
        plan, world = self.plan, self.world
        world.outside.deployments = {f"f{number}": each for number, each in enumerate(plan.functions)}
        for _ in plan.workers:
            self._worker()
        async with world:
            async with trio.open_nursery() as nursery:
                for shift, worker in zip(plan.workers, self.workers, strict=True):
                    nursery.start_soon(self._shift, shift, worker)
                for fault in plan.faults:
                    nursery.start_soon(self.nemesis.bring, fault)
                for number, planned in enumerate(plan.messages):
                    nursery.start_soon(self._publish, number, planned)
            # All that was planned has happened.
            if all(worker.name in self._leaving | self.nemesis.killed for worker in self.workers):
                self._start(self._worker())
            for message in self.messages:
                await message.over.wait()
            await trio.sleep(REST)
            for worker in self.workers:
                if worker.name not in self._leaving and not worker.ended.is_set():
                    self.free[worker.name] = worker.wanted
                    worker.signal()
                await worker.ended.wait()
        return self

    def _worker(self) -> Hired:
        plan = self.plan
        return self.world.worker(
            slots=plan.slots,
            retry=plan.retry,
            callback_attempts=plan.callback_attempts,
            callback_backoff=Backoff(plan.callback_initial, plan.callback_longest, Jitter.EQUAL),
            dead_letters=plan.dead_letters,
            shutdown_timeout=plan.shutdown_timeout,
            settle_within=SETTLE_WITHIN,
            learns=plan.learns,
            dice=random.Random(f"{plan.schedule} {len(self.world.workers)}").random,
        )

    def _start(self, worker: Hired) -> None:
        self._started[worker.name] = trio.current_time()
        self.world.start(worker)

    async def _shift(self, shift: Shift, worker: Hired) -> None:
        await trio.sleep_until(shift.starts)
        self._start(worker)
        if shift.stops is None:
            return
        await trio.sleep_until(max(shift.starts, shift.stops))
        self._leaving.add(worker.name)
        worker.signal()
        if shift.hurry_after is not None:
            await trio.sleep(shift.hurry_after)
            worker.signal()

    async def _publish(self, number: int, planned: Planned) -> None:
        await trio.sleep_until(planned.at)
        self._messages[number] = self.world.publish(
            *map(_marked, planned.script, range(len(planned.script))),
            function=f"f{planned.function}",
            callback=None if planned.callback is None else [*planned.callback],
            annotations=dict(planned.annotations),
            payload=planned.payload,
        )


def _marked(scripted: Reply, number: int) -> Reply:
    """The same with a body of its own, by which a callback shows what it tells."""
    if not isinstance(scripted.outcome, Responded):
        return scripted
    return replace(scripted, outcome=structs.replace(scripted.outcome, body=f"reply {number}".encode()))


def simulate(plan: Plan) -> Life:
    """Live through it on a virtual clock.

    Raises:
        AssertionError: a worker broke a rule of its ports, or some message never left the queue.
    """
    life = Life(plan)
    gates = [Gates()] if any(fault.kind == "freeze" for fault in plan.faults) else []
    with _scheduled(plan.schedule):
        return trio.run(life.live, clock=life.clock, instruments=gates)


@contextmanager
def _scheduled(seed: int) -> Iterator[None]:
    """Let *seed* alone decide the order in which Trio runs what can run at once: any order can come of it.

    These two names are what pytest-trio uses to the same end.
    """
    allowed, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # final to all but tests
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]
        scheduler._r.setstate(state)
