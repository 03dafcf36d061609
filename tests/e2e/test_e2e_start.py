"""Contract, sections 1 and 2: the programs, their flags, their settings, and their messages about errors."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.stack import Queue, Worker
from tests.functions import Functions
from tests.patience import LAST_RESORT
from tests.servers import ROOT, environment, run_program, wait_until
from worker import __version__
from worker.cli.flags import split_flags
from worker.dev.stack import free_port

RUN = "tests.e2e.as_installed"


class Installed(Worker):
    """``queue-worker run``."""

    PROGRAM = (RUN, "queue-worker", "run")


class Charts(Worker):
    """The command of OpenFaaS's charts."""

    PROGRAM = (RUN, "jetstream-queue-worker", "-license-file=/var/secrets/license", "-pprof", "-pprof=true")


class ChartsApart(Worker):
    """The command of OpenFaaS's charts, in the other syntax of Go's flags."""

    PROGRAM = (RUN, "jetstream-queue-worker", "--license-file", "/var/secrets/license", "--pprof=false")


class NewerCharts(Worker):
    """The command of charts that pass flags which this version does not know."""

    PROGRAM = (RUN, "jetstream-queue-worker", "-license-file=/l", "-new", "-pprof", "-level=5", "-mode", "fast", "-x")


class Bare(Worker):
    """``jetstream-queue-worker`` without flags."""

    PROGRAM = (RUN, "jetstream-queue-worker")


@pytest.mark.parametrize("program", [Worker, Installed, Charts, ChartsApart, Bare])
def test_each_command_starts_the_same_worker(
    queue: Queue, functions: Functions, tmp_path: Path, program: type[Worker]
) -> None:
    """Each of the commands starts the same worker, which logs that it ignores the charts' flags."""
    with program(queue, functions, tmp_path=tmp_path) as worker:
        worker.wait_ready()
        queue.put_calls("echo", ["one"])
        queue.wait_empty()
        worker.terminate()
        assert worker.wait() == 0
        ignored = worker.logged("(?i)ignored")
        assert len(ignored) == (program in (Charts, ChartsApart))
        for line in ignored:
            assert "license-file" in str(line)
            assert "pprof" in str(line)


def test_limit_of_open_files_that_is_too_low_gets_a_warning(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """The limit is raised as far as possible; if it is still too low for max_inflight, there is a warning."""
    for most, lines in ((400, 1), (185, 0)):
        worker = Worker(queue, functions, tmp_path=tmp_path, max_inflight=most)
        worker.script = 'ulimit -Sn 100; ulimit -Hn 400; exec "$@"'
        with worker:
            worker.wait_ready()
            assert len(worker.logged("the limit of open files, 400, is too low for max_inflight = 400: .*830")) == lines


def test_flags_that_are_unknown_get_a_warning(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """A newer chart with new flags starts the worker too, which warns of the flags that it does not know."""
    with NewerCharts(queue, functions, tmp_path=tmp_path) as worker:
        worker.wait_ready()
        (known,) = worker.logged("^Flags ignored")
        assert known["flags"] == ["license-file", "pprof"]
        (unknown,) = worker.logged("^Unknown flags ignored")
        assert (unknown["level"], unknown["flags"]) == ("warning", ["new", "level", "mode", "x"])


@pytest.mark.parametrize(
    ("arguments", "rest"),
    [
        (["-foo=bar"], ["--unknown-flag", "foo"]),
        (["-foo", "bar"], ["--unknown-flag", "foo"]),
        (["-foo", "-pprof", "bar"], ["--unknown-flag", "foo", "--ignored-flag", "pprof", "bar"]),
        (["-license-file", "-"], ["--ignored-flag", "license-file"]),
        (["-foo="], ["--unknown-flag", "foo"]),
        (["-h"], ["--help"]),
        (["-help"], ["--help"]),
        (["--help"], ["--help"]),
        (["--foo=bar"], ["--foo=bar"]),
        (["-", "--", "bar"], ["-", "--", "bar"]),
    ],
)
def test_split_flags_ignores_flags_with_one_dash(arguments: list[str], rest: list[str]) -> None:
    """Flags with one dash are ignored, with a value after = or in the next argument. All others are left to click."""
    assert split_flags(arguments) == rest


def test_queue_worker_run_with_an_unknown_flag_exits_2(tmp_path: Path) -> None:
    """`queue-worker run` is called by people, so it refuses an unknown flag."""
    code, _, errors = run_program(RUN, "queue-worker", "run", "-foo=bar", tmp_path=tmp_path)
    assert code == 2
    assert "No such option" in errors


@pytest.mark.parametrize(
    "start",
    [
        "sys.argv = ['queue-worker', 'run']; entry.program()",
        "sys.argv = ['queue-worker', 'gateway']; entry.program()",
        "sys.argv = ['jetstream-queue-worker', '-pprof']; entry.charts()",
        "sys.argv = ['worker']; runpy.run_module('worker', run_name='__main__')",
    ],
)
def test_sigterm_during_the_imports_is_exit_0(start: str) -> None:
    """SIGTERM during the imports ends a program with 0; process 1 of a container ignores it without a handler."""
    signal_at_import = "cli.importlib.import_module = lambda name: os.kill(os.getpid(), signal.SIGTERM)"
    code = f"import os, runpy, signal, sys; from worker import cli, entry; {signal_at_import}; {start}"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"", b"")


BLOCKED = ["env", "--block-signal=TERM,INT,HUP"]
"""Prefix of the command by which the image starts Python."""
AS_PROCESS_1 = ["unshare", "--pid", "--fork", "--kill-child"]
DELAYS = (0.0, 0.002, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64)
"""Seconds from the start of Python to the signal: from its first instructions to a running worker."""


def _can(*command: str) -> bool:
    return shutil.which(command[0]) is not None and not subprocess.run([*command, "true"], check=False).returncode


def _blocks_signals(pid: int) -> bool:
    """Return whether a process has blocked the signals, as `env` does just before it starts Python.

    Only SIGHUP shows that: `unshare` itself blocks the other two for a moment, and would lose them as process 1.
    """
    blocked = re.search(r"(?m)^SigBlk:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text())
    return bool(blocked and int(blocked[1], 16) & 1 << signal.SIGHUP - 1)


def _child(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(children[0]) if children else 0


@pytest.mark.skipif(not _can(*BLOCKED), reason="this system's env cannot block signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("prefix", [[], AS_PROCESS_1], ids=["", "process-1"])
def test_signal_at_any_time_of_the_start_is_exit_0(
    tmp_path: Path, prefix: list[str], processes: int, number: signal.Signals
) -> None:
    """A signal at any time of the start ends the worker with 0, also as process 1, and with several processes."""
    if prefix and not _can(*prefix):
        pytest.skip("this user cannot create process namespaces")
    settings: dict[str, object] = {"http_port": 0, "http_host": "127.0.0.1", "nats_port": 1, "processes": processes}
    command = [*prefix, *BLOCKED, sys.executable, "-m", "worker"]
    for delay in DELAYS:
        with (tmp_path / "output").open("w+b") as output:
            process = subprocess.Popen(command, env=environment(settings), cwd=ROOT, stdout=output, stderr=output)
            try:
                pid = wait_until(partial(_child, process.pid), "process 1") if prefix else process.pid
                wait_until(partial(_blocks_signals, pid), "blocked signals")
                time.sleep(delay)
                os.kill(pid, number)
                assert process.wait(LAST_RESORT) == 0, f"signal after {delay:g} s"
            finally:
                process.kill()
                process.wait()
            output.seek(0)
            assert b"Traceback" not in output.read()


def test_image_starts_python_with_blocked_signals() -> None:
    """The image starts both programs as the test above does."""
    assert f"env -S {BLOCKED[1]} " in (ROOT / "Dockerfile").read_text()


# Invalid settings.

INVALID = {
    "max_inflight": "0",
    "ack_wait": "30",
    "backoff": "linear",
    "retry_http_codes": "500,abc",
    "gateway_url": "gateway:8080",
    "upstream_timeout": "-1s",
    "dead_letter": "perhaps",
    "queue_name": "Uppercase",
    "nats_port": "tcp",
    "log_encoding": "xml",
    "nats_stream": "a.b",
    "callback_attempts": "many",
}


@pytest.mark.parametrize("program", [("worker",), (RUN, "queue-worker", "run"), (RUN, "queue-worker", "config")])
def test_invalid_settings_are_named_with_exit_2(tmp_path: Path, program: tuple[str, ...]) -> None:
    """Invalid settings are exit 2, with one message that names each setting and its value, and no traceback."""
    code, output, errors = run_program(*program, tmp_path=tmp_path, settings=INVALID)
    assert code == 2
    assert output == ""
    assert "Traceback" not in errors
    for name, value in INVALID.items():
        (line,) = [line for line in errors.splitlines() if line.strip().startswith(f"{name} ")]
        assert value in line
        assert len(line.partition(value)[2]) > 10, "what is accepted"


def test_invalid_secrets_are_named_and_not_shown(tmp_path: Path) -> None:
    """A message about an invalid secret names its setting, and does not contain the secret."""
    settings = {
        "nats_token": "s3cret-1",
        "nats_user": "me",
        "nats_creds_file": tmp_path / "missing-creds",
        "nats_password_file": tmp_path / "missing",
    }
    code, output, errors = run_program("worker", tmp_path=tmp_path, settings=settings)
    assert code == 2
    assert "s3cret" not in output + errors
    assert "missing-creds" in errors
    assert "nats_password_file" in errors


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("all_proxy", "socks5://u:s3cret@127.0.0.1:1080", "socks5://127.0.0.1:1080"),
        ("HTTP_PROXY", "foo://127.0.0.1:9", "foo://127.0.0.1:9"),
        ("SSL_CERT_FILE", "/etc/ssl/certs/missing.crt", "/etc/ssl/certs/missing.crt"),
        ("SSL_CERT_FILE", "/dev/null", "/dev/null"),
        ("SSL_CERT_DIR", "/missing", "/missing"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_environment_without_callbacks_is_exit_2(
    tmp_path: Path, name: str, value: str, shown: str, processes: int
) -> None:
    """A proxy or certificate with which no callback could be sent is exit 2; one line names the variable and value."""
    settings = {"SSL_CERT_FILE": "", name: value, "processes": processes}
    code, output, errors = run_program("worker", tmp_path=tmp_path, settings=settings)
    (line,) = errors.splitlines()
    assert (code, output) == (2, "")
    assert f"{name.upper()} = {shown!r}" in line
    assert "unset it" in line
    assert "s3cret" not in line


def test_unknown_command_or_option_is_exit_2(tmp_path: Path) -> None:
    """An unknown command or option is exit 2, with a usage message."""
    for arguments in (
        ["queue-worker", "walk"],
        ["queue-worker", "run", "--fast"],
        ["jetstream-queue-worker", "--fast"],
    ):
        code, _, errors = run_program(RUN, *arguments, tmp_path=tmp_path)
        assert code == 2
        assert "Traceback" not in errors
        assert "Usage" in errors


def test_help_and_version_ignore_invalid_settings(tmp_path: Path) -> None:
    """Every command prints its help, and the program its version, even with invalid settings."""
    code, output, _ = run_program(RUN, "queue-worker", "--version", tmp_path=tmp_path, settings=INVALID)
    assert (code, __version__ in output) == (0, True)
    code, output, _ = run_program(RUN, "queue-worker", "--help", tmp_path=tmp_path, settings=INVALID)
    assert code == 0
    for command in ("run", "config"):
        assert command in output
        assert run_program(RUN, "queue-worker", command, "--help", tmp_path=tmp_path, settings=INVALID)[0] == 0


# Valid settings.


def test_service_variables_of_kubernetes_are_ignored(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """Kubernetes' variables of services named nats, gateway and queue-worker have no effect and cause no warning."""
    names = ("NATS", "GATEWAY", "QUEUE_WORKER", "QUEUE_WORKER_NATS", "QUEUE_WORKER_HTTP")
    service = {
        "{}_SERVICE_HOST": "10.0.0.7",
        "{}_SERVICE_PORT": "4222",
        "{}_SERVICE_PORT_CLIENT": "4222",
        "{}_PORT": "tcp://10.0.0.7:4222",
        "{}_PORT_4222_TCP": "tcp://10.0.0.7:4222",
        "{}_PORT_4222_TCP_PROTO": "tcp",
        "{}_PORT_4222_TCP_PORT": "4222",
        "{}_PORT_4222_TCP_ADDR": "10.0.0.7",
    }
    variables: dict[str, object] = {pattern.format(name): value for name in names for pattern, value in service.items()}
    with Worker(queue, functions, tmp_path=tmp_path, **variables) as worker:
        worker.wait_ready()
        assert [line for line in worker.lines() if "not a setting" in line["event"]] == []


def test_setting_name_is_read_in_upper_case_and_typos_warn(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """`QUEUE_WORKER_X` sets `x`, an empty value sets nothing, and a name that looks like a typo causes a warning."""
    settings = {
        "QUEUE_WORKER_MAX_INFLIGHT": "3",
        "nats_durable": "",
        "consumer_pull_max_messages": "",
        "max_inflght": "9",
        "QUEUE_WORKER_ACKWAIT": "9s",
    }
    with Worker(queue, functions, tmp_path=tmp_path, **settings) as worker:
        worker.wait_ready()
        assert queue.has_consumer()
        warned = {line["event"] for line in worker.lines() if line["level"] == "warning"}
        assert len(warned) == 2
        assert any("max_inflght" in each and "max_inflight" in each for each in warned)
        assert any("QUEUE_WORKER_ACKWAIT" in each and "ack_wait" in each for each in warned)


def test_settings_of_the_charts_are_accepted(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """The worker accepts every setting of the charts, in their form, without an error or a warning."""
    settings = {
        "gateway_invoke": "true",
        "basic_auth": "false",
        "nats_stream_replicas": "1",
        "nats_durable": "faas-workers",
        "queue_name": queue.name,
        "ack_wait": "1m",
        "consumer_inactive_threshold": "30s",
        "consumer_pull_max_messages": "",
        "max_inflight": "50",
        "limiter_enabled": "true",
        "upstream_timeout": "1m0s",
        "max_retry_attempts": "100",
        "initial_retry_wait": "10s",
        "max_retry_wait": "120s",
        "retry_http_codes": "408,429,500,502,503,504",
        "backoff": "exponential",
        "default_function_name": "openfaas-fn",
        "tls_insecure": "false",
        "debug": "false",
        "log_encoding": "json",
        "scaling_mode": "static",
        "queue_partitions": "1",
        "filter_partition": "0",
        "http_port": "0",
    }
    with Charts(queue, functions, tmp_path=tmp_path, **settings) as worker:
        worker.wait_ready()
        queue.put_calls("echo", ["one"])
        queue.wait_empty()
        assert [line for line in worker.lines() if line["level"] != "info"] == []


# Ports.


@pytest.fixture
def used_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_http_port_in_use_ends_the_worker(queue: Queue, functions: Functions, tmp_path: Path, used_port: int) -> None:
    """A metrics port that is in use is exit 1, with one line that names the port and its setting."""
    with Worker(queue, functions, tmp_path=tmp_path, http_port=used_port) as worker:
        assert worker.wait() == 1
        (line,) = worker.stderr.splitlines()
        assert str(used_port) in line
        assert "http_port" in line
        assert "in use" in line


def test_http_port_serves_until_the_worker_ends(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """The worker serves metrics and health at `http_host` and `http_port`, and closes the port when it ends."""
    port = free_port()
    with Worker(queue, functions, tmp_path=tmp_path, http_port=port) as worker:
        worker.wait_ready()
        with socket.create_connection(("127.0.0.1", port), LAST_RESORT):
            worker.terminate()  # an idle connection to the port does not delay the end
            assert worker.wait() == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), LAST_RESORT).close()


def test_http_port_with_malformed_requests_stays_open(queue: Queue, functions: Functions, tmp_path: Path) -> None:
    """The worker continues after any malformed request to its metrics port."""
    with Worker(queue, functions, tmp_path=tmp_path) as worker:
        worker.wait_ready()
        port = int(worker.logged("Serving")[0]["address"].rpartition(":")[2])
        for sent in (b"", b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET /metrics HTTP/1.1\r\n\r\n", b"\x00" * 100_000):
            with socket.create_connection(("127.0.0.1", port), LAST_RESORT) as connection:
                connection.sendall(sent)
        assert worker.get("/healthz")[0] == 200
        queue.put_calls("echo", ["one"])
        queue.wait_empty()
        wait_until(lambda: worker.get("/readyz")[0] == 200, "the worker to be ready")
