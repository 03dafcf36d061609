"""The promises that must hold for every message under all faults, checked on the records of a run. No I/O.

Each message that the broker confirmed as stored must have ended: with a final response, or as a dead letter.
Each invocation after a message's first must have a cause. Either the previous one failed, and its backoff had ended;
or a fault affected the worker of the message while it had the message. These are the causes that docs/guarantees.md
lists; a repeat without a cause is a defect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from tests.chaos.history import DeadLetter, Fault, History, PublishedMessage, ReceivedCallback, Rules, Run, WorkerLife

RETRY = "retry"
"""The only cause of a repeat that is not a fault."""
CLOCK_TOLERANCE = 0.05
"""Longest difference between clocks (s): the worker's own tolerance (worker/policy/ledger.py)."""
SETTLE_TIME = 2.5
"""Seconds after its last request in which a worker may still be settling: the time after which it sends an
unconfirmed settlement again, and a half."""

STRANDING = "disk full"
"""The fault by which nats-server 2.15.1 leaves acknowledged messages in the stream forever: a full disk cannot store
their deletion, which is not repeated once it has room. Only a recreated consumer delivers them."""
RECREATED = "consumer deleted"


@dataclass(slots=True)
class Findings:
    """The result of the check."""

    lost: list[str] = field(default_factory=list)
    not_published: list[str] = field(default_factory=list)
    """Invocations and callbacks of messages that were never published, or not as they were published."""
    causes: Counter[str] = field(default_factory=Counter)
    """Number of invocations after a message's first, by cause."""
    unexplained: list[str] = field(default_factory=list)
    out_of_policy: list[str] = field(default_factory=list)
    """Attempts that were too early or too many, and messages that were given up too early."""
    wrong_callbacks: list[str] = field(default_factory=list)
    """Messages without a callback, with a callback before the end, or with a wrong callback."""
    drains: list[tuple[str, float]] = field(default_factory=list)
    """Name of each stopped worker, and seconds from SIGTERM to its end."""
    wrong_exits: list[str] = field(default_factory=list)
    """Workers that ended too late, or with a wrong exit code."""
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from the end of a fault to the next invocation of a worker that it affected, by the fault's kind."""

    @property
    def sound(self) -> bool:
        """Return whether every promise was kept."""
        return not self.broken

    @property
    def broken(self) -> dict[str, list[str]]:
        """Return the broken promises, each with its cases."""
        found = {
            "lost": self.lost,
            "not as published": self.not_published,
            "invoked again without cause": self.unexplained,
            "attempts out of policy": self.out_of_policy,
            "callbacks": self.wrong_callbacks,
            "ends of workers": self.wrong_exits,
        }
        return {name: cases for name, cases in found.items() if cases}


@dataclass(slots=True)
class MessageRecord:
    """All records of one message."""

    published: PublishedMessage
    runs: list[Run]
    callbacks: list[ReceivedCallback]
    dead_letter: DeadLetter | None
    num_fault_repeats: int = 0
    """Number of repeats that a fault caused."""


def check(history: History) -> Findings:
    """Check every message, every worker and every fault of a run."""
    findings = Findings()
    records = _records(history, findings)
    for record in records.values():
        _check_end(record, findings)
        _check_repeats(record, history, findings)
        _check_attempts(record, history, findings)
        _check_callbacks(record, findings)
    _check_undecodable(history, findings)
    if history.num_unfinished:
        findings.lost.append(f"{history.num_unfinished} messages have not ended")
    if history.num_stored > history.num_unfinished and not any(fault.kind == STRANDING for fault in history.faults):
        findings.lost.append(f"{history.num_stored - history.num_unfinished} messages are stranded in the stream")
    for life in history.lives:
        _check_worker(life, history.rules, findings)
    for fault in history.faults:
        findings.recoveries.setdefault(fault.kind, []).extend(_recoveries(fault, history, records))
    return findings


def _records(history: History, findings: Findings) -> dict[str, MessageRecord]:
    records = {message.call_id: MessageRecord(message, [], [], None) for message in history.published}
    for run in history.runs:
        if run.call_id in records:
            records[run.call_id].runs.append(run)
        if run.call_id not in records or not run.intact:
            findings.not_published.append(f"{run.call_id or 'no call id'}: invoked by {run.worker} at {run.began:.2f}")
    for callback in history.callbacks:
        if callback.call_id in records:
            records[callback.call_id].callbacks.append(callback)
        else:
            findings.not_published.append(f"{callback.call_id}: called back at {callback.began:.2f}")
    for dead_letter in history.dead_letters:
        if dead_letter.call_id in records:
            records[dead_letter.call_id].dead_letter = dead_letter
        elif dead_letter.call_id is not None:
            findings.not_published.append(f"{dead_letter.call_id}: stored as a dead letter")
    for record in records.values():
        record.runs.sort(key=lambda run: run.began)
    return records


def _check_end(record: MessageRecord, findings: Findings) -> None:
    if record.dead_letter is None and not any(run.answer == "final" for run in record.runs):
        findings.lost.append(record.published.call_id)


def _check_repeats(record: MessageRecord, history: History, findings: Findings) -> None:
    for earlier, later in pairwise(record.runs):
        if _is_retry(earlier, later, record, history):
            findings.causes[RETRY] += 1
        elif cause := _fault_between(earlier, later, record, history):
            findings.causes[cause] += 1
            record.num_fault_repeats += 1
        elif _failed(earlier, history.rules) and earlier.ended <= later.began:
            findings.out_of_policy.append(f"{_describe(earlier, later)}: before its backoff was over")
        else:
            findings.unexplained.append(_describe(earlier, later))


def _failed(run: Run, rules: Rules) -> bool:
    """Return whether a run must be retried: because of its response, or because it had none in time."""
    return run.answer == "retry" or (
        run.answer == "none" and run.ended - run.began >= rules.upstream_timeout - CLOCK_TOLERANCE
    )


def _is_retry(earlier: Run, later: Run, record: MessageRecord, history: History) -> bool:
    """Return whether *later* is a permitted retry of *earlier*, after at least its backoff."""
    rules = history.rules
    # The least number of this attempt: attempts that the broker lost do not count, nor those that began before the
    # loss, because the broker did not store their end.
    since = max(
        (fault.ended for fault in _faults_that_lose_counts(record, history) if fault.began <= later.began), default=0.0
    )
    counted = (run for run in record.runs if since <= run.began and run.ended <= earlier.ended)
    failures = sum(_failed(run, rules) for run in counted)
    wait = earlier.retry_after or min(rules.first_wait * 2.0 ** max(failures - 1, 0), rules.longest_wait)
    return (
        _failed(earlier, rules) and failures < rules.attempts and later.began >= earlier.ended + wait - CLOCK_TOLERANCE
    )


def _faults_that_lose_counts(record: MessageRecord, history: History) -> list[Fault]:
    """Return the faults by which the broker may count a message's attempts from one again."""
    return [fault for fault in history.faults if fault.loses_counts and fault.ended >= record.published.at]


def _fault_between(earlier: Run, later: Run, record: MessageRecord, history: History) -> str | None:
    """Return the fault that prevented the settlement of *earlier* while its worker had the message."""
    settled_by = _settled_by(earlier, record)
    (life,) = (life for life in history.lives if life.worker == earlier.worker)
    affecting = [fault for fault in history.faults if fault.affects(life) and fault.began <= later.began]
    if _ended_before_settling(life, earlier, later, settled_by, record):
        ends = (fault.kind for fault in affecting if fault.ends_workers)
        return next(ends, "worker killed" if life.killed else "worker stopped")
    for fault in affecting:
        if not fault.ends_workers and fault.began <= settled_by and earlier.began <= fault.ended + fault.recovery_time:
            return fault.kind
    late = _late_delivery(later, history) or _late_nak(earlier, later, record, history)
    return late or (STRANDING if _stranded(later, history) else None)


def _late_nak(earlier: Run, later: Run, record: MessageRecord, history: History) -> str | None:
    """Return the fault that delayed another worker's nak until *earlier* had run, and so ended its backoff."""
    for run in record.runs:
        (life,) = (life for life in history.lives if life.worker == run.worker)
        for fault in history.faults:
            nakked_during = (
                run.began < earlier.began and fault.began <= run.ended + SETTLE_TIME and run.ended <= fault.ended
            )
            if (
                nakked_during
                and fault.delays_messages
                and fault.affects(life)
                and earlier.began <= fault.ended <= later.began
            ):
                return fault.kind
    return None


def _late_delivery(later: Run, history: History) -> str | None:
    """Return the fault that let *later* begin with a stale delivery: a worker counts a lease from the arrival."""
    (life,) = (life for life in history.lives if life.worker == later.worker)
    late = (fault for fault in history.faults if fault.delays_messages and fault.affects(life))
    return next((fault.kind for fault in late if fault.began <= later.began <= fault.ended + SETTLE_TIME), None)


def _stranded(later: Run, history: History) -> bool:
    """Return whether an acked message may have stayed in the stream, and been redelivered by a recreated consumer."""
    full = [fault.began for fault in history.faults if fault.kind == STRANDING]
    recreated = [fault.began for fault in history.faults if fault.kind == RECREATED and fault.began <= later.began]
    return bool(full and recreated) and min(full) <= max(recreated)


def _ended_before_settling(
    life: WorkerLife, earlier: Run, later: Run, settled_by: float, record: MessageRecord
) -> bool:
    """Return whether a worker ended before it had settled *earlier*.

    A killed worker may have had any message that it had not settled. A stopped worker settles answered invocations; it
    may nak those without a response or a callback from then on.
    """
    if life.killed:
        return earlier.began <= life.ended <= min(settled_by, later.began + CLOCK_TOLERANCE)
    if life.stopped is None:
        return False
    ends = [
        callback.ended
        for callback in record.callbacks
        if earlier.ended - CLOCK_TOLERANCE <= callback.began <= life.ended
    ]
    unsettled = [earlier.ended] if earlier.answer == "none" else ends if earlier.answer == "final" else []
    return any(life.stopped <= end for end in unsettled)


def _settled_by(run: Run, record: MessageRecord) -> float:
    """Return the latest time at which a worker settles a run, without faults."""
    last_callback = max(
        (callback.ended for callback in record.callbacks if callback.began >= run.ended - CLOCK_TOLERANCE), default=0.0
    )
    return max(run.ended, last_callback if run.answer == "final" else 0.0) + SETTLE_TIME


def _check_attempts(record: MessageRecord, history: History, findings: Findings) -> None:
    rules, call_id = history.rules, record.published.call_id
    failures = sum(_failed(run, rules) for run in record.runs)
    lost_counts = bool(_faults_that_lose_counts(record, history))
    # A message whose term was lost is run by the next worker before it is given up again.
    if failures > rules.attempts + record.num_fault_repeats and not lost_counts:
        findings.out_of_policy.append(f"{call_id}: {failures} attempts failed, {rules.attempts} are allowed")
    if (dead_letter := record.dead_letter) is None:
        return
    if dead_letter.attempts < rules.attempts:
        findings.out_of_policy.append(f"{call_id}: given up after {dead_letter.attempts} of {rules.attempts} attempts")
    # Deliveries without an attempt count too, so there are at least as many deliveries as attempts.
    if dead_letter.deliveries < rules.attempts and not lost_counts:
        findings.out_of_policy.append(f"{call_id}: given up with {dead_letter.deliveries} deliveries")
    if not failures:
        findings.out_of_policy.append(f"{call_id}: given up, and never failed")


def _check_callbacks(record: MessageRecord, findings: Findings) -> None:
    call_id = record.published.call_id
    if not record.published.callback:
        if record.callbacks:
            findings.wrong_callbacks.append(f"{call_id}: called back, but has no callback URL")
        return
    ends = [run for run in record.runs if run.answer == "final" or record.dead_letter]
    if not any(callback.accepted for callback in record.callbacks):
        findings.wrong_callbacks.append(f"{call_id}: ended without a callback that its receiver accepted")
    for callback in record.callbacks:
        if not any(run.ended <= callback.began + CLOCK_TOLERANCE for run in ends):
            findings.wrong_callbacks.append(f"{call_id}: called back at {callback.began:.2f}, before its end")
        if callback.status not in ("200", "404") and not record.dead_letter:
            findings.wrong_callbacks.append(f"{call_id}: called back with status {callback.status}, but not given up")


def _check_undecodable(history: History, findings: Findings) -> None:
    undecodable = Counter(dead_letter.body for dead_letter in history.dead_letters if dead_letter.call_id is None)
    for payload, count in Counter(history.undecodable).items():
        if undecodable[payload] < count:
            findings.lost.append(f"undecodable: {count - undecodable[payload]} of {payload!r}")


def _check_worker(life: WorkerLife, rules: Rules, findings: Findings) -> None:
    if life.killed:
        return
    if life.code != 0 or life.stopped is None:
        findings.wrong_exits.append(f"{life.worker} ended with {life.code} at {life.ended:.2f}")
        return
    took = life.ended - life.stopped
    findings.drains.append((life.worker, took))
    if took > rules.drain:
        findings.wrong_exits.append(f"{life.worker} took {took:.2f} s to end; {rules.drain:g} s are promised")


def _recoveries(fault: Fault, history: History, records: Mapping[str, MessageRecord]) -> Iterator[float]:
    """Yield the time from the end of a fault to each recovery from it (s).

    A recovery is the next invocation of each affected worker that still runs, or of each message that an ended worker
    had not finished. After a fault of functions it is their next final answer; after one of callbacks, the next one.
    """
    for life in history.lives:
        if fault.ends_workers and fault.affects(life):
            yield from (again - life.ended for again in _repeats_elsewhere(life.worker, life.ended, records))
        elif fault.affects(life) and life.began <= fault.began:
            yield from _first_after(run.began - fault.ended for run in history.runs if run.worker == life.worker)
    if fault.kind.startswith("functions"):
        yield from _first_after(run.ended - fault.ended for run in history.runs if run.answer == "final")
    if fault.kind.startswith("callbacks"):
        yield from _first_after(callback.ended - fault.ended for callback in history.callbacks)


def _first_after(moments: Iterator[float]) -> Iterator[float]:
    """Yield the first moment that is not before 0."""
    later = [moment for moment in moments if moment >= 0]
    yield from [min(later)] if later else []


def _repeats_elsewhere(worker: str, ended: float, records: Mapping[str, MessageRecord]) -> Iterator[float]:
    """Yield the times at which the invocations that a worker ran at its end began again."""
    for record in records.values():
        for earlier, later in pairwise(record.runs):
            if earlier.worker == worker and earlier.answer == "none" and earlier.ended >= ended - CLOCK_TOLERANCE:
                yield max(later.began, ended)


def _describe(earlier: Run, later: Run) -> str:
    ran = f"{earlier.worker} {earlier.began:.2f}-{earlier.ended:.2f} ({earlier.answer})"
    return f"{later.call_id}: {ran}, then {later.worker} at {later.began:.2f}"
