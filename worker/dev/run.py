"""``queue-worker dev``: the stack, left running until Ctrl-C."""

from __future__ import annotations

import fcntl
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import click
import trio

from .children import Child, Output
from .stack import NotStartedError, Stack, stack

STORE = Path(".queue-worker")
"""Where JetStream's files are kept, below the working directory."""
_COLOURS = {"nats": "blue", "functions": "magenta", "gateway": "cyan", "worker": "green"}
_WIDTH = max(map(len, _COLOURS))

T = TypeVar("T")


async def run(environment: Mapping[str, str]) -> None:
    """Run the stack until a signal says stop. What it raises is what :func:`worker.dev.stack.stack` does."""
    started: list[Child] = []

    async def serve() -> None:
        with _locked(STORE):
            async with stack(environment, STORE, printer(), started) as running:
                click.echo(_greeting(running))
                await trio.sleep_forever()

    await until_signalled(serve, started)


async def until_signalled(work: Callable[[], Awaitable[T]], started: list[Child]) -> T | None:
    """What *work* returns, or None where a signal cancelled it, which lets it stop what it *started*.

    A second signal is passed on to the worker, which then gives back at once what it runs.
    """
    result: T | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                nursery.start_soon(_stop_on_signals, signals, scope, started)
                result = await work()
            nursery.cancel_scope.cancel()
    return result


async def _stop_on_signals(signals: AsyncIterator[int], scope: trio.CancelScope, started: list[Child]) -> None:
    async for _ in signals:
        if scope.cancel_called:
            for child in started:
                if child.name == "worker":
                    child.terminate()
        else:
            click.echo("stopping: the worker first, which lets running invocations end; once more to cut that short")
            scope.cancel()


def printer() -> Output:
    """Prints a child's lines with its name before them; of NATS only warnings and worse, since it has much to say."""
    coloured = sys.stdout.isatty()

    def say(name: str, line: str) -> None:
        if name == "nats" and "[INF]" in line:
            return
        label = f"{name:<{_WIDTH}} |"
        click.echo(f"{click.style(label, fg=_COLOURS[name]) if coloured else label} {line}")

    return say


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Keep *store* to ourselves: two servers on the same files would spoil them."""
    store.mkdir(parents=True, exist_ok=True)
    with (store / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotStartedError(f"another queue-worker dev is running in {store.resolve().parent}") from None
        yield


def _greeting(running: Stack) -> str:
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
    """Our own program, as it can be called from here: it may be in a virtual environment that is not active."""
    if shutil.which("queue-worker"):
        return "queue-worker"
    beside = Path(sys.executable).with_name("queue-worker")
    here = Path.cwd()
    return str(beside.relative_to(here) if beside.is_relative_to(here) else beside)
