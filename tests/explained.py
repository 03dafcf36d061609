"""Causes of a repeated invocation: each one that docs/guarantees.md lists under "At least once", as a predicate.

A predicate gets the runs of one message, as their workers recorded them, and the faults of that time. A real worker
that was killed has no such record; :mod:`tests.chaos.ledger` checks real workers by other records.
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
"""Kinds of faults that can delay or lose a worker's messages, or their confirmations."""
LOSES_STATE = frozenset({"recreate consumer", "crash"})
"""Kinds of faults by which the queue may lose pending deliveries and delays."""
ROUNDING = 1.0
"""Seconds by which a restart of nats-server can shorten a stored time (measured)."""
MAX_HOLD = 1.0
"""Longest time (s) for which a worker holds a message before its start: the rest of a backoff."""


@dataclass(frozen=True, slots=True)
class ActiveFault:
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
    outcome: Literal["final", "retry", "nakked", "lost", "killed"]
    """Outcome: finished or given up, retried, cancelled by the drain, lease lost, or worker killed."""
    result: Literal["settled", "nakked", "dead letter not stored", "nothing", "unknown"] = "unknown"
    """Result of a final verdict.

    It was settled; the drain cancelled its callback or dead letter; the dead letter could not be stored; or nothing
    happened, because the lease was lost or the worker was killed."""

    @property
    def was_nakked(self) -> bool:
        """Whether the run ended with a NAK."""
        return self.outcome in ("retry", "nakked") or self.result in ("nakked", "dead letter not stored")


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Settings of the queue."""

    ack_wait: float
    latency: float
    """Longest latency (s) to the queue or back."""


@dataclass(frozen=True, slots=True)
class RunPair:
    """Two runs of a message, and the faults of that time."""

    first: Run
    repeat: Run
    settings: QueueSettings
    active_faults: Sequence[ActiveFault]
    runs: Sequence[Run] = ()
    """All runs of the message."""

    def any_fault(self, kinds: Iterable[str], begins: float, ends: float) -> bool:
        """Return whether a fault of these kinds affected the first run's worker between *begins* and *ends*."""
        return any(
            fault.kind in kinds
            and fault.worker in (None, self.first.worker)
            and fault.begins <= ends
            and fault.ends >= begins
            for fault in self.active_faults
        )

    def long_fault(self, run: Run, longest: float, begins: float, ends: float, *kinds: str) -> bool:
        """Return whether a fault of these kinds, longer than *longest*, affected a run's worker in that time."""
        return any(
            fault.kind in kinds
            and fault.worker in (None, run.worker)
            and fault.ends - fault.begins > longest
            and begins <= fault.ends
            and fault.begins <= ends
            for fault in self.active_faults
        )

    def was_suspended(self) -> bool:
        """Return whether the first run's worker was suspended so long that its lease could end undetected."""
        longest = self.settings.ack_wait / 3 - 2 * self.settings.latency
        return self.long_fault(
            self.first, longest, self.first.began - MAX_HOLD, self.repeat.began, "suspend worker", "suspend machine"
        )

    def arrived_late(self) -> bool:
        """Return whether one of the runs began with a delivery that had been in flight for too long."""
        longest = self.settings.ack_wait / 3 - self.settings.latency
        return any(
            self.long_fault(
                run,
                longest,
                run.began - MAX_HOLD - self.settings.latency,
                run.began,
                "stall",
                "suspend worker",
                "suspend machine",
            )
            for run in (self.first, self.repeat)
        )

    def settled_late(self) -> bool:
        """Return whether the queue received a settlement so late that the message had been redelivered since."""
        longest = self.settings.ack_wait / 3 - 2 * self.settings.latency
        had_it = {run.worker for run in (self.first, self.repeat, *self.runs) if run.began <= self.repeat.began}
        return any(
            (fault.kind == "deliver late" or (fault.kind == "stall" and fault.ends - fault.begins > longest))
            and fault.worker in had_it
            and fault.begins <= self.repeat.began
            and fault.ends >= self.first.began - MAX_HOLD
            for fault in self.active_faults
        )

    def shared(self) -> bool:
        """Return whether a third run overlapped with the first, for a known cause, and ended with a NAK."""
        # The third run's NAK can arrive after the first delivery was sent, which its worker may hold before the start.
        slack = 2 * self.settings.latency + MAX_HOLD
        return any(
            third not in (self.first, self.repeat)
            and third.was_nakked
            and (self.first.began - slack < third.ended or third.outcome == "final")  # its NAK follows after its end
            and third.ended <= self.repeat.began
            and self._excused(third)
            for third in self.runs
        )

    def _excused(self, third: Run) -> bool:
        """Return whether a cause lets the first run overlap with a third, by this same rule on the earlier runs."""
        earlier, later = sorted((self.first, third), key=lambda run: run.began)
        before = [run for run in self.runs if run.began < later.began]
        both = RunPair(earlier, later, self.settings, self.active_faults, before)
        return any(cause.overlaps and cause.holds(both) for cause in CAUSES)

    def was_recreated(self) -> bool:
        """Return whether the consumer was recreated during the first run."""
        return self.any_fault(
            {"recreate consumer"}, self.first.began - MAX_HOLD - self.settings.latency, self.repeat.began
        )

    def lost_state(self) -> bool:
        """Return whether the server was killed during the first run, and lost the state that it had not written."""
        return self.any_fault({"crash"}, self.first.began - MAX_HOLD - self.settings.latency, self.repeat.began)

    def restarted(self) -> bool:
        """Return whether a restart ended the first run's lease earlier than its worker could detect.

        Without an extension by then, the lease counts from the publishing of the message; with one, its time is rounded
        down to a second.
        """
        begins = self.first.began - MAX_HOLD - self.settings.latency
        first_extension = self.first.began + self.settings.ack_wait / 3 + 2 * self.settings.latency
        rounded = self.settings.ack_wait / 3 <= ROUNDING + 2 * self.settings.latency
        return self.any_fault({"restart", "elect"}, begins, first_extension) or (
            rounded and self.any_fault({"restart"}, begins, self.repeat.began)
        )


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause of a repeat. *listed*: its number in docs/guarantees.md, "At least once"."""

    name: str
    listed: int
    holds: Callable[[RunPair], bool]
    overlaps: bool = False
    """Whether the two runs can overlap."""


def _unconfirmed(pair: RunPair) -> bool:
    sent_at = pair.first.ended - pair.settings.latency
    return pair.first.outcome == "final" and pair.any_fault(
        CONNECTION | {"kill", "recreate consumer"}, sent_at, pair.repeat.began
    )


def _lost(pair: RunPair) -> bool:
    unconfirmed_since = pair.first.ended - pair.settings.ack_wait
    stopped = pair.first.outcome == "lost" or (pair.first.outcome == "final" and pair.first.result == "nothing")
    return stopped and pair.any_fault(
        CONNECTION | {"recreate consumer"},
        unconfirmed_since,
        pair.first.ended if pair.first.outcome == "lost" else pair.repeat.began,
    )


CAUSES = (
    Cause("retry", 1, lambda pair: pair.first.outcome == "retry"),
    Cause(
        "the worker was killed",
        2,
        lambda pair: pair.first.outcome == "killed" and pair.any_fault({"kill"}, pair.first.began, pair.repeat.began),
    ),
    Cause("the lease was lost", 3, _lost),
    Cause("the worker was suspended", 4, RunPair.was_suspended, overlaps=True),
    Cause("the ack was not confirmed", 5, _unconfirmed),
    Cause("the drain sent a nak", 7, lambda pair: pair.first.outcome == "nakked" and _drained(pair)),
    Cause("the drain cancelled its callback", 8, lambda pair: pair.first.result == "nakked" and _drained(pair)),
    Cause("the consumer was recreated", 9, RunPair.was_recreated, overlaps=True),
    Cause("no dead letter could be stored", 11, lambda pair: pair.first.result == "dead letter not stored"),
    Cause("the delivery arrived late", 12, RunPair.arrived_late, overlaps=True),
    Cause("a restart cut its lease short", 13, RunPair.restarted, overlaps=True),
    Cause("the server lost state", 6, RunPair.lost_state, overlaps=True),
    Cause("a settlement arrived late", 14, RunPair.settled_late, overlaps=True),
    Cause("another worker with the message sent a nak", 15, RunPair.shared, overlaps=True),
)
"""All causes; the first that holds counts."""


def _drained(pair: RunPair) -> bool:
    return pair.any_fault({"drain"}, pair.first.began, pair.repeat.began)


def causes_of_repeat(
    first: Run, repeat: Run, active_faults: Sequence[ActiveFault], settings: QueueSettings, runs: Sequence[Run] = ()
) -> list[Cause]:
    """Return the causes for which a message ran again, as *repeat*, after *first*; empty without a known one.

    Args:
        first: an earlier run of the message.
        repeat: a later run: the next, or one that began before *first* had ended.
        active_faults: all faults of the simulation.
        settings: settings of the queue.
        runs: all runs of the message, and its deliveries that were nakked unstarted.
    """
    between, together = RunPair(first, repeat, settings, active_faults, runs), repeat.began < first.ended
    return [cause for cause in CAUSES if (cause.overlaps or not together) and cause.holds(between)]
