"""The promises that must hold for every message under all faults, checked on the records of a run. No I/O.

Each message that the broker confirmed to have stored must have ended: a final answer of its function, or a dead letter.
Each invocation after a message's first must have a cause: the one before it failed and was to be tried again, after
its back-off; or a fault that was in force, for that message's worker, while that worker had the message. These are the
causes that docs/guarantees.md lists; whatever has none of them is a defect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.history import Fault, History, Letter, Post, Published, Rules, Run, WorkerLife

RETRY = "retry"
"""The only cause of a repeat that is not a fault."""
EARLY = 0.05
"""Longest difference between clocks (s): the worker's own tolerance (worker/policy/ledger.py)."""
SETTLE = 2.5
"""Seconds after its last request in which a worker may still be settling: the time after which it sends
again what was not confirmed, and a half."""

STRANDS = "disk full"
"""The fault by which nats-server 2.15.1 leaves acknowledged messages in the stream forever: a full disk cannot store
their deletion, which is not repeated once it has room. Only a recreated consumer delivers them."""
RECREATED = "consumer deleted"


@dataclass(slots=True)
class Verdict:
    """The result of the check."""

    lost: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    """Invocations and callbacks of messages that were never published, or not as they were published."""
    causes: Counter[str] = field(default_factory=Counter)
    """Number of invocations after a message's first, by cause."""
    unexplained: list[str] = field(default_factory=list)
    out_of_policy: list[str] = field(default_factory=list)
    """Attempts that were too early or too many, and messages that were given up too early."""
    wrong_callbacks: list[str] = field(default_factory=list)
    """Messages without a callback, with one before the end, or with a wrong one."""
    drains: list[tuple[str, float]] = field(default_factory=list)
    """Name of each stopped worker, and seconds from SIGTERM to its end."""
    badly_ended: list[str] = field(default_factory=list)
    """Workers that ended too late, or with a wrong exit code."""
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the end of a fault to the next invocation of a worker that it touched, by the fault's kind."""

    @property
    def sound(self) -> bool:
        """Return whether every promise was kept."""
        return not self.broken

    @property
    def broken(self) -> dict[str, list[str]]:
        """Return the broken promises, each with its cases."""
        found = {
            "lost": self.lost,
            "not as published": self.foreign,
            "invoked again without cause": self.unexplained,
            "attempts out of policy": self.out_of_policy,
            "callbacks": self.wrong_callbacks,
            "ends of workers": self.badly_ended,
        }
        return {name: cases for name, cases in found.items() if cases}


@dataclass(slots=True)
class Story:
    """All records of one message."""

    published: Published
    runs: list[Run]
    posts: list[Post]
    letter: Letter | None
    disturbed: int = 0
    """Number of repeats that a fault caused."""


def judge(history: History) -> Verdict:
    """Check every message, every worker and every fault of a run."""
    verdict = Verdict()
    stories = _stories(history, verdict)
    for story in stories.values():
        _judge_end(story, verdict)
        _judge_repeats(story, history, verdict)
        _judge_attempts(story, history, verdict)
        _judge_callbacks(story, verdict)
    _judge_undecodable(history, verdict)
    if history.left:
        verdict.lost.append(f"{history.left} messages have not ended")
    if history.stored > history.left and not any(fault.kind == STRANDS for fault in history.faults):
        verdict.lost.append(f"{history.stored - history.left} messages are stranded in the stream")
    for life in history.lives:
        _judge_worker(life, history.rules, verdict)
    for fault in history.faults:
        verdict.recoveries.setdefault(fault.kind, []).extend(_recoveries(fault, history, stories))
    return verdict


def _stories(history: History, verdict: Verdict) -> dict[str, Story]:
    stories = {message.call_id: Story(message, [], [], None) for message in history.published}
    for run in history.runs:
        if run.call_id in stories:
            stories[run.call_id].runs.append(run)
        if run.call_id not in stories or not run.whole:
            verdict.foreign.append(f"{run.call_id or 'no call id'}: invoked by {run.worker} at {run.began:.2f}")
    for post in history.posts:
        if post.call_id in stories:
            stories[post.call_id].posts.append(post)
        else:
            verdict.foreign.append(f"{post.call_id}: called back at {post.began:.2f}")
    for letter in history.letters:
        if letter.call_id in stories:
            stories[letter.call_id].letter = letter
        elif letter.call_id is not None:
            verdict.foreign.append(f"{letter.call_id}: buried")
    for story in stories.values():
        story.runs.sort(key=lambda run: run.began)
    return stories


def _judge_end(story: Story, verdict: Verdict) -> None:
    if story.letter is None and not any(run.answer == "final" for run in story.runs):
        verdict.lost.append(story.published.call_id)


def _judge_repeats(story: Story, history: History, verdict: Verdict) -> None:
    for earlier, later in pairwise(story.runs):
        if _asked_for(earlier, later, story, history):
            verdict.causes[RETRY] += 1
        elif cause := _fault_between(earlier, later, story, history):
            verdict.causes[cause] += 1
            story.disturbed += 1
        elif _failed(earlier, history.rules) and earlier.ended <= later.began:
            verdict.out_of_policy.append(f"{_both(earlier, later)}: before its back-off was over")
        else:
            verdict.unexplained.append(_both(earlier, later))


def _failed(run: Run, rules: Rules) -> bool:
    """Return whether a run is to be retried: because of its answer, or because it had none in time."""
    return run.answer == "retry" or (run.answer == "none" and run.ended - run.began >= rules.upstream_timeout - EARLY)


def _asked_for(earlier: Run, later: Run, story: Story, history: History) -> bool:
    """Return whether *later* is a permitted retry of *earlier*, after at least its back-off."""
    rules = history.rules
    # The number of this attempt, at least: attempts that the broker forgot do not count, nor those begun before it
    # forgot, because no record of their end is kept.
    since = max((fault.ended for fault in _forgetting(story, history) if fault.began <= later.began), default=0.0)
    counted = (run for run in story.runs if since <= run.began and run.ended <= earlier.ended)
    failures = sum(_failed(run, rules) for run in counted)
    wait = earlier.asks or min(rules.first_wait * 2.0 ** max(failures - 1, 0), rules.longest_wait)
    return _failed(earlier, rules) and failures < rules.attempts and later.began >= earlier.ended + wait - EARLY


def _forgetting(story: Story, history: History) -> list[Fault]:
    """Return the faults by which the broker may count a message's attempts from one again."""
    return [fault for fault in history.faults if fault.forgets and fault.ended >= story.published.at]


def _fault_between(earlier: Run, later: Run, story: Story, history: History) -> str | None:
    """Return the fault that kept *earlier* from being settled while its worker had the message."""
    until = _settled_by(earlier, story)
    (life,) = (life for life in history.lives if life.worker == earlier.worker)
    touching = [fault for fault in history.faults if fault.touches(life) and fault.began <= later.began]
    if _left_by(life, earlier, later, until, story):
        ends = (fault.kind for fault in touching if fault.fatal)
        return next(ends, "worker killed" if life.killed else "worker stopped")
    for fault in touching:
        if not fault.fatal and fault.began <= until and earlier.began <= fault.ended + fault.lingers:
            return fault.kind
    late = _came_late(later, history) or _heard_late(earlier, later, story, history)
    return late or (STRANDS if _stranded(later, history) else None)


def _heard_late(earlier: Run, later: Run, story: Story, history: History) -> str | None:
    """Return the fault that delayed another worker's nak until *earlier* had run, and so ended its back-off."""
    for run in story.runs:
        (life,) = (life for life in history.lives if life.worker == run.worker)
        for fault in history.faults:
            said = run.began < earlier.began and fault.began <= run.ended + SETTLE and run.ended <= fault.ended
            if said and fault.delays and fault.touches(life) and earlier.began <= fault.ended <= later.began:
                return fault.kind
    return None


def _came_late(later: Run, history: History) -> str | None:
    """Return the fault that let *later* begin with a stale delivery: a worker counts a lease from the arrival."""
    (life,) = (life for life in history.lives if life.worker == later.worker)
    late = (fault for fault in history.faults if fault.delays and fault.touches(life))
    return next((fault.kind for fault in late if fault.began <= later.began <= fault.ended + SETTLE), None)


def _stranded(later: Run, history: History) -> bool:
    """Return whether the message may have been acknowledged, stayed in the stream, and gone to a recreated consumer."""
    full = [fault.began for fault in history.faults if fault.kind == STRANDS]
    recreated = [fault.began for fault in history.faults if fault.kind == RECREATED and fault.began <= later.began]
    return bool(full and recreated) and min(full) <= max(recreated)


def _left_by(life: WorkerLife, earlier: Run, later: Run, until: float, story: Story) -> bool:
    """Return whether a worker ended before it had settled *earlier*.

    A killed one may have whatever it had not settled. One that was stopped settles what it was answered; what was not,
    or has no callback yet, it may give back from then on.
    """
    if life.killed:
        return earlier.began <= life.ended <= min(until, later.began + EARLY)
    if life.stopped is None:
        return False
    ends = [post.ended for post in story.posts if earlier.ended - EARLY <= post.began <= life.ended]
    unsettled = [earlier.ended] if earlier.answer == "none" else ends if earlier.answer == "final" else []
    return any(life.stopped <= end for end in unsettled)


def _settled_by(run: Run, story: Story) -> float:
    """Return the time when its worker had settled a run at the latest, without faults."""
    told = max((post.ended for post in story.posts if post.began >= run.ended - EARLY), default=0.0)
    return max(run.ended, told if run.answer == "final" else 0.0) + SETTLE


def _judge_attempts(story: Story, history: History, verdict: Verdict) -> None:
    rules, call_id = history.rules, story.published.call_id
    failures = sum(_failed(run, rules) for run in story.runs)
    forgotten = bool(_forgetting(story, history))
    # A message whose term was lost is run by the next worker before it is given up again.
    if failures > rules.attempts + story.disturbed and not forgotten:
        verdict.out_of_policy.append(f"{call_id}: {failures} attempts failed, {rules.attempts} are allowed")
    if (letter := story.letter) is None:
        return
    if letter.attempts < rules.attempts:
        verdict.out_of_policy.append(f"{call_id}: given up after {letter.attempts} of {rules.attempts} attempts")
    # Deliveries that led to no attempt count too, so there are at least as many deliveries as attempts.
    if letter.deliveries < rules.attempts and not forgotten:
        verdict.out_of_policy.append(f"{call_id}: given up with {letter.deliveries} deliveries")
    if not failures:
        verdict.out_of_policy.append(f"{call_id}: given up, and never failed")


def _judge_callbacks(story: Story, verdict: Verdict) -> None:
    call_id = story.published.call_id
    if not story.published.callback:
        if story.posts:
            verdict.wrong_callbacks.append(f"{call_id}: called back, but wanted no callback")
        return
    ends = [run for run in story.runs if run.answer == "final" or story.letter]
    if not story.posts:
        verdict.wrong_callbacks.append(f"{call_id}: ended without a callback")
    for post in story.posts:
        if not any(run.ended <= post.began + EARLY for run in ends):
            verdict.wrong_callbacks.append(f"{call_id}: called back at {post.began:.2f}, before its end")
        if post.status not in ("200", "404") and not story.letter:
            verdict.wrong_callbacks.append(f"{call_id}: called back with status {post.status}, but not given up")


def _judge_undecodable(history: History, verdict: Verdict) -> None:
    buried = Counter(letter.body for letter in history.letters if letter.call_id is None)
    for payload, count in Counter(history.undecodable).items():
        if buried[payload] < count:
            verdict.lost.append(f"undecodable: {count - buried[payload]} of {payload!r}")


def _judge_worker(life: WorkerLife, rules: Rules, verdict: Verdict) -> None:
    if life.killed:
        return
    if life.code != 0 or life.stopped is None:
        verdict.badly_ended.append(f"{life.worker} ended with {life.code} at {life.ended:.2f}")
        return
    took = life.ended - life.stopped
    verdict.drains.append((life.worker, took))
    if took > rules.drain:
        verdict.badly_ended.append(f"{life.worker} took {took:.2f} s to end; {rules.drain:g} s are promised")


def _recoveries(fault: Fault, history: History, stories: Mapping[str, Story]) -> Iterator[float]:
    """Yield the time from the end of a fault to each recovery from it (s).

    A recovery is the next invocation of each affected worker that still runs, or of each message that an ended worker
    had not finished. After a fault of functions it is their next final answer; after one of callbacks, the next one.
    """
    for life in history.lives:
        if fault.fatal and fault.touches(life):
            yield from (again - life.ended for again in _left_behind(life.worker, life.ended, stories))
        elif fault.touches(life) and life.began <= fault.began:
            yield from _first(run.began - fault.ended for run in history.runs if run.worker == life.worker)
    if fault.kind.startswith("functions"):
        yield from _first(run.ended - fault.ended for run in history.runs if run.answer == "final")
    if fault.kind.startswith("callbacks"):
        yield from _first(post.ended - fault.ended for post in history.posts)


def _first(moments: Iterator[float]) -> Iterator[float]:
    """Yield the first moment that is not past."""
    later = [moment for moment in moments if moment >= 0]
    yield from [min(later)] if later else []


def _left_behind(worker: str, ended: float, stories: Mapping[str, Story]) -> Iterator[float]:
    """Yield the times when the invocations that a worker ran at its end were begun again."""
    for story in stories.values():
        for earlier, later in pairwise(story.runs):
            if earlier.worker == worker and earlier.answer == "none" and earlier.ended >= ended - EARLY:
                yield max(later.began, ended)


def _both(earlier: Run, later: Run) -> str:
    ran = f"{earlier.worker} {earlier.began:.2f}-{earlier.ended:.2f} ({earlier.answer})"
    return f"{later.call_id}: {ran}, then {later.worker} at {later.began:.2f}"
