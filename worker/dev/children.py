"""Child processes as context managers.

Leaving the block stops the child, and a child that ends by itself ends the block. Nested blocks stop in the order of
their nesting, innermost first.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

_LONGEST_LINE = 64 * 1024
"""Bytes after which a line is passed on in pieces."""

Output = Callable[[str, str], None]
"""Told each line of output: the child's name, the line."""


class ChildEndedError(Exception):
    """A child ended that nobody had stopped."""


@dataclass(eq=False)
class Child:
    """A running process."""

    name: str
    process: trio.Process
    stopping: bool = False

    async def stop(self, within: float) -> int:
        """Ask it to end (SIGTERM), and kill it where it does not within so many seconds; its exit code."""
        self.stopping = True
        self.terminate()
        with trio.move_on_after(within):
            return await self.process.wait()
        self.process.kill()
        return await self.process.wait()

    def terminate(self) -> None:
        """SIGTERM, once more."""
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)


@asynccontextmanager
async def child(
    name: str, command: Sequence[str], environment: Mapping[str, str], say: Output, stop_within: float, *pass_fds: int
) -> AsyncIterator[Child]:
    """Run *command* beside the block, and stop it when the block is left, however it is left.

    It is in a process group of its own, so that Ctrl-C reaches only us, and we say who stops when.

    Args:
        name: what to call it.
        command: program and arguments.
        environment: its variables, all of them.
        say: told its output, both streams, line by line.
        stop_within: seconds for it to end when asked, before it is killed.
        pass_fds: files that it inherits.

    Raises:
        ChildEndedError: it ended by itself. (In a group, as nurseries raise.)
    """
    process = await trio.lowlevel.open_process(
        list(command),
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        pass_fds=pass_fds,
    )
    running = Child(name, process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, running, say)
        try:
            yield running
        finally:
            with trio.CancelScope(shield=True):
                await running.stop(stop_within)


async def _watch(running: Child, say: Output) -> None:
    """Pass the output on, and complain where the process ends without having been asked to."""
    with trio.CancelScope(shield=True):  # what it writes while it is being stopped counts, and it must not block on it
        async for line in _lines(running.process):
            say(running.name, line)
        code = await running.process.wait()
    if not running.stopping:
        what = f"ended by itself, {_how(code)}"
        say(running.name, what)
        raise ChildEndedError(f"{running.name} {what}")


async def _lines(process: trio.Process) -> AsyncIterator[str]:
    assert process.stdout is not None  # noqa: S101 -- for the type checker: it was asked for
    rest = b""
    async for chunk in process.stdout:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LONGEST_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")


def _how(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
