"""Bodies that are too large for a message, at the producer: a real nats-server, a real process, real sockets."""

from __future__ import annotations

import hashlib
import http.client
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.gateway import Gateway, Response, gateway_on
from tests.servers import NatsServer, run_program, wait_until

BUCKET = "OBJ_faas-request-bodies"
LARGE = b"".join(b"%07d\n" % n for n in range(300_000))
"""2.4 MB that are the same nowhere."""


@pytest.fixture
def nats(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path) as server:
        server.make_stream()
        yield server


@pytest.fixture
def gateway(nats: NatsServer, tmp_path: Path) -> Iterator[Gateway]:
    with gateway_on(nats, tmp_path) as started:
        yield started


def chunks(nats: NatsServer) -> dict[str, bytes]:
    """Return what is stored of each object, by its id."""
    found: dict[str, bytes] = {}
    for message in nats.messages(BUCKET) if nats.state(BUCKET) else []:
        if message.subject.startswith("$O.faas-request-bodies.C."):
            identifier = message.subject.rpartition(".")[2]
            found[identifier] = found.get(identifier, b"") + message.data
    return found


def queued(nats: NatsServer) -> list[dict[str, Any]]:
    return [message.json for message in nats.messages()]


def send_chunked(gateway: Gateway, parts: list[bytes], **headers: str) -> Response:
    connection = gateway.connection()
    connection.request("POST", "/async-function/echo", iter(parts), headers, encode_chunked=True)
    answer = connection.getresponse()
    return Response(answer.status, answer.headers, answer.read())


@pytest.mark.parametrize("chunked", [False, True])
def test_large_body_is_stored_and_the_message_has_a_reference(
    nats: NatsServer,
    gateway: Gateway,
    chunked: bool,
) -> None:
    """A body above max_payload is stored as an object; the message has its name, size and digest, and no body."""
    parts = [LARGE[at : at + 70_001] for at in range(0, len(LARGE), 70_001)]
    answer = send_chunked(gateway, parts) if chunked else gateway.queue("echo", LARGE)
    assert answer.status == 202
    (message,) = queued(nats)
    assert "Body" not in message
    digest = b64encode(hashlib.sha256(LARGE).digest(), b"-_").decode()
    assert message["BodyObject"] | {"Name": ""} == {"Name": "", "Size": len(LARGE), "Digest": f"SHA-256={digest}"}
    identifier = b64encode(message["BodyObject"]["Name"].encode(), b"-_").decode()
    assert chunks(nats) == {identifier: LARGE}


def test_large_body_repeated_is_queued_once(nats: NatsServer, gateway: Gateway) -> None:
    """A repeat is recognized by the large body's hash, chunked or not, and its object is deleted again."""
    first = gateway.queue("echo", LARGE, X_Call_Id="a")
    second = send_chunked(gateway, [LARGE[:1000], LARGE[1000:]], **{"X-Call-Id": "a"})
    other = gateway.queue("echo", LARGE + b"x", X_Call_Id="a")
    assert [each.status for each in (first, second, other)] == [202, 202, 422]
    assert second.headers["Idempotent-Replayed"] == "true"
    assert len(queued(nats)) == 1
    wait_until(lambda: [*chunks(nats).values()] == [LARGE], "only the first object to stay")


def test_large_body_that_breaks_off_is_deleted(nats: NatsServer, gateway: Gateway) -> None:
    """If the caller breaks off within its body, what was stored of it is deleted, and nothing is queued."""
    with gateway.raw() as raw:
        raw.sendall(b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
        raw.sendall(LARGE)
        wait_until(lambda: chunks(nats), "the first chunks to be stored")
    wait_until(lambda: not chunks(nats), "them to be deleted")
    assert queued(nats) == []


def test_large_body_shorter_than_its_length_is_never_queued(nats: NatsServer, gateway: Gateway) -> None:
    """A caller whose body is shorter than its Content-Length, and then ends its side, has queued nothing."""
    connection = http.client.HTTPConnection("127.0.0.1", gateway.port)
    connection.putrequest("POST", "/async-function/echo")
    connection.putheader("Content-Length", str(len(LARGE) + 1))
    connection.endheaders(LARGE)
    wait_until(lambda: chunks(nats), "the first chunks to be stored")
    connection.close()
    wait_until(lambda: not chunks(nats), "them to be deleted")
    assert queued(nats) == []


def test_large_body_without_a_queue_answers_503_and_leaves_nothing(tmp_path: Path) -> None:
    """Where no stream takes the message, the caller gets 503, and the object is deleted again."""
    with NatsServer(tmp_path) as nats, gateway_on(nats, tmp_path) as gateway:
        assert gateway.queue("echo", LARGE).status == 503
        wait_until(lambda: nats.state(BUCKET) and not chunks(nats), "the object to be deleted")


def test_large_body_without_nats_answers_503_at_once(nats: NatsServer, gateway: Gateway) -> None:
    """While NATS is away, a large body is answered with 503 and Retry-After before it is read."""
    nats.kill()
    wait_until(lambda: not gateway.ready(), "the gateway to notice")
    with gateway.raw() as raw:
        raw.sendall(b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
        answer = raw.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in answer.lower()


def test_large_body_while_nats_ends_answers_503(nats: NatsServer, gateway: Gateway) -> None:
    """If NATS goes away while a body arrives, the caller gets 503 without sending all of it."""
    with gateway.raw() as raw:
        raw.sendall(b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
        raw.sendall(LARGE)
        wait_until(lambda: chunks(nats), "the first chunks to be stored")
        nats.kill()
        raw.sendall(LARGE)
        assert raw.recv(65_536).startswith(b"HTTP/1.1 503 ")


def test_large_body_in_a_full_store_answers_503(nats: NatsServer, tmp_path: Path) -> None:
    """Where the store has no room, the caller gets 503 with the reason, and other calls are queued."""
    with gateway_on(nats, tmp_path, nats_bodies_max_bytes=1_000_000) as gateway:
        answer = gateway.queue("echo", LARGE)
        assert (answer.status, f"raise max_bytes of the stream {BUCKET}" in answer.text) == (503, True)
        assert answer.headers["Retry-After"] == "1"
        assert gateway.queue("echo", b"small").status == 202
        wait_until(lambda: not chunks(nats), "the chunks to be deleted")


def test_submit_of_a_large_body_stores_it(nats: NatsServer, tmp_path: Path) -> None:
    """The command stores large bodies, too: one object for each invocation."""
    settings = {"nats_port": nats.port}
    submit = ("worker.cli", "submit", "echo", "--count", "3")
    code, _, errors = run_program(*submit, stdin=LARGE, tmp_path=tmp_path, settings=settings)
    assert (code, errors) == (0, "")
    assert len({message["BodyObject"]["Name"] for message in queued(nats)}) == 3
    assert [*chunks(nats).values()] == [LARGE] * 3
    code, _, errors = run_program(*submit, stdin=LARGE, tmp_path=tmp_path, settings=settings | {"max_body_bytes": 9})
    assert (code, errors) == (1, "queue-worker: the body is too large: max_body_bytes allows 9 bytes\n")
