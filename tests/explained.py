"""Causes of a repeated invocation: each one that docs/guarantees.md lists under "At least once", as a predicate.

A predicate gets the runs of one message, as their workers recorded them, and the troubles of that time. A real worker
that was killed has no such record; :mod:`tests.chaos.ledger` judges real workers from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

CONNECTION = frozenset(
    {
        "stall",
        "cut",
        "deliver late",
        "drop from worker",
        "drop to worker",
        "restart",
        "crash",
        "elect",
        "suspend worker",
        "suspend machine",
    }
)
"""Kinds of troubles that can delay or lose a worker's messages, or their confirmations."""
FORGETFUL = frozenset({"recreate consumer", "crash"})
"""Kinds of troubles after which the queue may have lost which worker has a message, and how long it waits."""
ROUNDING = 1.0
"""Seconds by which a restart of nats-server can shorten a stored time (measured)."""
HELD = 1.0
"""Longest time (s) for which a worker holds a message before its start: the rest of a backoff."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A fault from *begins* to *ends* (s); *worker*: name of the only affected worker, or None for all.

    Two further kinds are ``kill`` of a worker, and ``drain``, from the end of a drain's time limit to its end.
    """

    kind: str
    begins: float
    ends: float
    worker: str | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """One invocation, as its worker recorded it."""

    worker: str
    began: float
    ended: float
    """Time (s) at which the worker got the outcome, cancelled the invocation, or was killed."""
    how: Literal["final", "retry", "given back", "lost", "died"]
    """Outcome: finished or given up, retried, cancelled by the drain, lease lost, or worker killed."""
    then: Literal["settled", "given back", "dead letter not stored", "nothing", "unknown"] = "unknown"
    """Result of a final verdict.

    It was settled; the drain cancelled its callback or dead letter; the dead letter could not be stored; or nothing
    happened, because the lease was lost or the worker was killed."""

    @property
    def was_nakked(self) -> bool:
        """Whether the run ended with a NAK."""
        return self.how in ("retry", "given back") or self.then in ("given back", "dead letter not stored")


@dataclass(frozen=True, slots=True)
class Terms:
    """Settings of the queue."""

    ack_wait: float
    trip: float
    """Longest latency (s) to the queue or back."""


@dataclass(frozen=True, slots=True)
class Between:
    """Two runs of a message, and the troubles around them."""

    first: Run
    again: Run
    terms: Terms
    troubles: Sequence[Trouble]
    runs: Sequence[Run] = ()
    """All runs of the message."""

    def any(self, kinds: Iterable[str], begins: float, ends: float) -> bool:
        """Return whether a trouble of these kinds affected the first run's worker between *begins* and *ends*."""
        return any(
            trouble.kind in kinds
            and trouble.worker in (None, self.first.worker)
            and trouble.begins <= ends
            and trouble.ends >= begins
            for trouble in self.troubles
        )

    def slow(self, run: Run, longest: float, begins: float, ends: float, *kinds: str) -> bool:
        """Return whether a trouble of these kinds, longer than *longest*, affected a run's worker in that time."""
        return any(
            trouble.kind in kinds
            and trouble.worker in (None, run.worker)
            and trouble.ends - trouble.begins > longest
            and begins <= trouble.ends
            and trouble.begins <= ends
            for trouble in self.troubles
        )

    def was_suspended(self) -> bool:
        """Return whether the first run's worker was suspended so long that its lease could end undetected."""
        longest = self.terms.ack_wait / 3 - 2 * self.terms.trip
        return self.slow(
            self.first, longest, self.first.began - HELD, self.again.began, "suspend worker", "suspend machine"
        )

    def arrived_late(self) -> bool:
        """Return whether one of the runs began with a delivery that had been on its way for too long."""
        longest = self.terms.ack_wait / 3 - self.terms.trip
        return any(
            self.slow(
                run,
                longest,
                run.began - HELD - self.terms.trip,
                run.began,
                "stall",
                "suspend worker",
                "suspend machine",
            )
            for run in (self.first, self.again)
        )

    def settled_late(self) -> bool:
        """Return whether the queue received a settlement so late that the message had been redelivered since."""
        longest = self.terms.ack_wait / 3 - 2 * self.terms.trip
        had_it = {run.worker for run in (self.first, self.again, *self.runs) if run.began <= self.again.began}
        return any(
            (trouble.kind == "deliver late" or (trouble.kind == "stall" and trouble.ends - trouble.begins > longest))
            and trouble.worker in had_it
            and trouble.begins <= self.again.began
            and trouble.ends >= self.first.began - HELD
            for trouble in self.troubles
        )

    def shared(self) -> bool:
        """Return whether a third run overlapped with the first, for a known cause, and ended with a NAK."""
        # The third run's NAK can arrive after the first delivery was sent, which its worker may hold before the start.
        slack = 2 * self.terms.trip + HELD
        return any(
            third not in (self.first, self.again)
            and third.was_nakked
            and (self.first.began - slack < third.ended or third.how == "final")  # its NAK follows after its end
            and third.ended <= self.again.began
            and self._excused(third)
            for third in self.runs
        )

    def _excused(self, third: Run) -> bool:
        """Return whether a cause lets the first run overlap with a third, by this same rule on the earlier runs."""
        earlier, later = sorted((self.first, third), key=lambda run: run.began)
        before = [run for run in self.runs if run.began < later.began]
        both = Between(earlier, later, self.terms, self.troubles, before)
        return any(cause.overlaps and cause.holds(both) for cause in CAUSES)

    def was_recreated(self) -> bool:
        """Return whether the consumer was recreated during the first run."""
        return self.any({"recreate consumer"}, self.first.began - HELD - self.terms.trip, self.again.began)

    def lost_state(self) -> bool:
        """Return whether the server was killed during the first run, and lost the state that it had not written."""
        return self.any({"crash"}, self.first.began - HELD - self.terms.trip, self.again.began)

    def restarted(self) -> bool:
        """Return whether a restart ended the first run's lease earlier than its worker could detect.

        Without an extension by then, the lease counts from the publishing of the message; with one, its time is rounded
        down to a second.
        """
        begins = self.first.began - HELD - self.terms.trip
        first_extension = self.first.began + self.terms.ack_wait / 3 + 2 * self.terms.trip
        rounded = self.terms.ack_wait / 3 <= ROUNDING + 2 * self.terms.trip
        return self.any({"restart", "elect"}, begins, first_extension) or (
            rounded and self.any({"restart"}, begins, self.again.began)
        )


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause of a repeat. *listed*: its number in docs/guarantees.md, "At least once"."""

    name: str
    listed: int
    holds: Callable[[Between], bool]
    overlaps: bool = False
    """Whether the two runs can overlap."""


def _unconfirmed(it: Between) -> bool:
    sent_at = it.first.ended - it.terms.trip
    return it.first.how == "final" and it.any(CONNECTION | {"kill", "recreate consumer"}, sent_at, it.again.began)


def _lost(it: Between) -> bool:
    unconfirmed_since = it.first.ended - it.terms.ack_wait
    stopped = it.first.how == "lost" or (it.first.how == "final" and it.first.then == "nothing")
    return stopped and it.any(
        CONNECTION | {"recreate consumer"},
        unconfirmed_since,
        it.first.ended if it.first.how == "lost" else it.again.began,
    )


CAUSES = (
    Cause("retry", 1, lambda it: it.first.how == "retry"),
    Cause("the worker died", 2, lambda it: it.first.how == "died" and it.any({"kill"}, it.first.began, it.again.began)),
    Cause("the lease was lost", 3, _lost),
    Cause("the worker was suspended", 4, Between.was_suspended, overlaps=True),
    Cause("the ack was not confirmed", 5, _unconfirmed),
    Cause("the drain sent a nak", 7, lambda it: it.first.how == "given back" and _drained(it)),
    Cause("the drain cancelled its callback", 8, lambda it: it.first.then == "given back" and _drained(it)),
    Cause("the consumer was recreated", 9, Between.was_recreated, overlaps=True),
    Cause("no dead letter could be stored", 11, lambda it: it.first.then == "dead letter not stored"),
    Cause("the delivery arrived late", 12, Between.arrived_late, overlaps=True),
    Cause("a restart cut its lease short", 13, Between.restarted, overlaps=True),
    Cause("the server lost state", 6, Between.lost_state, overlaps=True),
    Cause("a settlement arrived late", 14, Between.settled_late, overlaps=True),
    Cause("another worker with the message sent a nak", 15, Between.shared, overlaps=True),
)
"""All causes; the first that holds counts."""


def _drained(it: Between) -> bool:
    return it.any({"drain"}, it.first.began, it.again.began)


def explained(
    first: Run, again: Run, troubles: Sequence[Trouble], terms: Terms, runs: Sequence[Run] = ()
) -> list[Cause]:
    """Return the causes for which a message ran *again* after *first*; empty without a known one.

    Args:
        first: an earlier run of the message.
        again: a later run: the next, or one that began before *first* had ended.
        troubles: all troubles of the life.
        terms: settings of the queue.
        runs: all runs of the message, and its deliveries that were nakked unstarted.
    """
    between, together = Between(first, again, terms, troubles, runs), again.began < first.ended
    return [cause for cause in CAUSES if (cause.overlaps or not together) and cause.holds(between)]
