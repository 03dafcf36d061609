"""``queue-worker submit``: invocations straight onto the stream."""

from __future__ import annotations

import base64
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.patience import LAST_RESORT
from tests.servers import NatsServer, environment, run_program, wait_until
from tests.wire import StoredMessage
from worker.dev.stack import free_port


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """Start a server with the stream."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


def submit(
    nats: NatsServer, tmp_path: Path, *arguments: str, stdin: bytes = b"", **settings: object
) -> tuple[int, str, str]:
    """Run the command; return exit code, standard output and standard error."""
    return run_program(
        "worker.cli", "submit", *arguments, tmp_path=tmp_path, settings={"nats_port": nats.port} | settings, stdin=stdin
    )


def only(nats: NatsServer) -> Any:
    """Return the single message of the stream."""
    (message,) = nats.messages()
    return message.json


def call_id(message: StoredMessage) -> str:
    """Return the call id of a stored message."""
    (found,) = message.json["Header"]["X-Call-Id"]
    return str(found)


def test_submit_one_stores_the_same_message_as_the_gateway(nats: NatsServer, tmp_path: Path) -> None:
    """One invocation is stored as the gateway stores it, and its call id is printed."""
    code, out, errors = submit(
        nats,
        tmp_path,
        *("echo.fn", "--data", "hello", "-H", "content-type: text/plain", "--header", "X-Two: 2", "--method", "PUT"),
        *(
            "--path",
            "a/b",
            "--query",
            "?x=1",
            "--callback",
            "http://h/cb",
            "--annotation",
            "a=b",
            "--annotation",
            "c=d=e",
        ),
    )
    assert (code, errors) == (0, "")
    (message,) = nats.messages()
    assert message.subject == "faas-request.0.echo.fn"
    assert out == f"{call_id(message)}\n"
    written = message.json
    assert written["Header"].pop("X-Start-Time")
    assert written["CallbackUrl"].pop("Path") == "/cb"
    del written["CallbackUrl"]
    assert written == {
        "Header": {
            "Content-Type": ["text/plain"],
            "X-Two": ["2"],
            "X-Callback-Url": ["http://h/cb"],
            "X-Call-Id": [out.strip()],
        },
        "Body": base64.b64encode(b"hello").decode(),
        "Method": "PUT",
        "Path": "/a/b",
        "QueryString": "x=1",
        "Function": "echo.fn",
        "QueueName": "faas-request",
        "Annotations": {"a": "b", "c": "d=e"},
    }


def test_submit_data_file_takes_its_bytes(nats: NatsServer, tmp_path: Path) -> None:
    """The file's bytes become the body, also if they are no text."""
    (tmp_path / "body").write_bytes(b"\x00\xff\n")
    assert submit(nats, tmp_path, "echo", "--data-file", str(tmp_path / "body"))[0] == 0
    assert base64.b64decode(only(nats)["Body"]) == b"\x00\xff\n"


@pytest.mark.parametrize("arguments", [(), ("--data-file", "-")])
def test_submit_without_data_reads_standard_input(nats: NatsServer, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Without ``--data``, and with ``--data-file -``, the body is read from standard input."""
    assert submit(nats, tmp_path, "echo", *arguments, stdin=b"piped\n")[0] == 0
    assert base64.b64decode(only(nats)["Body"]) == b"piped\n"


def test_submit_data_does_not_read_standard_input(nats: NatsServer, tmp_path: Path) -> None:
    """With ``--data``, also an empty one, standard input is not read."""
    assert submit(nats, tmp_path, "echo", "--data", "", stdin=b"piped")[0] == 0
    assert "Body" not in only(nats)


def test_submit_count_stores_and_prints_each_invocation(nats: NatsServer, tmp_path: Path) -> None:
    """Each of ``--count`` invocations has its own call id, which is printed when it is stored."""
    code, out, errors = submit(nats, tmp_path, "echo", "--data", "x", "--count", "5000")
    assert (code, errors) == (0, "")
    ids = out.split()
    assert len(set(ids)) == len(ids) == 5000
    assert nats.state()["messages"] == 5000
    assert {call_id(message) for message in nats.messages()} == set(ids)


def test_submit_on_a_terminal_draws_a_bar_on_standard_error(nats: NatsServer, tmp_path: Path) -> None:
    """The progress bar is drawn on standard error, and standard output has only the call ids."""
    outer, inner = pty.openpty()
    settings = environment({"nats_port": nats.port}) | {"TERM": "xterm", "COLUMNS": "80"}
    command = [sys.executable, "-m", "worker.cli", "submit", "echo", "--data", "x", "--count", "500"]
    program = subprocess.Popen(command, env=settings, cwd=tmp_path, stdout=subprocess.PIPE, stderr=inner)
    os.close(inner)
    drawn = b""
    while data := _read(outer):
        drawn += data
    os.close(outer)
    out, _ = program.communicate(timeout=LAST_RESORT)
    assert program.returncode == 0
    assert len(out.split()) == 500
    assert b"submitting" in drawn


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("Echo",), "not a function's name: 'Echo'"),
        (("echo", "-H", "nothing"), "--header 'nothing'"),
        (("echo", "-H", "a b: c"), "not a header's name: 'a b'"),
        (("echo", "-H", "a: b\nc: d"), "control character"),
        (("echo", "--annotation", "x"), "--annotation 'x'"),
        (("echo", "--method", "A B"), "not an HTTP method"),
        (("echo", "--path", "../x"), "the path has a . or .. segment"),
        (("echo", "--path", "x//y"), "the path has an empty segment"),
        (("echo", "--path", "x%2F/y"), "the path has an empty segment"),
        (("echo", "-H", f"X-Saml: {'@' * 70_000}"), "a queued request has room for 65536"),
        (("echo", "--query", "q" * 70_000), "a queued request has room for 65536"),
        (("echo", "--path", os.fsdecode(b"\xff")), "an argument is not UTF-8"),
        (("echo", "--annotation", os.fsdecode(b"a=\xff")), "an argument is not UTF-8"),
        (("echo", "--callback", "nowhere"), "X-Callback-Url cannot be posted to"),
        (("echo", "--call-id", "ä"), "X-Call-Id is not one"),
        (("echo", "--call-id", "a", "--count", "2"), "--call-id names one invocation"),
        (("echo", "--data", "a", "--data-file", "-"), "two bodies"),
        (("echo", "--data-file", "/nowhere/at-all"), "No such file or directory"),
        (("echo", "--count", "0"), "0 is not in the range"),
        ((), "Missing argument 'FUNCTION'"),
    ],
)
def test_submit_with_invalid_arguments_exits_2(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    """Invalid arguments are reported in one message, before the command connects."""
    code, out, errors = run_program("worker.cli", "submit", *arguments, tmp_path=tmp_path)
    assert (code, out) == (2, "")
    assert reason in errors
    assert "Traceback" not in errors


def test_submit_with_invalid_settings_exits_2(tmp_path: Path) -> None:
    """Invalid settings are reported as by every command."""
    code, _, errors = run_program("worker.cli", "submit", "echo", tmp_path=tmp_path, settings={"nats_port": "x"})
    assert (code, "nats_port = 'x'" in errors) == (2, True)


def _fails(nats: NatsServer, tmp_path: Path, *arguments: str, **more: Any) -> str:
    code, out, errors = submit(nats, tmp_path, *arguments, **more)
    assert (code, out) == (1, "")
    assert errors.count("\n") == 1
    return errors


def test_submit_without_a_server_exits_1(tmp_path: Path) -> None:
    """One line names the servers and the settings, without a password."""
    settings = {"nats_url": f"nats://user:s3cret@127.0.0.1:{free_port()}"}
    code, out, errors = run_program("worker.cli", "submit", "echo", tmp_path=tmp_path, settings=settings)
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert "no NATS at nats://********@127.0.0.1" in errors
    assert "check nats_host and nats_port, or nats_url" in errors
    assert "s3cret" not in errors


def test_submit_without_a_stream_exits_1(tmp_path: Path) -> None:
    """The line names stream, subject and remedy."""
    with NatsServer(tmp_path) as nats:
        errors = _fails(nats, tmp_path, "echo")
    assert "no stream takes the subject faas-request.0.echo.openfaas-fn: start a worker" in errors


def test_submit_without_jetstream_exits_1(tmp_path: Path) -> None:
    """To a publisher, a server without JetStream looks like a missing stream; the line names both causes."""
    with NatsServer(tmp_path, jetstream=False) as nats:
        assert "see that JetStream runs" in _fails(nats, tmp_path, "echo")


def test_submit_with_refused_credentials_exits_1(tmp_path: Path) -> None:
    """On refused credentials, the line names them as the cause."""
    with NatsServer(tmp_path, config="authorization { token: a }", connect={"auth_token": "a"}) as nats:
        assert "NATS refuses our credentials" in _fails(nats, tmp_path, "echo", nats_token="b")


def test_submit_to_a_stream_that_fills_up_exits_1(tmp_path: Path) -> None:
    """When the stream is full, the stored invocations are printed and counted."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream(max_msgs=10, discard="new")
        code, out, errors = submit(nats, tmp_path, "echo", "--data", "x", "--count", "100")
        held = {call_id(message) for message in nats.messages()}
    assert code == 1
    assert set(out.split()) <= held
    assert f"{len(out.split())} of 100 stored, then: stream faas-request refuses: maximum messages exceeded" in errors


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # Linux's error for a closed peer
        return b""


def test_submit_to_a_list_of_servers_uses_one_that_runs(nats: NatsServer, tmp_path: Path) -> None:
    """Of several servers in ``nats_url``, one that runs is used."""
    servers = f"nats://127.0.0.1:{free_port()},{nats.url}"
    assert run_program("worker.cli", "submit", "echo", tmp_path=tmp_path, settings={"nats_url": servers})[0] == 0
    wait_until(lambda: nats.state()["messages"] == 1, "the message")
