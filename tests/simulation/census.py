"""Counts of what happened in the simulated lives, because a test without any events must not pass."""

from __future__ import annotations

from collections import Counter

from tests.explained import CAUSES
from tests.world.faults import ALL, ONE
from tests.world.simulation import Life
from worker.events import (
    AnnotationIgnored,
    CallbackPosted,
    DeadLettered,
    DeadLetterNotStored,
    DrainExpired,
    InvocationEnded,
    LeaseExpired,
    Redelivered,
    WorkCrashed,
)
from worker.model import Ack, Interrupted, Nak, NoResponse, Responded, Term, TimedOut

from .story import Story

ORDINARY = frozenset(
    """
    a message that cannot be decoded; a function at capacity: 429; a function scaled to zero: 503; no response;
    a timeout; a bug; an ignored annotation; a delivered callback; a retried callback; an expired drain;
    a message nakked by a drain; acked; given up; a stored dead letter; two or more workers at once; a measured wait;
    a refused probe of a limiter
    """.replace("\n", " ")
    .replace("    ", "")
    .strip()
    .split("; ")
)
"""Events that each census must contain, with and without faults."""
FAULTY = frozenset(
    {*(f"fault: {kind}" for kind in [*ONE, *ALL]), *(f"again: {cause.name}" for cause in CAUSES)}
    | {"an expired lease", "early redelivery", "finished redelivery", "running redelivery", "a refused dead letter"}
)
"""Further events that a census of lives with faults must contain."""


class Census:
    """Event counts of one test's lives."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lives = self.messages = self.invocations = self.faults = 0
        self.counts: Counter[str] = Counter()

    def add(self, life: Life, stories: list[Story], causes: Counter[str], measured: int = 0) -> None:
        """Count one life."""
        self.lives += 1
        self.messages += len(stories)
        self.invocations += len(life.world.outside.calls)
        self.faults += len(life.plan.faults)
        self.counts.update({f"fault: {kind}": number for kind, number in life.nemesis.effects.items()})
        self.counts.update({f"again: {cause}": number for cause, number in causes.items()})
        self.counts["a measured wait"] += measured
        self.counts["two or more workers at once"] += len(life.plan.workers) > 1
        self.counts["a message that cannot be decoded"] += sum(story.planned.payload is not None for story in stories)
        for call in life.world.outside.calls:
            if call.refused:
                status = call.outcome.status if isinstance(call.outcome, Responded) else 0
                self.counts[f"a function {'at capacity' if status == 429 else 'scaled to zero'}: {status}"] += 1
        for worker in life.workers:
            for _, event in worker.log:
                if name := _name(event):
                    self.counts[name] += 1

    def missing(self, expected: frozenset[str]) -> list[str]:
        """List the expected events that never happened."""
        return sorted(what for what in expected if not self.counts[what])

    def lines(self) -> list[str]:
        """Format the counts for people."""
        head = f"{self.name}: {self.lives:,} lives, {self.messages:,} messages, {self.invocations:,} invocations"
        return [
            f"{head}, {self.faults:,} faults",
            *(f"  {number:>9,}  {what}" for what, number in sorted(self.counts.items()) if number),
        ]


_OUTCOMES: dict[type, str] = {
    NoResponse: "no response",
    TimedOut: "a timeout",
    Interrupted: "a message nakked by a drain",
}
_VERDICTS: dict[type, str] = {Ack: "acked", Term: "given up", Nak: "nakked for a retry"}
_EVENTS: dict[type, str] = {
    WorkCrashed: "a bug",
    AnnotationIgnored: "an ignored annotation",
    DrainExpired: "an expired drain",
    DeadLetterNotStored: "a refused dead letter",
    LeaseExpired: "an expired lease",
}


def _name(event: object) -> str | None:
    match event:
        case InvocationEnded(counts=False):
            return "a refused probe of a limiter"
        case InvocationEnded(outcome=outcome, verdict=verdict):
            return _OUTCOMES.get(type(outcome)) or _VERDICTS.get(type(verdict))
        case CallbackPosted(delivered=delivered, retry_in=again_in):
            return "a delivered callback" if delivered else "a retried callback" if again_in is not None else None
        case DeadLettered(stored=stored):
            return "a stored dead letter" if stored else None
        case Redelivered(state=how):
            return f"{how} redelivery"
        case _:
            return _EVENTS.get(type(event))
