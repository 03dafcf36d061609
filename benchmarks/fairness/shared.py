"""Measure the shares of functions in whole workers on the in-memory broker. Virtual time makes the figures exact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace

import trio
from trio.testing import MockClock

from tests.world import SimulatedWorker, World, reply
from worker.policy.flow import Flow
from worker.policy.limiter import Limiter

SLOTS = 50


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, and its target."""

    name: str
    value: float
    target: str
    reached: bool


def two_with_a_backlog() -> Figure:
    """Measure how far from even the slot time of two functions is, with invocations of 1.0 s and of 0.3 s."""

    async def live(world: World) -> float:
        for _ in range(2_000):
            world.publish(reply(200, after=1.0), function="slow")
        for _ in range(6_000):
            world.publish(reply(200, after=0.3), function="fast")
        _worker(world)
        await trio.sleep(60)
        used = _used(world, 1.0, 60.0)
        return abs(used["slow"] / sum(used.values()) - 0.5) / 0.5

    value = _run(live)
    return Figure("two functions with a backlog: off even by", value, "at most 1 %", value <= 0.01)


def fifty() -> Figure:
    """Measure Jain's index of the slot time of 50 functions on 30 slots, with invocations of 0.1 to 3 s."""

    async def live(world: World) -> float:
        for number in range(50):
            seconds = 0.1 + number % 30 / 10
            for _ in range(round(150 / seconds)):
                world.publish(reply(200, after=seconds), function=f"f{number}")
        _worker(world, slots=30)
        await trio.sleep(120)
        used = [*_used(world, 1.0, 120.0).values()]
        return sum(used) ** 2 / (50 * sum(each**2 for each in used))

    value = _run(live)
    return Figure("Jain's index over 50 functions", value, "at least 0.99", value >= 0.99)


def newcomer(*, free: bool) -> Figure:
    """Measure how long the first invocation of a new function waits behind a backlog of 100,000 (s).

    Args:
        free: whether slots are free, because the backlog's function accepts only 20 at once.
    """

    async def live(world: World) -> float:
        for _ in range(100_000):
            world.publish(reply(200, after=2.0), function="backlog")
        limits = (lambda _: Limiter(20)) if free else None
        _worker(world, limits=limits)
        await trio.sleep(10.7)
        stored = trio.current_time()
        message = world.publish(reply(200, after=0.1), function="new")
        await message.removed.wait()
        return next(call.began for call in world.outside.calls if call.invocation.function == "new") - stored

    value = _run(live)
    name = f"a new function behind 100,000, {'with free' if free else 'without free'} slots: waits (s)"
    return Figure(
        name, value, "under 0.05 s" if free else "less than the longest running, 2 s", value < (0.05 if free else 2)
    )


def _worker(world: World, slots: int = SLOTS, limits: Callable[[str], Limiter] | None = None) -> SimulatedWorker:
    worker = world.worker(slots=slots)
    if limits:
        config = replace(worker.services.config, make_flow=lambda name: Flow(name, name, limits(name)))
        worker.services = replace(worker.services, config=config)
    return world.start(worker)


def _used(world: World, since: float, until: float) -> dict[str, float]:
    """Return the slot time of each function."""
    used = defaultdict[str, float](float)
    for call in world.outside.calls:
        used[call.invocation.function] += max(0.0, min(call.ended or until, until) - max(call.began, since))
    return used


def _run(live: Callable[[World], Coroutine[object, object, float]]) -> float:
    clock = MockClock(autojump_threshold=0)

    async def main() -> float:
        async with World(clock, by_function=True) as world:
            return await live(world)

    return trio.run(main, clock=clock)


def figures() -> list[Figure]:
    """Measure all figures."""
    return [two_with_a_backlog(), fifty(), newcomer(free=False), newcomer(free=True)]


def table() -> str:
    """Measure all figures, and return the table."""
    rows = [
        f"| {each.name} | {each.target} | {each.value:.4g} | {'✓' if each.reached else '✗'} |" for each in figures()
    ]
    return "\n".join(["| figure | target | | |", "| --- | --- | --- | --- |", *rows]) + "\n"
