"""Programs for the time of a block."""

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

_LOOK = 0.01
"""Seconds between two looks at the counts: about one message in a hundred of a second's."""


class Failed(Exception):  # noqa: N818 -- it says what happened
    """A run is worthless: a program ended, or nothing moved. The text names the program."""


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
        """See that it still runs.

        Raises:
            Failed: it ended.
        """
        if (code := self.process.poll()) is not None:
            raise Failed(f"{self.name} ended with {code}:\n{self.told[-3000:]}")

    @property
    def told(self) -> str:
        """Its output."""
        return self.output.read_text(errors="replace")

    def finish(self, patience: float) -> str:
        """Wait until it ends by itself, in good order; what it wrote.

        Raises:
            Failed: it does not, in *patience* seconds.
        """
        try:
            if self.process.wait(patience):
                self.check()
        except subprocess.TimeoutExpired:
            raise Failed(f"{self.name} still runs after {patience:g} s:\n{self.told[-3000:]}") from None
        return self.told


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
    """Run a program for the time of the block, on some cores; both its outputs are in one file, really written."""
    output, given = (directory / f"{name}.{time.monotonic_ns()}.{suffix}" for suffix in ("out", "in"))
    given.write_bytes(stdin)
    with output.open("wb") as file, given.open("rb") as fed:
        process = subprocess.Popen(  # noqa: S603 -- our own
            command,
            stdin=fed,
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
    given.unlink()


def wait(look: Callable[[], Any], patience: float, what: str, *running: Running) -> Any:
    """Look until there is something, and return it.

    Raises:
        Failed: not within *patience* seconds, or one of *running* ended.
    """
    deadline = time.monotonic() + patience
    while not (found := look()):
        for each in running:
            each.check()
        if time.monotonic() > deadline:
            raise Failed(f"waited {patience:g} s for {what}")
        time.sleep(_LOOK)
    return found


def answers(port: int, path: str) -> bool:
    """Whether what listens at *port* of this machine answers with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
