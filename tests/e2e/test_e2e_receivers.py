"""Contract, section 11: which receivers callbacks reach, and how a receiver can verify them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from pathlib import Path

import pytest

from tests.e2e.stack import Queue, StartWorker, message
from tests.functions import Functions, Reply, Request
from tests.servers import run_program, wait_until

KEY = b"k" * 32


def signatures(request: Request, key: bytes) -> tuple[str, str]:
    """Return the two signatures that a callback should have by *key*."""
    start = f"{request.header('webhook-id')}.{request.header('webhook-timestamp')}.".encode()
    digest = hmac.new(key, start + request.body, hashlib.sha256).digest()
    body = hmac.new(key, request.body, hashlib.sha256).hexdigest()
    return f"v1,{base64.b64encode(digest).decode()}", f"sha256={body}"


@pytest.mark.parametrize("mode", ["static", "function"])
def test_callback_to_a_forbidden_address_is_refused_once(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, mode: str
) -> None:
    """By default a callback to this machine is not sent; a line and the metric name rule and setting, once."""
    worker = start(scaling_mode=mode, callback_allow="")
    urls = {"one": receiver.url, "two": receiver.url.replace("127.0.0.1", "2130706433"), "three": "http://[fe80::1]/"}
    queue.put(*(message("echo", call, CallbackUrl=f"{url}/secret-path") for call, url in urls.items()))
    queue.wait_empty()
    assert (functions.calls(), receiver.calls()) == (dict.fromkeys(urls, 1), {})
    for call in urls:
        (line,) = [line for line in worker.lines_of(call) if "allback" in line["event"]]
        assert (line["event"], line["level"]) == ("Callback refused", "error")
        assert "callback_allow" in line["result"]
        assert "secret-path" not in str(line)
    assert worker.metric("queue_worker_callbacks_total", result="refused") == 3
    assert worker.metric("queue_worker_callbacks_total") == 3


def test_callback_to_a_denied_receiver_names_the_rule(queue: Queue, receiver: Functions, start: StartWorker) -> None:
    """A receiver in callback_deny is refused by its rule, and one in callback_allow comes first."""
    worker = start(callback_allow=f"127.0.0.1:{receiver.port}", callback_deny="127.0.0.0/8")
    queue.put(message("echo", "good", CallbackUrl=f"{receiver.url}/x"))
    queue.put(message("echo", "bad", CallbackUrl="http://127.0.0.1:1/x"))
    queue.wait_empty()
    assert receiver.calls() == {"good": 1}
    (line,) = [line for line in worker.lines_of("bad") if line["event"] == "Callback refused"]
    assert line["result"] == "127.0.0.1 port 1 matches 127.0.0.0/8 in callback_deny"


def test_callback_to_the_gateway_is_always_allowed(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """A chain of functions works whatever the rules are: gateway_url is allowed, and gets no credentials."""
    url = functions.url.replace("http://", "http://admin:hidden@")
    start(callback_allow="", callback_deny="*", gateway_url=url)
    queue.put(message("first", "chain", body=b"1", CallbackUrl=f"{functions.url}/function/second"))
    queue.wait_empty()
    assert [request.name for request in functions.of("chain")] == ["first", "second"]
    first, second = functions.of("chain")
    assert first.header("Authorization")
    assert second.header("Authorization") is None


def test_callback_id_is_the_same_for_each_try_and_no_other(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker
) -> None:
    """A receiver detects a repeat by webhook-id. A function cannot forge it, nor a signature."""
    forged = [(name, "forged") for name in ("Webhook-Id", "webhook-signature", "X-OpenFaaS-Signature-256")]
    functions.answer("forger", Reply(200, headers=tuple(forged)))
    receiver.answer("back", Reply(500), Reply(503), Reply(200))
    start()
    queue.put(message("forger", "one", CallbackUrl=f"{receiver.url}/back"))
    wait_until(lambda: len(receiver.of("one")) == 3, "the third try")
    queue.put(message("echo", "one", CallbackUrl=f"{receiver.url}/back"))
    wait_until(lambda: len(receiver.of("one")) == 4, "the second callback")
    queue.wait_empty()
    ids = [request.all("webhook-id") for request in receiver.of("one")]
    assert len(ids) == 4
    assert ids[0] == ids[1] == ids[2] != ids[3]
    assert all(len(each) == 1 for each in ids)
    for request in receiver.of("one"):
        assert request.header("webhook-signature") is None
        assert request.header("X-Openfaas-Signature-256") is None


def test_callback_is_signed_with_keys_that_are_rotated(
    queue: Queue, functions: Functions, receiver: Functions, start: StartWorker, tmp_path: Path
) -> None:
    """Each try is signed at its time with all keys; new keys are used without a restart, and none is logged."""
    functions.answer("echo", Reply(200, b"\x00result\xff"))
    keys = tmp_path / "keys"
    written = f"whsec_{base64.b64encode(KEY).decode()}"
    keys.write_text(f"{written}\nold-secret-text\n")
    worker = start(callback_secret_file=keys, debug="true")
    began = int(time.time())
    queue.put(message("echo", "one", CallbackUrl=f"{receiver.url}/x"))
    queue.wait_empty()
    (one,) = receiver.of("one")
    assert began <= int(one.header("webhook-timestamp") or 0) <= time.time()
    first, openfaas = signatures(one, KEY)
    assert one.header("webhook-signature") == f"{first} {signatures(one, b'old-secret-text')[0]}"
    assert one.header("X-Openfaas-Signature-256") == openfaas

    (tmp_path / "new").write_text("new-secret-text")
    (tmp_path / "new").rename(keys)
    wait_until(lambda: worker.logged("Signing keys of callbacks changed"), "the new key")
    queue.put(message("echo", "two", CallbackUrl=f"{receiver.url}/x"))
    queue.wait_empty()
    (two,) = receiver.of("two")
    assert (two.header("webhook-signature"), two.header("X-Openfaas-Signature-256")) == signatures(
        two, b"new-secret-text"
    )

    keys.write_text("")
    wait_until(lambda: worker.metric("queue_worker_callback_keys_unusable") == 1, "the empty file to be noticed")
    assert len(worker.logged("Signing keys of callbacks cannot be read")) == 1
    queue.put(message("echo", "three", CallbackUrl=f"{receiver.url}/x"))
    queue.wait_empty()
    (three,) = receiver.of("three")
    assert three.header("webhook-signature") == signatures(three, b"new-secret-text")[0]
    for secret in (written.removeprefix("whsec_"), "old-secret-text", "new-secret-text"):
        assert secret not in worker.output


def test_unusable_rules_and_keys_are_named_with_exit_2(tmp_path: Path) -> None:
    """Patterns and keys that cannot be used end the start with one line each, which quotes no key."""
    (tmp_path / "keys").write_text("good\nwhsec_not*base64")
    settings = {
        "callback_allow": "http://example.com",
        "callback_deny": "10.0.0.1/8",
        "callback_secret_file": tmp_path / "keys",
    }
    code, output, errors = run_program("worker", tmp_path=tmp_path, settings=settings)
    assert (code, output) == (2, "")
    lines = errors.splitlines()
    assert len(lines) == 4
    assert "'http://example.com' is a URL, but receivers are chosen by host and port: write " in lines[1]
    assert "'10.0.0.1/8' is an address within a network: write 10.0.0.0/8" in lines[2]
    assert lines[3].endswith("line 2: what follows whsec_ is not base64")
    assert "not*base64" not in errors
