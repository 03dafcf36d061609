"""What must have become of the demonstration's invocations, held against what did. Pure, but for the table it draws."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table

from .functions import failures_of_flaky


@dataclass(slots=True)
class Observation:
    """What was submitted, and what is known of it."""

    functions: dict[str, str] = field(default_factory=dict)
    """Call id to function."""
    callbacks: list[Mapping[str, str]] = field(default_factory=list)
    """The headers of each callback, names in lower case."""
    runs: Mapping[str, int] = field(default_factory=dict)
    """Call id to how often it reached its function."""
    left: int = -1
    """Messages on the stream, -1 where nobody knows."""
    dead: int = -1
    """Messages on the stream of dead letters, the same."""

    def called_back(self) -> Counter[str]:
        """Functions, and of how many of their calls a callback told the end."""
        known = {callback.get("x-call-id", "") for callback in self.callbacks}
        return Counter(function for call, function in self.functions.items() if call in known)


def expected(function: str, call_id: str, attempts: int) -> tuple[int, int]:
    """The status that the callback must tell, and how many retries."""
    if function == "broken":
        return 500, attempts - 1
    return 200, failures_of_flaky(call_id) if function == "flaky" else 0


def find_faults(seen: Observation, attempts: int) -> list[str]:
    """What is not as it must be, one sentence each; nothing where all is well.

    Args:
        seen: what is known.
        attempts: how many each invocation may have.
    """
    faults = []
    by_call: dict[str, list[Mapping[str, str]]] = {call: [] for call in seen.functions}
    for callback in seen.callbacks:
        call = callback.get("x-call-id", "")
        if call not in by_call:
            faults.append(f"a callback for {call or 'no call id'}, which nobody submitted")
        else:
            by_call[call].append(callback)
    for call, function in seen.functions.items():
        status, retries = expected(function, call, attempts)
        told = [(each.get("x-function-status"), each.get("x-retry", "0")) for each in by_call[call]]
        if not told:
            faults.append(f"{function} {call}: no callback")
        elif told != [(str(status), str(retries))]:
            faults.append(
                f"{function} {call}: called back with {told}, not with status {status} after {retries} retries"
            )
        if (runs := seen.runs.get(call, 0)) != retries + 1:
            faults.append(f"{function} {call}: ran {runs} times, not {retries + 1}")
    given_up = sum(function == "broken" for function in seen.functions.values())
    if seen.left != 0:
        faults.append(f"the stream holds {seen.left} messages, not 0")
    if seen.dead != given_up:
        faults.append(f"the stream of dead letters holds {seen.dead} messages, not {given_up}")
    return faults


def summary_table(seen: Observation) -> Table:
    """What happened to how many, by function."""
    drawn = Table("function", "submitted", "succeeded", "retried", "dead letters", "callbacks", "lost")
    for column in drawn.columns[1:]:
        column.justify = "right"
    called_back = seen.called_back()
    for function, submitted in sorted(Counter(seen.functions.values()).items()):
        told = [each for each in seen.callbacks if seen.functions.get(each.get("x-call-id", "")) == function]
        drawn.add_row(function, *map(str, _counts(submitted, told, called_back[function])))
    return drawn


def _counts(submitted: int, told: Sequence[Mapping[str, str]], called_back: int) -> tuple[int, ...]:
    retried = [each for each in told if each.get("x-retry", "0") != "0"]
    succeeded = sum(each.get("x-function-status") == "200" for each in told)
    given_up = sum(
        each.get("x-retry") == each.get("x-retry-max") and each.get("x-function-status") != "200" for each in retried
    )
    return submitted, succeeded, len(retried), given_up, len(told), submitted - called_back
