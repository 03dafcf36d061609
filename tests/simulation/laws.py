"""Laws of every life, with any faults. Each law is a function that raises, and its docstring states the law.

:func:`check` checks a life against all laws, and returns the causes of repeats.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import inf

from tests.explained import CONNECTION, FORGETFUL, ROUNDING, Cause, Terms, Trouble, explained
from tests.world import Hired, Post
from tests.world.queue import PATIENCE
from tests.world.simulation import SETTLE_WITHIN, Life
from tests.world.world import Said
from worker.events import (
    CallbackPosted,
    DrainEnded,
    DrainExpired,
    DrainStarted,
    InvocationEnded,
    InvocationStarted,
    Redelivered,
    Settled,
)
from worker.model import Abandon, Ack, Final, Interrupted, LeaseLost, Nak, Responded, Term
from worker.policy.ledger import EARLY
from worker.policy.limiter import LONGEST_REST

from .expected import status_of
from .story import Hold, Story, stories_of

OVERLOAD = frozenset({429, 502, 503, 504})
"""Statuses by which an overloaded function may be recognized."""
EPSILON = 1e-6
"""Rounding error (s) of sums of times."""


def check(life: Life) -> tuple[list[Story], Counter[str]]:
    """Check all laws, and return the stories, and how many repeats each cause explains."""
    stories, causes = stories_of(life), Counter[str]()
    troubles = troubles_of(life)
    never_more_than_slots(life)
    books_agree(life)
    for worker in life.workers:
        drains_in_time(life, worker)
        comes_to_rest(life, worker)
    for story in stories:
        reaches_its_end(story)
        acknowledged_after_the_end(story)
        buried_first(life, story)
        decided_rightly(life, story)
        told_what_was(story)
        not_too_many_attempts(story, troubles)
        not_too_early(life, story, troubles)
        causes.update(cause.name for cause in explained_repeats(life, story, troubles))
    return stories, causes


def troubles_of(life: Life) -> list[Trouble]:
    """Return the injected faults, and a trouble for each drain whose time has passed."""
    drains = []
    for worker in life.workers:
        expired = [at for at, event in worker.log if isinstance(event, DrainExpired)]
        drains += [Trouble("drain", at, inf, worker.name) for at in expired]
    return [*life.nemesis.troubles, *drains]


def terms_of(life: Life) -> Terms:
    """Return the settings of the queue."""
    return Terms(life.plan.ack_wait, life.plan.latency)


# The whole life.


def never_more_than_slots(life: Life) -> None:
    """Require that no worker runs more invocations at once than it has slots."""
    assert max(life.world.outside.peak.values(), default=0) <= life.plan.slots, (
        "more invocations ran at once than there are slots"
    )


def books_agree(life: Life) -> None:
    """Require that the workers' events match the calls of functions and receivers, and the settlements."""
    outside = life.world.outside
    for worker in life.workers:
        calls = sum(call.worker == worker.name for call in outside.calls)
        posts = sum(post.worker == worker.name and post.result is not None for post in outside.posts)
        events = Counter(type(event) for _, event in worker.log)
        assert events[InvocationStarted] == calls, "starts of invocations and calls of functions differ"
        if worker.name in life.nemesis.killed:
            continue
        crooked = sum(post.worker == worker.name and isinstance(post.result, Exception) for post in outside.posts)
        assert events[InvocationEnded] == calls, "an invocation has no end"
        assert events[CallbackPosted] == posts - crooked, "events and posts of callbacks differ"
        settled = [event.verdict for event in worker.told(Settled)]
        again = [event.state for event in worker.told(Redelivered)]
        settlements = sum(not isinstance(verdict, Abandon) for verdict in settled) + len(again) - again.count("running")
        assert events[Said] == settlements, "events and settlements differ"
        # When a message arrives twice at once, only the newest delivery is settled.
        dropped = len(worker.taken) - len(settled) - len(again)
        assert 0 <= dropped <= _superseded(worker), "a delivery was not settled, or twice"


def _superseded(worker: Hired) -> int:
    """Count the deliveries that arrived together with a newer one of the same message."""
    taken = Counter((at, delivery.id) for at, delivery in worker.taken)
    return sum(count - 1 for count in taken.values())


def drains_in_time(life: Life, worker: Hired) -> None:
    """Require that a drain ends in its time, not counting the time in which its process is suspended.

    A drain stops its requests, which a broker without an answer delays by ``PATIENCE``. Running invocations may end
    during that time and after it. Then the drain waits for the last confirmations.
    """
    began = next((at for at, event in worker.log if isinstance(event, DrainStarted)), None)
    if began is None or worker.name in life.nemesis.killed:
        return
    expired = next((at for at, event in worker.log if isinstance(event, DrainExpired)), inf)
    ended = next(at for at, event in worker.log if isinstance(event, DrainEnded))
    still = sum(
        max(0.0, min(trouble.ends, ended) - max(trouble.begins, began))
        for trouble in life.nemesis.troubles
        if trouble.kind in ("freeze", "pause") and trouble.worker in (None, worker.name)
    )
    within = max(PATIENCE, min(life.plan.shutdown_timeout, expired - began)) + SETTLE_WITHIN + still
    assert ended - began <= within + EPSILON, "the drain took too long"


def comes_to_rest(life: Life, worker: Hired) -> None:
    """Require that a worker that is idle or has ended has all its credit, no lease and no wait."""
    asked = 0 if life.plan.by_function else life.plan.slots  # flows that have ended have no credit
    assert life.free.get(worker.name, asked) == asked, "credit and slots differ"
    if worker.name in life.nemesis.killed or not worker.started:
        return
    services, consumer = worker.services, worker.queue.consumer
    if consumer and consumer.wants and not life.plan.by_function:  # else it was stopped before its first flow
        late = len(consumer._here)  # deliveries after the stop, which the worker does not receive
        assert worker.wanted + late == life.plan.slots, "credit and slots differ"
    assert not services.leases._held, "a lease is extended forever"
    assert not services.timers.waiting.total(), "a timer waits forever"
    assert not services.ledger._running, "the ledger lists an ended message as running"
    assert not services.drain.jobs, "the drain has the scope of an ended job"
    unsettled = any(each.settlement for each in worker.queue._outbox.values())
    unconfirmed = any(event.unconfirmed for event in worker.told(DrainEnded))
    assert unconfirmed or not unsettled, "a settlement was not confirmed, and the drain did not report it"


# One message.


def reaches_its_end(story: Story) -> None:
    """Require that every message leaves the queue, and that a malformed message is never invoked."""
    assert story.message.verdict, "the message was lost"
    if story.planned.payload is not None:
        assert not story.calls, "a malformed message was invoked"
        assert isinstance(story.message.verdict, Term), "a malformed message was not given up"


def acknowledged_after_the_end(story: Story) -> None:
    """Require that an ack follows its function's final response, and that its worker does not run the message again."""
    for hold in story.holds:
        if isinstance(hold.said, Ack):
            assert hold.ended, "a message was acked before its invocation ended"
            assert story.policy.final(hold.ended.outcome), "a message was acked without a final response"
        if isinstance(hold.said, Final):
            later = [other for other in story.started if other.worker == hold.worker and other.began > hold.said_at]
            assert not later, "a worker ran a message again that it had finished"


def decided_rightly(life: Life, story: Story) -> None:
    """Require that verdict and wait of each attempt are those that docs/guarantees.md lists for its outcome."""
    workers = {worker.name: worker for worker in life.workers}
    for hold in story.started:
        if hold.ended is None:
            continue
        outcome, verdict = hold.ended.outcome, hold.ended.verdict
        assert hold.ended.max_attempts == story.policy.attempts, "the attempt used another policy than the message's"
        match outcome:
            case Interrupted():
                assert verdict == Nak(), "a cancelled message was not nakked without a delay"
            case LeaseLost():
                assert isinstance(verdict, Abandon), "a message was settled after its lease was lost"
            case _ if story.policy.final(outcome):
                assert isinstance(verdict, Ack), "a final outcome was not acked"
            case _ if not hold.ended.counts:
                assert story.plan.by_function, "an attempt did not count, without a reason"
                assert story.plan.learns, "an attempt did not count, without a reason"
                assert status_of(outcome) in OVERLOAD, "an attempt did not count, without a reason"
                assert isinstance(verdict, Nak), "a probe of the limiter was not nakked"
                assert verdict.delay <= LONGEST_REST, "a probe of the limiter waits too long"
            case _ if hold.ended.attempt >= story.policy.attempts:
                assert isinstance(verdict, Term), "a message was retried after its last attempt"
            case _:
                assert isinstance(verdict, Nak), "a message was given up too early"
                walls = workers[hold.worker].walls_at(hold.ended_at)
                ranges = [story.policy.waits(outcome, hold.ended.attempt, wall) for wall in walls]
                assert any(least - EPSILON <= verdict.delay <= most + EPSILON for least, most in ranges), (
                    "a retry waits too long or too short"
                )
        if isinstance(outcome, Responded) and hold.call:
            assert outcome == hold.call.outcome, "the outcome is not the function's response"


def buried_first(life: Life, story: Story) -> None:
    """Require that a given-up message has a correct dead letter before it leaves the queue."""
    sequence, stored = story.message.id
    letter = life.world.server.letters.get(f"{sequence}.{stored}")
    if not life.plan.dead_letters:
        assert letter is None, "a dead letter was stored against the settings"
        return
    assert sequence not in life.world.server.unburied, "a message was given up without a dead letter"
    if letter is None:
        return
    assert letter.data == story.message.payload, "the dead letter has another payload"
    if story.planned.payload is not None:
        assert letter.headers["X-Dead-Letter-Attempts"] == "0", "the dead letter has wrong attempts"
        return
    why = {
        (hold.ended.verdict.reason[:1024], str(hold.ended.attempt))
        for hold in story.started
        if hold.ended and isinstance(hold.ended.verdict, Term)
    }
    assert (letter.headers["X-Dead-Letter-Reason"], letter.headers["X-Dead-Letter-Attempts"]) in why, (
        "the dead letter has a wrong reason or wrong attempts"
    )


def told_what_was(story: Story) -> None:
    """Require that callbacks are correct, and are posted between the end of the invocation and the settlement."""
    wanted = story.planned.callback is not None and story.planned.payload is None
    assert wanted or not story.posts, "a callback was posted that no message requested"
    posts: dict[int, list[Post]] = {number: [] for number in range(len(story.started))}
    for post in story.posts:
        ended = [
            number
            for number, hold in enumerate(story.started)
            if hold.worker == post.worker and hold.final and hold.ended_at <= post.began <= hold.said_at
        ]
        assert ended, "a callback was posted before the end of its invocation"
        posts[ended[-1]].append(post)
    for hold, mine in zip(story.started, posts.values(), strict=True):
        assert not wanted or not isinstance(hold.said, Final) or mine, "a message was settled without its callback"
        assert len(mine) <= story.plan.callback_attempts, "a callback was posted too often"
        if hold.said:
            assert all(post.ended is not None and post.ended <= hold.said_at for post in mine), (
                "a message was settled before its callback ended"
            )
        for post in mine:
            _check_callback(story, hold, post.headers, post.callback.body)
        for post in mine[:-1]:
            assert _worth_another(post.result), "a callback was posted again after a final answer"


def _check_callback(story: Story, hold: Hold, headers: dict[str, str], body: bytes) -> None:
    assert hold.ended
    assert hold.call
    outcome, most = hold.ended.outcome, story.policy.attempts
    attempt = min(hold.ended.attempt, most)
    assert headers["X-Function-Status"] == str(status_of(outcome)), "the callback has a wrong status"
    assert headers["X-Call-Id"] == hold.call.invocation.call_id, "the callback has a wrong call id"
    retries = (headers.get("X-Retry"), headers.get("X-Retry-Max"))
    assert retries == ((str(attempt - 1), str(most - 1)) if attempt > 1 else (None, None)), (
        "the callback has a wrong number of retries"
    )
    assert body == (outcome.body if isinstance(outcome, Responded) else b""), (
        "the callback has another body than the response"
    )


def _worth_another(result: object) -> bool:
    """Return whether docs/guarantees.md, Callbacks, repeats a callback after this result. None: it was cancelled."""
    return isinstance(result, str) or (isinstance(result, int) and (result >= 500 or result in (408, 425, 429)))


def not_too_many_attempts(story: Story, troubles: list[Trouble]) -> None:
    """Require no more attempts than the policy allows, unless the queue lost its delivery counts.

    Each attempt that began while another one ran allows one more, because neither worker counts the other's attempts.
    """
    forgets = sum(trouble.kind in FORGETFUL for trouble in troubles)
    together = sum(
        any(again.began < first.ended for first in story.runs[:number]) for number, again in enumerate(story.runs)
    )
    counted = [hold for hold in story.started if hold.ended is None or hold.ended.counts]
    tried = sum(hold.run().how == "retry" for hold in counted)
    assert tried <= (story.policy.attempts - 1) * (1 + forgets) + together, "a message was tried too often"


def not_too_early(life: Life, story: Story, troubles: list[Trouble]) -> None:
    """Require that no attempt begins before its wait is over, unless a trouble explains it.

    The worker that nakked a message remembers its wait, unless another worker has had the message since. A restart can
    deliver the message to another worker up to a second early. It can arrive there at any time if the wait did not
    reach the queue or was lost there, or if the queue had redelivered the message before it received the NAK.
    """
    for first, again in pairwise(story.started):
        waits = first.ended is not None and isinstance(first.ended.verdict, Nak) and isinstance(first.said, Nak)
        if not waits or again.began < first.said_at:
            continue
        due = first.said_at + first.said.delay  # type: ignore[union-attr]  # it is a Nak
        others_had_it = any(
            hold.worker != first.worker and first.said_at <= hold.taken_at <= again.taken_at for hold in story.holds
        )
        others_had_it = (
            others_had_it or again.delivery.num_delivered - first.delivery.num_delivered > 1
        )  # the only sign that a worker can detect
        if not others_had_it:
            assert again.began >= due - EARLY - EPSILON, "the same worker ran a retry too early"
        elif not _wait_unknown(life, story, first, again, troubles):
            rounded = any(each.kind == "restart" and first.said_at <= each.begins <= again.began for each in troubles)
            assert again.began >= due - rounded * ROUNDING - EPSILON, "another worker ran a retry too early"


def _wait_unknown(life: Life, story: Story, first: Hold, again: Hold, troubles: list[Trouble]) -> bool:
    """Return whether the wait may not have reached the queue, was lost there, or arrived too late."""
    trip = story.plan.latency
    lossy = CONNECTION | {"kill", "drain"}
    causes = explained(first.run(), again.run(), troubles, terms_of(life), story.had)
    # Another worker with the same message may have extended its lease after the wait began, which cancels the wait.
    shared = any(
        hold.worker != first.worker
        and hold.taken_at <= first.said_at + trip
        and hold.said_at >= first.said_at - trip
        and hold.started
        for hold in story.holds
        if hold is not again
    )
    return (
        shared
        or any(cause.overlaps for cause in causes)
        or any(
            (trouble.kind in FORGETFUL and first.said_at - trip <= trouble.begins <= again.began)
            or (
                trouble.kind in lossy
                and trouble.worker in (None, first.worker)
                and trouble.begins <= first.said_at + trip
                and trouble.ends >= first.said_at - trip
            )
            for trouble in troubles
        )
    )


def explained_repeats(life: Life, story: Story, troubles: list[Trouble]) -> list[Cause]:
    """Require a cause for each run after the first, and for each that began before another had ended."""
    terms, runs, causes = terms_of(life), story.runs, []
    for number, again in enumerate(runs[1:], 1):
        for first in runs[:number]:
            if first is runs[number - 1] or again.began < first.ended:
                assert not (first.worker == again.worker and again.began < first.ended), (
                    "one worker ran a message twice at once"
                )
                reasons = explained(first, again, troubles, terms, story.had)
                assert reasons, f"no cause explains that {again} followed {first}"
                causes.append(reasons[0])
    return causes
