"""Laws of every life, with any faults. Each law is a function that raises, and its docstring states the law.

:func:`check` checks a life against all laws, and returns the causes of repeats.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import inf

from tests.explained import CONNECTION, LOSES_STATE, ROUNDING, ActiveFault, Cause, QueueSettings, causes_of_repeat
from tests.world import Post, SimulatedWorker
from tests.world.queue import REPEAT_AFTER
from tests.world.simulation import SETTLE_WITHIN, Life
from tests.world.world import RecordedSettlement
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
from worker.model import CALLBACKS, SHARED, Abandon, Ack, Delivery, Final, Interrupted, LeaseLost, Nak, Responded, Term
from worker.policy.ledger import EARLY
from worker.policy.limiter import LONGEST_REST

from .expected import status_of
from .story import Handling, Story, stories_of

OVERLOAD = frozenset({429, 502, 503, 504})
"""Statuses by which an overloaded function may be recognized."""
EPSILON = 1e-6
"""Rounding error (s) of sums of times."""


def check(life: Life) -> tuple[list[Story], Counter[str]]:
    """Check all laws, and return the stories, and how many repeats each cause explains."""
    stories, causes = stories_of(life), Counter[str]()
    active_faults = active_faults_of(life)
    invocations_fit_the_slots(life)
    events_match_the_calls(life)
    for worker in life.workers:
        drain_ends_in_time(life, worker)
        idle_worker_holds_nothing(life, worker)
    for story in stories:
        message_leaves_the_queue(story)
        ack_follows_the_response(story)
        dead_letter_precedes_the_term(life, story)
        verdicts_follow_the_policy(life, story)
        callbacks_are_correct(story)
        callback_is_delivered_or_kept(life, story)
        attempts_are_limited(story, active_faults)
        retries_wait_for_their_time(life, story, active_faults)
        causes.update(cause.name for cause in repeats_have_causes(life, story, active_faults))
    return stories, causes


def active_faults_of(life: Life) -> list[ActiveFault]:
    """Return the injected faults, and a fault for each drain whose time has passed."""
    drains = []
    for worker in life.workers:
        expired = [at for at, event in worker.log if isinstance(event, DrainExpired)]
        drains += [ActiveFault("drain", at, inf, worker.name) for at in expired]
    return [*life.nemesis.active_faults, *drains]


def queue_settings(life: Life) -> QueueSettings:
    """Return the settings of the queue."""
    return QueueSettings(life.plan.ack_wait, life.plan.latency)


# The whole life.


def invocations_fit_the_slots(life: Life) -> None:
    """Require that no worker runs more invocations at once than it has slots."""
    assert max(life.world.outside.peak.values(), default=0) <= life.plan.slots, (
        "more invocations ran at once than there are slots"
    )


def events_match_the_calls(life: Life) -> None:
    """Require that the workers' events match the calls of functions and receivers, and the settlements."""
    outside = life.world.outside
    for worker in life.workers:
        calls = sum(call.worker == worker.name for call in outside.calls)
        posts = sum(post.worker == worker.name and post.result is not None for post in outside.posts)
        events = Counter(type(event) for _, event in worker.log)
        assert events[InvocationStarted] == calls, "starts of invocations and calls of functions differ"
        if worker.name in life.nemesis.killed:
            continue
        assert events[InvocationEnded] == calls, "an invocation has no end"
        assert events[CallbackPosted] == posts, "events and posts of callbacks differ"
        settled = [event.verdict for event in worker.events_of(Settled)]
        again = [event.state for event in worker.events_of(Redelivered)]
        settlements = sum(not isinstance(verdict, Abandon) for verdict in settled) + len(again) - again.count("running")
        assert events[RecordedSettlement] == settlements, "events and settlements differ"
        # When a message arrives twice at once, only the newest delivery is settled.
        dropped = len(worker.deliveries) - len(settled) - len(again)
        assert 0 <= dropped <= _superseded(worker), "a delivery was not settled, or twice"


def _superseded(worker: SimulatedWorker) -> int:
    """Count the deliveries that arrived together with a newer one of the same message."""
    received = Counter((at, delivery.id) for at, delivery in worker.deliveries)
    return sum(count - 1 for count in received.values())


def drain_ends_in_time(life: Life, worker: SimulatedWorker) -> None:
    """Require that a drain ends in its time, not counting the time in which its process is suspended.

    A drain stops its requests, which a broker without an answer delays by ``REPEAT_AFTER``. Running invocations may end
    during that time and after it. Then the drain waits for the last confirmations.
    """
    began = next((at for at, event in worker.log if isinstance(event, DrainStarted)), None)
    if began is None or worker.name in life.nemesis.killed:
        return
    expired = next((at for at, event in worker.log if isinstance(event, DrainExpired)), inf)
    ended = next(at for at, event in worker.log if isinstance(event, DrainEnded))
    suspended = sum(
        max(0.0, min(fault.ends, ended) - max(fault.begins, began))
        for fault in life.nemesis.active_faults
        if fault.kind in ("suspend worker", "suspend machine") and fault.worker in (None, worker.name)
    )
    within = max(REPEAT_AFTER, min(life.plan.shutdown_timeout, expired - began)) + SETTLE_WITHIN + suspended
    assert ended - began <= within + EPSILON, "the drain took too long"


def idle_worker_holds_nothing(life: Life, worker: SimulatedWorker) -> None:
    """Require that a worker that is idle or has ended has all its credit, no lease and no wait."""
    expected = 0 if life.plan.by_function else life.plan.slots  # flows that have ended have no credit
    assert life.free.get(worker.name, expected) == expected, "credit and slots differ"
    if worker.name in life.nemesis.killed or not worker.started:
        return
    services, consumer = worker.services, worker.queue.consumer
    if (
        consumer and SHARED in consumer.credit and not life.plan.by_function
    ):  # else it was stopped before its first flow
        # Deliveries after the stop, which the worker does not receive.
        late = sum(not (isinstance(each, Delivery) and each.flow == CALLBACKS) for each in consumer._buffer)
        assert worker.credit + late == life.plan.slots, "credit and slots differ"
    assert not services.leases._held, "a lease is extended forever"
    assert not services.timers.waiting.total(), "a timer waits forever"
    assert not services.ledger._running, "the ledger lists an ended message as running"
    assert not services.drain.jobs, "the drain has the scope of an ended job"
    unsettled = any(each.settlement for each in worker.queue._outbox.values())
    unconfirmed = any(event.unconfirmed for event in worker.events_of(DrainEnded))
    assert unconfirmed or not unsettled, "a settlement was not confirmed, and the drain did not report it"


# One message.


def message_leaves_the_queue(story: Story) -> None:
    """Require that every message leaves the queue, and that a malformed message is never invoked."""
    assert story.message.verdict, "the message was lost"
    if story.planned.payload is not None:
        assert not story.calls, "a malformed message was invoked"
        assert isinstance(story.message.verdict, Term), "a malformed message was not given up"


def ack_follows_the_response(story: Story) -> None:
    """Require that an ack follows its function's final response, and that its worker does not run the message again."""
    for handling in story.handlings:
        if isinstance(handling.settlement, Ack):
            assert handling.ended, "a message was acked before its invocation ended"
            assert story.policy.final(handling.ended.outcome), "a message was acked without a final response"
        if isinstance(handling.settlement, Final):
            later = [
                other
                for other in story.started
                if other.worker == handling.worker and other.began > handling.settled_at
            ]
            assert not later, "a worker ran a message again that it had finished"


def verdicts_follow_the_policy(life: Life, story: Story) -> None:
    """Require that verdict and wait of each attempt are those that docs/guarantees.md lists for its outcome."""
    workers = {worker.name: worker for worker in life.workers}
    for handling in story.started:
        if handling.ended is None:
            continue
        outcome, verdict = handling.ended.outcome, handling.ended.verdict
        assert handling.ended.max_attempts == story.policy.attempts, (
            "the attempt used another policy than the message's"
        )
        match outcome:
            case Interrupted():
                assert verdict == Nak(), "a cancelled message was not nakked without a delay"
            case LeaseLost():
                assert isinstance(verdict, Abandon), "a message was settled after its lease was lost"
            case _ if story.policy.final(outcome):
                assert isinstance(verdict, Ack), "a final outcome was not acked"
            case _ if not handling.ended.counts:
                assert story.plan.by_function, "an attempt did not count, without a reason"
                assert story.plan.adaptive, "an attempt did not count, without a reason"
                assert status_of(outcome) in OVERLOAD, "an attempt did not count, without a reason"
                assert isinstance(verdict, Nak), "a probe of the limiter was not nakked"
                assert verdict.delay <= LONGEST_REST, "a probe of the limiter waits too long"
            case _ if handling.ended.attempt >= story.policy.attempts:
                assert isinstance(verdict, Term), "a message was retried after its last attempt"
            case _:
                assert isinstance(verdict, Nak), "a message was given up too early"
                walls = workers[handling.worker].walls_at(handling.ended_at)
                ranges = [story.policy.waits(outcome, handling.ended.attempt, wall) for wall in walls]
                assert any(shortest - EPSILON <= verdict.delay <= longest + EPSILON for shortest, longest in ranges), (
                    "a retry waits too long or too short"
                )
        if isinstance(outcome, Responded) and handling.call:
            assert outcome == handling.call.outcome, "the outcome is not the function's response"


def dead_letter_precedes_the_term(life: Life, story: Story) -> None:
    """Require that a given-up message has a correct dead letter before it leaves the queue."""
    sequence, stored = story.message.id
    letter = life.world.server.dead_letters.get(f"{sequence}.{stored}")
    if not life.plan.dead_letters:
        assert letter is None, "a dead letter was stored against the settings"
        return
    assert sequence not in life.world.server.missing_dead_letters, "a message was given up without a dead letter"
    if letter is None:
        return
    assert letter.data == story.message.payload, "the dead letter has another payload"
    if story.planned.payload is not None:
        assert letter.headers["X-Dead-Letter-Attempts"] == "0", "the dead letter has wrong attempts"
        return
    why = {
        (handling.ended.verdict.reason[:1024], str(handling.ended.attempt))
        for handling in story.started
        if handling.ended and isinstance(handling.ended.verdict, Term)
    }
    assert (letter.headers["X-Dead-Letter-Reason"], letter.headers["X-Dead-Letter-Attempts"]) in why, (
        "the dead letter has a wrong reason or wrong attempts"
    )


def callback_is_delivered_or_kept(life: Life, story: Story) -> None:
    """Require that no stored callback is lost: where callbacks are durable, each arrives or becomes a dead letter.

    It has arrived, or was stored, before its message is settled for good; and a retry has the same headers and body.
    """
    if not story.plan.callback_durable or story.planned.callback is None or story.planned.payload is not None:
        return
    server, (sequence, stored_at) = life.world.server, story.message.id
    kept = [each for key, each in server.callback_keys.items() if key.startswith(f"{sequence}.{stored_at}.")]
    arrived = [post.ended for post in story.posts if isinstance(post.result, int) and 200 <= post.result < 300]
    for handling in story.started:
        if isinstance(handling.settlement, Final):
            before = [at for at in arrived if at is not None and at <= handling.settled_at]
            stored = [each for each in kept if each.published <= handling.settled_at]
            buried = f"{sequence}.{stored_at}.callback" in server.dead_letters or not story.plan.dead_letters
            assert before or stored or buried, "a message was settled before its callback arrived or was stored"
    for each in kept:
        assert each.verdict, "a stored callback never left the stream"
        letter = server.dead_letters.get(f"{each.id[0]}.{each.id[1]}")
        if not story.plan.dead_letters:
            assert letter is None, "a dead letter was stored against the settings"
        elif isinstance(each.verdict, Term):
            assert letter, "a stored callback was given up without a dead letter"
            assert letter.data == each.payload, "the dead letter of a callback has another payload"
            assert letter.headers["X-Dead-Letter-Kind"] == "callback", "the dead letter has a wrong kind"
        else:
            assert arrived, "a stored callback was acked without having arrived"


def callbacks_are_correct(story: Story) -> None:
    """Require that callbacks are correct, and are posted between the end of the invocation and the settlement."""
    has_callback = story.planned.callback is not None and story.planned.payload is None
    if story.plan.callback_durable and has_callback:
        _check_durable_callbacks(story)
        return
    assert has_callback or not story.posts, "a callback was posted that no message requested"
    posts: dict[int, list[Post]] = {number: [] for number in range(len(story.started))}
    for post in story.posts:
        ended = [
            number
            for number, handling in enumerate(story.started)
            if handling.worker == post.worker
            and handling.final
            and handling.ended_at <= post.began <= handling.settled_at
        ]
        assert ended, "a callback was posted before the end of its invocation"
        posts[ended[-1]].append(post)
    for handling, own_posts in zip(story.started, posts.values(), strict=True):
        assert not has_callback or not isinstance(handling.settlement, Final) or own_posts, (
            "a message was settled without its callback"
        )
        assert len(own_posts) <= story.plan.callback_attempts, "a callback was posted too often"
        if handling.settlement:
            assert all(post.ended is not None and post.ended <= handling.settled_at for post in own_posts), (
                "a message was settled before its callback ended"
            )
        for post in own_posts:
            _check_callback(story, handling, post.headers, post.callback.body)
        for post in own_posts[:-1]:
            assert _is_repeated(post.result), "a callback was posted again after a final answer"


def _check_durable_callbacks(story: Story) -> None:
    """Require that each post has the result of an invocation that had ended with a final verdict before."""
    for post in story.posts:
        ended = [each for each in story.started if each.final and each.ended_at <= post.began]
        assert ended, "a callback was posted before the end of its invocation"
        errors = []
        for handling in ended:
            try:
                _check_callback(story, handling, post.headers, post.callback.body)
            except AssertionError as error:
                errors.append(str(error))
        assert len(errors) < len(ended), errors


def _check_callback(story: Story, handling: Handling, headers: dict[str, str], body: bytes) -> None:
    assert handling.ended
    assert handling.call
    outcome, max_attempts = handling.ended.outcome, story.policy.attempts
    attempt = min(handling.ended.attempt, max_attempts)
    assert headers["X-Function-Status"] == str(status_of(outcome)), "the callback has a wrong status"
    assert headers["X-Call-Id"] == handling.call.invocation.call_id, "the callback has a wrong call id"
    retries = (headers.get("X-Retry"), headers.get("X-Retry-Max"))
    assert retries == ((str(attempt - 1), str(max_attempts - 1)) if attempt > 1 else (None, None)), (
        "the callback has a wrong number of retries"
    )
    assert body == (outcome.body if isinstance(outcome, Responded) else b""), (
        "the callback has another body than the response"
    )


def _is_repeated(result: object) -> bool:
    """Return whether docs/guarantees.md, Callbacks, repeats a callback after this result. None: it was cancelled."""
    return isinstance(result, str | Exception) or (
        isinstance(result, int) and (result >= 500 or result in (408, 425, 429))
    )


def attempts_are_limited(story: Story, active_faults: list[ActiveFault]) -> None:
    """Require no more attempts than the policy allows, unless the queue lost its delivery counts.

    Each attempt that began while another one ran allows one more, because neither worker counts the other's attempts.
    """
    state_losses = sum(fault.kind in LOSES_STATE for fault in active_faults)
    together = sum(
        any(again.began < first.ended for first in story.runs[:number]) for number, again in enumerate(story.runs)
    )
    counted = [handling for handling in story.started if handling.ended is None or handling.ended.counts]
    tried = sum(handling.run().outcome == "retry" for handling in counted)
    assert tried <= (story.policy.attempts - 1) * (1 + state_losses) + together, "a message was tried too often"


def retries_wait_for_their_time(life: Life, story: Story, active_faults: list[ActiveFault]) -> None:
    """Require that no attempt begins before its wait is over, unless a fault explains it.

    The worker that nakked a message remembers its wait, unless another worker has had the message since. A restart can
    deliver the message to another worker up to a second early. It can arrive there at any time if the wait did not
    reach the queue or was lost there, or if the queue had redelivered the message before it received the NAK.
    """
    for first, again in pairwise(story.started):
        waits = first.ended is not None and isinstance(first.ended.verdict, Nak) and isinstance(first.settlement, Nak)
        if not waits or again.began < first.settled_at:
            continue
        due = first.settled_at + first.settlement.delay  # type: ignore[union-attr]  # it is a Nak
        delivered_elsewhere = any(
            handling.worker != first.worker and first.settled_at <= handling.received_at <= again.received_at
            for handling in story.handlings
        )
        delivered_elsewhere = (
            delivered_elsewhere or again.delivery.num_delivered - first.delivery.num_delivered > 1
        )  # the only sign that a worker can detect
        if not delivered_elsewhere:
            assert again.began >= due - EARLY - EPSILON, "the same worker ran a retry too early"
        elif not _wait_may_be_lost(life, story, first, again, active_faults):
            rounded = any(
                each.kind == "restart" and first.settled_at <= each.begins <= again.began for each in active_faults
            )
            assert again.began >= due - rounded * ROUNDING - EPSILON, "another worker ran a retry too early"


def _wait_may_be_lost(
    life: Life, story: Story, first: Handling, again: Handling, active_faults: list[ActiveFault]
) -> bool:
    """Return whether the wait may not have reached the queue, was lost there, or arrived too late."""
    trip = story.plan.latency
    lossy = CONNECTION | {"kill", "drain"}
    causes = causes_of_repeat(first.run(), again.run(), active_faults, queue_settings(life), story.runs_and_naks)
    # Another worker with the same message may have extended its lease after the wait began, which cancels the wait.
    shared = any(
        handling.worker != first.worker
        and handling.received_at <= first.settled_at + trip
        and handling.settled_at >= first.settled_at - trip
        and handling.started
        for handling in story.handlings
        if handling is not again
    )
    return (
        shared
        or any(cause.overlaps for cause in causes)
        or any(
            (fault.kind in LOSES_STATE and first.settled_at - trip <= fault.begins <= again.began)
            or (
                fault.kind in lossy
                and fault.worker in (None, first.worker)
                and fault.begins <= first.settled_at + trip
                and fault.ends >= first.settled_at - trip
            )
            for fault in active_faults
        )
    )


def repeats_have_causes(life: Life, story: Story, active_faults: list[ActiveFault]) -> list[Cause]:
    """Require a cause for each run after the first, and for each that began before another had ended."""
    settings, runs, causes = queue_settings(life), story.runs, []
    for number, again in enumerate(runs[1:], 1):
        for first in runs[:number]:
            if first is runs[number - 1] or again.began < first.ended:
                assert not (first.worker == again.worker and again.began < first.ended), (
                    "one worker ran a message twice at once"
                )
                reasons = causes_of_repeat(first, again, active_faults, settings, story.runs_and_naks)
                assert reasons, f"no cause explains that {again} followed {first}"
                causes.append(reasons[0])
    return causes
