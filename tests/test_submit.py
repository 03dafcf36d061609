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
from worker.dev.stack import free_port


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """A server with the stream."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


def submit(
    nats: NatsServer, tmp_path: Path, *arguments: str, stdin: bytes = b"", **settings: object
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error."""
    return run_program(
        "worker.cli", "submit", *arguments, tmp_path=tmp_path, settings={"nats_port": nats.port} | settings, stdin=stdin
    )


def only(nats: NatsServer) -> Any:
    """The one message that there is."""
    (message,) = nats.messages()
    return message.json


def test_one_invocation(nats: NatsServer, tmp_path: Path) -> None:
    """It is as the gateway would have queued it, and its call id is printed."""
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
    assert out == f"{message.headers['Nats-Msg-Id']}\n"
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


def test_a_body_from_a_file(nats: NatsServer, tmp_path: Path) -> None:
    """Bytes, whatever they are."""
    (tmp_path / "body").write_bytes(b"\x00\xff\n")
    assert submit(nats, tmp_path, "echo", "--data-file", str(tmp_path / "body"))[0] == 0
    assert base64.b64decode(only(nats)["Body"]) == b"\x00\xff\n"


@pytest.mark.parametrize("arguments", [(), ("--data-file", "-")])
def test_a_body_from_standard_input(nats: NatsServer, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """Asked for, or where nothing else is and it is not a terminal."""
    assert submit(nats, tmp_path, "echo", *arguments, stdin=b"piped\n")[0] == 0
    assert base64.b64decode(only(nats)["Body"]) == b"piped\n"


def test_given_data_leaves_standard_input_alone(nats: NatsServer, tmp_path: Path) -> None:
    """Also where there is some."""
    assert submit(nats, tmp_path, "echo", "--data", "", stdin=b"piped")[0] == 0
    assert "Body" not in only(nats)


def test_many(nats: NatsServer, tmp_path: Path) -> None:
    """As many as asked for, each with a call id of its own, printed once it is stored; many are in the air at once."""
    code, out, errors = submit(nats, tmp_path, "echo", "--data", "x", "--count", "5000")
    assert (code, errors) == (0, "")
    ids = out.split()
    assert len(set(ids)) == len(ids) == 5000
    assert nats.state()["messages"] == 5000
    assert {message.headers["Nats-Msg-Id"] for message in nats.messages()} == set(ids)


def test_a_terminal_sees_a_bar_and_the_output_stays_clean(nats: NatsServer, tmp_path: Path) -> None:
    """The bar is drawn on standard error, where that is a terminal; standard output has the call ids only."""
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


def test_a_call_id_is_queued_once(nats: NatsServer, tmp_path: Path) -> None:
    """The second time it says so, and that is no error."""
    assert submit(nats, tmp_path, "echo", "--call-id", "mine", "--data", "x") == (0, "mine\n", "")
    code, out, errors = submit(nats, tmp_path, "echo", "--call-id", "mine", "--data", "x")
    assert (code, out) == (0, "mine\n")
    assert "had call id mine already" in errors
    assert nats.state()["messages"] == 1


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
        (("echo", "--callback", "nowhere"), "X-Callback-Url cannot be posted to"),
        (("echo", "--call-id", "ä"), "X-Call-Id is not one"),
        (("echo", "--call-id", "a", "--count", "2"), "--call-id names one invocation"),
        (("echo", "--data", "a", "--data-file", "-"), "two bodies"),
        (("echo", "--data-file", "/nowhere/at-all"), "No such file or directory"),
        (("echo", "--count", "0"), "0 is not in the range"),
        ((), "Missing argument 'FUNCTION'"),
    ],
)
def test_bad_usage_is_2(tmp_path: Path, arguments: tuple[str, ...], reason: str) -> None:
    """One message that says what is wrong; nothing is tried."""
    code, out, errors = run_program("worker.cli", "submit", *arguments, tmp_path=tmp_path)
    assert (code, out) == (2, "")
    assert reason in errors
    assert "Traceback" not in errors


def test_bad_settings_are_2(tmp_path: Path) -> None:
    """As for every program."""
    code, _, errors = run_program("worker.cli", "submit", "echo", tmp_path=tmp_path, settings={"nats_port": "x"})
    assert (code, "nats_port = 'x'" in errors) == (2, True)


def _fails(nats: NatsServer, tmp_path: Path, *arguments: str, **more: Any) -> str:
    code, out, errors = submit(nats, tmp_path, *arguments, **more)
    assert (code, out) == (1, "")
    assert errors.count("\n") == 1
    return errors


def test_no_server_is_1(tmp_path: Path) -> None:
    """Within a few seconds, with where it looked and which settings say so; a password there is not shown."""
    settings = {"nats_url": f"nats://user:s3cret@127.0.0.1:{free_port()}"}
    code, out, errors = run_program("worker.cli", "submit", "echo", tmp_path=tmp_path, settings=settings)
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert "no NATS at nats://********@127.0.0.1" in errors
    assert "check nats_host and nats_port, or nats_url" in errors
    assert "s3cret" not in errors


def test_no_stream_is_1(tmp_path: Path) -> None:
    """It names stream and subject, and says what to do."""
    with NatsServer(tmp_path) as nats:
        errors = _fails(nats, tmp_path, "echo")
    assert "no stream takes the subject faas-request.0.echo.openfaas-fn: start a worker" in errors


def test_no_jetstream_is_1(tmp_path: Path) -> None:
    """To us it is the same: nobody takes the message. It says that this may be why."""
    with NatsServer(tmp_path, jetstream=False) as nats:
        assert "see that JetStream runs" in _fails(nats, tmp_path, "echo")


def test_too_large_is_1(nats: NatsServer, tmp_path: Path) -> None:
    """With both numbers."""
    errors = _fails(nats, tmp_path, "echo", stdin=b"x" * 900_000)
    assert "as a message it takes 1200" in errors
    assert "max_payload is 1048576" in errors


def test_refused_credentials_are_1(tmp_path: Path) -> None:
    """It says which settings to look at."""
    with NatsServer(tmp_path, config="authorization { token: a }", connect={"auth_token": "a"}) as nats:
        assert "NATS refuses our credentials" in _fails(nats, tmp_path, "echo", nats_token="b")


def test_a_stream_that_fills_up_is_1(tmp_path: Path) -> None:
    """What was stored is printed all the same, and how many that is."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream(max_msgs=10, discard="new")
        code, out, errors = submit(nats, tmp_path, "echo", "--data", "x", "--count", "100")
        held = {message.headers["Nats-Msg-Id"] for message in nats.messages()}
    assert code == 1
    assert set(out.split()) <= held
    assert f"{len(out.split())} of 100 stored, then: stream faas-request refuses: maximum messages exceeded" in errors


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # how Linux tells that the other end is closed
        return b""


def test_the_last_server_of_a_list_will_do(nats: NatsServer, tmp_path: Path) -> None:
    """``nats_url`` may name several."""
    servers = f"nats://127.0.0.1:{free_port()},{nats.url}"
    assert run_program("worker.cli", "submit", "echo", tmp_path=tmp_path, settings={"nats_url": servers})[0] == 0
    wait_until(lambda: nats.state()["messages"] == 1, "the message")
