"""``queue-worker dev --demo``: submit a few hundred invocations, follow them to their callbacks, and check each."""

from __future__ import annotations

import tempfile
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import trio
from rich.console import Console
from rich.status import Status
from rich.table import Column, Table

from ..settings import SETTING_FIELDS
from .functions import failures_of_flaky
from .stack import NotStartedError, Stack, free_port, print_line, print_text, stack, until_signalled

FIRST_CALLS = Counter(fast=150, slow=40, flaky=60, broken=30)
"""Function to number of invocations that are submitted first, and must end before the drain."""
LAST_CALLS = Counter(slow=10)
"""Function to number of invocations that run while the worker drains."""
_SETTINGS = {"max_inflight": "25", "max_retry_attempts": "4", "initial_retry_wait": "200ms", "max_retry_wait": "2s"}
"""Settings of the demonstration: short waits, and so few slots that the progress is visible."""
_FINISH_TIMEOUT = 60.0
"""Seconds for all invocations to end. They take about six."""
_POLL_INTERVAL = 0.2
"""Seconds between two requests for the progress."""
_LINE_INTERVAL = 1.0
"""Seconds between two lines of progress where standard output is no terminal."""
_MAX_REQUESTS = 20
"""Concurrent requests to the gateway."""
_MAX_LINES = 100
"""Last lines of the children's output that are printed after a failure."""
_MAX_FAULTS = 10
"""Faults that are printed; the others are counted."""


async def run_demo(environment: Mapping[str, str]) -> bool:
    """Run the demonstration, and return whether every invocation ended as expected; the errors are the stack's."""
    log: deque[tuple[str, str]] = deque(maxlen=_MAX_LINES)
    output = print_line if environment.get("debug") in ("true", "1") else lambda name, line: log.append((name, line))
    succeeded = False
    try:
        async with until_signalled() as workers:
            print_text("Starting NATS, demo functions, gateway and worker ...")
            with tempfile.TemporaryDirectory(prefix="queue-worker-demo-") as directory:
                async with stack(_settings(environment), Path(directory), output, workers) as running:
                    result = await _Demo(running).run()
            succeeded = result
    finally:
        if not succeeded:
            for name, line in log:
                print_line(name, line)
    return succeeded


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment with the demonstration's settings instead of its own."""

    def is_setting(variable: str) -> bool:
        name = variable.lower().removeprefix("queue_worker_")
        return name in SETTING_FIELDS or name.removesuffix("_file") in SETTING_FIELDS

    ports = {name: str(free_port()) for name in ("nats_port", "listen_port", "http_port")}
    kept = {name: value for name, value in environment.items() if not is_setting(name) or name == "debug"}
    return kept | _SETTINGS | ports


class _Demo:
    def __init__(self, running: Stack) -> None:
        self._running = running
        self._console = Console(highlight=False)
        self._client = httpx.AsyncClient(trust_env=False, timeout=10.0)
        self._observed = Observation()
        self._next_line = 0.0

    async def run(self) -> bool:
        """Submit the invocations, wait for them, drain the worker, and return whether there was no fault."""
        async with self._client:
            await self._submit(FIRST_CALLS)
            with self._console.status("") as status:
                await self._poll_until(partial(self._show_progress, status))
            await self._submit(LAST_CALLS)
            await self._poll_until(lambda: len(self._observed.runs) == len(self._observed.functions))
            self._console.print(f"SIGTERM to the worker, while it runs {LAST_CALLS['slow']} slow invocations ...")
            began = trio.current_time()
            code = await self._running.worker_process.stop()
            seconds = trio.current_time() - began
            await self._poll()
        return self._report(code, seconds)

    async def _submit(self, plan: Counter[str]) -> None:
        limit = trio.CapacityLimiter(_MAX_REQUESTS)
        headers = {"X-Callback-Url": f"{self._running.functions}/function/receive"}

        async def submit(function: str) -> None:
            url = f"{self._running.gateway}/async-function/{function}"
            async with limit:
                answer = await self._client.post(url, content=b"a body", headers=headers)
            if answer.status_code != 202:
                raise NotStartedError(f"the gateway answers {answer.status_code}: {answer.text.strip()[:200]}")
            self._observed.functions[answer.headers["X-Call-Id"]] = function

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for each in plan.elements():
                nursery.start_soon(submit, each)
        what = ", ".join(f"{count} {function}" for function, count in plan.items())
        self._console.print(f"Submitted {plan.total()} in {trio.current_time() - began:.1f} s: {what}")

    async def _poll_until(self, done: Callable[[], bool]) -> None:
        """Poll until *done*. After the timeout the report names the missing callbacks."""
        with trio.move_on_after(_FINISH_TIMEOUT):
            await self._poll()
            while not done():
                await trio.sleep(_POLL_INTERVAL)
                await self._poll()

    async def _poll(self) -> None:
        observed, functions = self._observed, f"{self._running.functions}/function"
        observed.callbacks += await self._get(f"{functions}/receive?after={len(observed.callbacks)}")
        observed.runs = {call: runs for call, _, runs in await self._get(f"{functions}/runs")}
        accounts = (await self._get(f"{self._running.monitor}/jsz?streams=true")).get("account_details", [])
        details = (detail for account in accounts for detail in account.get("stream_detail", []))
        stored = {detail["name"]: detail["state"]["messages"] for detail in details}
        stream = self._running.settings.nats_stream
        observed.left, observed.dead = stored.get(stream, -1), stored.get(f"{stream}-dead-letters", 0)

    async def _get(self, url: str) -> Any:
        return (await self._client.get(url)).raise_for_status().json()

    def _report(self, code: int, seconds: float) -> bool:
        faults = find_faults(self._observed, self._running.settings.max_retry_attempts)
        if code != 0:
            faults.append(f"the worker ended with exit code {code}, not 0")
        show = self._console.print
        show(f"The worker drained in {seconds:.1f} s and ended with exit code {code}.")
        show(summary_table(self._observed))
        show(f"Left on the queue: {self._observed.left}. In the dead-letter stream: {self._observed.dead}.")
        if not faults:
            show(f"All {len(self._observed.functions)} invocations ended as they must.", style="green")
            return True
        show(f"{len(faults)} results are wrong:", style="red")
        for fault in faults[:_MAX_FAULTS]:
            show(f"  {fault}", markup=False)
        if len(faults) > _MAX_FAULTS:
            show(f"  and {len(faults) - _MAX_FAULTS} more")
        return False

    def _show_progress(self, status: Status) -> bool:
        """Show each function's callbacks, on a terminal in place, else once a second; return whether all arrived."""
        called_back = self._observed.called_back()
        text = "  ".join(f"{function} {called_back[function]}/{count}" for function, count in FIRST_CALLS.items())
        if self._console.is_terminal:
            status.update(text)
        elif trio.current_time() >= self._next_line:
            self._next_line = trio.current_time() + _LINE_INTERVAL
            self._console.print(text)
        return self._observed.left == 0 and called_back.total() == len(self._observed.functions)


# The verdict. No I/O.


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
        status = 500 if function == "broken" else 200
        retries = {"broken": attempts - 1, "flaky": failures_of_flaky(call)}.get(function, 0)
        if not (results := by_call[call]):
            faults.append(f"{function} {call}: no callback")
        elif results != [(str(status), str(retries))]:
            expected = f"status {status} after {retries} retries"
            faults.append(f"{function} {call}: called back with {results}, not with {expected}")
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
    numbers = ("submitted", "succeeded", "retried", "dead letters", "callbacks", "lost")
    table = Table("function", *(Column(name, justify="right") for name in numbers))
    functions, called_back = observed.functions, observed.called_back()
    for function, submitted in sorted(Counter(functions.values()).items()):
        callbacks = [each for each in observed.callbacks if functions.get(each.get("x-call-id", "")) == function]
        succeeded = [each for each in callbacks if each.get("x-function-status") == "200"]
        retried = [each for each in callbacks if each.get("x-retry", "0") != "0"]
        last = [each for each in retried if each.get("x-retry") == each.get("x-retry-max")]
        given_up = sum(each not in succeeded for each in last)
        counts = submitted, len(succeeded), len(retried), given_up, len(callbacks), submitted - called_back[function]
        table.add_row(function, *map(str, counts))
    return table
