"""``queue-worker pause``, ``resume`` and ``purge``: real processes, and a real nats-server."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import NatsServer, run_program
from worker.dev.stack import free_port

NS = 1_000_000_000


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    """Start a server with the stream, and no worker."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


def command(nats: NatsServer, tmp_path: Path, *arguments: str, stdin: bytes = b"", **settings: object) -> Any:
    """Run a command in function mode; return exit code, standard output and standard error."""
    given = {"nats_port": nats.port, "scaling_mode": "function"} | settings
    return run_program("worker.cli", *arguments, tmp_path=tmp_path, settings=given, stdin=stdin)


def make_consumer(nats: NatsServer, name: str, mode: str | None, **changes: Any) -> None:
    """Create a durable consumer with its mode recorded as the worker does."""
    config = {"durable_name": name, "ack_policy": "explicit", "metadata": {"queue-worker.mode": mode} if mode else {}}
    nats.api(f"CONSUMER.CREATE.faas-request.{name}", stream_name="faas-request", config=config | changes)


# Pausing and resuming.


def test_pause_stores_the_state_and_prints_all_paused(nats: NatsServer, tmp_path: Path) -> None:
    """A pause stores one message per function and prints all paused functions; a resume changes only its function."""
    code, out, errors = command(nats, tmp_path, "pause", "echo")
    assert (code, errors) == (0, "")
    when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    effect = "no worker runs now, and those that start later apply it"
    listed = rf"paused on faas-request:\n  echo\.openfaas-fn  since {when}\n"
    assert re.fullmatch(rf"echo\.openfaas-fn is paused: {effect}\n{listed}", out)
    (message,) = nats.messages("faas-request-functions")
    assert message.subject == "FUNCTIONS.faas-request.echo.openfaas-fn"
    assert message.json["paused"] is True
    code, out, _ = command(nats, tmp_path, "pause", "figlet.billing")
    assert re.findall(r"(?m)^  (\S+)", out) == ["echo.openfaas-fn", "figlet.billing"]
    code, out, _ = command(nats, tmp_path, "resume", "echo.openfaas-fn")
    assert (code, out.partition(":")[0]) == (0, "echo.openfaas-fn is not paused")
    assert re.findall(r"(?m)^  (\S+)", out) == ["figlet.billing"]
    assert len(nats.messages("faas-request-functions")) == 2


def test_pause_creates_a_stream_that_keeps_one_message_per_subject(nats: NatsServer, tmp_path: Path) -> None:
    """The first pause creates a stream with the queue's replicas and storage, and with subjects that no queue has."""
    command(nats, tmp_path, "pause", "echo", nats_stream_storage="memory")
    config = nats.api("STREAM.INFO.faas-request-functions")["config"]
    expected = {
        "subjects": ["FUNCTIONS.faas-request.>"],
        "retention": "limits",
        "max_msgs_per_subject": 1,
        "allow_direct": True,
        "storage": "memory",
        "num_replicas": 1,
        "max_age": 0,
    }
    assert {key: config[key] for key in expected} == expected


def test_pause_and_resume_repeated_exit_0(nats: NatsServer, tmp_path: Path) -> None:
    """A repeated pause or resume exits with 0, and a resume of a function that is not paused creates no stream."""
    code, out, _ = command(nats, tmp_path, "resume", "echo")
    assert (code, out.split("\n")[1:]) == (0, ["paused on faas-request: nothing", ""])
    assert nats.state("faas-request-functions") == {}
    for what in ("pause", "pause", "resume", "resume"):
        code, out, errors = command(nats, tmp_path, what, "echo")
        assert (code, errors) == (0, "")
    assert re.fullmatch(
        r"echo\.openfaas-fn is not paused: no worker runs now, .*\npaused on faas-request: nothing\n", out
    )


def test_pause_uses_a_stream_that_exists(nats: NatsServer, tmp_path: Path) -> None:
    """A pause uses a stream that an operator created with other limits, because the worker may lack the permission."""
    nats.api(
        "STREAM.CREATE.faas-request-functions",
        name="faas-request-functions",
        subjects=["FUNCTIONS.faas-request.>"],
        max_msgs_per_subject=1,
        max_bytes=100_000,
    )
    assert command(nats, tmp_path, "pause", "echo")[0] == 0
    assert nats.state("faas-request-functions")["messages"] == 1


def test_commands_use_the_stream_named_by_openfaas(tmp_path: Path) -> None:
    """Pause and purge use a stream ``OF_<queue>`` that OpenFaaS's worker created."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream("OF_slow", "slow")
        nats.publish("slow.0.echo.openfaas-fn", b"")
        assert command(nats, tmp_path, "pause", "echo", nats_stream="slow")[0] == 0
        assert nats.state("slow-functions")["messages"] == 1
        code, out, _ = command(nats, tmp_path, "purge", "echo", "--yes", nats_stream="slow")
        assert (code, out) == (0, "deleted: 1 message of echo.openfaas-fn\n")


# Static mode.


@pytest.mark.parametrize("mode", ["static", None])
def test_pause_in_static_mode_exits_2(nats: NatsServer, tmp_path: Path, mode: str | None) -> None:
    """In static mode no single function can be paused: the command names the remedy and stores nothing.

    A consumer with no mode recorded is OpenFaaS's own, which is shared by all functions.
    """
    make_consumer(nats, "faas-workers", mode)
    code, out, errors = command(nats, tmp_path, "pause", "echo")
    assert (code, out) == (2, "")
    assert errors.startswith("queue-worker: the queue faas-request is in static mode: there all functions share one")
    assert errors.endswith("Set scaling_mode=function for the workers and for this command\n")
    assert nats.state("faas-request-functions") == {}


def test_pause_without_consumers_depends_on_scaling_mode(nats: NatsServer, tmp_path: Path) -> None:
    """A queue without consumers counts as the mode of the command's ``scaling_mode``.

    In function mode an idle queue has no consumers.
    """
    code, _, errors = command(nats, tmp_path, "pause", "echo", scaling_mode="static")
    assert code == 2
    assert "has no consumers, and scaling_mode is static" in errors
    make_consumer(nats, "faas-workers-echo", "function", filter_subject="faas-request.0.echo.openfaas-fn")
    assert command(nats, tmp_path, "pause", "echo", scaling_mode="static")[0] == 0


def test_pause_during_a_migration_ignores_retired_consumers(nats: NatsServer, tmp_path: Path) -> None:
    """A retired consumer blocks no pause; a shared consumer that is not retired does."""
    make_consumer(nats, "faas-workers", "retired", filter_subject="RETIRED.faas-request.faas-workers")
    for number in range(300):  # more than the server lists at once
        name = f"faas-workers-{number:03}"
        make_consumer(nats, name, "function", filter_subject=f"faas-request.0.f{number}.openfaas-fn")
    assert command(nats, tmp_path, "pause", "echo")[0] == 0
    make_consumer(nats, "faas-workers-zzz", "static", filter_subject="faas-request.1.>")
    assert command(nats, tmp_path, "pause", "echo")[0] == 2


# Purging.


def publish_to_all_schemes(nats: NatsServer) -> None:
    """Publish messages of several functions, on subjects of several schemes."""
    subjects = {
        "faas-request.0.echo.openfaas-fn": 3,
        "faas-request.7.echo.openfaas-fn": 2,
        "faas-request.echo.openfaas-fn": 1,
        "faas-request.echo": 1,
        "faas-request.0.echo.other": 4,
        "faas-request.0.echo2.openfaas-fn": 4,
        "faas-request": 5,
    }
    nats.publish_many([(subject, b"{}", {}) for subject, count in subjects.items() for _ in range(count)])


def stored_by_subject(nats: NatsServer) -> Counter[str]:
    """Count the messages by subject."""
    return Counter(nats.api("STREAM.INFO.faas-request", subjects_filter=">")["state"].get("subjects") or {})


def test_purge_deletes_all_messages_of_one_function(nats: NatsServer, tmp_path: Path) -> None:
    """A purge deletes a function's messages in every partition and scheme of subjects, except the bare subject."""
    publish_to_all_schemes(nats)
    code, out, errors = command(nats, tmp_path, "purge", "echo", "--yes")
    assert (code, out) == (0, "deleted: 7 messages of echo.openfaas-fn\n")
    assert errors == (
        "queue-worker: 5 messages on the bare subject faas-request may be of any function; they are left alone\n"
    )
    assert stored_by_subject(nats) == {
        "faas-request.0.echo.other": 4,
        "faas-request.0.echo2.openfaas-fn": 4,
        "faas-request": 5,
    }


@pytest.mark.parametrize(("answer", "code", "kept"), [(b"y\n", 0, 0), (b"n\n", 1, 4), (b"", 1, 4)])
def test_purge_asks_before_it_deletes(nats: NatsServer, tmp_path: Path, answer: bytes, code: int, kept: int) -> None:
    """A purge asks with the number of messages, and deletes them only after a yes."""
    publish_to_all_schemes(nats)
    ended, out, _ = command(nats, tmp_path, "purge", "echo.other", stdin=answer)
    assert ended == code
    assert out.startswith("4 messages of echo.other will be lost. Delete? [y/N]: ")
    assert stored_by_subject(nats)["faas-request.0.echo.other"] == kept


def test_purge_without_messages_asks_nothing(nats: NatsServer, tmp_path: Path) -> None:
    """A purge of a function without messages reports that and exits with 0."""
    assert command(nats, tmp_path, "purge", "echo") == (
        0,
        "the queue faas-request holds nothing of echo.openfaas-fn\n",
        "",
    )


# Failures.


@pytest.mark.parametrize("what", ["pause", "resume", "purge"])
def test_command_with_an_invalid_name_exits_2(nats: NatsServer, tmp_path: Path, what: str) -> None:
    """The name is checked before the command connects."""
    code, _, errors = command(nats, tmp_path, what, "Echo", nats_port=1)
    assert code == 2
    assert "not a function's name: 'Echo'; write name or name.namespace" in errors


def test_pause_without_a_server_exits_1(nats: NatsServer, tmp_path: Path) -> None:
    """A command without a server prints one line with the URL and exits with 1."""
    port = free_port()
    code, out, errors = command(nats, tmp_path, "pause", "echo", nats_port=port)
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"queue-worker: no NATS at nats://127.0.0.1:{port} within 5 s .*\n", errors)


@pytest.mark.parametrize("what", ["pause", "purge"])
def test_command_without_a_stream_exits_1(tmp_path: Path, what: str) -> None:
    """A command without a stream prints one line with its name and exits with 1."""
    with NatsServer(tmp_path) as nats:
        code, _, errors = command(nats, tmp_path, what, "echo")
    assert (code, errors) == (
        1,
        "queue-worker: there is no stream faas-request: start a worker, which makes it, or check nats_stream\n",
    )


def test_pause_without_jetstream_exits_1(tmp_path: Path) -> None:
    """The line on a server without JetStream names JetStream as the cause."""
    with NatsServer(tmp_path, jetstream=False) as nats:
        code, _, errors = command(nats, tmp_path, "pause", "echo")
    assert code == 1
    assert "no JetStream there" in errors


def test_pause_with_refused_credentials_exits_1(tmp_path: Path) -> None:
    """The line on refused credentials names them as the cause, without the token."""
    config = "authorization { token: s3cret }"
    with NatsServer(tmp_path, config=config, connect={"auth_token": "s3cret"}) as nats:
        code, _, errors = command(nats, tmp_path, "pause", "echo", nats_token="wr0ng")
    assert code == 1
    assert "NATS refuses our credentials" in errors
    assert "wr0ng" not in errors
