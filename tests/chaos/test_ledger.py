"""Tests of the ledger: histories that keep every promise, and histories that break one each."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.chaos.history import DeadLetter, Fault, History, PublishedMessage, ReceivedCallback, Rules, Run, WorkerLife
from tests.chaos.ledger import RECREATED, STRANDING, check

RULES = Rules(attempts=3, first_wait=1.0, longest_wait=4.0, upstream_timeout=10.0, ack_wait=6.0, drain=7.0)
W1 = WorkerLife("w1", 0.0, 100.0, 101.0, 0)
W2 = WorkerLife("w2", 0.0, 100.0, 102.0, 0)


def history(
    *runs: Run, dead_letters: Sequence[DeadLetter] = (), callbacks: Sequence[ReceivedCallback] = (), **changes: object
) -> History:
    """Return the history of one message, ``call``, that is published at 1 s."""
    callback = bool(callbacks)
    usual = History(RULES, [PublishedMessage("call", "f", 1.0, callback)], runs, callbacks, dead_letters, [W1, W2], [])
    return replace(usual, **changes)  # type: ignore[arg-type]  # mypy cannot see which


def failed(began: float, ended: float, worker: str = "w1") -> Run:
    return Run("call", worker, began, ended, "retry")


def done(began: float, ended: float, worker: str = "w1") -> Run:
    return Run("call", worker, began, ended, "final")


def aborted(began: float, ended: float, worker: str = "w1") -> Run:
    return Run("call", worker, began, ended, "none")


def test_ledger_retry_after_backoff_is_sound() -> None:
    """The ledger accepts a retry after its backoff as a cause, and a final answer as an end."""
    findings = check(history(failed(2, 3), done(4, 5)))
    assert findings.sound
    assert findings.causes == {"retry": 1}
    assert findings.drains == [("w1", 1.0), ("w2", 2.0)]


def test_ledger_dead_letter_after_all_attempts_is_sound() -> None:
    """The ledger accepts a dead letter after all attempts, each after its backoff, as an end."""
    assert check(history(failed(2, 3), failed(4, 5), failed(7, 8), dead_letters=[DeadLetter("call", 3, 3)])).sound


@pytest.mark.parametrize(
    ("promise", "broken_history"),
    [
        ("lost", history()),
        ("lost", history(failed(2, 3))),
        ("lost", history(done(2, 3), num_unfinished=1)),
        ("lost", history(done(2, 3), num_stored=1)),
        ("lost", history(done(2, 3), undecodable=[b"x", b"x"], dead_letters=[DeadLetter(None, 0, 1, b"x")])),
        ("not as published", history(done(2, 3), Run("other", "w1", 2, 3, "final"))),
        ("not as published", history(replace(done(2, 3), intact=False))),
        ("not as published", history(done(2, 3), dead_letters=[DeadLetter("other", 3, 3)])),
        ("invoked again without cause", history(done(2, 3), done(5, 6))),
        ("invoked again without cause", history(aborted(2, 3), done(5, 6))),
        ("invoked again without cause", history(failed(2, 5), done(4, 6))),
        ("attempts out of policy", history(failed(2, 3), done(3.9, 5))),
        ("attempts out of policy", history(failed(2, 3), failed(4, 5), done(6.9, 8))),
        ("attempts out of policy", history(replace(failed(2, 3), retry_after=2.0), done(4.5, 5))),
        ("attempts out of policy", history(failed(2, 3), failed(4, 5), failed(7, 8), done(12, 13))),
        ("attempts out of policy", history(failed(2, 3), dead_letters=[DeadLetter("call", 1, 3)])),
        ("attempts out of policy", history(failed(2, 3), dead_letters=[DeadLetter("call", 3, 2)])),
        ("attempts out of policy", history(dead_letters=[DeadLetter("call", 3, 3)])),
        ("callbacks", history(done(2, 3), published=[PublishedMessage("call", "f", 1.0, callback=True)])),
        ("callbacks", history(done(2, 3), callbacks=[ReceivedCallback("call", 2.5, 2.6, "200")])),
        ("callbacks", history(done(2, 3), callbacks=[ReceivedCallback("call", 3.5, 3.6, "200", accepted=False)])),
        ("callbacks", history(failed(2, 3), done(4, 5), callbacks=[ReceivedCallback("call", 3.5, 3.6, "500")])),
        ("callbacks", history(failed(2, 3), done(4, 5), callbacks=[ReceivedCallback("call", 5.5, 5.6, "500")])),
        ("ends of workers", history(done(2, 3), lives=[replace(W1, ended=107.5)])),
        ("ends of workers", history(done(2, 3), lives=[replace(W1, code=1)])),
        ("ends of workers", history(done(2, 3), lives=[replace(W1, code=0, stopped=None)])),
        ("ends of workers", history(done(2, 3), lives=[replace(W1, code=-signal.SIGSEGV)])),
    ],
)
def test_ledger_broken_promise_is_the_only_one_found(promise: str, broken_history: History) -> None:
    """The ledger finds the promise that a history breaks, and no other."""
    assert list(check(broken_history).broken) == [promise]


STOPPED = replace(W1, stopped=1.0, ended=3.0)
FATAL = Fault("worker stopped in the end", 1.0, 3.0, frozenset({"w1"}), ends_workers=True)
CUT = Fault("connection cut", 2.5, 2.6, frozenset({"w1"}), recovery_time=1.0)


@pytest.mark.parametrize(
    ("cause", "explained"),
    [
        ("connection cut", history(done(2, 3), done(5, 6, "w2"), faults=[CUT])),
        ("connection cut", history(done(2.55, 3), done(5, 6, "w2"), faults=[CUT])),
        ("connection cut", history(aborted(3.5, 3.6), done(5, 6, "w2"), faults=[CUT])),
        ("connection cut", history(failed(2, 3), done(3.5, 6, "w2"), faults=[CUT])),
        (
            "broker killed",
            history(done(2, 3), done(5, 6, "w2"), faults=[replace(CUT, kind="broker killed", workers=None)]),
        ),
        (
            "connection stalled",
            history(
                done(2, 3),
                done(7, 8, "w2"),
                faults=[Fault("connection stalled", 1, 6, frozenset({"w2"}), delays_messages=True)],
            ),
        ),
        (
            STRANDING,
            history(
                done(2, 3),
                done(9, 10, "w2"),
                faults=[Fault(STRANDING, 0.1, 0.2, None), Fault(RECREATED, 8.9, 8.9, None)],
            ),
        ),
        ("worker killed", history(aborted(2, 3), done(9, 10, "w2"), lives=[replace(W1, ended=3.0, code=-9), W2])),
        ("worker killed", history(done(2, 3), done(9, 10, "w2"), lives=[replace(W1, ended=3.1, code=-9), W2])),
        ("worker stopped", history(aborted(2, 3), done(3, 10, "w2"), lives=[STOPPED, W2])),
        ("worker stopped in the end", history(aborted(2, 3), done(3, 10, "w2"), lives=[STOPPED, W2], faults=[FATAL])),
        (
            "worker stopped in the end",
            history(
                done(2, 2.5),
                done(3, 10, "w2"),
                lives=[STOPPED, W2],
                faults=[FATAL],
                callbacks=[ReceivedCallback("call", 2.6, 3.0, "200"), ReceivedCallback("call", 10, 10.1, "200")],
            ),
        ),
    ],
)
def test_ledger_fault_while_the_worker_had_the_message_is_a_cause(cause: str, explained: History) -> None:
    """A fault that affected a worker while it had the message explains a repeat of the invocation."""
    findings = check(explained)
    assert findings.sound, findings.broken
    assert findings.causes == {cause: 1}


@pytest.mark.parametrize(
    "unexplained",
    [
        history(done(2, 3), done(5, 6), faults=[replace(CUT, workers=frozenset({"w2"}))]),
        history(done(2, 3), done(9, 10), faults=[replace(CUT, began=5.6, ended=5.7)]),
        history(aborted(3.7, 3.8), done(9, 10), faults=[CUT]),
        history(
            done(2, 3),
            done(9, 10, "w2"),
            faults=[Fault("connection stalled", 1, 6, frozenset({"w2"}), delays_messages=True)],
        ),
        history(
            done(2, 3), done(9, 10, "w2"), faults=[Fault(STRANDING, 8.8, 8.85, None), Fault(RECREATED, 8.7, 8.7, None)]
        ),
        history(
            aborted(9, 10), done(12, 13, "w2"), lives=[replace(W1, began=8.0), W2], faults=[replace(CUT, workers=None)]
        ),
        history(done(2, 2.5), done(4, 5, "w2"), lives=[STOPPED, W2], faults=[FATAL]),
        history(done(2, 3), done(9, 10, "w2"), lives=[replace(W1, ended=6.0, code=-9), W2]),
        history(aborted(2, 3), done(4, 5, "w2"), lives=[replace(W1, ended=6.0, code=-9), W2]),
    ],
)
def test_ledger_fault_elsewhere_or_at_another_time_is_no_cause(unexplained: History) -> None:
    """A fault of another worker, after the settlement, or long before the delivery explains no repeat."""
    assert list(check(unexplained).broken) == ["invoked again without cause"]


def test_ledger_nak_that_arrives_late_ends_a_backoff() -> None:
    """A worker's nak that a fault delays past another worker's attempt ends the backoff of that attempt."""
    runs = failed(2, 3, "w2"), failed(7, 8), done(8.5, 9)
    still = Fault("connection stalled", 3.1, 8.2, frozenset({"w2"}), delays_messages=True)
    assert check(history(*runs, faults=[still])).sound
    over = replace(still, ended=6.9)
    assert list(check(history(*runs, faults=[over])).broken) == ["attempts out of policy"]


def test_ledger_lost_delivery_counts_allow_more_attempts() -> None:
    """After the broker has lost its counts there may be more attempts, each still after its backoff.

    Attempts that began before the loss do not count, even if they ended after it, because their records are lost.
    """
    loses_counts = Fault("consumer deleted", 8.5, 8.6, frozenset({"w1"}), loses_counts=True)
    again = check(
        history(failed(2, 3), failed(4, 5), failed(7, 9), failed(10, 11), done(12, 14), faults=[loses_counts])
    )
    assert again.sound
    assert again.causes == {"retry": 4}
    too_early = check(
        history(failed(2, 3), failed(4, 5), failed(7, 9), failed(10, 11), done(11.9, 14), faults=[loses_counts])
    )
    assert list(too_early.broken) == ["attempts out of policy"]


def test_ledger_message_stranded_by_a_full_disk_is_not_lost() -> None:
    """Stored messages without a consumer are reported, and do not count as lost, where a disk was full."""
    assert check(history(done(2, 3), num_stored=1, faults=[Fault(STRANDING, 1, 2)])).sound


def test_ledger_fault_with_later_invocations_has_recoveries() -> None:
    """A recovery lasts until the affected worker's next invocation, or until a dead worker's runs elsewhere."""
    cut = check(history(failed(2, 3), done(4, 5), faults=[CUT]))
    assert cut.recoveries == {"connection cut": [pytest.approx(1.4)]}
    killed = Fault("worker killed", 3.0, 3.0, frozenset({"w1"}), ends_workers=True)
    lives = [replace(W1, ended=3.0, code=-9), W2]
    assert check(history(aborted(2, 3), done(9, 10, "w2"), lives=lives, faults=[killed])).recoveries == {
        "worker killed": [6.0]
    }
