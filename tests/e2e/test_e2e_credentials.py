"""Contract, section 2: credentials for NATS, which are never printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.stack import Queue, Worker
from tests.functions import Functions
from tests.servers import NatsServer, run_program


@pytest.fixture
def guarded(tmp_path: Path) -> NatsServer:
    return NatsServer(tmp_path, config='authorization { token: "t0ken-right" }', connect={"auth_token": "t0ken-right"})


@pytest.mark.parametrize("way", ["nats_token", "nats_token_file", "nats_url", "QUEUE_WORKER_NATS_TOKEN"])
def test_connect_with_a_valid_token_succeeds(
    guarded: NatsServer, functions: Functions, tmp_path: Path, way: str
) -> None:
    """The worker connects with a token from a setting (in upper case too), a file or the URL, and never prints it."""
    secret = tmp_path / "token"
    secret.write_text("t0ken-right\n")
    with guarded:
        values: dict[str, object] = {
            "nats_token": "t0ken-right",
            "nats_token_file": secret,
            "nats_url": f"nats://t0ken-right@127.0.0.1:{guarded.port}",
            "QUEUE_WORKER_NATS_TOKEN": "t0ken-right",
        }
        queue = Queue(guarded)
        with Worker(queue, functions, tmp_path=tmp_path, debug="true", **{way: values[way]}) as worker:
            worker.wait_ready()
            queue.put_calls("echo", ["one"])
            queue.wait_empty()
            worker.terminate()
            assert worker.wait() == 0
            assert "t0ken" not in worker.output
        assert functions.calls() == {"one": 1}


@pytest.mark.parametrize("way", ["none", "wrong", "wrong in the URL"])
def test_connect_with_a_wrong_token_ends_the_worker(guarded: NatsServer, tmp_path: Path, way: str) -> None:
    """A wrong token ends the worker with exit 1 and a message that names problem and settings, but not the token."""
    with guarded:
        given: dict[str, dict[str, object]] = {
            "none": {},
            "wrong": {"nats_token": "t0ken-wrong"},
            "wrong in the URL": {"nats_url": f"nats://t0ken-wrong@127.0.0.1:{guarded.port}"},
        }
        with Worker(Queue(guarded), tmp_path=tmp_path, debug="true", **given[way]) as worker:
            assert worker.wait() == 1
            assert "uthorization" in worker.stderr
            assert "nats_token" in worker.stderr
            assert len(worker.stderr.splitlines()) == 1
            assert "t0ken" not in worker.output


def test_connect_with_user_and_password_succeeds(tmp_path: Path, functions: Functions) -> None:
    """The worker connects with user and password; a wrong password is exit 1; no password is ever printed."""
    config = 'authorization { user: "worker", password: "p4ss-right" }'
    with NatsServer(tmp_path, config=config, connect={"user": "worker", "pass": "p4ss-right"}) as nats:
        queue = Queue(nats)
        with Worker(
            queue, functions, tmp_path=tmp_path, nats_user="worker", nats_password="p4ss-right", debug="1"
        ) as worker:
            worker.wait_ready()
            queue.put_calls("echo", ["one"])
            queue.wait_empty()
            assert "p4ss" not in worker.output
        with Worker(queue, tmp_path=tmp_path, nats_user="worker", nats_password="p4ss-wrong", debug="1") as worker:
            assert worker.wait() == 1
            assert "nats_password" in worker.stderr
            assert "p4ss" not in worker.output


def test_connect_with_an_nkey_seed_succeeds(tmp_path: Path, functions: Functions) -> None:
    """The worker authenticates with an nkey seed from a file, and never prints the seed."""
    # The seed consists of the bytes 0 to 31, so it protects nothing.
    seed = "SUAAAAICAMCAKBQHBAEQUCYMBUHA6EARCIJRIFIWC4MBSGQ3DQOR4H776Y"
    public = "UAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3RLKK"
    secret = tmp_path / "seed"
    secret.write_text(seed)
    config = f'authorization {{ users: [{{ nkey: {public} }}, {{ user: test, password: "x" }}] }}'
    with NatsServer(tmp_path, config=config, connect={"user": "test", "pass": "x"}) as nats:
        queue = Queue(nats)
        with Worker(queue, functions, tmp_path=tmp_path, nats_nkey_seed_file=secret, debug="true") as worker:
            worker.wait_ready()
            queue.put_calls("echo", ["one"])
            queue.wait_empty()
            assert seed not in worker.output


def test_worker_with_credentials_refused_later_waits(tmp_path: Path, functions: Functions) -> None:
    """A worker whose credentials are refused at a reconnect is not ready, and continues when they are accepted."""
    with NatsServer(tmp_path) as nats:
        queue = Queue(nats)
        with Worker(queue, functions, tmp_path=tmp_path) as worker:
            worker.wait_ready()
            nats.stop()
            strict = NatsServer(tmp_path, config="authorization { token: x }", connect={"auth_token": "x"})
            strict.port = nats.port
            with strict:
                worker.wait_for("uthorization")
                assert worker.get("/readyz")[0] == 503
                assert worker.get("/healthz")[0] == 200
            nats.start()
            worker.wait_ready()
            queue.put_calls("echo", ["one"])
            queue.wait_empty()
            assert functions.calls() == {"one": 1}


def test_nats_url_with_two_servers_uses_the_first_that_answers(
    own_nats: NatsServer, functions: Functions, tmp_path: Path
) -> None:
    """A worker connects to the first server in `nats_url` that answers; the setting overrides host and port."""
    queue = Queue(own_nats)
    urls = f"nats://127.0.0.1:1, {own_nats.url}"
    with Worker(queue, functions, tmp_path=tmp_path, nats_url=urls, nats_host="no-such-host.invalid") as worker:
        worker.wait_ready()
        queue.put_calls("echo", ["one"])
        queue.wait_empty()


def test_config_command_masks_secrets(tmp_path: Path) -> None:
    """`queue-worker config` prints each value and its origin; secrets are masked, also in URLs."""
    secret = tmp_path / "seed"
    secret.write_text("SUA-s3cret")
    settings = {
        "nats_url": "nats://worker:s3cret@10.0.0.1:4222",
        "nats_nkey_seed_file": secret,
        "max_inflight": "7",
        "QUEUE_WORKER_ACK_WAIT": "90s",
        "gateway_url": "http://admin:s3cret@gateway:8080",
    }
    code, output, errors = run_program("worker.cli", "config", tmp_path=tmp_path, settings=settings)
    assert code == 0
    assert "s3cret" not in output + errors
    shown = {line.split()[0]: line for line in output.splitlines()}
    assert "7" in shown["max_inflight"]
    assert "max_inflight" in shown["max_inflight"].split(maxsplit=2)[2]
    assert "1m30s" in shown["ack_wait"]
    assert "QUEUE_WORKER_ACK_WAIT" in shown["ack_wait"]
    assert "default" in shown["max_retry_attempts"]
    assert str(secret) in shown["nats_nkey_seed"]
    assert "10.0.0.1:4222" in shown["nats_url"]
