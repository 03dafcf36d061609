"""``queue-worker dev``: the stack, left running until Ctrl-C."""

from __future__ import annotations

import fcntl
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import click
import trio

from .stack import Child, NotStartedError, Output, Stack, stack

STORE = Path(".queue-worker")
"""Directory of JetStream's files, below the working directory."""
_COLOURS = {"nats": "blue", "functions": "magenta", "gateway": "cyan", "worker": "green"}
_WIDTH = max(map(len, _COLOURS))


async def run(environment: Mapping[str, str]) -> None:
    """Run the stack until a stop signal; the errors are those of :func:`worker.dev.stack.stack`."""
    async with until_signalled() as workers:
        with _locked(STORE):
            async with stack(environment, STORE, printer(), workers) as running:
                click.echo(_instructions(running))
                await trio.sleep_forever()


@asynccontextmanager
async def until_signalled() -> AsyncIterator[list[Child]]:
    """Cancel the block at a stop signal.

    Each later signal sends SIGTERM to the workers that the block has added to the list: they give their invocations
    back at once.
    """
    workers: list[Child] = []
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_stop_on_signals, signals, scope, workers)
                yield workers
            nursery.cancel_scope.cancel()


async def _stop_on_signals(signals: AsyncIterator[int], scope: trio.CancelScope, workers: list[Child]) -> None:
    async for _ in signals:
        if scope.cancel_called:
            for worker in workers:
                worker.process.terminate()
        else:
            click.echo(
                "stopping, the worker first, which lets running invocations end; press Ctrl-C again to cut that short"
            )
            scope.cancel()


def printer() -> Output:
    """Return a function that prints a child's lines after its name; of NATS only warnings and errors."""
    coloured = sys.stdout.isatty()

    def output(name: str, line: str) -> None:
        if name == "nats" and "[INF]" in line:
            return
        label = f"{name:<{_WIDTH}} |"
        click.echo(f"{click.style(label, fg=_COLOURS[name]) if coloured else label} {line}")

    return output


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Lock *store* for the block, because two servers would corrupt its files."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotStartedError(f"another queue-worker dev is running in {store.resolve().parent}") from None
        yield


def _instructions(running: Stack) -> str:
    settings = running.settings
    nats = f"nats_port={settings.nats_port} " if settings.nats_port != 4222 else ""
    return f"""
Ready. Ctrl-C stops it; what is queued is kept in {STORE}/.
  gateway  {running.gateway}/async-function/<name>, with the functions fast, slow, flaky, broken, echo
  worker   {running.worker}/metrics, /healthz, /readyz
  NATS     nats://{settings.nats_host}:{settings.nats_port}, its monitoring at {running.monitor}

Try, in another terminal:
  curl -i {running.gateway}/async-function/flaky -d hello -H 'X-Callback-Url: {running.gateway}/function/receive'
  curl {running.gateway}/function/receive
  {nats}{_program()} submit slow --count 100
"""


def _program() -> str:
    """Return a command that starts this program: its virtual environment may not be active."""
    if shutil.which("queue-worker"):
        return "queue-worker"
    beside = Path(sys.executable).with_name("queue-worker")
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
