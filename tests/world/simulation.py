"""A whole life of a queue, from a plan: messages, two workers one after the other, signals and faults.

The first worker is told to stop, or killed, at some time; the second starts at some time, takes over, and is stopped
when the queue is empty. A plan is a value that prints as the code that makes it, so what it found can be replayed::

    simulate(Plan(messages=(Planned(script=(reply(503),)),), slots=2, faults=(Fault("cut", at=1.0, seconds=3.0),)))
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import trio
from trio.testing import MockClock

from worker.policy.backoff import Backoff
from worker.policy.retry import Retry

from .functions import Answer, Reply
from .server import Message
from .world import Hired, World


@dataclass(frozen=True, slots=True)
class Planned:
    """One message, published at *at* (s)."""

    script: tuple[Reply, ...]
    callback: tuple[Answer, ...] | None = None
    at: float = 0.0
    malformed: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong at *at*, for so many seconds.

    ``stall``: nothing arrives, either way. ``cut``: the connection is lost. ``deaf``: what the worker says is lost.
    ``mute``: what confirms it is. ``anew``: the consumer is made anew. ``restart``: the broker goes away, and is a
    second early with all that waits. ``no letters``: dead letters are refused. ``freeze``: nobody runs, and then all
    that fell due meanwhile happens at once. ``kill``: the first worker is killed.
    """

    kind: Literal["stall", "cut", "deaf", "mute", "anew", "restart", "no letters", "freeze", "kill"]
    at: float = 0.0
    seconds: float = 0.0
    worker: Literal[0, 1] = 0
    """Whom it befalls: the first or the second."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is decided beforehand. Times in seconds from the start."""

    messages: tuple[Planned, ...]
    slots: int = 2
    retry: Retry = Retry()  # noqa: RUF009 -- it is frozen
    callback_attempts: int = 3
    callback_backoff: Backoff = Backoff(1.0, 5.0)  # noqa: RUF009 -- it is frozen
    dead_letters: bool = True
    ack_wait: float = 30.0
    latency: float = 0.001
    shutdown_timeout: float = 25.0
    stop_at: float = 100.0
    hurry_after: float | None = None
    """When the second signal comes, from the first."""
    second_at: float = 0.0
    """When the second worker starts."""
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Life:
    """What came of a plan."""

    plan: Plan
    world: World
    messages: tuple[Message, ...]
    """In the order of the plan."""
    workers: tuple[Hired, Hired]


def simulate(plan: Plan) -> Life:
    """Live through it on a virtual clock.

    Raises:
        AssertionError: a worker broke a rule of its ports, or some message never left the queue.
    """
    clock = MockClock(autojump_threshold=0)
    return trio.run(_live, plan, World(clock, ack_wait=plan.ack_wait, latency=plan.latency), clock=clock)


async def _live(plan: Plan, world: World) -> Life:
    messages: dict[int, Message] = {}
    async with world:
        first, second = workers = _worker(plan, world), _worker(plan, world)
        async with trio.open_nursery() as nursery:
            world.start(first)
            nursery.start_soon(_signal, plan, first)
            for fault in plan.faults:
                nursery.start_soon(_befall, fault, world, workers)
            for number, planned in enumerate(plan.messages):
                nursery.start_soon(_publish, planned, world, messages, number)
            await trio.sleep_until(plan.second_at)
            world.start(second)
        # All that was planned has happened.
        for message in messages.values():
            await message.over.wait()
        second.signal()
        for worker in workers:
            await worker.ended.wait()
    return Life(plan, world, tuple(messages[number] for number in range(len(messages))), workers)


def _worker(plan: Plan, world: World) -> Hired:
    return world.worker(
        slots=plan.slots,
        retry=plan.retry,
        callback_attempts=plan.callback_attempts,
        callback_backoff=plan.callback_backoff,
        dead_letters=plan.dead_letters,
        shutdown_timeout=plan.shutdown_timeout,
    )


async def _publish(planned: Planned, world: World, messages: dict[int, Message], number: int) -> None:
    await trio.sleep_until(planned.at)
    callback = None if planned.callback is None else [*planned.callback]
    payload = b"no JSON" if planned.malformed else None
    messages[number] = world.publish(*planned.script, callback=callback, payload=payload)


async def _signal(plan: Plan, worker: Hired) -> None:
    await trio.sleep_until(plan.stop_at)
    worker.signal()
    if plan.hurry_after is not None:
        await trio.sleep(plan.hurry_after)
        worker.signal()


async def _befall(fault: Fault, world: World, workers: tuple[Hired, Hired]) -> None:
    await trio.sleep_until(fault.at)
    link = workers[fault.worker].link
    match fault.kind:
        case "stall":
            link.stand_still(fault.seconds)
        case "cut" if not workers[fault.worker].ended.is_set():
            link.cut(fault.seconds)
        case "deaf":
            link.there.swallows = {"settlement", "extension"}
            await trio.sleep(fault.seconds)
            link.there.swallows = ()
        case "mute":
            link.down.swallows = {"confirmation"}
            await trio.sleep(fault.seconds)
            link.down.swallows = ()
        case "anew":
            world.server.make_anew()
        case "restart":
            world.server.restart(down=fault.seconds)
        case "no letters":
            world.server.refuses_letters = True
            await trio.sleep(fault.seconds)
            world.server.refuses_letters = False
        case "freeze":
            assert world.clock
            world.clock.jump(fault.seconds)
        case "kill":
            workers[0].kill()
