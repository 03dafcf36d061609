"""The causes of a repeated invocation: each one in docs/guarantees.md under "At least once", as a predicate.

It is given the runs of one message, as their workers knew them, and the troubles that there were. A dead worker cannot
be asked: what is known of real ones is seen from outside, and judged by :mod:`tests.chaos.ledger`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

CONNECTION = frozenset({"stall", "cut", "late", "deaf", "mute", "restart", "crash", "elect", "freeze", "pause"})
"""Troubles that can delay a settlement, an extension, or its confirmation."""
FORGETFUL = frozenset({"anew", "crash"})
"""Troubles after which the queue may not know who has a message, nor how long it must wait."""
ROUNDING = 1.0
"""Seconds by which nats-server can cut short what it keeps over a restart (measured)."""
HELD = 1.0
"""Seconds for which a worker may hold a message before it starts it: the rest of a back-off."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault from *begins* to *ends* (s); *worker*: the only worker that it affects.

    Besides the faults: ``kill`` of a worker, and ``drain``, from when its time was up to its end.
    """

    kind: str
    begins: float
    ends: float
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation, as its worker saw it."""

    worker: str
    began: float
    ended: float
    """The time when the worker had its outcome, or stopped it, or died."""
    how: Literal["final", "retry", "given back", "lost", "died"]
    """The message is done or given up; is retried; was stopped by the drain; lost its lease; or the worker died."""
    then: Literal["settled", "given back", "buried not", "nothing", "unknown"] = "unknown"
    """The result of a final verdict: settled; the drain stopped its callback or dead letter; its dead letter
    could not be stored; nothing, since the lease was lost or the worker died."""

    @property
    def gave_back(self) -> bool:
        """Whether it ended with a NAK."""
        return self.how in ("retry", "given back") or self.then in ("given back", "buried not")


@dataclass(frozen=True, slots=True)
class Terms:
    """The settings of the queue."""

    ack_wait: float
    trip: float
    """Longest time (s) that something is on its way to the queue or back."""


@dataclass(frozen=True, slots=True)
class Between:
    """Two runs of a message, and what went wrong around them."""

    first: Run
    again: Run
    terms: Terms
    troubles: Sequence[Trouble]
    runs: Sequence[Run] = ()
    """All of the message."""

    def any(self, kinds: Iterable[str], begins: float, ends: float) -> bool:
        """Whether one of these was in force for the first run's worker, or for all, between *begins* and *ends*."""
        return any(
            trouble.kind in kinds
            and trouble.worker in (None, self.first.worker)
            and trouble.begins <= ends
            and trouble.ends >= begins
            for trouble in self.troubles
        )

    def slow(self, run: Run, longest: float, begins: float, ends: float, *kinds: str) -> bool:
        """Whether one of these befell a run's worker for longer than *longest*, ending between *begins* and *ends*."""
        return any(
            trouble.kind in kinds
            and trouble.worker in (None, run.worker)
            and trouble.ends - trouble.begins > longest
            and begins <= trouble.ends
            and trouble.begins <= ends
            for trouble in self.troubles
        )

    def stood_still(self) -> bool:
        """Whether the first run's worker stood still so long that its lease could end without its knowing."""
        longest = self.terms.ack_wait / 3 - 2 * self.terms.trip
        return self.slow(self.first, longest, self.first.began - HELD, self.again.began, "freeze", "pause")

    def came_late(self) -> bool:
        """Whether one of them began only when its delivery was no longer valid: it had been on its way for too long."""
        longest = self.terms.ack_wait / 3 - self.terms.trip
        return any(
            self.slow(run, longest, run.began - HELD - self.terms.trip, run.began, "stall", "freeze", "pause")
            for run in (self.first, self.again)
        )

    def heard_late(self) -> bool:
        """Whether a settlement reached the queue so late that another worker had the message."""
        longest = self.terms.ack_wait / 3 - 2 * self.terms.trip
        had_it = {run.worker for run in (self.first, self.again, *self.runs) if run.began <= self.again.began}
        return any(
            (trouble.kind == "late" or (trouble.kind == "stall" and trouble.ends - trouble.begins > longest))
            and trouble.worker in had_it
            and trouble.begins <= self.again.began
            and trouble.ends >= self.first.began - HELD
            for trouble in self.troubles
        )

    def shared(self) -> bool:
        """Whether a third had the message together with the first, for a reason, and gave it back: neither can know."""
        # The third one's settlement can arrive after the message was sent to the first, where it may wait to be run.
        slack = 2 * self.terms.trip + HELD
        return any(
            third not in (self.first, self.again)
            and third.gave_back
            and (self.first.began - slack < third.ended or third.how == "final")  # which is given back after its end
            and third.ended <= self.again.began
            and self._excused(third)
            for third in self.runs
        )

    def _excused(self, third: Run) -> bool:
        """Whether something lets the first and a third have the message together: this again, in what came before."""
        earlier, later = sorted((self.first, third), key=lambda run: run.began)
        before = [run for run in self.runs if run.began < later.began]
        both = Between(earlier, later, self.terms, self.troubles, before)
        return any(cause.overlaps and cause.holds(both) for cause in CAUSES)

    def made_anew(self) -> bool:
        """Whether the consumer was recreated while the first worker had the message."""
        return self.any({"anew"}, self.first.began - HELD - self.terms.trip, self.again.began)

    def forgotten(self) -> bool:
        """Whether the server was killed while the first had it, and what it had not written was lost."""
        return self.any({"crash"}, self.first.began - HELD - self.terms.trip, self.again.began)

    def restarted(self) -> bool:
        """Whether a restart ended the first run's lease earlier than its worker could know.

        What a delivery had not been extended by then is counted from when the message was published; what it had been
        is kept to the second.
        """
        begins = self.first.began - HELD - self.terms.trip
        first_extension = self.first.began + self.terms.ack_wait / 3 + 2 * self.terms.trip
        rounded = self.terms.ack_wait / 3 <= ROUNDING + 2 * self.terms.trip
        return self.any({"restart", "elect"}, begins, first_extension) or (
            rounded and self.any({"restart"}, begins, self.again.began)
        )


@dataclass(frozen=True, slots=True)
class Cause:
    """One reason to run a message again. *listed*: its number in docs/guarantees.md, "At least once"."""

    name: str
    listed: int
    holds: Callable[[Between], bool]
    overlaps: bool = False
    """Whether both can run at once."""


def _unconfirmed(it: Between) -> bool:
    told = it.first.ended - it.terms.trip
    return it.first.how == "final" and it.any(CONNECTION | {"kill", "anew"}, told, it.again.began)


def _lost(it: Between) -> bool:
    unheard = it.first.ended - it.terms.ack_wait
    stopped = it.first.how == "lost" or (it.first.how == "final" and it.first.then == "nothing")
    return stopped and it.any(
        CONNECTION | {"anew"}, unheard, it.first.ended if it.first.how == "lost" else it.again.began
    )


CAUSES = (
    Cause("retry", 1, lambda it: it.first.how == "retry"),
    Cause("the worker died", 2, lambda it: it.first.how == "died" and it.any({"kill"}, it.first.began, it.again.began)),
    Cause("the lease was lost", 3, _lost),
    Cause("the worker stood still", 4, Between.stood_still, overlaps=True),
    Cause("the end was not heard", 5, _unconfirmed),
    Cause("the drain gave it back", 7, lambda it: it.first.how == "given back" and _drained(it)),
    Cause("the drain stopped its callback", 8, lambda it: it.first.then == "given back" and _drained(it)),
    Cause("the consumer was made anew", 9, Between.made_anew, overlaps=True),
    Cause("no dead letter could be stored", 11, lambda it: it.first.then == "buried not"),
    Cause("it came late", 12, Between.came_late, overlaps=True),
    Cause("a restart cut its lease short", 13, Between.restarted, overlaps=True),
    Cause("the server forgot", 6, Between.forgotten, overlaps=True),
    Cause("it was heard late what was said", 14, Between.heard_late, overlaps=True),
    Cause("another that had it too gave it back", 15, Between.shared, overlaps=True),
)
"""The first that holds is what counts as the reason."""


def _drained(it: Between) -> bool:
    return it.any({"drain"}, it.first.began, it.again.began)


def explained(
    first: Run, again: Run, troubles: Sequence[Trouble], terms: Terms, runs: Sequence[Run] = ()
) -> list[Cause]:
    """Return the causes why a message that *first* had run was run *again*; empty where there is none.

    Args:
        first: an earlier run of the message.
        again: a later one: the next, or one that began before *first* had ended.
        troubles: all that there were.
        terms: what the queue was set to.
        runs: all of the message, also those that were given back unstarted.
    """
    between, together = Between(first, again, terms, troubles, runs), again.began < first.ended
    return [cause for cause in CAUSES if (cause.overlaps or not together) and cause.holds(between)]
