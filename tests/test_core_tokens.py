"""Caps and rates over several workers, kept by tokens. On the in-memory broker, on a virtual clock."""

from __future__ import annotations

from typing import NamedTuple

import hypothesis
import pytest
import trio
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.world import Message, SimulatedWorker, World, reply
from tests.world.faults import Fault, Nemesis
from tests.world.functions import Call
from worker.model import Ack, Delivery, Nak, PausedFunctions, Quota, Rate
from worker.policy.ledger import NO_TOKEN

ACK_WAIT = 30.0
FLOW = "faas-request.0.a.openfaas-fn"
"""The flow of function a."""
MESSAGES = 60
"""Number of messages of each function in a drawn world."""


def label(function: str) -> str:
    """Return the name that quotas use for a function."""
    return f"{function}.openfaas-fn"


def backlog(world: World, function: str, count: int, seconds: float) -> list[Message]:
    """Publish *count* messages for a function, each of which runs for *seconds*."""
    return [world.publish(reply(200, after=seconds), function=function) for _ in range(count)]


def calls(world: World, function: str) -> list[Call]:
    """List a function's invocations, in the order of their starts."""
    return [call for call in world.outside.calls if call.invocation.function == function]


def peak_concurrency(world: World, function: str) -> int:
    """Count a function's invocations at their peak, over all workers; those of a killed worker end with it."""
    ends = [(call.ended, -1) for call in calls(world, function) if call.ended is not None]
    running = peak = 0
    for _, change in sorted([*((call.began, 1) for call in calls(world, function)), *ends]):
        running += change
        peak = max(peak, running)
    return peak


def peak_starts(world: World, function: str, window: float) -> int:
    """Count a function's starts in the busiest window of *window* seconds."""
    starts = [call.began for call in calls(world, function)]
    return max((sum(at <= other < at + window for other in starts) for at in starts), default=0)


def started(world: World, count: int = 2, slots: int = 10) -> list[SimulatedWorker]:
    """Start *count* workers."""
    return [world.start(world.worker(slots=slots)) for _ in range(count)]


async def wait_removed(messages: list[Message]) -> float:
    """Wait until all messages are settled, and return the time."""
    for message in messages:
        await message.removed.wait()
    return trio.current_time()


async def test_cap_over_two_workers_is_used_and_not_exceeded(autojump_clock: MockClock) -> None:
    """A function with a cap of 5 runs 5 invocations at any time, on two workers with 20 slots."""
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), Quota(max_inflight=5))
        messages = backlog(world, "a", 100, 1)
        started(world)
        assert await wait_removed(messages) < 22
        assert peak_concurrency(world, "a") == 5


async def test_rate_over_two_workers_holds_in_every_window(autojump_clock: MockClock) -> None:
    """With a rate of 5/s, two workers start at most 5 invocations in any second, and all 50 within 13 s."""
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), Quota(rate=Rate(5, 1.0)))
        messages = backlog(world, "a", 50, 0.01)
        started(world)
        assert await wait_removed(messages) < 13
        assert peak_starts(world, "a", 1.0) == 5


async def test_cap_and_rate_both_hold(autojump_clock: MockClock) -> None:
    """A function with a cap and a rate exceeds neither."""
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), Quota(max_inflight=3, rate=Rate(10, 1.0)))
        messages = backlog(world, "a", 30, 0.5)
        started(world)
        assert await wait_removed(messages) < 8
        assert peak_concurrency(world, "a") <= 3
        assert peak_starts(world, "a", 1.0) <= 10


async def test_cap_of_one_function_delays_no_other(autojump_clock: MockClock) -> None:
    """Slots that a capped function may not use go to other functions."""
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), Quota(max_inflight=1))
        backlog(world, "a", 100, 1)
        others = backlog(world, "b", 90, 1)
        started(world, count=1)
        assert await wait_removed(others) < 11.5


async def test_tokens_of_busy_worker_are_given_back(autojump_clock: MockClock) -> None:
    """When one worker's slots are all busy, another worker can use the whole cap of a function."""
    async with World(autojump_clock, by_function=True) as world:
        backlog(world, "long", 10, 600)
        started(world, count=1)
        await trio.sleep(1)
        world.quotas.agree(label("a"), Quota(max_inflight=4))
        messages = backlog(world, "a", 40, 1)
        await trio.sleep(3)
        began = trio.current_time()
        started(world, count=1)
        assert await wait_removed(messages) - began < 13


async def test_tokens_of_killed_worker_return_after_the_ack_wait(autojump_clock: MockClock) -> None:
    """A killed worker's tokens return to the other worker after the ack wait, and the cap holds throughout."""
    async with World(autojump_clock, by_function=True, ack_wait=ACK_WAIT) as world:
        world.quotas.agree(label("a"), Quota(max_inflight=4))
        messages = backlog(world, "a", 400, 1)
        first, _ = started(world, slots=3)
        await trio.sleep(10.5)
        assert {call.worker for call in calls(world, "a")} == {"worker-1", "worker-2"}
        first.kill()
        await trio.sleep(ACK_WAIT + 2)
        assert sum(call.ended is None for call in calls(world, "a")) == 3
        await wait_removed(messages)
        assert peak_concurrency(world, "a") <= 4


async def test_tokens_of_paused_function_are_given_back(autojump_clock: MockClock) -> None:
    """A worker gives back a function's tokens when the function is paused, after its running invocations."""
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), Quota(max_inflight=5))
        backlog(world, "a", 100, 1)
        (worker,) = started(world, count=1)
        await trio.sleep(3.5)
        assert worker.queue.consumer
        worker.queue.consumer.notify(PausedFunctions(frozenset({label("a")})))
        await trio.sleep(2)
        assert not [token for token in worker.queue.held.values() if token.flow.startswith("quota/")]


async def test_tokens_at_a_drain_are_given_back(autojump_clock: MockClock) -> None:
    """A drain gives all tokens back, so that another worker uses the whole cap at once, before the ack wait."""
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), Quota(max_inflight=4))
        messages = backlog(world, "a", 100, 2)
        first = world.start(world.worker(slots=4))
        await trio.sleep(5)
        world.start(world.worker(slots=4))
        await trio.sleep(0.5)
        first.signal()
        await first.ended.wait()
        assert not [token for token in first.queue.held.values() if token.flow.startswith("quota/")]
        ended = trio.current_time()
        await trio.sleep(0.5)
        assert sum(call.ended is None and call.began <= ended + 0.5 for call in calls(world, "a")) == 4
        await wait_removed(messages)
        assert peak_concurrency(world, "a") == 4


async def test_cap_set_under_load_holds_until_removed(autojump_clock: MockClock) -> None:
    """A new cap holds once running invocations have ended; without the cap, the function uses all slots again."""
    async with World(autojump_clock, by_function=True) as world:
        backlog(world, "a", 1_000, 1)
        started(world)
        await trio.sleep(3.5)
        world.quotas.agree(label("a"), Quota(max_inflight=2))
        await trio.sleep(2)
        before = len(calls(world, "a"))
        await trio.sleep(10)
        assert 18 <= len(calls(world, "a")) - before <= 22
        world.quotas.agree(label("a"), Quota())
        await trio.sleep(2.2)
        assert sum(call.ended is None for call in calls(world, "a")) == 20
        assert not [message for message in world.server.messages.values() if message.subject.startswith("QUOTAS.")]


async def test_cap_of_an_annotation_applies_to_all_workers(autojump_clock: MockClock) -> None:
    """An annotation applies to all workers after one of them has read the first message."""
    async with World(autojump_clock, by_function=True) as world:
        annotations = {"com.openfaas.queue.max_inflight": "3"}
        started(world)
        await wait_removed([world.publish(reply(200), function="a", annotations=annotations)])
        await trio.sleep(1)
        messages = [world.publish(reply(200, after=1), function="a", annotations=annotations) for _ in range(30)]
        await wait_removed(messages)
        assert peak_concurrency(world, "a") == 3


@pytest.mark.parametrize("fault", ["cut", "elect", "restart", "crash"])
async def test_limits_under_broker_faults_hold(autojump_clock: MockClock, fault: str) -> None:
    """Lost connections and elections never exceed a cap or a rate, and restarts never exceed a cap.

    A restart can exceed a rate: the server rounds delays to whole seconds (:mod:`tests.world.consumer`), so a window
    may be up to a second short once.
    """
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), Quota(max_inflight=4, rate=Rate(8, 1.0)))
        messages = backlog(world, "a", 200, 0.1)
        workers = started(world, count=3, slots=4)
        for number in range(5):
            await trio.sleep(1.3 + number)
            match fault:
                case "cut":
                    workers[number % 3].link.cut(3 * number)
                case "elect":
                    world.server.elect(2.5)
                case "restart":
                    world.server.restart(0.3 + number / 3)
                case "crash":
                    world.server.crash(0.3 + number / 3)
        assert await wait_removed(messages) < 90
        assert peak_concurrency(world, "a") <= 4
        assert peak_starts(world, "a", 1.0) <= (16 if fault in ("restart", "crash") else 8)


@pytest.mark.parametrize(
    ("quota", "seconds"),
    [
        (Quota(max_inflight=5), 1),
        (Quota(max_inflight=5), 0.05),
        (Quota(rate=Rate(5, 1.0)), 0.01),
        (Quota(rate=Rate(5, 1.0)), 2.5),
        (Quota(max_inflight=3, rate=Rate(10, 1.0)), 0.05),
    ],
)
async def test_tokens_without_faults_cover_each_requested_message(
    autojump_clock: MockClock, quota: Quota, seconds: float
) -> None:
    """Without faults, a worker requests only messages that it has tokens for, and naks none."""
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), quota)
        messages = backlog(world, "a", 100, seconds)
        started(world)
        await wait_removed(messages)
        assert {verdict for message in messages for _, verdict in world.verbs_of(message)} <= {None, Ack()}


async def test_message_delivered_twice_without_token_is_nakked_once(autojump_clock: MockClock) -> None:
    """When a message without a token arrives twice at once, only the newest delivery is nakked."""
    async with World(autojump_clock, by_function=True) as world:
        world.quotas.agree(label("a"), Quota(rate=Rate(5, 1.0)))
        worker = world.start(world.worker(slots=2))
        await trio.sleep(1)
        assert worker.queue.consumer
        twice = [Delivery((9, 9), token, count, 1.0, "a", b"", FLOW) for count, token in enumerate(["9.1.1", "9.2.2"])]
        for each in twice:
            worker.queue.consumer.notify(each)
        await trio.sleep(1)
        assert [(delivery, verdict) for _, delivery, verdict in worker.queue.settlements] == [(twice[1], Nak(NO_TOKEN))]


class Plan(NamedTuple):
    """A drawn world."""

    quotas: list[Quota]
    slots: list[int]
    """Number of slots of each worker."""
    durations: list[float]
    """Seconds for which messages run."""
    kills: list[float]
    """Times (s) at which a worker is killed and another started."""
    faults: list[Fault]
    """Faults of single workers, which leave the broker as it is."""


PLANS = st.builds(
    Plan,
    st.lists(
        st.builds(
            Quota,
            max_inflight=st.none() | st.integers(1, 6),
            rate=st.none() | st.builds(Rate, st.integers(1, 150), st.sampled_from([1.0, 60.0])),
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.0, 0.05, 0.3, 1.0]), min_size=1, max_size=5),
    st.lists(st.floats(0.1, 60.0), max_size=3),
    st.lists(
        st.builds(
            Fault,
            st.sampled_from(["cut", "stall", "drop to worker", "drop from worker"]),
            st.floats(0.0, 20.0),
            st.sampled_from([1.0, ACK_WAIT / 2, ACK_WAIT, 2 * ACK_WAIT]),
            st.integers(0, 3),
        ),
        max_size=4,
    ),
)


async def play(plan: Plan, clock: MockClock) -> None:
    async with World(clock, by_function=True, ack_wait=ACK_WAIT) as world, trio.open_nursery() as nursery:
        for number, quota in enumerate(plan.quotas):
            world.quotas.agree(label(f"f{number}"), quota)
            for message in range(MESSAGES):
                backlog(world, f"f{number}", 1, plan.durations[message % len(plan.durations)])
        workers = [world.start(world.worker(slots=slots)) for slots in plan.slots]
        nemesis = Nemesis(world)
        for fault in plan.faults:
            nursery.start_soon(nemesis.inject, fault)
        for at in sorted(plan.kills):
            await trio.sleep_until(at)
            workers.pop(0).kill()
            workers.append(world.start(world.worker(slots=4)))
        await trio.sleep_until(600)
        for number, quota in enumerate(plan.quotas):
            name = f"f{number}"
            assert quota.max_inflight is None or peak_concurrency(world, name) <= quota.max_inflight
            assert quota.rate is None or peak_starts(world, name, quota.rate.window) <= quota.rate.starts
            if quota.rate is None or quota.rate.window == 1.0:  # a rate per minute can take an hour
                assert len({call.invocation.call_id for call in calls(world, name)}) == MESSAGES


@hypothesis.given(PLANS)
@hypothesis.example(Plan([Quota(max_inflight=2)], [2], [0.05], [], [Fault("drop to worker", 0.0, 2 * ACK_WAIT)]))
@hypothesis.example(Plan([Quota(rate=Rate(1, 1.0))], [1], [0.0], [], [Fault("drop to worker", 1.0, ACK_WAIT / 2)]))
@hypothesis.settings(max_examples=30, deadline=None)
def test_limits_under_faults_of_workers_hold(plan: Plan) -> None:
    """With any workers killed or disconnected at any time, no function exceeds its limits, and all messages run."""
    clock = MockClock(autojump_threshold=0)
    trio.run(play, plan, clock, clock=clock)
