"""``queue-worker dev`` and its demonstration: the whole product, every part a real process."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.patience import LAST_RESORT
from tests.servers import Program, run_program, wait_until
from tests.wire import WireConnection
from worker.cli.dev import read_dotenv
from worker.dev.demo import Observation, find_faults
from worker.dev.functions import failures_of_flaky
from worker.dev.stack import NotStartedError, find_nats_server, free_port

PARTS = {
    "nats": "nats-server",
    "functions": "worker.dev.functions",
    "gateway": "worker.cli gateway",
    "worker": "-m worker",
}
"""Part of the stack to the text that only its command line contains."""


class Dev(Program):
    """``queue-worker dev`` on free ports, in a directory of its own."""

    def __init__(self, tmp_path: Path, *arguments: str, **settings: object) -> None:
        self.ports = {name: free_port() for name in ("nats_port", "listen_port", "http_port")}
        super().__init__("worker.cli", "dev", *arguments, tmp_path=tmp_path, settings=self.ports | settings)

    @property
    def gateway(self) -> str:
        return f"http://127.0.0.1:{self.ports['listen_port']}"

    def ask(self, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> Any:
        """Send a request to the gateway; return status, headers and body of the answer."""
        request = urllib.request.Request(f"{self.gateway}{path}", body, dict(headers or {}))
        with urllib.request.urlopen(request, timeout=LAST_RESORT) as answer:
            return answer.status, answer.headers, answer.read()

    def submit(self, function: str) -> str:
        """Queue one invocation with a callback to the demo functions; return its call id."""
        headers = {"X-Callback-Url": f"{self.gateway}/function/receive"}
        status, headers, _ = self.ask(f"/async-function/{function}", b"x", headers)
        assert status == 202
        return str(headers["X-Call-Id"])

    def called_back(self) -> list[dict[str, str]]:
        """Return the headers of the callbacks so far."""
        received: list[dict[str, str]] = json.loads(self.ask("/function/receive")[2])
        return received

    def children(self) -> dict[str, int]:
        """Return the process ids of its children by name."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and _parent(entry) == self.pid:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[next((name for name, part in PARTS.items() if part in command), command)] = int(entry.name)
        return found


def is_ready(dev: Dev) -> bool:
    """Return whether its gateway and its worker are ready."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{dev.ports['http_port']}/readyz", timeout=LAST_RESORT):
            return bool(dev.ask("/readyz")[0] == 200)
    except OSError:
        return False


@contextmanager
def running(tmp_path: Path, **settings: object) -> Iterator[Dev]:
    """Start ``dev``, wait until it is ready, and stop it: killed, it would leave its children behind."""
    with Dev(tmp_path, **settings) as dev:
        try:
            dev.wait_for(r"Ready\. Ctrl-C stops it")
            yield dev
        finally:
            dev.terminate()
            dev.wait()


def _parent(process: Path) -> int | None:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


# The stack.


def test_dev_on_ctrl_c_stops_all_parts_and_exits_0(tmp_path: Path) -> None:
    """On Ctrl-C the running invocation ends before the worker does, all parts stop, and the exit code is 0."""
    with running(tmp_path) as dev:
        assert set(dev.children()) == set(PARTS)
        done = dev.submit("fast")
        wait_until(dev.called_back, "the callback")
        assert dev.called_back()[0]["x-call-id"] == done
        assert (tmp_path / ".queue-worker" / "jetstream").is_dir()
        began = dev.submit("slow")
        wait_until(lambda: json.loads(dev.ask("/function/runs")[2])[-1][0] == began, "the invocation to run")
        children = dev.children()
        dev.interrupt()
        assert dev.wait() == 0
        assert not [name for name, pid in children.items() if Path(f"/proc/{pid}").exists()]
        lines = [line for line in dev.stdout.splitlines() if "Posted result" in line and began in line]
        assert len(lines) == 1, "the running invocation ended, and its callback was received"


def test_dev_whose_output_is_not_read_goes_on(tmp_path: Path) -> None:
    """Calls run and Ctrl-C stops all parts with 0, although nothing reads the output and the lines fill its pipe."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    dev = Dev(tmp_path, debug="true")
    dev.stdout_file = writing
    with dev:
        os.close(writing)
        wait_until(lambda: is_ready(dev), "gateway and worker to be ready")
        for _ in range(100):
            dev.submit("fast")
        wait_until(lambda: len(dev.called_back()) == 100, "all callbacks")
        dev.interrupt()
        assert dev.wait() == 0
    os.close(reading)


def test_dev_restarted_keeps_the_queued_messages(tmp_path: Path) -> None:
    """A stack in the same directory continues with the messages of the last one."""
    with running(tmp_path) as dev:
        call_id = dev.submit("flaky")  # it fails at first, and then waits for ten seconds
        dev.wait_for(rf"{call_id}.*retry_in")
        dev.terminate()
        assert dev.wait() == 0
    with running(tmp_path, initial_retry_wait="100ms") as dev:
        wire = WireConnection(dev.ports["nats_port"], {})
        (answer,) = wire.request_many([("$JS.API.STREAM.INFO.faas-request", b"", {})])
        wire.close()
        assert json.loads(answer)["state"]["messages"] == 1


def test_dev_listens_on_the_loopback_only(tmp_path: Path) -> None:
    """All ports listen on the loopback only, also those with all addresses as their default."""
    with running(tmp_path) as dev:
        addresses = {
            address
            for _, local, _, state, *_ in map(str.split, Path("/proc/net/tcp").read_text().splitlines()[1:])
            for address, _, port in [local.partition(":")]
            if state == "0A" and int(port, 16) in dev.ports.values()
        }
        assert addresses == {"0100007F"}


@pytest.mark.parametrize("part", PARTS)
def test_dev_with_a_killed_part_stops_and_exits_1(tmp_path: Path, part: str) -> None:
    """When a part is killed, the message names it and its end, and the other parts are stopped."""
    with running(tmp_path, shutdown_timeout="1s") as dev:
        children = dev.children()
        _kill(children[part])
        assert dev.wait() == 1
        assert f"queue-worker: {part} was killed by SIGKILL\n" in dev.stderr
        assert not [name for name, pid in children.items() if Path(f"/proc/{pid}").exists()]


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("port", ["nats_port", "listen_port", "http_port"])
def test_dev_on_a_taken_port_exits_1_with_one_line(tmp_path: Path, port: str) -> None:
    """On a port in use, one line names the setting to change, and no part is started."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.getsockname()[1]
        with Dev(tmp_path, **{port: number}) as dev:
            assert dev.wait() == 1
    assert dev.output == (
        f"queue-worker: cannot listen on 127.0.0.1:{number}: Address already in use. Set {port} to another\n"
    )


def test_dev_second_in_one_directory_exits_1(tmp_path: Path) -> None:
    """A second stack in one directory exits with 1, also on other ports: it would corrupt the files of the first."""
    with running(tmp_path), Dev(tmp_path) as second:
        assert second.wait() == 1
        assert second.output == f"queue-worker: another queue-worker dev is running in {tmp_path}\n"


def test_dev_with_nats_url_exits_1(tmp_path: Path) -> None:
    """The setting ``nats_url`` is a mistake, because dev starts a server of its own."""
    code, _, errors = run_program("worker.cli", "dev", tmp_path=tmp_path, settings={"nats_url": "nats://elsewhere"})
    assert (code, "nats_url is set, but queue-worker dev starts a NATS server" in errors) == (1, True)


def test_find_nats_server_without_one_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a server, the error has the command that installs one."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(importlib.metadata, "distributions", lambda **_: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotStartedError, match=r"pip install 'jetstream-queue-worker\[embedded\]'"):
        find_nats_server()


def test_find_nats_server_uses_the_files_of_its_wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server of the wheel is found by the wheel's list of files, because its directory may vary."""
    beside = shutil.which("nats-server", path=str(Path(sys.executable).parent))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert beside is not None
    assert Path(find_nats_server()).resolve() == Path(beside).resolve()


# .env


@pytest.mark.parametrize(
    ("content", "variables"),
    [
        ("", {}),
        ("\n# a comment\n  # another\n", {}),
        ("a=1\nb = 2 \n", {"a": "1", "b": "2"}),
        ("export a=1", {"a": "1"}),
        ("a=", {"a": ""}),
        ("a=''\nb=\"\"", {"a": "", "b": ""}),
        ("a=x # comment", {"a": "x"}),
        ("a=x#y", {"a": "x#y"}),
        ("a='x # y'  # comment", {"a": "x # y"}),
        ('a="it\'s"', {"a": "it's"}),
        ("a='two\nlines'", {"a": "two\nlines"}),
        ("\ufeffa=1", {"a": "1"}),
        ("a=b=c", {"a": "b=c"}),
        ("a=$HOME ${x}", {"a": "$HOME ${x}"}),
        ("a=1\na=2", {"a": "2"}),
        ("a=1\r\nb=2\r\n", {"a": "1", "b": "2"}),
    ],
)
def test_read_dotenv_valid_file_returns_its_variables(tmp_path: Path, content: str, variables: dict[str, str]) -> None:
    """A valid file has the format of python-dotenv, and its values are not expanded."""
    path = tmp_path / ".env"
    path.write_bytes(content.encode())
    assert read_dotenv(path) == (variables, [])


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("novalue", 1),
        ("=x", 1),
        ("a b=1", 1),
        ("ok=1\n\n'a", 3),
        ("a='x", 1),
        ('a="x" y', 1),
        ("1a=x", 1),
        ("ok=1\n'a=b'=x", 2),
        ("a=\0", 1),
    ],
)
def test_read_dotenv_bad_line_is_left_out_with_a_warning(tmp_path: Path, content: str, line: int) -> None:
    """A line that python-dotenv would skip gets a warning, because a setting that is silently not read is worse."""
    path = tmp_path / ".env"
    path.write_text(content)
    variables, warnings = read_dotenv(path)
    assert variables == ({"ok": "1"} if content.startswith("ok=1") else {})
    assert f"{path}, line {line}: not NAME=VALUE, so it is ignored" in warnings


def test_read_dotenv_of_another_program_warns_of_its_lines(tmp_path: Path) -> None:
    """A value of several lines is read as one; a name that no variable can have is left out."""
    path = tmp_path / ".env"
    path.write_text('PRIVATE_KEY="-----BEGIN\nabc"\nmy-var=1\nack_wait=1h\n')
    variables, warnings = read_dotenv(path)
    assert variables == {"PRIVATE_KEY": "-----BEGIN\nabc", "ack_wait": "1h"}
    assert warnings == [f"{path}, line 3: not NAME=VALUE, so it is ignored"]


def test_read_dotenv_not_utf8_keeps_its_bytes(tmp_path: Path) -> None:
    """A file in another encoding does not stop the program; its other lines are read."""
    path = tmp_path / ".env"
    path.write_bytes(b"a=\xff\nb=1\n")
    assert read_dotenv(path) == ({"a": "\udcff", "b": "1"}, [])


def test_read_dotenv_not_readable_warns(tmp_path: Path) -> None:
    """A directory of that name, or a file of another user, gets a warning."""
    (tmp_path / ".env").mkdir()
    assert read_dotenv(tmp_path / ".env") == ({}, [f"{tmp_path / '.env'} cannot be read: Is a directory"])


def test_dev_dotenv_is_read_and_the_environment_overrides_it(tmp_path: Path) -> None:
    """The environment overrides .env, and invalid settings of both are named together, with exit code 2."""
    (tmp_path / ".env").write_text("max_inflight=many\nack_wait=1h\n")
    code, _, errors = run_program("worker.cli", "dev", tmp_path=tmp_path, settings={"ack_wait": "soon"})
    assert code == 2
    assert "max_inflight = 'many'" in errors
    assert "ack_wait = 'soon'" in errors
    (tmp_path / ".env").write_text("rubbish\nmax_inflight=many\n")
    code, _, errors = run_program("worker.cli", "dev", tmp_path=tmp_path)
    assert (code, "warning: .env, line 1: not NAME=VALUE" in errors) == (2, True)


# The demonstration.


def test_demonstration_ends_with_all_expected_results(tmp_path: Path) -> None:
    """The demonstration loses nothing, shows every kind of end, exits with 0 and ignores all settings it finds."""
    (tmp_path / ".env").write_text("rubbish\n")
    code, out, errors = run_program(
        "worker.cli",
        "dev",
        "--demo",
        tmp_path=tmp_path,
        settings={"nats_port": "nonsense", "max_retry_attempts": "1", "NATS_PORT": "tcp://10.0.0.7:4222"},
    )
    assert (code, errors) == (0, ""), out
    assert "All 290 invocations ended as they must." in out
    assert "Left on the queue: 0. In the dead-letter stream: 30." in out
    rows = {cells[0]: cells[1:] for line in out.splitlines() if len(cells := line.replace("│", " ").split()) == 7}
    assert rows["fast"] == ["150", "150", "0", "0", "150", "0"]
    assert rows["slow"] == ["50", "50", "0", "0", "50", "0"]
    assert rows["flaky"] == ["60", "60", "60", "0", "60", "0"]
    assert rows["broken"] == ["30", "0", "30", "30", "30", "0"]
    assert not (tmp_path / ".queue-worker").exists()


@pytest.mark.quiet
def test_demonstration_on_a_quiet_machine_takes_less_than_a_minute(tmp_path: Path) -> None:
    """A newcomer sees the result of `make demo` within a minute."""
    began = time.monotonic()
    assert run_program("worker.cli", "dev", "--demo", tmp_path=tmp_path)[0] == 0
    assert time.monotonic() - began < 60


def test_demo_with_a_killed_worker_exits_1(tmp_path: Path) -> None:
    """When a worker of the demonstration is killed, the output names it with its last lines, and no process is left."""
    with Dev(tmp_path, "--demo") as demo:
        demo.wait_for("Submitted 280")
        children = demo.children()
        _kill(children["worker"])
        assert demo.wait() == 1
        assert "worker was killed by SIGKILL" in demo.stderr
        assert "worker    |" in demo.stdout
        assert "as they must" not in demo.stdout
        assert not [name for name, pid in children.items() if Path(f"/proc/{pid}").exists()]


def test_demo_interrupted_exits_1(tmp_path: Path) -> None:
    """An interrupted demonstration exits with 1 and leaves no process."""
    with Dev(tmp_path, "--demo") as demo:
        demo.wait_for("Submitted 280")
        children = demo.children()
        demo.interrupt()
        assert demo.wait() == 1
        assert not [name for name, pid in children.items() if Path(f"/proc/{pid}").exists()]


# The check of its results.

ATTEMPTS = 4


def callback(call_id: str, status: int, retries: int) -> dict[str, str]:
    headers = {"x-call-id": call_id, "x-function-status": str(status)}
    return headers | ({"x-retry": str(retries), "x-retry-max": str(ATTEMPTS - 1)} if retries else {})


def expected_observation() -> Observation:
    """Return the expected results of two calls of each kind."""
    functions = {f"{name}-{number}": name for name in ("fast", "slow", "flaky", "broken") for number in range(2)}

    def retries(call: str) -> int:
        return {"flaky": failures_of_flaky(call), "broken": ATTEMPTS - 1}.get(functions[call], 0)

    return Observation(
        functions=functions,
        callbacks=[callback(call, 500 if name == "broken" else 200, retries(call)) for call, name in functions.items()],
        runs={call: retries(call) + 1 for call in functions},
        left=0,
        dead=2,
    )


def _without_a_callback(observed: Observation) -> None:
    del observed.callbacks[0]


def _with_two_callbacks(observed: Observation) -> None:
    observed.callbacks.append(observed.callbacks[0])


def _with_an_unknown_callback(observed: Observation) -> None:
    observed.callbacks.append(callback("unknown", 200, 0))


def _with_another_status(observed: Observation) -> None:
    observed.callbacks[0] = callback("fast-0", 500, 0)


def _with_a_retry_too_many(observed: Observation) -> None:
    observed.callbacks[0] = callback("fast-0", 200, 1)


def _with_a_run_too_many(observed: Observation) -> None:
    observed.runs = {**observed.runs, "slow-1": 2}


def _never_run(observed: Observation) -> None:
    observed.runs = {call: runs for call, runs in observed.runs.items() if call != "slow-1"}


def _with_a_message_left(observed: Observation) -> None:
    observed.left = 1


def _with_a_stream_that_was_not_read(observed: Observation) -> None:
    observed.left = -1


def _without_a_dead_letter(observed: Observation) -> None:
    observed.dead = 1


def test_find_faults_with_expected_results_returns_none() -> None:
    """Every call is compared with its own expected result."""
    assert find_faults(expected_observation(), ATTEMPTS) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_without_a_callback, "fast fast-0: no callback"),
        (_with_two_callbacks, "fast fast-0: called back with [('200', '0'), ('200', '0')]"),
        (_with_an_unknown_callback, "a callback for unknown, which was not submitted"),
        (_with_another_status, "fast fast-0: called back with [('500', '0')], not with status 200"),
        (_with_a_retry_too_many, "fast fast-0: called back with [('200', '1')], not with status 200 after 0 retries"),
        (_with_a_run_too_many, "slow slow-1: ran 2 times, not 1"),
        (_never_run, "slow slow-1: ran 0 times, not 1"),
        (_with_a_message_left, "the stream holds 1 messages, not 0"),
        (_with_a_stream_that_was_not_read, "the stream holds -1 messages, not 0"),
        (_without_a_dead_letter, "the dead-letter stream holds 1 messages, not 2"),
    ],
)
def test_find_faults_names_each_fault(change: Callable[[Observation], None], fault: str) -> None:
    """Each fault is one sentence, with the function and the call id."""
    observed = expected_observation()
    change(observed)
    (found,) = find_faults(observed, ATTEMPTS)
    assert found.startswith(fault)
