"""Contract, section 5, first sentence: the request that a function receives, to the byte."""

from __future__ import annotations

import base64
import json
import re
import uuid
from pathlib import Path

import pytest

from tests.e2e.case import Case
from tests.e2e.stack import Queue, StartWorker, Worker, message
from tests.functions import Functions, Reply, Request
from tests.servers import wait_until
from worker import __version__

CORPUS = Path(__file__).resolve().parent.parent / "fixtures" / "queue_requests.jsonl"
"""Messages as OpenFaaS's gateway writes them."""

USUAL = [
    ("Accept", "*/*"),
    ("Accept-Encoding", "gzip"),
    ("Content-Type", "application/json"),
    ("User-Agent", "curl/8.5.0"),
    ("X-Call-Id", "24ae517c-ad0d-4654-8160-d2a7f7d68fab"),
    ("X-Start-Time", "1646739420463153513"),
]
POST = "POST /function/echo"
EXPECTED: dict[str, tuple[str, list[tuple[str, str]], bytes]] = {
    "smallest": (POST, [], b""),
    "usual": ("POST /function/echo.openfaas-fn", USUAL, b'{"a": 1}'),
    "empty body, not nil": (POST, [], b""),
    "binary body": ("PUT /function/echo", USUAL, bytes(range(256))),
    "html-escaped by encoding/json": (
        "POST /function/echo/a%3Cb%3E&c?q=<1>&r=2",
        [("X-Html", '<a href="x">&amp;</a>\u2028\u2029')],
        b"",
    ),
    "unicode": ("POST /function/echo/p%C3%A4th/%E6%97%A5%E6%9C%AC?q=%E2%9C%93", [("X-Name", "Zoë 🚀")], b""),
    "invalid utf-8 in a header and path (replaced by encoding/json)": (
        "POST /function/echo/%EF%BF%BD",
        [("X-Raw", "a\ufffd\ufffdb")],
        b"",
    ),
    "repeated headers, odd case kept as stored": (
        POST,
        [
            ("Cookie", "a=1"),
            ("Cookie", "b=2"),
            ("X-Multi", "1"),
            ("X-Multi", "2"),
            ("X-Multi", ""),
            ("x-lower", "kept"),
        ],
        b"",
    ),
    "header with no values": (POST, [], b""),
    "hop-by-hop headers": (POST, [], b"abc"),
    "path and query": ("PATCH /function/env/api/v1/users/42?x=1&y=a%20b&x=2", [], b""),
    "query with a leading question mark": ("POST /function/env/?x=1", [], b""),
    "path with escapes": ("POST /function/env/a%2Fb/%20/..;/c", [], b""),
    "get": ("GET /function/env", USUAL, b""),
    "method empty": ("POST /function/env", [], b""),
    "callback, plain": (POST, USUAL, b""),
    "callback, query and fragment": (POST, [], b""),
    "callback with user info (lost by encoding/json)": (POST, [], b""),
    "callback, opaque": (POST, [], b""),
    "callback, relative": (POST, [], b""),
    "callback, ipv6": (POST, [], b""),
    "retry annotations": ("POST /function/chaos.openfaas-fn", USUAL, b""),
    "retry annotations, invalid": ("POST /function/chaos", [], b""),
    "function name with slashes, as an old gateway may send it": (POST, [], b""),
}
"""Request line less its version, the message's headers that are sent on, body; written by hand from the corpus."""


def fields(request: Request) -> list[tuple[str, str]]:
    """Return a request's headers without those that the worker writes, or generates where they are missing."""
    generated = {"host", "content-length"}
    if request.header("User-Agent") == f"queue-worker/{__version__}":
        generated |= {"user-agent", "x-call-id"}
    return [
        (name.decode(), value.decode()) for name, value in request.headers if name.decode().lower() not in generated
    ]


def test_request_of_each_corpus_message_is_exact(
    queue: Queue, functions: Functions, receiver: Functions, tmp_path: Path
) -> None:
    """Method, path, query, headers and body of each message of OpenFaaS's gateway reach the function byte for byte.

    Their callbacks name foreign hosts, so this worker uses a proxy, as it may in a cluster: the proxy records these
    callbacks and forwards none.
    """
    corpus = [json.loads(line) for line in CORPUS.read_text().splitlines()]
    assert [entry["note"] for entry in corpus] == list(EXPECTED)
    receiver.answer("example", Reply(502))  # to a CONNECT, for https
    proxy = {"HTTP_PROXY": receiver.url, "HTTPS_PROXY": receiver.url, "NO_PROXY": "", "ALL_PROXY": ""}
    with Worker(queue, functions, tmp_path=tmp_path, max_inflight=1, **proxy) as worker:
        worker.wait_ready()
        queue.put(*(entry["message"].encode() for entry in corpus))
        queue.wait_empty()
    received = {
        entry["note"]: (request.line.decode().removesuffix(" HTTP/1.1"), sorted(fields(request)), request.body)
        for entry, request in zip(corpus, functions.requests, strict=True)
    }
    assert received == {note: (line, sorted(headers), body) for note, (line, headers, body) in EXPECTED.items()}
    for request in functions.requests:
        assert request.header("Host") == f"127.0.0.1:{functions.port}"
        assert int(request.header("Content-Length") or 0) == len(request.body)
        assert request.call_id
        assert request.header("Transfer-Encoding") is None
    # The request to [::1] is left out, because httpcore writes it to a proxy without the brackets.
    assert {request.line.decode() for request in receiver.requests if b"::1" not in request.line} == {
        "POST http://gateway:8080/function/receive HTTP/1.1",
        "CONNECT example.com:8443 HTTP/1.1",
        "CONNECT example.com:443 HTTP/1.1",
    }


def test_request_omits_connection_headers(case: Case) -> None:
    """The worker omits only hop-by-hop headers, those named by Connection, Host and a false Content-Length."""
    dropped = {
        "Connection": ["close, X-Named", "x-other"],
        "X-Named": ["1"],
        "X-Other": ["2"],
        "Keep-Alive": ["timeout=5"],
        "Proxy-Authenticate": ["Basic"],
        "Proxy-Authorization": ["Basic x"],
        "Proxy-Connection": ["keep-alive"],
        "Te": ["trailers"],
        "Trailer": ["X-Checksum"],
        "Transfer-Encoding": ["chunked"],
        "Upgrade": ["websocket"],
        "Host": ["evil.example"],
        "Content-Length": ["99"],
    }
    kept = {
        "X-Call-Id": [case.call_id],
        "Authorization": ["Bearer token"],
        "X-Forwarded-For": ["10.0.0.1"],
        "Via": ["1.1 x"],
    }
    case.run(Header=dropped | kept, Host="evil.example")
    (request,) = case.requests
    assert {name.decode() for name, _ in request.headers} == {"Host", "Content-Length", "User-Agent", *kept}
    assert request.header("Host") == f"127.0.0.1:{case.shared.functions.port}"
    assert (request.header("Content-Length"), request.body) == ("5", b"input")


def test_request_has_generated_values_for_missing_ones(case: Case) -> None:
    """A missing X-Call-Id is generated, the same for all attempts; the User-Agent is the worker's, the method POST."""
    case.answer(Reply(500), Reply(200))
    case.queue.put(json.dumps({"Function": case.name}).encode())
    case.queue.wait_empty()
    first, second = case.shared.functions.to(case.name)
    assert uuid.UUID(first.call_id)
    assert first.call_id == second.call_id
    assert first.header("User-Agent") == f"queue-worker/{__version__}"
    assert first.method == "POST"


def test_request_keeps_the_headers_of_the_caller(case: Case) -> None:
    """The worker passes on a message's X-Call-Id, User-Agent and X-Start-Time unchanged."""
    headers = {"X-Call-Id": [f"{case.call_id}/1"], "User-Agent": ["curl/8"], "X-Start-Time": ["1646739420463153513"]}
    case.run(Header=headers)
    (request,) = case.shared.functions.to(case.name)
    assert {name: [request.header(name)] for name in headers} == headers


def test_message_with_unknown_fields_is_invoked(case: Case) -> None:
    """The worker ignores unknown fields of a message, as a newer gateway may write them."""
    assert case.run(Deadline="soon", Nested={"a": [1, {"b": None}]}, Zero=0, function="lower") == 1


def test_request_body_is_decoded_from_base64(case: Case) -> None:
    """The worker decodes a body from standard base64 with padding, as encoding/json writes it."""
    body = b"\xfb\xff\xfe?>"
    assert b"+" in base64.b64encode(body)
    case.run(Body=base64.b64encode(body).decode())
    assert case.requests[0].body == body


def test_request_body_of_the_largest_message_is_complete(case: Case) -> None:
    """A body of almost the largest message that NATS accepts reaches the function complete."""
    body = bytes(range(256)) * 3_000
    case.run(Body=base64.b64encode(body).decode())
    assert case.requests[0].body == body


PATHS = [
    "/a/../b",
    "//x",
    "/a b",
    "/a?b",
    "/a#b",
    "/%41",
    "/a\\b",
    "relative",
    "/..%2f",
    "/x/%2e%2e/y",
    "/\r\nX-Evil: 1",
]


@pytest.mark.parametrize("path", PATHS)
def test_request_path_stays_below_its_function(case: Case, path: str) -> None:
    """The request line of a message with any path is one line, and names the message's own function only."""
    before = len(case.queue.dead_letters())
    case.run(Path=path)
    assert len(case.requests) + len(case.queue.dead_letters()) - before == 1
    for request in case.requests:
        pattern = rf"POST /function/{case.name}(/[!-~]*)? HTTP/1\.1"
        assert re.fullmatch(pattern.encode(), request.line), request.line


def test_request_query_cannot_end_the_request_line(case: Case) -> None:
    """The worker escapes the characters of a query that would end the request line."""
    case.run(QueryString="a=b#c d\r\nX-Evil: 1")
    assert case.requests[0].target == f"/function/{case.name}?a=b%23c%20d%0D%0AX-Evil:%201"


def test_request_path_begins_with_the_path_of_gateway_url(
    queue: Queue, functions: Functions, start: StartWorker
) -> None:
    """If `gateway_url` has a path, the paths of all requests begin with it."""
    start(gateway_url=f"{functions.url}/cluster/")
    queue.put(message("echo", "one", Path="/a", QueryString="b=c"))
    queue.wait_empty()
    assert [request.target for request in functions.requests] == ["/cluster/function/echo/a?b=c"]


def test_request_method_is_passed_on(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """The worker passes on any method, and waits for no body after HEAD, so that the next invocation works."""
    functions.answer("head", Reply(raw=b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"))
    start(max_inflight=1)
    methods = ["GET", "HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"]
    queue.put(*(message("head" if method == "HEAD" else "echo", method, Method=method) for method in methods))
    queue.wait_empty()
    assert [(request.method, request.call_id) for request in functions.requests] == [(each, each) for each in methods]


def test_connection_to_the_gateway_is_reused(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """Sequential invocations use one connection; a connection closed by the function between two costs no attempt."""
    functions.answer("closes", Reply(close=True))
    worker = start(max_inflight=1)
    queue.put_calls("echo", [f"kept-{number}" for number in range(20)])
    queue.wait_empty()
    assert len({request.connection for request in functions.requests}) == 1
    for number in range(10):
        queue.put_calls("closes", [f"closed-{number}"])
        queue.wait_empty()
        # A connection that closes after a request was sent costs an attempt, because the function may have received it.
        wait_until(lambda: not functions.open, "the connection to be closed")
    queue.put_calls("echo", ["last"])
    queue.wait_empty()
    assert set(functions.calls().values()) == {1}
    assert not [line for line in worker.logged("Invoked") if line["attempt"] != 1]


def test_request_of_a_message_that_only_go_reads_arrives(case: Case) -> None:
    """A body in lines of base64 arrives, and keys in lower case name the function and the callback."""
    lines = base64.encodebytes(bytes(range(256))).decode()
    payload = {"function": case.name, "header": {"X-Call-Id": [case.call_id]}, "BODY": lines, "_": None}
    case.queue.put(json.dumps(payload | {"callbackUrl": case.callback}).encode())
    case.queue.wait_empty()
    assert [request.body for request in case.requests] == [bytes(range(256))]
    assert case.called_back.header("X-Call-Id") == case.call_id
    assert case.dead_letters == []


def test_request_has_the_credentials_of_the_gateway_url(queue: Queue, functions: Functions, start: StartWorker) -> None:
    """User and password of gateway_url are sent with each invocation, and are in no log line."""
    url = f"http://user:s3cret%40@127.0.0.1:{functions.port}"
    worker = start(gateway_url=url, debug="true")
    functions.answer("closed", Reply(401))
    queue.put(message("echo", "one"), message("closed", "two"))
    queue.wait_empty()
    for call in ("one", "two"):
        (request,) = functions.of(call)
        assert request.header("Authorization") == "Basic " + base64.b64encode(b"user:s3cret@").decode()
    assert [line["level"] for line in worker.lines_of("two") if line["event"] == "Invoked"] == ["warning"]
    assert "s3cret" not in worker.output
