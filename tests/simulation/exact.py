"""What must hold besides where nothing fails: everything is exact."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import inf

from tests.world import Hired, ms
from tests.world.simulation import Life
from worker.events import DrainEnded, DrainExpired, DrainStarted
from worker.model import Nak
from worker.policy.callbacks import is_retriable
from worker.policy.flow import PATIENCE
from worker.policy.shares import LONGEST_QUIET

from .laws import EPSILON
from .story import Hold, Story

FUNCTIONS = 3
"""Of a plan."""


def check_exactly(life: Life, stories: list[Story]) -> int:
    """All of it. Returns how many waits were measured to their end."""
    settled_once_each(life)
    for worker in life.workers:
        drains_at_once(life, worker)
    for story in stories:
        counts_right(life, story)
    return sum(not_too_late(life, story, stories) for story in stories)


def settled_once_each(life: Life) -> None:
    """No message runs twice at once, and each delivery is settled once."""
    assert not life.world.outside.overlaps, "a message ran twice at once"
    said = Counter(delivery.token for worker in life.workers for _, delivery, _ in worker.queue.said)
    assert life.world.server.deliveries == len(said) == said.total(), "a delivery was not settled exactly once"
    for worker in life.workers:
        assert not worker.queue.held, "something is left in a worker that has ended"


def drains_at_once(life: Life, worker: Hired) -> None:
    """A drain takes no longer than what runs.

    Stopping takes a round trip, and so does the last settlement; what is on its way back takes both.
    """
    trip = 2 * life.plan.latency
    expired = next((at for at, event in worker.log if isinstance(event, DrainExpired)), inf)
    running = min(life.plan.shutdown_timeout, expired - worker.services.drain.started_at)
    assert not any(event.unconfirmed for event in worker.told(DrainEnded)), "something was left unsaid"
    assert ms(worker.took) <= ms(max(trip, running) + trip), "the drain took too long"


def counts_right(life: Life, story: Story) -> None:
    """Attempts are numbered one after the other, and callbacks are as many as their answers make them."""
    attempts = [hold.started.attempt for hold in story.started if hold.started]
    counted = [hold.ended is None or hold.ended.counts for hold in story.started]
    if all(counted):
        assert attempts == sorted(set(attempts)), "an attempt was made twice"
    elif len(life.workers) > 1:
        return  # what did not count for one worker does for the next: it cannot know
    if story.given_back:
        # Attempts that were given back do not count, but the next worker cannot know that.
        return
    assert attempts == [1 + sum(counted[:number]) for number in range(len(attempts))], "an attempt was left out"
    # A callback that has failed is given up with the drain.
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
    """Where a worker has a free slot when a wait is over, the next attempt starts within a round trip to the server.

    The NAK takes half of it and the delivery the other. Where each function has a consumer, a free slot may just be
    asked for of another, and who did not give it back has to guess when to ask. Who learns how many a function takes
    may have to wait for others to end. Returns how many waits it was so for.
    """
    if life.plan.by_function and life.plan.learns:
        return 0
    trip, measured = life.plan.latency, 0
    guess = LONGEST_QUIET + FUNCTIONS * (PATIENCE + 4 * trip) if life.plan.by_function else 0.0
    for first, again in pairwise(story.holds):  # what was given back unstarted may then wait for another worker
        if first.ended and isinstance(first.ended.verdict, Nak) and isinstance(first.said, Nak):
            due = first.said_at + trip + first.said.delay
            if any(_has_room(life, worker, due, again, stories, guess=guess) for worker in life.workers):
                assert again.delivery.received_at <= due + trip + guess + EPSILON, "it came too late"
                measured += 1
    return measured


def _has_room(life: Life, worker: Hired, now: float, but: Hold, stories: list[Story], *, guess: float) -> bool:
    """Whether the broker could send *worker* a message at that time, the deliveries then on their way all counted.

    *guess*: seconds in which it might be asked for others.
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
