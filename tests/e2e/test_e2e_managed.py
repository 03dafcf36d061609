"""Servers that others manage: escaped passwords, TLS first, private inboxes, limits of accounts, permissions."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pytest
import trustme

from tests.e2e.stack import Queue, Worker, message
from tests.functions import Functions
from tests.servers import NatsServer, wait_until

PASSWORD = "p@s:s/w%rd#1"


@pytest.mark.parametrize("user", ["u", "u@example.com"])
def test_nats_url_with_escaped_credentials_connects(tmp_path: Path, functions: Functions, user: str) -> None:
    """User and password in nats_url may be percent-encoded, as in any URL; they are never printed."""
    config = f'authorization {{ user: "{user}", password: "{PASSWORD}" }}'
    with NatsServer(tmp_path, config=config, connect={"user": user, "pass": PASSWORD}) as nats:
        url = f"nats://{quote(user, safe='')}:{quote(PASSWORD, safe='')}@127.0.0.1:{nats.port}"
        for urls in (url, f"nats://127.0.0.1:1,{url}"):
            with Worker(Queue(nats), functions, tmp_path=tmp_path, nats_url=urls, debug="true") as worker:
                worker.wait_ready()
                assert PASSWORD not in worker.output
                assert quote(PASSWORD, safe="") not in worker.output
        wrong = url.replace("p%40s", "p%40x")
        with Worker(Queue(nats), functions, tmp_path=tmp_path, nats_url=wrong, debug="true") as worker:
            assert worker.wait() == 1
            assert "NATS refuses our credentials" in worker.stderr
            assert "w%25rd" not in worker.output
            assert "w%rd" not in worker.output


def test_nats_url_with_different_escaped_passwords_is_named(tmp_path: Path) -> None:
    """Different escaped passwords of servers are exit 1, with one line that names the settings to use."""
    settings = {"nats_url": "nats://u:s3cret%40@127.0.0.1:1,nats://u:s3cret%41@127.0.0.1:2"}
    with Worker(None, tmp_path=tmp_path, **settings) as worker:
        assert worker.wait() == 1
        (line,) = worker.stderr.splitlines()
        assert "nats_user and nats_password" in line
        assert "s3cret" not in worker.output


def test_nats_tls_first_connects(tmp_path: Path) -> None:
    """With nats_tls_first, the worker connects to a server that begins with TLS."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    files = {name: tmp_path / name for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    certificate.cert_chain_pems[0].write_to_path(str(files["cert"]))
    certificate.private_key_pem.write_to_path(str(files["key"]))
    config = f'tls {{ cert_file: "{files["cert"]}", key_file: "{files["key"]}", handshake_first: true }}'
    with NatsServer(tmp_path, config=config) as nats:
        settings = {"nats_url": f"tls://localhost:{nats.port}", "nats_tls_ca_file": files["ca"]}
        with Worker(None, tmp_path=tmp_path, **settings, nats_tls_first="true") as worker:
            worker.wait_ready()


INBOX = """authorization { users: [
    { user: admin, password: admin }
    { user: u, password: p, permissions: { publish: ">", subscribe: ["_INBOX_u.>", "FUNCTIONS.>", "queue-worker.>"] } }
] }"""


def test_nats_inbox_prefix_is_used_for_every_inbox(tmp_path: Path, functions: Functions) -> None:
    """With nats_inbox_prefix, the worker needs no right on _INBOX; without it, readiness names that right."""
    with NatsServer(tmp_path, config=INBOX, connect={"user": "admin", "pass": "admin"}) as nats:
        queue, user = Queue(nats), {"nats_user": "u", "nats_password": "p"}
        with Worker(queue, functions, tmp_path=tmp_path, **user) as worker:
            wait_until(lambda: "nats_inbox_prefix" in worker.get("/readyz")[1], "the remedy in /readyz")
            assert worker.get("/readyz")[0] == 503
            assert [line for line in worker.logged("Trouble") if "nats_inbox_prefix" in line["error"]]
        for mode in ("static", "function"):
            settings = user | {"nats_inbox_prefix": "_INBOX_u", "scaling_mode": mode}
            with Worker(queue, functions, tmp_path=tmp_path, **settings) as worker:
                worker.wait_ready()
                queue.put_calls("echo", [mode])
                queue.wait_empty()


ACCOUNT = """accounts { A { jetstream: { %s }, users: [ { user: a, password: p } ] } }
no_auth_user: a"""
SIZES: dict[str, object] = {
    "nats_stream_max_bytes": 1_000_000,
    "nats_state_max_bytes": 100_000,
    "dead_letter_max_bytes": 1_000_000,
}


REFUSED: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "10113 nats_stream_max_bytes": ("max_file: 100M, max_bytes_required: true", {}, SIZES),
    "10047 nats_stream_max_bytes": ("max_file: 100M", {"nats_stream_max_bytes": 10**9}, SIZES),
    "10122 nats_stream_max_bytes": (
        "max_file: 90M, disk_max_stream_bytes: 2M",
        {"nats_stream_max_bytes": 10**7},
        SIZES,
    ),
    "10074 nats_stream_replicas": ("max_file: 100M", {"nats_stream_replicas": 3}, {}),
}
"""An account's limits, settings that it refuses, and settings that it accepts, by error and setting."""


@pytest.mark.parametrize("case", REFUSED)
def test_stream_refused_by_an_account_is_named_with_its_remedy(tmp_path: Path, functions: Functions, case: str) -> None:
    """A refusal by the account is in a log line and in /readyz, with the setting to change; that helps."""
    limits, wrong, right = REFUSED[case]
    named = case.split()
    with NatsServer(tmp_path, config=ACCOUNT % limits) as nats:
        queue = Queue(nats)
        with Worker(queue, functions, tmp_path=tmp_path, **wrong) as worker:
            wait_until(lambda: all(each in worker.get("/readyz")[1] for each in named), "the remedy in /readyz")
            assert worker.get("/readyz")[0] == 503
            assert [line for line in worker.logged("Trouble") if all(each in line["error"] for each in named)]
        with Worker(queue, functions, tmp_path=tmp_path, scaling_mode="function", **right) as worker:
            worker.wait_ready()
            queue.put(b"not a message")
            capped = message("echo", "one", Annotations={"com.openfaas.queue.max_inflight": "1"})
            nats.publish(f"{queue.name}.0.echo.openfaas-fn", capped)
            queue.wait_empty()
            assert len(queue.dead_letters()) == 1
            wait_until(lambda: nats.state(f"{queue.name}-functions").get("messages"), "the agreed quota")


def test_duplicate_window_limit_is_kept(tmp_path: Path, functions: Functions) -> None:
    """Above the server's limit of windows, the setting is named; within it, dead letters are stored, too."""
    limits = f'jetstream {{ store_dir: "{tmp_path}/js", limits {{ duplicate_window: "1m" }} }}'
    with NatsServer(tmp_path, jetstream=False, config=limits) as nats:
        queue = Queue(nats)
        with Worker(queue, functions, tmp_path=tmp_path) as worker:
            wait_until(lambda: "nats_duplicate_window" in worker.get("/readyz")[1], "the remedy in /readyz")
        with Worker(queue, functions, tmp_path=tmp_path, nats_duplicate_window="1m") as worker:
            worker.wait_ready()
            queue.put(b"not a message")
            queue.wait_empty()
            assert len(queue.dead_letters()) == 1


def test_account_without_jetstream_is_named(tmp_path: Path, functions: Functions) -> None:
    """An account without JetStream is named in /readyz, with what to do."""
    config = "accounts { A { users: [ { user: a, password: p } ] } }\nno_auth_user: a"
    with NatsServer(tmp_path, config=config) as nats, Worker(Queue(nats), functions, tmp_path=tmp_path) as worker:
        wait_until(lambda: "switch JetStream on" in worker.get("/readyz")[1], "the remedy in /readyz")


def test_missing_permission_to_create_is_named(tmp_path: Path, functions: Functions) -> None:
    """A user that may not create the stream is named with the subject that it lacks."""
    config = """authorization { users: [
        { user: admin, password: admin }
        { user: u, password: p, permissions: { publish: { deny: "$JS.API.STREAM.CREATE.>" } } }
    ] }"""
    with NatsServer(tmp_path, config=config, connect={"user": "admin", "pass": "admin"}) as nats:
        user = {"nats_user": "u", "nats_password": "p"}
        with Worker(Queue(nats), functions, tmp_path=tmp_path, **user) as worker:
            wait_until(lambda: "STREAM.CREATE" in worker.get("/readyz")[1], "the subject in /readyz")
            wait_until(lambda: "ermit" in worker.get("/readyz")[1], "the remedy in /readyz")
