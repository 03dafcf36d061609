"""A simulated life of a queue, from a plan: messages, functions, workers that start and stop, signals and faults.

A plan is a value that prints as the code that creates it, and decides everything, including the order of tasks. So the
printed plan of a failed test repeats the failure, step by step::

    message = PlannedMessage(script=(reply(503),))
    simulate(Plan(messages=(message,), faults=(Fault("cut", at=1.0, seconds=3.0),), schedule=7))
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
from worker.policy.retry import Backoff, Jitter, Retry

from .faults import Fault, Nemesis
from .functions import Answer, Deployment, Reply, brief
from .server import Message
from .suspension import Gates
from .world import SimulatedWorker, World

SETTLE_WITHIN = 3.0
"""Seconds that a drain waits for the last confirmations, as in the worker's command."""
IDLE_TIME = 1000.0
"""Seconds in which all work must end after the last message has left the queue.

It is longer than any call or callback here, with the waits between its tries."""


@dataclass(frozen=True, slots=True, repr=False)
class PlannedMessage:
    """One message, published at *at* (s)."""

    script: tuple[Reply, ...] = ()
    callback: tuple[Answer, ...] | None = None
    at: float = 0.0
    function: int = 0
    """Index of the function that it invokes, among the plan's functions."""
    annotations: tuple[tuple[str, str], ...] = ()
    payload: bytes | None = None
    """Payload instead of a request; then no function is invoked."""

    __repr__ = brief


@dataclass(frozen=True, slots=True, repr=False)
class PlannedWorker:
    """The life of one worker, from *starts* (s) on."""

    starts: float = 0.0
    stops: float | None = None
    """Time (s) of the first signal; without one, the worker runs until the queue is empty."""
    second_signal_after: float | None = None
    """Seconds from the first signal to the second."""

    __repr__ = brief


@dataclass(frozen=True, slots=True, repr=False)
class Plan:
    """All decisions of a life. Times are in seconds from its start."""

    messages: tuple[PlannedMessage, ...]
    functions: tuple[Deployment, ...] = ()
    workers: tuple[PlannedWorker, ...] = (PlannedWorker(),)
    """Planned workers. When all have stopped and messages remain, one more starts."""
    faults: tuple[Fault, ...] = ()
    slots: int = 2
    attempts: int = 3
    initial: float = 1.0
    longest: float = 10.0
    backoff: str = "exponential"
    callback_attempts: int = 3
    callback_initial: float = 1.0
    callback_longest: float = 5.0
    callback_durable: bool = False
    callback_max_age: float = 100.0
    dead_letters: bool = True
    ack_wait: float = 30.0
    latency: float = 0.001
    shutdown_timeout: float = 25.0
    by_function: bool = False
    """Whether each function has a consumer of its own."""
    adaptive: bool = False
    """Whether workers limit each function's concurrency adaptively; only with ``by_function``."""
    schedule: int = 0
    """Seed of the order in which Trio runs tasks, and of the workers' random numbers."""

    __repr__ = brief

    @property
    def retry(self) -> Retry:
        """The workers' retry policy."""
        return Retry(self.attempts, backoff=Backoff(self.initial, self.longest, Jitter(self.backoff)))


class Life:
    """The simulated life of a plan, and its results."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.clock = MockClock(autojump_threshold=0)
        self.world = World(self.clock, ack_wait=plan.ack_wait, latency=plan.latency, by_function=plan.by_function)
        self.workers = self.world.workers
        self.nemesis = Nemesis(self.world)
        self.free: dict[str, int] = {}
        """Worker -> credit at the end, for the workers that were not stopped."""
        self._messages: dict[int, Message] = {}
        self._leaving: set[str] = set()
        self._started: dict[str, float] = {}

    @property
    def messages(self) -> list[Message]:
        """Messages in the order of the plan."""
        return [self._messages[number] for number in range(len(self._messages))]

    def started_at(self, worker: SimulatedWorker) -> float:
        """Return the time (s) at which a worker started."""
        return self._started[worker.name]

    def trace(self) -> list[str]:
        """Return all events, settlements, calls and callbacks, with their times."""
        events = [f"{at!r} {worker.name} {each!r}" for worker in self.workers for at, each in worker.log]
        settlements = [repr(verb) for verb in self.world.server.applied]
        calls = [f"{call!r}" for call in self.world.outside.calls]
        return [*events, *settlements, *calls, *(f"{post!r}" for post in self.world.outside.posts)]

    async def live(self) -> Life:
        """Run the plan from the first message to the end of the last worker."""
        plan, world = self.plan, self.world
        world.outside.deployments = {f"f{number}": each for number, each in enumerate(plan.functions)}
        for _ in plan.workers:
            self._worker()
        async with world:
            async with trio.open_nursery() as nursery:
                for schedule, worker in zip(plan.workers, self.workers, strict=True):
                    nursery.start_soon(self._run_worker, schedule, worker)
                for fault in plan.faults:
                    nursery.start_soon(self.nemesis.inject, fault)
                for number, planned in enumerate(plan.messages):
                    nursery.start_soon(self._publish, number, planned)
            # The plan is executed; remaining messages need a worker.
            if all(worker.name in self._leaving | self.nemesis.killed for worker in self.workers):
                self._start(self._worker())
            for message in self.messages:
                await message.removed.wait()
            for callback in world.server.callback_keys.values():
                await callback.removed.wait()
            await trio.sleep(IDLE_TIME)
            for worker in self.workers:
                if worker.name not in self._leaving and not worker.ended.is_set():
                    self.free[worker.name] = worker.credit
                    worker.signal()
                await worker.ended.wait()
        return self

    def _worker(self) -> SimulatedWorker:
        plan = self.plan
        return self.world.worker(
            slots=plan.slots,
            retry=plan.retry,
            callback_attempts=plan.callback_attempts,
            callback_backoff=Backoff(plan.callback_initial, plan.callback_longest, Jitter.EQUAL),
            callback_durable=plan.callback_durable,
            callback_max_age=plan.callback_max_age,
            callback_retry=Backoff(plan.callback_initial, 20.0, Jitter.EQUAL),
            dead_letters=plan.dead_letters,
            shutdown_timeout=plan.shutdown_timeout,
            settle_within=SETTLE_WITHIN,
            adaptive=plan.adaptive,
            rng=random.Random(f"{plan.schedule} {len(self.world.workers)}").random,
        )

    def _start(self, worker: SimulatedWorker) -> None:
        self._started[worker.name] = trio.current_time()
        self.world.start(worker)

    async def _run_worker(self, schedule: PlannedWorker, worker: SimulatedWorker) -> None:
        await trio.sleep_until(schedule.starts)
        self._start(worker)
        if schedule.stops is None:
            return
        await trio.sleep_until(max(schedule.starts, schedule.stops))
        self._leaving.add(worker.name)
        worker.signal()
        if schedule.second_signal_after is not None:
            await trio.sleep(schedule.second_signal_after)
            worker.signal()

    async def _publish(self, number: int, planned: PlannedMessage) -> None:
        await trio.sleep_until(planned.at)
        self._messages[number] = self.world.publish(
            *map(_marked, planned.script, range(len(planned.script))),
            function=f"f{planned.function}",
            callback=None if planned.callback is None else [*planned.callback],
            annotations=dict(planned.annotations),
            payload=planned.payload,
        )


def _marked(scripted: Reply, number: int) -> Reply:
    """Return a copy with a unique body, by which a callback can be matched with its reply."""
    if not isinstance(scripted.outcome, Responded):
        return scripted
    return replace(scripted, outcome=structs.replace(scripted.outcome, body=f"reply {number}".encode()))


def simulate(plan: Plan) -> Life:
    """Run a plan on a virtual clock, and return its life.

    Raises:
        AssertionError: a worker broke a rule of its ports, or some message never left the queue.
    """
    life = Life(plan)
    gates = [Gates()] if any(fault.kind == "suspend worker" for fault in plan.faults) else []
    with _scheduled(plan.schedule):
        return trio.run(life.live, clock=life.clock, instruments=gates)


@contextmanager
def _scheduled(seed: int) -> Iterator[None]:
    """Let *seed* alone decide the order in which Trio runs tasks that are ready at the same time.

    pytest-trio uses these two private names for the same purpose.
    """
    allowed, state = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r.getstate()
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]  # final to all but tests
    scheduler._r.seed(seed)
    try:
        yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING = allowed  # type: ignore[misc]
        scheduler._r.setstate(state)
