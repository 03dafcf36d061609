"""Further laws of lives without faults, where all counts and times are exact."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import inf

from tests.world import SimulatedWorker, ms
from tests.world.simulation import SETTLE_WITHIN, Life
from worker.events import DrainEnded, DrainExpired, DrainStarted
from worker.model import Interrupted, Nak
from worker.policy.flow import PATIENCE
from worker.policy.report import is_retriable
from worker.policy.shares import LONGEST_QUIET

from .laws import EPSILON
from .story import Handling, Story

FUNCTIONS = 3
"""Number of functions in a plan."""


def check_exactly(life: Life, stories: list[Story]) -> int:
    """Check all of these laws, and return how many waits were measured to their end."""
    deliveries_are_settled_once(life)
    for worker in life.workers:
        drain_ends_with_the_invocations(life, worker)
    for story in stories:
        attempts_are_consecutive(life, story)
    return sum(retries_are_prompt(life, story, stories) for story in stories)


def deliveries_are_settled_once(life: Life) -> None:
    """Check that no message runs twice at once, and that each delivery is settled once."""
    assert not life.world.outside.overlaps, "a message ran twice at once"
    settlements = Counter(delivery.token for worker in life.workers for _, delivery, _ in worker.queue.settlements)
    assert life.world.server.num_deliveries == len(settlements) == settlements.total(), (
        "a delivery was not settled exactly once"
    )
    for worker in life.workers:
        assert not worker.queue.held, "a worker that has ended holds an unsettled delivery"


def drain_ends_with_the_invocations(life: Life, worker: SimulatedWorker) -> None:
    """Check that a drain takes no longer than the running invocations.

    Stopping takes a round trip, and so does the last settlement; a delivery that arrives in between takes both. Storing
    a callback at the end of the drain's time takes another one, or a third of the time for settling.
    """
    trip = 2 * life.plan.latency
    storing = min(trip, SETTLE_WITHIN / 3) if life.plan.callback_durable else 0.0
    expired = next((at for at, event in worker.log if isinstance(event, DrainExpired)), inf)
    running = min(life.plan.shutdown_timeout, expired - worker.services.drain.started_at)
    assert not any(event.unconfirmed for event in worker.events_of(DrainEnded)), "a settlement was not confirmed"
    assert ms(worker.drain_seconds) <= ms(max(trip, running) + trip + storing), "the drain took too long"


def attempts_are_consecutive(life: Life, story: Story) -> None:
    """Check that attempts have consecutive numbers, and that the number of callbacks follows from their answers."""
    attempts = [handling.started.attempt for handling in story.started if handling.started]
    counted = [_counts(handling) for handling in story.started]
    exact = [1 + sum(counted[:number]) for number in range(len(attempts))]
    assert all(found >= least for found, least in zip(attempts, exact, strict=True)), "an attempt was made twice"
    uncounted = [each.settled_at for each in story.handlings if isinstance(each.settlement, Nak) and not _counts(each)]
    joined = {worker.name: worker.queue.consumer.joined_at for worker in life.workers if worker.queue.consumer}
    if all(joined[handling.worker] < min(uncounted, default=inf) for handling in story.started):
        # Each worker was there to receive the announcements of deliveries that were no attempts.
        assert attempts == exact, "an attempt is missing"
    # The drain gives up a callback that has failed.
    expired_at = {
        worker.name: at for worker in life.workers for at, event in worker.log if isinstance(event, DrainExpired)
    }
    cut_short = any(handling.settled_at >= expired_at.get(handling.worker, inf) for handling in story.handlings)
    if story.plan.callback_durable and story.posts and is_retriable(_result(story, 1)):
        delivered = [isinstance(post.result, int) and 200 <= post.result < 300 for post in story.posts]
        assert not any(delivered[:-1]), "a callback was posted again after its receiver took it"
        return  # how often a stored callback is sent depends on the others of its receiver
    assert len(story.posts) == _expected_posts(story) or cut_short, "the wrong number of callbacks"


def _counts(handling: Handling) -> bool:
    """Return whether a delivery was an attempt: it ran, its drain did not return it, and no probe was refused."""
    if not handling.started:
        return False
    if handling.ended is None:
        return True
    returned = isinstance(handling.ended.outcome, Interrupted) or (
        handling.final and isinstance(handling.settlement, Nak)
    )
    return handling.ended.counts and not returned


def _result(story: Story, number: int) -> int | str:
    """Return the result of a callback's try; a bug counts as no answer."""
    assert story.planned.callback
    result = story.planned.callback[min(number, len(story.planned.callback)) - 1].result
    return result if isinstance(result, int) else repr(result)


def _expected_posts(story: Story) -> int:
    if story.planned.payload is not None or story.planned.callback is None:
        return 0
    for number in range(1, story.plan.callback_attempts):
        if not is_retriable(_result(story, number)):
            return number
    return story.plan.callback_attempts


def retries_are_prompt(life: Life, story: Story, stories: list[Story]) -> int:
    """Check that an attempt starts within a round trip after its wait if a worker has a free slot.

    The NAK takes half of the round trip, and the delivery the other half. Where each function has a consumer, the
    credit of a free slot may belong to another flow, and a worker that did not send the NAK has to guess when to pull.
    With limiters, an attempt may also have to wait for others to end, so nothing is checked.

    Returns:
        how many waits were checked.
    """
    if life.plan.by_function and life.plan.adaptive:
        return 0
    trip, measured = life.plan.latency, 0
    guess = LONGEST_QUIET + FUNCTIONS * (PATIENCE + 4 * trip) if life.plan.by_function else 0.0
    for first, again in pairwise(
        story.handlings
    ):  # a message that was nakked unstarted may then wait for another worker
        if first.ended and isinstance(first.ended.verdict, Nak) and isinstance(first.settlement, Nak):
            due = first.settled_at + trip + first.settlement.delay
            if any(_has_room(life, worker, due, again, stories, guess=guess) for worker in life.workers):
                assert again.delivery.received_at <= due + trip + guess + EPSILON, "a retry was delivered too late"
                measured += 1
    return measured


def _has_room(
    life: Life, worker: SimulatedWorker, now: float, but: Handling, stories: list[Story], *, guess: float
) -> bool:
    """Return whether the broker could send *worker* a message at that time, counting the deliveries in flight.

    *guess*: seconds in which the worker might pull from other flows.
    """
    trip = life.plan.latency
    stops = next((at for at, event in worker.log if isinstance(event, DrainStarted)), inf)
    if not life.started_at(worker) + trip + EPSILON < now < stops - trip - EPSILON:
        return False
    busy = sum(
        handling.worker == worker.name
        and handling is not but
        and handling.delivery.received_at - trip <= now + guess + EPSILON
        and handling.settled_at + trip >= now - EPSILON
        for story in stories
        for handling in story.handlings
    )
    return busy < life.plan.slots
