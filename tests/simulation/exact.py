"""Further laws of lives without faults, where all counts and times are exact."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import inf

from tests.world import Hired, ms
from tests.world.simulation import Life
from worker.events import DrainEnded, DrainExpired, DrainStarted
from worker.model import Nak
from worker.policy.flow import PATIENCE
from worker.policy.report import is_retriable
from worker.policy.shares import LONGEST_QUIET

from .laws import EPSILON
from .story import Hold, Story

FUNCTIONS = 3
"""Number of functions in a plan."""


def check_exactly(life: Life, stories: list[Story]) -> int:
    """Check all of these laws, and return how many waits were measured to their end."""
    settled_once_each(life)
    for worker in life.workers:
        drains_at_once(life, worker)
    for story in stories:
        counts_right(life, story)
    return sum(not_too_late(life, story, stories) for story in stories)


def settled_once_each(life: Life) -> None:
    """Check that no message runs twice at once, and that each delivery is settled once."""
    assert not life.world.outside.overlaps, "a message ran twice at once"
    settlements = Counter(delivery.token for worker in life.workers for _, delivery, _ in worker.queue.said)
    assert life.world.server.deliveries == len(settlements) == settlements.total(), (
        "a delivery was not settled exactly once"
    )
    for worker in life.workers:
        assert not worker.queue.held, "a worker that has ended holds an unsettled delivery"


def drains_at_once(life: Life, worker: Hired) -> None:
    """Check that a drain takes no longer than the running invocations.

    Stopping takes a round trip, and so does the last settlement; a delivery that arrives in between takes both.
    """
    trip = 2 * life.plan.latency
    expired = next((at for at, event in worker.log if isinstance(event, DrainExpired)), inf)
    running = min(life.plan.shutdown_timeout, expired - worker.services.drain.started_at)
    assert not any(event.unconfirmed for event in worker.told(DrainEnded)), "a settlement was not confirmed"
    assert ms(worker.took) <= ms(max(trip, running) + trip), "the drain took too long"


def counts_right(life: Life, story: Story) -> None:
    """Check that attempts have consecutive numbers, and that the number of callbacks follows from their answers."""
    attempts = [hold.started.attempt for hold in story.started if hold.started]
    counted = [hold.ended is None or hold.ended.counts for hold in story.started]
    if all(counted):
        assert attempts == sorted(set(attempts)), "an attempt was made twice"
    elif len(life.workers) > 1:
        return  # an attempt that did not count for one worker counts for the next, which cannot know it
    if story.given_back:
        # Attempts that the drain nakked do not count, but the next worker cannot know that.
        return
    assert attempts == [1 + sum(counted[:number]) for number in range(len(attempts))], "an attempt is missing"
    # The drain gives up a callback that has failed.
    hurried = {
        worker.name: at for worker in life.workers for at, event in worker.log if isinstance(event, DrainExpired)
    }
    cut_short = any(hold.said_at >= hurried.get(hold.worker, inf) for hold in story.holds)
    assert len(story.posts) == _expected_posts(story) or cut_short, "the wrong number of callbacks"


def _expected_posts(story: Story) -> int:
    if story.planned.payload is not None or story.planned.callback is None:
        return 0
    for number in range(1, story.plan.callback_attempts):
        result = story.planned.callback[min(number, len(story.planned.callback)) - 1].result
        if isinstance(result, Exception) or not is_retriable(result):
            return number
    return story.plan.callback_attempts


def not_too_late(life: Life, story: Story, stories: list[Story]) -> int:
    """Check that an attempt starts within a round trip after its wait if a worker has a free slot.

    The NAK takes half of the round trip, and the delivery the other half. Where each function has a consumer, the
    credit of a free slot may belong to another flow, and a worker that did not send the NAK has to guess when to pull.
    With limiters, an attempt may also have to wait for others to end, so nothing is checked.

    Returns:
        how many waits were checked.
    """
    if life.plan.by_function and life.plan.learns:
        return 0
    trip, measured = life.plan.latency, 0
    guess = LONGEST_QUIET + FUNCTIONS * (PATIENCE + 4 * trip) if life.plan.by_function else 0.0
    for first, again in pairwise(story.holds):  # a message that was nakked unstarted may then wait for another worker
        if first.ended and isinstance(first.ended.verdict, Nak) and isinstance(first.said, Nak):
            due = first.said_at + trip + first.said.delay
            if any(_has_room(life, worker, due, again, stories, guess=guess) for worker in life.workers):
                assert again.delivery.received_at <= due + trip + guess + EPSILON, "a retry was delivered too late"
                measured += 1
    return measured


def _has_room(life: Life, worker: Hired, now: float, but: Hold, stories: list[Story], *, guess: float) -> bool:
    """Return whether the broker could send *worker* a message at that time, counting the deliveries in flight.

    *guess*: seconds in which the worker might pull from other flows.
    """
    trip = life.plan.latency
    stops = next((at for at, event in worker.log if isinstance(event, DrainStarted)), inf)
    if not life.started_at(worker) + trip + EPSILON < now < stops - trip - EPSILON:
        return False
    busy = sum(
        hold.worker == worker.name
        and hold is not but
        and hold.delivery.received_at - trip <= now + guess + EPSILON
        and hold.said_at + trip >= now - EPSILON
        for story in stories
        for hold in story.holds
    )
    return busy < life.plan.slots
