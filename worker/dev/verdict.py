"""The verdict on the demonstration: its invocations' results compared with the expected ones. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.table import Table

from .functions import failures_of_flaky


@dataclass(slots=True)
class Observation:
    """The submitted invocations, and their effects that were observed so far."""

    functions: dict[str, str] = field(default_factory=dict)
    """Call id to function."""
    callbacks: list[Mapping[str, str]] = field(default_factory=list)
    """The headers of each callback, names in lower case."""
    runs: Mapping[str, int] = field(default_factory=dict)
    """Call id to the number of requests that reached the function."""
    left: int = -1
    """Messages on the stream, -1 where unknown."""
    dead: int = -1
    """Messages on the dead-letter stream, -1 where unknown."""

    def called_back(self) -> Counter[str]:
        """Count the invocations of each function that have a callback."""
        called_back = {callback.get("x-call-id", "") for callback in self.callbacks}
        return Counter(function for call, function in self.functions.items() if call in called_back)


def expected(function: str, call_id: str, attempts: int) -> tuple[int, int]:
    """Return the status and the number of retries that the callback must report."""
    if function == "broken":
        return 500, attempts - 1
    return 200, failures_of_flaky(call_id) if function == "flaky" else 0


def find_faults(observed: Observation, attempts: int) -> list[str]:
    """Return one sentence for each result that is not as expected, with *attempts* as max_retry_attempts."""
    faults = []
    by_call: dict[str, list[tuple[str | None, str]]] = {call: [] for call in observed.functions}
    for callback in observed.callbacks:
        call = callback.get("x-call-id", "")
        if call in by_call:
            by_call[call].append((callback.get("x-function-status"), callback.get("x-retry", "0")))
        else:
            faults.append(f"a callback for {call or 'no call id'}, which was not submitted")
    for call, function in observed.functions.items():
        status, retries = expected(function, call, attempts)
        if not by_call[call]:
            faults.append(f"{function} {call}: no callback")
        elif by_call[call] != [(str(status), str(retries))]:
            faults.append(
                f"{function} {call}: called back with {by_call[call]}, not with status {status} after {retries} retries"
            )
        if (runs := observed.runs.get(call, 0)) != retries + 1:
            faults.append(f"{function} {call}: ran {runs} times, not {retries + 1}")
    given_up = sum(function == "broken" for function in observed.functions.values())
    if observed.left != 0:
        faults.append(f"the stream holds {observed.left} messages, not 0")
    if observed.dead != given_up:
        faults.append(f"the dead-letter stream holds {observed.dead} messages, not {given_up}")
    return faults


def summary_table(observed: Observation) -> Table:
    """Count the results of each function."""
    table = Table("function", "submitted", "succeeded", "retried", "dead letters", "callbacks", "lost")
    for column in table.columns[1:]:
        column.justify = "right"
    called_back = observed.called_back()
    for function, submitted in sorted(Counter(observed.functions.values()).items()):
        callbacks = [
            each for each in observed.callbacks if observed.functions.get(each.get("x-call-id", "")) == function
        ]
        succeeded = sum(each.get("x-function-status") == "200" for each in callbacks)
        retried = [each for each in callbacks if each.get("x-retry", "0") != "0"]
        given_up = sum(
            each.get("x-retry") == each.get("x-retry-max") and each.get("x-function-status") != "200"
            for each in retried
        )
        counts = submitted, succeeded, len(retried), given_up, len(callbacks), submitted - called_back[function]
        table.add_row(function, *map(str, counts))
    return table
