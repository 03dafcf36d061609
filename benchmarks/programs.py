"""Context managers that run a program."""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import ROOT, environment

from .machine import REST, pin

_POLL = 0.01
"""Seconds between two readings of the counts."""


class RunFailedError(Exception):
    """A run without a result: a program ended, or made no progress. The text names the program."""


@dataclass(frozen=True, slots=True)
class Running:
    """A program that was started."""

    name: str
    process: subprocess.Popen[bytes]
    output: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def check(self) -> None:
        """Check that the program still runs.

        Raises:
            RunFailedError: the program ended.
        """
        if (code := self.process.poll()) is not None:
            raise RunFailedError(f"{self.name} ended with {code}:\n{self.output_text[-3000:]}")

    @property
    def output_text(self) -> str:
        """The output of the program."""
        return self.output.read_text(errors="replace")

    def finish(self, timeout: float) -> str:
        """Wait until the program ends with exit 0, and return its output.

        Raises:
            RunFailedError: the program failed, or still runs after *timeout* seconds.
        """
        try:
            if self.process.wait(timeout):
                self.check()
        except subprocess.TimeoutExpired:
            raise RunFailedError(f"{self.name} still runs after {timeout:g} s:\n{self.output_text[-3000:]}") from None
        return self.output_text


@contextmanager
def program(
    name: str,
    command: tuple[str, ...],
    directory: Path,
    settings: Mapping[str, str],
    *,
    cores: frozenset[int] = REST,
    stdin: bytes = b"",
) -> Iterator[Running]:
    """Run a program inside the block, on some cores, with both its outputs in one file on disk."""
    output, stdin_path = (directory / f"{name}.{time.monotonic_ns()}.{suffix}" for suffix in ("out", "in"))
    stdin_path.write_bytes(stdin)
    with output.open("wb") as file, stdin_path.open("rb") as stdin_file:
        process = subprocess.Popen(  # noqa: S603 -- this project's programs
            command,
            stdin=stdin_file,
            stdout=file,
            stderr=file,
            env=environment(settings),
            cwd=ROOT,
            preexec_fn=lambda: pin(cores),  # noqa: PLW1509 -- there are no threads here
            start_new_session=True,
        )
    try:
        yield Running(name, process, output)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    output.unlink()
    stdin_path.unlink()


def wait(condition: Callable[[], Any], timeout: float, what: str, *running: Running) -> Any:
    """Call *condition* until its result is true, and return that result.

    Raises:
        RunFailedError: the result was not true within *timeout* seconds, or one of *running* ended.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        for each in running:
            each.check()
        if time.monotonic() > deadline:
            raise RunFailedError(f"waited {timeout:g} s for {what}")
        time.sleep(_POLL)
    return result


def answers(port: int, path: str) -> bool:
    """Return whether a server on *port* of this machine responds with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
