"""Whole lives of a queue, drawn by Hypothesis: what must hold whatever happens, and what must hold when nothing does.

Each life has some messages with their scripts, a first worker that is told to stop or killed, and a second one that
takes over. A failing example prints as a :class:`tests.world.simulation.Plan`; ``simulate`` lives through it again.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import event, given, note, settings
from hypothesis import strategies as st

from tests.world import Answer, Call, Message, ms
from tests.world.functions import Reply
from tests.world.queue import PATIENCE
from tests.world.simulation import Fault, Life, Plan, Planned, simulate
from worker.events import DrainExpired, InvocationEnded, InvocationStarted
from worker.model import Ack, Final, Nak, NoResponse, Responded, Term
from worker.policy.backoff import Backoff
from worker.policy.callbacks import delivered, worth_another
from worker.policy.retry import Retry

SETTLE_WITHIN = 5.0

thorough = settings(max_examples=4 * settings().max_examples)


def seconds(most: float) -> st.SearchStrategy[float]:
    """Tenths of a second: round numbers make things coincide."""
    return st.integers(0, round(most * 10)).map(lambda tenths: tenths / 10)


outcomes = st.sampled_from(
    [Responded(200), Responded(404), Responded(503), Responded(500), NoResponse("refused"), KeyError("a bug")]
)
scripts = st.lists(st.builds(Reply, outcomes, seconds(40)), min_size=1, max_size=4).map(tuple)
answers = st.builds(Answer, st.sampled_from([200, 200, 404, 500, "refused", KeyError("a bug")]), seconds(15))
messages = st.builds(
    Planned,
    script=scripts,
    callback=st.none() | st.lists(answers, min_size=1, max_size=4).map(tuple),
    at=st.just(0.0) | seconds(60),
    malformed=st.sampled_from([False] * 9 + [True]),
)
faults = st.builds(
    Fault,
    kind=st.sampled_from(["stall", "cut", "deaf", "mute", "anew", "restart", "no letters", "freeze", "kill"]),
    at=seconds(100),
    seconds=seconds(50),
    worker=st.sampled_from([0, 1]),
)


@st.composite
def plans(draw: st.DrawFn, faults: st.SearchStrategy[tuple[Fault, ...]]) -> Plan:
    """Settings that go together, and what happens under them."""
    initial = draw(seconds(10)) + 0.1
    return Plan(
        messages=tuple(draw(st.lists(messages, min_size=1, max_size=8))),
        slots=draw(st.integers(1, 4)),
        retry=Retry(attempts=draw(st.integers(1, 4)), backoff=Backoff(initial, initial + draw(seconds(20)))),
        callback_attempts=draw(st.integers(1, 3)),
        dead_letters=draw(st.booleans()),
        ack_wait=draw(seconds(9)) + 3,
        latency=draw(st.sampled_from([0.001, 0.02, 0.25])),
        shutdown_timeout=draw(seconds(30)),
        stop_at=draw(seconds(100)),
        hurry_after=draw(st.none() | seconds(30)),
        second_at=draw(st.just(0.0) | seconds(200)),
        faults=draw(faults),
    )


class Story:
    """What became of one message."""

    def __init__(self, life: Life, planned: Planned, message: Message) -> None:
        self.plan, self.planned, self.message = life.plan, planned, message
        call_id, url = f"call-{message.id[0]}", f"http://results/{message.id[0]}"
        self.calls = life.world.outside.calls_of(call_id)
        self.posts = [post for post in life.world.outside.posts if post.callback.url == url]
        self.started = [
            told
            for _, told in sorted(self._told(life, InvocationStarted), key=lambda each: each[0])
            if told.invocation.call_id == call_id
        ]
        self.ended = [
            (at, told) for at, told in self._told(life, InvocationEnded) if told.invocation.call_id == call_id
        ]
        self.said = [
            (worker.name, at, settlement)
            for worker in life.workers
            for at, delivery, settlement in worker.queue.said
            if delivery.id == message.id
        ]
        self.given_back = sum(settlement == Nak() for _, _, settlement in self.said)
        """How often a drain gave it back."""
        expired = [at for at, _ in self._told(life, DrainExpired)]
        self.cut_short = any(at >= expired[0] for name, at, _ in self.said if expired and name == "worker-1")
        """Whether the end of the drain came upon it."""

    @staticmethod
    def _told(life: Life, kind: Any) -> list[tuple[float, Any]]:
        return [(at, told) for worker in life.workers for at, told in worker.events if isinstance(told, kind)]

    def final(self, call: Call) -> bool:
        """Whether the function's answer is one that ends the message."""
        return isinstance(call.outcome, Responded) and call.outcome.status not in self.plan.retry.codes

    def expected_attempts(self) -> int:
        """How often it runs when nothing comes between."""
        if self.planned.malformed:
            return 0
        for number in range(1, self.plan.retry.attempts):
            outcome = self.planned.script[min(number, len(self.planned.script)) - 1].outcome
            if isinstance(outcome, Responded) and outcome.status not in self.plan.retry.codes:
                return number
        return self.plan.retry.attempts

    def expected_posts(self) -> int:
        """How often its callback is posted when nothing comes between."""
        if self.planned.malformed or self.planned.callback is None:
            return 0
        for number in range(1, self.plan.callback_attempts):
            result = self.planned.callback[min(number, len(self.planned.callback)) - 1].result
            if isinstance(result, Exception) or not worth_another(result):
                return number
        return self.plan.callback_attempts


def check_always(life: Life) -> list[Story]:
    """What no fault may break."""
    plan, world = life.plan, life.world
    stories = [Story(life, *each) for each in zip(plan.messages, life.messages, strict=True)]
    assert max(world.outside.peak.values(), default=0) <= plan.slots, "more ran at once than there are slots"
    for one, other in world.outside.overlaps:
        assert one.worker != other.worker, "a message ran twice at once in one worker"
        sequence = int(one.invocation.call_id.removeprefix("call-"))
        assert sequence in world.server.disturbed, "it was run by another worker while its lease was held"
    assert not (plan.dead_letters and world.server.unburied), "it was given up and not buried"
    for story in stories:
        check_message(story)
    first = life.workers[0]
    if not any(fault.kind == "kill" for fault in plan.faults):
        # It stops asking, which a broker that does not answer delays by so much; then the last confirmations.
        frozen = sum(fault.seconds for fault in plan.faults if fault.kind == "freeze")
        within = max(PATIENCE, drain_time(plan)) + SETTLE_WITHIN + frozen
        assert ms(first.took) <= ms(within), "the drain took too long"
    if not any(fault.kind in ("stall", "freeze") for fault in plan.faults):  # after which something may come too late
        assert life.workers[1].wanted == plan.slots, "a slot was lost, or one too many came back"
    return stories


def check_message(story: Story) -> None:
    """What no fault may break for one message."""
    message, plan = story.message, story.plan
    assert message.verdict, "it was lost"
    if story.planned.malformed:
        assert not story.calls, "what cannot be understood was invoked"
        assert isinstance(message.verdict, Term)
    for _, at, settlement in story.said:
        if isinstance(settlement, Ack):
            assert any(story.final(call) and call.ended <= at for call in story.calls if call.ended is not None), (
                "it was acknowledged before its function had ended it"
            )
    for worker, at, settlement in story.said:
        if isinstance(settlement, Final):
            later = [call for call in story.calls if call.worker == worker and call.began > at]
            assert not later, "a worker ran what it had ended itself"
    for _, told in story.ended:
        if isinstance(told.verdict, Term):
            assert told.attempt >= plan.retry.attempts, "it was given up too early"


def drain_time(plan: Plan) -> float:
    """How long running invocations have after the first signal."""
    return plan.shutdown_timeout if plan.hurry_after is None else min(plan.shutdown_timeout, plan.hurry_after)


@thorough
@given(plan=plans(st.just(())), schedule=st.random_module())
def test_healthy(plan: Plan, schedule: object) -> None:
    """Where nothing fails, everything is exact.

    Each delivery is settled once; no message runs twice at once; attempts and callbacks are as many as the script and
    the policy make them, and so are the waits between; a drain ends within its time.
    """
    note(f"tasks scheduled by {schedule}")
    life = simulate(plan)
    stories = check_always(life)
    assert not life.world.outside.overlaps
    said = Counter(delivery.token for worker in life.workers for _, delivery, _ in worker.queue.said)
    assert life.world.server.deliveries == len(said) == said.total(), "a delivery was not settled exactly once"
    for worker in life.workers:
        assert not worker.queue.held, "something is left in a worker that has ended"
        assert not worker.queue.consumer or worker.wanted == plan.slots, "its slots are not all free"
    # Stopping takes a round trip, and so does the last settlement; what is on its way back takes both.
    trip = 2 * plan.latency
    assert ms(life.workers[0].took) <= ms(max(trip, drain_time(plan)) + trip)
    for story in stories:
        check_exactly(story)
    event(f"given back: {sum(story.given_back for story in stories)}")


def check_exactly(story: Story) -> None:
    """What holds for a message when nothing fails."""
    attempts = [told.attempt for told in story.started]
    assert attempts == sorted(set(attempts)), "an attempt was made twice"
    if not story.given_back:
        assert attempts == [*range(1, story.expected_attempts() + 1)]
        # A callback that has failed is given up with the drain.
        assert len(story.posts) == story.expected_posts() or story.cut_short
    # Attempts that were given back do not count, but the next worker cannot know that.
    assert len(story.calls) + story.given_back >= story.expected_attempts()
    if story.posts and not story.given_back:
        assert all(not delivered_to(post.result) for post in story.posts[:-1]), "it was told twice"
    for at, told in story.ended:
        if isinstance(told.verdict, Nak) and told.verdict != Nak():
            assert told.verdict.delay == story.plan.retry.backoff.ceiling(told.attempt)
            later = [ms(call.began) for call in story.calls if call.began > at]
            assert min(later) >= ms(at + told.verdict.delay), "it came back too early"


def delivered_to(result: int | str | Exception | None) -> bool:
    """Whether the receiver has a callback."""
    return isinstance(result, int) and delivered(result)


@thorough
@given(plan=plans(st.lists(faults, min_size=1, max_size=6).map(tuple)), schedule=st.random_module())
def test_faulty(plan: Plan, schedule: object) -> None:
    """Whatever fails, nothing is lost, acknowledged too early or run twice in one worker; and at last all ends."""
    note(f"tasks scheduled by {schedule}")
    life = simulate(plan)
    check_always(life)
    event(f"overlaps that nobody could prevent: {len(life.world.outside.overlaps)}")
