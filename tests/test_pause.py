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
    """A server with the stream, and nothing that works it."""
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


def command(nats: NatsServer, tmp_path: Path, *arguments: str, stdin: bytes = b"", **settings: object) -> Any:
    """Exit code, standard output and standard error; the settings are those of a queue in function mode."""
    given = {"nats_port": nats.port, "scaling_mode": "function"} | settings
    return run_program("worker.cli", *arguments, tmp_path=tmp_path, settings=given, stdin=stdin)


def make_consumer(nats: NatsServer, name: str, mode: str | None, **changes: Any) -> None:
    """A durable consumer of the stream, its mode recorded as the worker does."""
    config = {"durable_name": name, "ack_policy": "explicit", "metadata": {"queue-worker.mode": mode} if mode else {}}
    nats.api(f"CONSUMER.CREATE.faas-request.{name}", stream_name="faas-request", config=config | changes)


# Pausing and resuming.


def test_a_pause_is_remembered_at_the_broker(nats: NatsServer, tmp_path: Path) -> None:
    """What is paused is in a stream of its own, one message a function, and is printed; resuming leaves the others."""
    code, out, errors = command(nats, tmp_path, "pause", "echo")
    assert (code, errors) == (0, "")
    when = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(
        rf"echo\.openfaas-fn is paused\npaused on faas-request:\n  echo\.openfaas-fn  since {when}\n", out
    )
    (message,) = nats.messages("faas-request-functions")
    assert message.subject == "FUNCTIONS.faas-request.echo.openfaas-fn"
    assert message.json["paused"] is True
    code, out, _ = command(nats, tmp_path, "pause", "figlet.billing")
    assert re.findall(r"(?m)^  (\S+)", out) == ["echo.openfaas-fn", "figlet.billing"]
    code, out, _ = command(nats, tmp_path, "resume", "echo.openfaas-fn")
    assert (code, out.partition("\n")[0]) == (0, "echo.openfaas-fn is not paused")
    assert re.findall(r"(?m)^  (\S+)", out) == ["figlet.billing"]
    assert len(nats.messages("faas-request-functions")) == 2


def test_the_stream_of_what_is_paused(nats: NatsServer, tmp_path: Path) -> None:
    """It keeps the last message of a subject, is as replicated and stored as the queue, and collides with no queue."""
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


def test_pausing_and_resuming_twice_is_no_error(nats: NatsServer, tmp_path: Path) -> None:
    """An operator can say it once more; and to resume what was never paused makes no stream."""
    code, out, _ = command(nats, tmp_path, "resume", "echo")
    assert (code, out) == (0, "echo.openfaas-fn is not paused\npaused on faas-request: nothing\n")
    assert nats.state("faas-request-functions") == {}
    for what in ("pause", "pause", "resume", "resume"):
        code, out, errors = command(nats, tmp_path, what, "echo")
        assert (code, errors) == (0, "")
    assert out == "echo.openfaas-fn is not paused\npaused on faas-request: nothing\n"


def test_a_stream_that_an_operator_made_is_used(nats: NatsServer, tmp_path: Path) -> None:
    """Made beforehand with other limits, for want of a permission say, it is used as it is."""
    nats.api(
        "STREAM.CREATE.faas-request-functions",
        name="faas-request-functions",
        subjects=["FUNCTIONS.faas-request.>"],
        max_msgs_per_subject=1,
        max_bytes=100_000,
    )
    assert command(nats, tmp_path, "pause", "echo")[0] == 0
    assert nats.state("faas-request-functions")["messages"] == 1


def test_a_queue_named_by_openfaas_s_worker(tmp_path: Path) -> None:
    """Where the queue's stream has OpenFaaS's name for it, that is the one that is looked at and purged."""
    with NatsServer(tmp_path) as nats:
        nats.make_stream("OF_slow", "slow")
        nats.publish("slow.0.echo.openfaas-fn", b"")
        assert command(nats, tmp_path, "pause", "echo", nats_stream="slow")[0] == 0
        assert nats.state("slow-functions")["messages"] == 1
        code, out, _ = command(nats, tmp_path, "purge", "echo", "--yes", nats_stream="slow")
        assert (code, out) == (0, "deleted: 1 message of echo.openfaas-fn\n")


# Static mode.


@pytest.mark.parametrize("mode", ["static", None])
def test_a_queue_in_static_mode_cannot_pause(nats: NatsServer, tmp_path: Path, mode: str | None) -> None:
    """There one function cannot be held back: the command says why, what to do, ends with 2 and remembers nothing.

    A consumer with no mode recorded is OpenFaaS's own, which is shared by all functions.
    """
    make_consumer(nats, "faas-workers", mode)
    code, out, errors = command(nats, tmp_path, "pause", "echo")
    assert (code, out) == (2, "")
    assert errors.startswith("queue-worker: the queue faas-request is in static mode: there all functions share one")
    assert errors.endswith("Set scaling_mode=function for the workers and for this command\n")
    assert nats.state("faas-request-functions") == {}


def test_a_queue_with_nothing_to_do_goes_by_its_setting(nats: NatsServer, tmp_path: Path) -> None:
    """In function mode an idle queue has no consumers, and can pause; where nothing says so, it is taken for static."""
    code, _, errors = command(nats, tmp_path, "pause", "echo", scaling_mode="static")
    assert code == 2
    assert "has no consumers, and scaling_mode is static" in errors
    make_consumer(nats, "faas-workers-echo", "function", filter_subject="faas-request.0.echo.openfaas-fn")
    assert command(nats, tmp_path, "pause", "echo", scaling_mode="static")[0] == 0


def test_a_queue_that_goes_over_to_function_mode_can_pause(nats: NatsServer, tmp_path: Path) -> None:
    """A shared consumer that only ends what it has handed out is in nobody's way; one that is not retired is."""
    make_consumer(nats, "faas-workers", "retired", filter_subject="RETIRED.faas-request.faas-workers")
    for number in range(300):  # more than the server lists at once
        name = f"faas-workers-{number:03}"
        make_consumer(nats, name, "function", filter_subject=f"faas-request.0.f{number}.openfaas-fn")
    assert command(nats, tmp_path, "pause", "echo")[0] == 0
    make_consumer(nats, "faas-workers-zzz", "static", filter_subject="faas-request.1.>")
    assert command(nats, tmp_path, "pause", "echo")[0] == 2


# Purging.


def fill(nats: NatsServer) -> None:
    """Messages of several functions, on subjects of several schemes."""
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


def left(nats: NatsServer) -> Counter[str]:
    """Messages by subject."""
    return Counter(nats.api("STREAM.INFO.faas-request", subjects_filter=">")["state"].get("subjects") or {})


def test_all_of_one_function_is_purged(nats: NatsServer, tmp_path: Path) -> None:
    """In every partition and whatever the scheme of subjects, but nothing of others, nor on the bare subject."""
    fill(nats)
    code, out, errors = command(nats, tmp_path, "purge", "echo", "--yes")
    assert (code, out) == (0, "deleted: 7 messages of echo.openfaas-fn\n")
    assert errors == (
        "queue-worker: 5 messages on the bare subject faas-request may be of any function; they are left alone\n"
    )
    assert left(nats) == {"faas-request.0.echo.other": 4, "faas-request.0.echo2.openfaas-fn": 4, "faas-request": 5}


@pytest.mark.parametrize(("answer", "code", "kept"), [(b"y\n", 0, 0), (b"n\n", 1, 4), (b"", 1, 4)])
def test_a_purge_asks_first(nats: NatsServer, tmp_path: Path, answer: bytes, code: int, kept: int) -> None:
    """It says how many messages are lost, and deletes only after a yes."""
    fill(nats)
    ended, out, _ = command(nats, tmp_path, "purge", "echo.other", stdin=answer)
    assert ended == code
    assert out.startswith("4 messages of echo.other will be lost. Delete? [y/N]: ")
    assert left(nats)["faas-request.0.echo.other"] == kept


def test_there_may_be_nothing_to_purge(nats: NatsServer, tmp_path: Path) -> None:
    """Then it says so, and asks nothing."""
    assert command(nats, tmp_path, "purge", "echo") == (
        0,
        "the queue faas-request holds nothing of echo.openfaas-fn\n",
        "",
    )


# What goes wrong.


@pytest.mark.parametrize("what", ["pause", "resume", "purge"])
def test_bad_usage_is_2(nats: NatsServer, tmp_path: Path, what: str) -> None:
    """A name that is none is told so, before the broker is looked for."""
    code, _, errors = command(nats, tmp_path, what, "Echo", nats_port=1)
    assert code == 2
    assert "not a function's name: 'Echo'; write name or name.namespace" in errors


def test_no_server_is_1(nats: NatsServer, tmp_path: Path) -> None:
    """Within five seconds, in one line that names the settings."""
    port = free_port()
    code, out, errors = command(nats, tmp_path, "pause", "echo", nats_port=port)
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"queue-worker: no NATS at nats://127.0.0.1:{port} within 5 s .*\n", errors)


@pytest.mark.parametrize("what", ["pause", "purge"])
def test_no_stream_is_1(tmp_path: Path, what: str) -> None:
    """A queue that is not there is named."""
    with NatsServer(tmp_path) as nats:
        code, _, errors = command(nats, tmp_path, what, "echo")
    assert (code, errors) == (
        1,
        "queue-worker: there is no stream faas-request: start a worker, which makes it, or check nats_stream\n",
    )


def test_no_jetstream_is_1(tmp_path: Path) -> None:
    """A server without JetStream is told of in one line."""
    with NatsServer(tmp_path, jetstream=False) as nats:
        code, _, errors = command(nats, tmp_path, "pause", "echo")
    assert code == 1
    assert "no JetStream there" in errors


def test_refused_credentials_are_1(tmp_path: Path) -> None:
    """They are named as what is to be checked, and the token is not shown."""
    config = "authorization { token: s3cret }"
    with NatsServer(tmp_path, config=config, connect={"auth_token": "s3cret"}) as nats:
        code, _, errors = command(nats, tmp_path, "pause", "echo", nats_token="wr0ng")
    assert code == 1
    assert "NATS refuses our credentials" in errors
    assert "wr0ng" not in errors
