"""What must hold in every life, whatever befalls it. Each law is a function that raises, and its docstring is the law.

:func:`check` holds a life against all of them and tells what explained the repeats.
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
"""What a function that is sent too much may be found by."""
EPSILON = 1e-6
"""Seconds by which sums of times may differ that are the same."""


def check(life: Life) -> tuple[list[Story], Counter[str]]:
    """All of them. Returns the stories, and how many repeats each cause explains."""
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
    """The faults that were in force, and when drains had run out of time."""
    drains = []
    for worker in life.workers:
        expired = [at for at, event in worker.log if isinstance(event, DrainExpired)]
        drains += [Trouble("drain", at, inf, worker.name) for at in expired]
    return [*life.nemesis.troubles, *drains]


def terms_of(life: Life) -> Terms:
    """What the queue was set to."""
    return Terms(life.plan.ack_wait, life.plan.latency)


# The whole life.


def never_more_than_slots(life: Life) -> None:
    """No worker runs more at once than it has slots."""
    assert max(life.world.outside.peak.values(), default=0) <= life.plan.slots, "more ran at once than there are slots"


def books_agree(life: Life) -> None:
    """What the workers tell adds up to what functions and receivers saw, and to what was said."""
    outside = life.world.outside
    for worker in life.workers:
        calls = sum(call.worker == worker.name for call in outside.calls)
        posts = sum(post.worker == worker.name and post.result is not None for post in outside.posts)
        told = Counter(type(event) for _, event in worker.log)
        assert told[InvocationStarted] == calls, "an invocation was told that no function saw, or the reverse"
        if worker.name in life.nemesis.killed:
            continue
        crooked = sum(post.worker == worker.name and isinstance(post.result, Exception) for post in outside.posts)
        assert told[InvocationEnded] == calls, "an invocation has no end"
        assert told[CallbackPosted] == posts - crooked, "a callback was not told, or twice"
        settled = [event.verdict for event in worker.told(Settled)]
        again = [event.state for event in worker.told(Redelivered)]
        said = sum(not isinstance(verdict, Abandon) for verdict in settled) + len(again) - again.count("running")
        assert told[Said] == said, "something was said and not told, or the reverse"
        # Of a message that has come twice at once, only the newest delivery is settled.
        dropped = len(worker.taken) - len(settled) - len(again)
        assert 0 <= dropped <= _superseded(worker), "a delivery was not settled, or twice"


def _superseded(worker: Hired) -> int:
    """Deliveries that were taken together with a newer one of the same message."""
    taken = Counter((at, delivery.id) for at, delivery in worker.taken)
    return sum(count - 1 for count in taken.values())


def drains_in_time(life: Life, worker: Hired) -> None:
    """A drain ends in its time, but for the time in which its process stands still.

    It stops asking, which a broker that does not answer delays by so much; meanwhile and then what runs may end; then
    the last confirmations are waited for.
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
    """A worker that has ended, or has nothing to do, has all its slots, holds nothing, waits for nothing."""
    asked = 0 if life.plan.by_function else life.plan.slots  # of flows that are gone, nothing is asked
    assert life.free.get(worker.name, asked) == asked, "a slot was lost, or one too many came back"
    if worker.name in life.nemesis.killed or not worker.started:
        return
    services, consumer = worker.services, worker.queue.consumer
    if consumer and consumer.wants and not life.plan.by_function:  # else it was stopped before it heard of any flow
        late = len(consumer._here)  # what comes after it has stopped asking is nobody's
        assert worker.wanted + late == life.plan.slots, "a slot was lost, or one too many came back"
    assert not services.leases._held, "a lease is kept for ever"
    assert not services.timers.waiting.total(), "something waits for ever"
    assert not services.ledger._running, "the ledger has a message run for ever"
    assert not len(services.drain.work) + len(services.drain.intake), "a block is still held by a cord"
    unsaid = any(each.settlement for each in worker.queue._outbox.values())
    unconfirmed = any(event.unconfirmed for event in worker.told(DrainEnded))
    assert unconfirmed or not unsaid, "something was left unsaid and not told of"


# One message.


def reaches_its_end(story: Story) -> None:
    """Every message leaves the queue, and what cannot be understood is never invoked."""
    assert story.message.verdict, "it was lost"
    if story.planned.payload is not None:
        assert not story.calls, "what cannot be understood was invoked"
        assert isinstance(story.message.verdict, Term), "what cannot be understood was not given up"


def acknowledged_after_the_end(story: Story) -> None:
    """A message is acknowledged only after its function's final answer, and not run again by a worker that did so."""
    for hold in story.holds:
        if isinstance(hold.said, Ack):
            assert hold.ended, "it was acknowledged before its function had ended it"
            assert story.policy.final(hold.ended.outcome), "it was acknowledged without a final answer"
        if isinstance(hold.said, Final):
            later = [other for other in story.started if other.worker == hold.worker and other.began > hold.said_at]
            assert not later, "a worker ran what it had ended itself"


def decided_rightly(life: Life, story: Story) -> None:
    """The verdict on each attempt is what docs/guarantees.md says of its outcome, and so is the wait."""
    workers = {worker.name: worker for worker in life.workers}
    for hold in story.started:
        if hold.ended is None:
            continue
        outcome, verdict = hold.ended.outcome, hold.ended.verdict
        assert hold.ended.max_attempts == story.policy.attempts, "the policy is not the message's"
        match outcome:
            case Interrupted():
                assert verdict == Nak(), "what was stopped is not given back at once"
            case LeaseLost():
                assert isinstance(verdict, Abandon), "something is said of what was lost"
            case _ if story.policy.final(outcome):
                assert isinstance(verdict, Ack), "what is final is not acknowledged"
            case _ if not hold.ended.counts:
                assert story.plan.by_function, "it was no attempt, for no reason"
                assert story.plan.learns, "it was no attempt, for no reason"
                assert status_of(outcome) in OVERLOAD, "it was no attempt, for no reason"
                assert isinstance(verdict, Nak), "what was sent to learn is not given back"
                assert verdict.delay <= LONGEST_REST, "it waits too long"
            case _ if hold.ended.attempt >= story.policy.attempts:
                assert isinstance(verdict, Term), "it is tried too often"
            case _:
                assert isinstance(verdict, Nak), "it was given up too early"
                walls = workers[hold.worker].walls_at(hold.ended_at)
                ranges = [story.policy.waits(outcome, hold.ended.attempt, wall) for wall in walls]
                assert any(least - EPSILON <= verdict.delay <= most + EPSILON for least, most in ranges), (
                    "it waits too long or too short"
                )
        if isinstance(outcome, Responded) and hold.call:
            assert outcome == hold.call.outcome, "the outcome is another one than the function's"


def buried_first(life: Life, story: Story) -> None:
    """What is given up is in the dead letters before it leaves the queue: as it came, why, after how many attempts."""
    sequence, stored = story.message.id
    letter = life.world.server.letters.get(f"{sequence}.{stored}")
    if not life.plan.dead_letters:
        assert letter is None, "it was buried, against the settings"
        return
    assert sequence not in life.world.server.unburied, "it was given up and not buried"
    if letter is None:
        return
    assert letter.data == story.message.payload, "the letter is not the message"
    if story.planned.payload is not None:
        assert letter.headers["X-Dead-Letter-Attempts"] == "0", "the letter is wrong"
        return
    why = {
        (hold.ended.verdict.reason[:1024], str(hold.ended.attempt))
        for hold in story.started
        if hold.ended and isinstance(hold.ended.verdict, Term)
    }
    assert (letter.headers["X-Dead-Letter-Reason"], letter.headers["X-Dead-Letter-Attempts"]) in why, (
        "the letter is wrong"
    )


def told_what_was(story: Story) -> None:
    """The callback of what has ended is over before the message is settled, never comes before the end, is right."""
    wanted = story.planned.callback is not None and story.planned.payload is None
    assert wanted or not story.posts, "a callback that nobody asked for"
    posts: dict[int, list[Post]] = {number: [] for number in range(len(story.started))}
    for post in story.posts:
        ended = [
            number
            for number, hold in enumerate(story.started)
            if hold.worker == post.worker and hold.final and hold.ended_at <= post.began <= hold.said_at
        ]
        assert ended, "a callback before the end"
        posts[ended[-1]].append(post)
    for hold, mine in zip(story.started, posts.values(), strict=True):
        assert not wanted or not isinstance(hold.said, Final) or mine, "it was settled without its callback"
        assert len(mine) <= story.plan.callback_attempts, "it was called back too often"
        if hold.said:
            assert all(post.ended is not None and post.ended <= hold.said_at for post in mine), "settled too early"
        for post in mine:
            _told_rightly(story, hold, post.headers, post.callback.body)
        for post in mine[:-1]:
            assert _worth_another(post.result), "it was called back again after an answer that ends it"


def _told_rightly(story: Story, hold: Hold, headers: dict[str, str], body: bytes) -> None:
    assert hold.ended
    assert hold.call
    outcome, most = hold.ended.outcome, story.policy.attempts
    attempt = min(hold.ended.attempt, most)
    assert headers["X-Function-Status"] == str(status_of(outcome)), "the wrong status was called back"
    assert headers["X-Call-Id"] == hold.call.invocation.call_id, "the wrong call id was called back"
    retries = (headers.get("X-Retry"), headers.get("X-Retry-Max"))
    assert retries == ((str(attempt - 1), str(most - 1)) if attempt > 1 else (None, None)), (
        "the wrong number of retries"
    )
    assert body == (outcome.body if isinstance(outcome, Responded) else b""), "another answer was called back"


def _worth_another(result: object) -> bool:
    """Whether a callback so answered is sent again: docs/guarantees.md, Callbacks. None: it was stopped."""
    return isinstance(result, str) or (isinstance(result, int) and (result >= 500 or result in (408, 425, 429)))


def not_too_many_attempts(story: Story, troubles: list[Trouble]) -> None:
    """No more attempts than the policy allows, unless the queue forgot how many there were.

    And one more for each that began while another was on: neither worker counts what the other does.
    """
    forgets = sum(trouble.kind in FORGETFUL for trouble in troubles)
    together = sum(
        any(again.began < first.ended for first in story.runs[:number]) for number, again in enumerate(story.runs)
    )
    counted = [hold for hold in story.started if hold.ended is None or hold.ended.counts]
    tried = sum(hold.run().how == "retry" for hold in counted)
    assert tried <= (story.policy.attempts - 1) * (1 + forgets) + together, "it was tried too often"


def not_too_early(life: Life, story: Story, troubles: list[Trouble]) -> None:
    """No attempt before its wait is over, but for what a trouble explains.

    The worker that gave a message back remembers its wait, unless another has had it since. Another worker can be given
    it up to a second early by a restart; and at any time where the wait did not reach the queue or was forgotten there,
    or the queue had given the message out before it heard.
    """
    for first, again in pairwise(story.started):
        told = first.ended is not None and isinstance(first.ended.verdict, Nak) and isinstance(first.said, Nak)
        if not told or again.began < first.said_at:
            continue
        due = first.said_at + first.said.delay  # type: ignore[union-attr]  # it is a Nak
        theirs = any(
            hold.worker != first.worker and first.said_at <= hold.taken_at <= again.taken_at for hold in story.holds
        )
        theirs = (
            theirs or again.delivery.num_delivered - first.delivery.num_delivered > 1
        )  # which is all that a worker can go by
        if not theirs:
            assert again.began >= due - EARLY - EPSILON, "its own worker took it too early"
        elif not _wait_unknown(life, story, first, again, troubles):
            rounded = any(each.kind == "restart" and first.said_at <= each.begins <= again.began for each in troubles)
            assert again.began >= due - rounded * ROUNDING - EPSILON, "another worker took it too early"


def _wait_unknown(life: Life, story: Story, first: Hold, again: Hold, troubles: list[Trouble]) -> bool:
    """Whether the wait may not have reached the queue, or was forgotten there, or came too late."""
    trip = story.plan.latency
    unheard = CONNECTION | {"kill", "drain"}
    causes = explained(first.run(), again.run(), troubles, terms_of(life), story.had)
    # Who has the message too may have extended its lease after the wait began, and so ended that.
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
                trouble.kind in unheard
                and trouble.worker in (None, first.worker)
                and trouble.begins <= first.said_at + trip
                and trouble.ends >= first.said_at - trip
            )
            for trouble in troubles
        )
    )


def explained_repeats(life: Life, story: Story, troubles: list[Trouble]) -> list[Cause]:
    """Each run beyond the first has a reason, and so has each that began before another had ended."""
    terms, runs, causes = terms_of(life), story.runs, []
    for number, again in enumerate(runs[1:], 1):
        for first in runs[:number]:
            if first is runs[number - 1] or again.began < first.ended:
                assert not (first.worker == again.worker and again.began < first.ended), "twice at once in one worker"
                reasons = explained(first, again, troubles, terms, story.had)
                assert reasons, f"nothing explains why {first} was followed by {again}"
                causes.append(reasons[0])
    return causes
