"""Child processes as context managers.

Leaving the block stops the child, and a child that ends by itself ends the block. Nested blocks stop in the order of
their nesting, innermost first.
"""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ..parent.processes import exit_text

_MAX_LINE = 64 * 1024
"""Bytes of output without a line end that are passed on as a line of their own."""

Output = Callable[[str, str], None]
"""Function that is called with a child's name and one line of its output."""


class ChildEndedError(Exception):
    """A child ended although :meth:`Child.stop` was not called."""


@dataclass(eq=False)
class Child:
    """A running process."""

    name: str
    process: trio.Process
    stopping: bool = False

    async def stop(self, within: float) -> int:
        """Send SIGTERM, kill the process if it runs *within* seconds later, and return its exit code."""
        self.stopping = True
        self.terminate()
        with trio.move_on_after(within):
            return await self.process.wait()
        self.process.kill()
        return await self.process.wait()

    def terminate(self) -> None:
        """Send SIGTERM, unless the process has ended."""
        if self.process.returncode is None:
            self.process.terminate()


@asynccontextmanager
async def child(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str],
    output: Output,
    stop_within: float,
    *pass_fds: int,
) -> AsyncIterator[Child]:
    """Run *command* beside the block, and stop it when the block is left.

    The child has a process group of its own. So Ctrl-C reaches only this program, which stops the children in order.
    *output* is called with each line of both its streams; *stop_within* is the time (s) from SIGTERM to SIGKILL.

    Raises:
        ChildEndedError: the child ended before it was stopped. (In a group, as nurseries raise.)
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
    started = Child(name, process)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, started, output)
        try:
            yield started
        finally:
            with trio.CancelScope(shield=True):
                await started.stop(stop_within)


async def _watch(watched: Child, output: Output) -> None:
    """Pass the output on, and raise ChildEndedError where the process ends before it was stopped."""
    with trio.CancelScope(shield=True):  # a child that is being stopped must not block on its output
        async for line in _lines(watched.process):
            output(watched.name, line)
        code = await watched.process.wait()
    if not watched.stopping:
        output(watched.name, exit_text(code))
        raise ChildEndedError(f"{watched.name} {exit_text(code)}")


async def _lines(process: trio.Process) -> AsyncIterator[str]:
    assert process.stdout is not None  # noqa: S101 -- for the type checker: it was asked for
    rest = b""
    async for chunk in process.stdout:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _MAX_LINE:
            lines, rest = [*lines, rest], b""
        for line in lines:
            yield line.decode("utf-8", "replace").rstrip("\r")
    if rest:
        yield rest.decode("utf-8", "replace")
