"""Hostile callers and functions against a real ``queue-worker gateway``: docs/security.md lists the bounds.

Each test attacks with plain sockets and measures the effect by answers, closed connections and memory.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.gateway import Gateway, gateway_on
from tests.patience import LAST_RESORT
from tests.servers import NatsServer, wait_until
from worker.dev.stack import free_port

MB = 2**20
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
QUEUE = b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\n"
_PAUSE = 0.02
"""Seconds between two parts of what trickles."""
CALL = b"POST /function/echo HTTP/1.1\r\nHost: h\r\n"
GATEWAY_SETTINGS = {
    "client_timeout": f"{10 * LAST_RESORT:g}s",
    "gateway_url": f"http://127.0.0.1:{free_port()}",
    "max_body_bytes": 2**20,
}
"""Settings by which the gateway waits longer for a caller than any test takes, and takes no large body."""


@pytest.fixture(scope="module")
def impatient(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Start a gateway that does not wait for slow callers. Its tests wait for what it does then."""
    with gateway_on(nats, tmp_path_factory.mktemp("gateway"), client_timeout="500ms") as started:
        yield started
        assert not re.search("traceback|Request failed", started.output)


# Requests that two readers could take differently.

INVALID = {
    "no HTTP": (b"hello\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "HTTP/0.9": (b"GET /healthz\r\n\r\n", 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "version 1.2": (b"GET /healthz HTTP/1.2\r\nHost: h\r\n\r\n", 400),
    "lower case version": (b"GET /healthz http/1.1\r\nHost: h\r\n\r\n", 400),
    "a tab": (b"GET\t/healthz HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "space after the version": (b"GET /healthz HTTP/1.1 \r\nHost: h\r\n\r\n", 400),
    "space before the method": (b" GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "method with a colon": (b"GET: /healthz HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "path in UTF-8": ("GET /ä HTTP/1.1\r\nHost: h\r\n\r\n".encode(), 400),
    "path with NUL": (b"GET /healthz\x00 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "path with a fragment": (b"GET /healthz#x HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "path without a slash": (b"GET healthz HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "authority-form": (b"GET h:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "CONNECT": (b"CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", 501),
    "CONNECT of a path": (b"CONNECT /healthz HTTP/1.1\r\nHost: h\r\n\r\n", 501),
    "absolute-form of another host": (b"GET http://other/healthz HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "absolute-form with a user": (b"GET http://h@other/healthz HTTP/1.1\r\nHost: h@other\r\n\r\n", 400),
    "absolute-form of another scheme": (b"GET ftp://h/healthz HTTP/1.1\r\nHost: h\r\n\r\n", 400),
    "absolute-form without a host": (b"GET http:///healthz HTTP/1.1\r\nHost:\r\n\r\n", 400),
    "no Host": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "no header": (b"GET /healthz HTTP/1.1\r\nX: y\r\n\r\n", 400),
    "two Hosts": (b"GET /healthz HTTP/1.1\r\nHost: h\r\nhost: h\r\n\r\n", 400),
    "two Hosts in HTTP/1.0": (b"GET /healthz HTTP/1.0\r\nHost: h\r\nHost: i\r\n\r\n", 400),
    "Host with a comma": (b"GET /healthz HTTP/1.1\r\nHost: h, i\r\n\r\n", 400),
    "Host with a path": (b"GET /healthz HTTP/1.1\r\nHost: h/x\r\n\r\n", 400),
    "Host with a user": (b"GET /healthz HTTP/1.1\r\nHost: u@h\r\n\r\n", 400),
    "Host with a bad port": (b"GET /healthz HTTP/1.1\r\nHost: h:x\r\n\r\n", 400),
    "space before the colon": (QUEUE + b"Content-Length : 5\r\n\r\nhello", 400),
    "tab before the colon": (QUEUE + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n", 400),
    "space in a name": (QUEUE + b"Content Length: 5\r\n\r\nhello", 400),
    "NUL in a name": (QUEUE + b"X\x00Y: 1\r\n\r\n", 400),
    "high byte in a name": (QUEUE + b"X\xffY: 1\r\n\r\n", 400),
    "empty name": (QUEUE + b": 1\r\n\r\n", 400),
    "no colon": (QUEUE + b"X-Header\r\n\r\n", 400),
    "NUL in a value": (QUEUE + b"X: a\x00b\r\n\r\n", 400),
    "CR in a value": (QUEUE + b"X: a\rContent-Length: 5\r\n\r\n", 400),
    "LF in a value": (QUEUE + b"X: a\nContent-Length: 5\r\n\r\n", 400),
    "DEL in a value": (QUEUE + b"X: a\x7fb\r\n\r\n", 400),
    "only LF": (b"GET /healthz HTTP/1.1\nHost: h\n\n", 400),
    "LF at the end": (b"GET /healthz HTTP/1.1\r\nHost: h\r\n\n", 400),
    "folded line": (QUEUE + b"X: a\r\n b\r\n\r\n", 400),
    "folded coding": (QUEUE + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "folded first line": (b"GET /healthz HTTP/1.1\r\n Host: h\r\n\r\n", 400),
    "length twice": (QUEUE + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400),
    "two lengths": (QUEUE + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400),
    "list of lengths": (QUEUE + b"Content-Length: 5, 5\r\n\r\nhello", 400),
    "length with a sign": (QUEUE + b"Content-Length: +5\r\n\r\nhello", 400),
    "negative length": (QUEUE + b"Content-Length: -1\r\n\r\n", 400),
    "hexadecimal length": (QUEUE + b"Content-Length: 0x5\r\n\r\nhello", 400),
    "length with an underscore": (QUEUE + b"Content-Length: 1_0\r\n\r\nhellohello", 400),
    "length in other digits": (QUEUE + "Content-Length: \u0665\r\n\r\nhello".encode(), 400),
    "no length": (QUEUE + b"Content-Length:\r\n\r\nhello", 400),
    "length with a tail": (QUEUE + b"Content-Length: 5 x\r\n\r\nhello", 400),
    "length of 30 digits": (QUEUE + b"Content-Length: " + b"9" * 30 + b"\r\n\r\nhello", 400),
    "length and chunked": (QUEUE + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked and length": (QUEUE + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400),
    "chunked in HTTP/1.0": (
        b"POST /async-function/echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
    ),
    "gzip, chunked": (QUEUE + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "gzip and chunked": (QUEUE + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
    "chunked twice": (QUEUE + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", 400),
    "chunked two times": (QUEUE + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", 400),
    "identity": (QUEUE + b"Transfer-Encoding: identity\r\n\r\n", 501),
    "chunked, identity": (QUEUE + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", 400),
    "almost chunked": (QUEUE + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
    "chunked in quotes": (QUEUE + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n', 501),
    "chunked with a vertical tab": (QUEUE + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", 400),
    "chunked with a parameter": (QUEUE + b"Transfer-Encoding: chunked;x=1\r\n\r\n0\r\n\r\n", 501),
    "empty coding": (QUEUE + b"Transfer-Encoding:\r\n\r\n0\r\n\r\n", 400),
}
CHUNKS = {
    "size with a prefix": b"0x5\r\nhello\r\n0\r\n\r\n",
    "size with a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "negative size": b"-5\r\nhello\r\n0\r\n\r\n",
    "size with an underscore": b"0_5\r\nhello\r\n0\r\n\r\n",
    "empty size": b"\r\nhello\r\n0\r\n\r\n",
    "space before the size": b" 5\r\nhello\r\n0\r\n\r\n",
    "space after the size": b"5 \r\nhello\r\n0\r\n\r\n",
    "size line with LF": b"5\nhello\r\n0\r\n\r\n",
    "size line with CR": b"5\rhello\r\n0\r\n\r\n",
    "LF in an extension": b"5;a\nb\r\nhello\r\n0\r\n\r\n",
    "NUL in an extension": b"5;a\x00\r\nhello\r\n0\r\n\r\n",
    "long extension": b"5;" + b"a" * 500_000 + b"\r\nhello\r\n0\r\n\r\n",
    "longer than its size": b"4\r\nhello\r\n0\r\n\r\n",
    "shorter than its size": b"6\r\nhello\r\n0\r\n\r\n",
    "data ended by LF": b"5\r\nhello\n0\r\n\r\n",
    "trailer without a colon": b"0\r\nX-Trailer\r\n\r\n",
    "trailer with a space": b"0\r\nX : y\r\n\r\n",
    "trailer with LF": b"0\r\nX: y\n\r\n\r\n",
    "folded trailer": b"0\r\nX: y\r\n z\r\n\r\n",
    "long trailers": b"0\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
}


@pytest.mark.parametrize("case", INVALID)
def test_request_that_readers_could_take_differently_is_rejected(gateway: Gateway, case: str) -> None:
    """An ambiguous request gets one answer with a text, and the request after it in the same bytes none."""
    data, status = INVALID[case]
    answer = exchange(gateway, data + HEALTH)
    assert statuses(answer) == [status], answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert len(body.splitlines()) == 1


@pytest.mark.parametrize("case", CHUNKS)
def test_chunks_that_readers_could_take_differently_are_rejected(nats: NatsServer, gateway: Gateway, case: str) -> None:
    """Ambiguous chunks are answered with 400; nothing is queued, and no request after them is answered."""
    before = nats.state()["last_seq"]
    answer = exchange(gateway, QUEUE + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS[case] + HEALTH)
    assert statuses(answer) == [400], answer
    assert nats.state()["last_seq"] == before


def test_trailers_are_dropped(nats: NatsServer, gateway: Gateway) -> None:
    """Trailers of a chunked request are no headers: not in the message, not for the call id, not for the callback."""
    trailers = (
        b"Authorization: Bearer trailer\r\nX-Callback-Url: http://trailer/\r\nX-Call-Id: trailer\r\nX-Own: trailer\r\n"
    )
    head = QUEUE + b"X-Call-Id: from-header\r\nTransfer-Encoding: chunked\r\nTrailer: Authorization\r\n\r\n"
    answer = exchange(gateway, head + b"5;x=y\r\nhello\r\n0\r\n" + trailers + b"\r\n" + closing(HEALTH))
    assert statuses(answer) == [202, 200]
    message = nats.messages()[-1]
    assert message.json["Header"]["X-Call-Id"] == ["from-header"]
    assert b"trailer" not in message.data.lower().replace(b'"trailer":["authorization"]', b"")
    assert "CallbackUrl" not in message.json


def test_trailers_are_not_passed_on(nats: NatsServer, tmp_path: Path) -> None:
    """The proxy passes no trailer on."""
    with listener() as upstream, proxy_before(nats, tmp_path, upstream) as gateway, gateway.raw() as raw:
        raw.sendall(CALL + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Trailer: secret\r\n\r\n")
        peer = accept(upstream)
        with peer:
            received = receive_until(peer, b"0\r\n\r\n")
            peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
            assert receive_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 204 ")
    assert b"secret" not in received


VALID = {
    "absolute-form": b"GET http://h/healthz HTTP/1.1\r\nHost: h\r\n\r\n",
    "absolute-form with the default port": b"GET HTTP://H:80/healthz HTTP/1.1\r\nHost: h\r\n\r\n",
    "empty line before": b"\r\nGET /healthz HTTP/1.1\r\nHost: h\r\n\r\n",
    "spaces around a value": b"GET /healthz HTTP/1.1\r\nHost: \t h \t\r\nX:\r\n\r\n",
    "IPv6": b"GET /healthz HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n",
    "underscore": b"GET /healthz HTTP/1.1\r\nHost: my_gateway:8080\r\n\r\n",
    "upgrade": b"GET /healthz HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
    "body": b"GET /healthz HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello",
    "chunks": b"GET /healthz HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n5\r\nhello\r\n00\r\n\r\n",
}


@pytest.mark.parametrize("case", VALID)
def test_request_of_a_usual_client_is_answered_whole_and_byte_by_byte(gateway: Gateway, case: str) -> None:
    """Requests that RFC 9112 allows are answered, however their bytes arrive, and so is the next one."""
    data = VALID[case] + closing(HEALTH)
    assert statuses(exchange(gateway, data)) == [200, 200]
    with gateway.raw() as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(len(data)):
            raw.sendall(data[number : number + 1])
        assert statuses(until_closed(raw)) == [200, 200]


def test_http_1_0_is_answered_and_closed(gateway: Gateway) -> None:
    """HTTP/1.0 needs no Host, and its connection is closed after the response."""
    assert statuses(exchange(gateway, b"GET /healthz HTTP/1.0\r\n\r\n" + HEALTH)) == [200]


def test_head_gets_no_body(gateway: Gateway) -> None:
    """A response to HEAD has a length and no body, so the next response is found."""
    answer = exchange(gateway, b"HEAD /healthz HTTP/1.1\r\nHost: h\r\n\r\n" + closing(HEALTH))
    assert statuses(answer) == [200, 200]
    assert answer.count(b"OK\n") == 1


def test_pipelined_requests_are_answered_in_order(gateway: Gateway) -> None:
    """Requests that are sent at once are handled one after the other."""
    ids = [b"pipelined-%d" % number for number in range(50)]
    posts = (QUEUE + b"X-Call-Id: %b\r\nContent-Length: 1\r\n\r\nx" % call_id for call_id in ids)
    answer = exchange(gateway, b"".join(posts) + closing(HEALTH))
    assert statuses(answer) == [202] * 50 + [200]
    assert re.findall(rb"x-call-id: (pipelined-\d+)", answer) == ids


def test_continue_is_sent_when_the_body_is_wanted(gateway: Gateway) -> None:
    """A caller that waits for 100 gets it, and then 202."""
    with gateway.raw() as raw:
        raw.sendall(QUEUE + b"Expect: 100-Continue\r\nContent-Length: 5\r\n\r\n")
        assert receive_until(raw, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"hello")
        assert receive_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 202 ")


# Bytes.


@pytest.mark.parametrize(
    ("attack", "status"),
    [
        (b"GET /" + b"x" * 80_000, 414),
        (b"GET /function/echo?" + b"x" * 80_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", 414),
        (QUEUE + b"X: " + b"x" * 80_000, 431),
        (QUEUE + b"X: " + b"x" * 80_000 + b"\r\n\r\n", 431),
        (QUEUE + b"X: y\r\n" * 20_000, 431),
        (b"POST /async-function/echo?" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", 414),
    ],
)
def test_start_that_is_too_large_is_rejected_with_a_text(gateway: Gateway, attack: bytes, status: int) -> None:
    """A request line without end gets 414, a header without end 431, both with the limit, before they end."""
    answer = exchange(gateway, attack)
    assert statuses(answer) == [status]
    assert re.search(rb"of more than (73728|65536|65535) bytes", answer)


def test_header_that_is_queued_fits_the_proxy(nats: NatsServer, tmp_path: Path) -> None:
    """The largest header that is queued is also passed on with what the worker adds to it."""
    value = b"x" * 65_000
    off = {"function_annotations": "false"}  # the upstream serves one request
    with listener() as upstream, proxy_before(nats, tmp_path, upstream, **off) as gateway:
        assert statuses(exchange(gateway, closing(QUEUE + b"X: " + value + b"\r\n\r\n"))) == [202]
        with gateway.raw() as raw:
            raw.sendall(CALL + b"X: %b\r\nX-Call-Id: %b\r\nX-Start-Time: 1\r\n\r\n" % (value, b"y" * 256))
            peer = accept(upstream)
            with peer:
                receive_until(peer, b"\r\n\r\n")
                peer.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                assert receive_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 204 ")


@pytest.mark.parametrize(
    "start",
    [
        QUEUE + b"Transfer-Encoding: chunked\r\n\r\n",
        b"POST /async-function/Bad HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999\r\n\r\n",
        QUEUE + b"Content-Length: 99999999999999\r\n\r\n",
        b"garbage\r\n",
    ],
    ids=["413", "400", "404", "413 by length", "no HTTP"],
)
def test_body_without_end_after_an_early_answer_is_read_up_to_a_limit(gateway: Gateway, start: bytes) -> None:
    """A caller that sends on after an early answer can read the answer, and its connection is closed at a limit."""
    with gateway.raw() as raw:
        raw.sendall(start)
        sent = send_until_closed(raw, b"10000\r\n" + b"x" * 65_536 + b"\r\n")
        assert sent < 64 * MB
    assert peak_memory(gateway) < 400 * MB


def test_early_answer_reaches_a_caller_that_sends_all_first(gateway: Gateway) -> None:
    """A caller that reads only after it has sent its whole body gets the answer, not a reset."""
    for start, status in [
        (b"POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 20000000\r\n\r\n", 404),
        (QUEUE + b"Content-Length: 20000000\r\n\r\n", 413),
        (b"nonsense\r\n", 400),
    ]:
        with gateway.raw() as raw:
            raw.sendall(start)
            for _ in range(20):
                raw.sendall(b"x" * 1_000_000)
            raw.shutdown(socket.SHUT_WR)
            assert statuses(until_closed(raw)) == [status]


def test_pipelining_caller_that_reads_nothing_takes_little_memory(impatient: Gateway) -> None:
    """Requests are not read ahead of responses that are not taken, and the connection is closed then."""
    before = peak_memory(impatient)
    with gateway_socket(impatient, receive_buffer=4096) as raw:
        sent = send_until_closed(raw, HEALTH * 2000)
    assert sent < 64 * MB
    assert peak_memory(impatient) < before + 50 * MB


def test_pipelined_requests_beside_a_running_one_take_little_memory(nats: NatsServer, tmp_path: Path) -> None:
    """While a request runs, at most one read of the next requests is kept."""
    with listener() as upstream, proxy_before(nats, tmp_path, upstream) as gateway, ExitStack() as stack:
        before = peak_memory(gateway)
        for _ in range(20):
            raw = stack.enter_context(gateway_socket(gateway))
            raw.sendall(CALL + b"Content-Length: 0\r\n\r\n")
            receive_until(stack.enter_context(accept(upstream)), b"\r\n\r\n")
            send_until_blocked(raw, HEALTH * 2000)
        assert gateway.healthy()
        assert peak_memory(gateway) < before + 50 * MB


# Time.


@pytest.mark.parametrize(
    ("start", "part", "expected"),
    [
        (b"", b"", []),
        (b"GET /hea", b"", [408]),
        (b"GET /", b"x", [408]),
        (QUEUE + b"X: ", b"x", [408]),
        (QUEUE, b"X: y\r\n", [408]),
        (QUEUE + b"Content-Length: 1000\r\n\r\n", b"", [408]),
        (QUEUE + b"Content-Length: 1000\r\n\r\n", b"x", [408]),
        (QUEUE + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", [408]),
        (QUEUE + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"", [408]),
        (HEALTH + b"GET", b"", [200, 408]),
        (b"POST /nowhere HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n", b"x", [404]),
        (b"nonsense\r\n", b"x", [400]),
    ],
    ids=str,
)
def test_caller_that_trickles_is_closed(impatient: Gateway, start: bytes, part: bytes, expected: list[int]) -> None:
    """A caller that is silent, or sends a start, a body or what follows an early answer bit by bit, is closed."""
    with gateway_socket(impatient) as raw:
        raw.sendall(start)
        answer = trickle_until_closed(raw, part)
    assert statuses(answer) == expected


def test_body_that_arrives_slowly_but_steadily_is_accepted(nats: NatsServer, tmp_path: Path) -> None:
    """A body may take longer than ``client_timeout``, if enough of it arrives in each."""
    with gateway_on(nats, tmp_path, client_timeout="2s") as gateway, gateway.raw() as raw:
        raw.sendall(QUEUE + b"Content-Length: 600000\r\n\r\n")
        raw.settimeout(0.05)
        for _ in range(60):
            raw.sendall(b"x" * 10_000)
            with contextlib.suppress(TimeoutError):
                assert raw.recv(1).startswith(b"H"), "closed"
        raw.settimeout(LAST_RESORT)
        assert b" 202 " in receive_until(raw, b"\r\n\r\n")


def test_caller_that_reads_nothing_of_a_large_response_is_closed(nats: NatsServer, tmp_path: Path) -> None:
    """The function's response is not read ahead of its caller, and the function's connection is closed with it."""
    with (
        listener() as upstream,
        proxy_before(nats, tmp_path, upstream, client_timeout="500ms") as gateway,
        gateway_socket(gateway, receive_buffer=4096) as raw,
    ):
        before = peak_memory(gateway)
        raw.sendall(CALL + b"Content-Length: 0\r\n\r\n")
        peer = accept(upstream)
        with peer:
            receive_until(peer, b"\r\n\r\n")
            peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
            assert send_until_closed(peer, b"x" * 65_536) < 64 * MB
        assert peak_memory(gateway) < before + 50 * MB
        assert gateway.healthy()


# Number.


def test_silent_connections_above_the_limit_of_files_give_way(nats: NatsServer, tmp_path: Path) -> None:
    """With 1,024 files, 1,100 silent connections delay no caller, and take few log lines."""
    settings = {"nats_port": nats.port}
    with few_files(1024, tmp_path, **settings) as gateway, many_files(), ExitStack() as stack:
        wait_until(gateway.ready, "the gateway to be ready")
        silent = [stack.enter_context(gateway_socket(gateway)) for _ in range(1100)]
        assert gateway.healthy()
        assert gateway.queue("echo").status == 202
        assert until_closed(silent[0]) == b""
        wait_until(lambda: "Too many connections" in gateway.output, "the log line")
        assert "The limit of open files is too low for max_connections" in gateway.output
        assert len(gateway.output.splitlines()) < 20


@pytest.mark.parametrize(
    "start",
    [CALL + b"Content-Length: 0\r\n\r\n", QUEUE + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\n"],
    ids=["running", "body"],
)
def test_health_is_answered_when_all_connections_are_busy(nats: NatsServer, tmp_path: Path, start: bytes) -> None:
    """At the limit, probes get their answer, other callers 503 with a time to retry, and 202 when one is free."""
    settings = {"max_connections": 10, "client_timeout": f"{LAST_RESORT:g}s", "upstream_timeout": f"{LAST_RESORT:g}s"}
    with listener() as upstream, proxy_before(nats, tmp_path, upstream, **settings) as gateway:
        with ExitStack() as stack:
            for _ in range(10):
                raw = stack.enter_context(gateway.raw())
                raw.sendall(start)
                is_called = start.startswith(CALL)
                receive_until(stack.enter_context(accept(upstream)) if is_called else raw, b"\r\n\r\n")
            busy = gateway.queue("echo")
            assert (busy.status, busy.headers["Retry-After"], "too many connections" in busy.text) == (503, "1", True)
            idle = [stack.enter_context(gateway.raw()) for _ in range(100)]  # more than there is room for beside them
            assert gateway.healthy()
            assert gateway.ready()
            assert until_closed(idle[0]) == b""
        wait_until(lambda: gateway.queue("echo").status == 202, "a connection to be free")


def test_callers_at_the_limit_close_the_longest_idle_connection(nats: NatsServer, tmp_path: Path) -> None:
    """At the limit a new caller is served, and of the idle connections the longest idle is closed."""
    with gateway_on(nats, tmp_path, max_connections=2) as gateway, gateway.raw() as first, gateway.raw() as second:
        for raw in (first, second, first):
            raw.sendall(HEALTH)
            receive_until(raw, b"OK\n")
        assert gateway.queue("echo").status == 202
        assert until_closed(second) == b""
        first.sendall(HEALTH)
        receive_until(first, b"OK\n")


# Functions.


def test_function_that_never_ends_its_header_is_504(nats: NatsServer, tmp_path: Path) -> None:
    """A header that trickles is given up after ``upstream_timeout``."""
    with (
        listener() as upstream,
        proxy_before(nats, tmp_path, upstream, upstream_timeout="500ms") as gateway,
        gateway.raw() as raw,
    ):
        raw.sendall(CALL + b"Content-Length: 0\r\n\r\n")
        peer = accept(upstream)
        with peer:
            peer.sendall(b"HTTP/1.1 200 OK\r\n")
            trickle_until_closed(peer, b"X: y\r\n")
        assert receive_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 504 ")


@pytest.mark.parametrize("head", [b"X: " + b"x" * 200_000, b"X: y\r\n" * 50_000], ids=["line", "lines"])
def test_function_with_a_header_without_end_is_502(nats: NatsServer, tmp_path: Path, head: bytes) -> None:
    """A header that is too large is answered with 502 before it ends."""
    with listener() as upstream, proxy_before(nats, tmp_path, upstream) as gateway, gateway.raw() as raw:
        raw.sendall(CALL + b"Content-Length: 0\r\n\r\n")
        peer = accept(upstream)
        with peer:
            with contextlib.suppress(ConnectionError):
                peer.sendall(b"HTTP/1.1 200 OK\r\n" + head)
            assert receive_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")


def test_function_that_switches_protocols_is_502(nats: NatsServer, tmp_path: Path) -> None:
    """A function cannot make the caller's connection a tunnel."""
    with listener() as upstream, proxy_before(nats, tmp_path, upstream) as gateway, gateway.raw() as raw:
        raw.sendall(CALL + b"Connection: Upgrade\r\nUpgrade: x\r\nContent-Length: 0\r\n\r\n")
        with accept(upstream) as peer:
            assert b"pgrade" not in receive_until(peer, b"\r\n\r\n")
            peer.sendall(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n" + HEALTH)
            assert until_closed(peer) == b""
        assert receive_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 502 ")


def test_function_that_never_ends_its_body_is_closed(nats: NatsServer, tmp_path: Path) -> None:
    """A body that trickles is passed on, and broken off after ``upstream_timeout``."""
    with (
        listener() as upstream,
        proxy_before(nats, tmp_path, upstream, upstream_timeout="2s") as gateway,
        gateway.raw() as raw,
    ):
        raw.sendall(CALL + b"Content-Length: 0\r\n\r\n")
        peer = accept(upstream)
        with peer:
            peer.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            assert receive_until(raw, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
            trickle_until_closed(peer, b"1\r\nx\r\n")
        body = until_closed(raw)
        assert b"1\r\nx\r\n" in body
        assert not body.endswith(b"0\r\n\r\n")
        assert "A function's answer broke off" in gateway.output


def test_caller_that_disconnects_in_its_body_ends_the_function_s_request(nats: NatsServer, tmp_path: Path) -> None:
    """A caller that is gone before the end of its body closes the function's connection."""
    with listener() as upstream, proxy_before(nats, tmp_path, upstream) as gateway:
        with gateway.raw() as raw:
            raw.sendall(CALL + b"Content-Length: 100\r\n\r\nbegun")
            peer = accept(upstream)
            receive_until(peer, b"begun")
        with peer:
            assert until_closed(peer) == b""
        wait_until(gateway.healthy, "an answer")


def test_body_for_a_function_that_reads_nothing_is_not_kept(nats: NatsServer, tmp_path: Path) -> None:
    """A large body waits in the caller until the function reads it."""
    with listener() as upstream, proxy_before(nats, tmp_path, upstream, upstream_timeout="2s") as gateway:
        before = peak_memory(gateway)
        with gateway.raw() as raw:
            raw.sendall(CALL + b"Content-Length: 99999999999\r\n\r\n")
            assert send_until_closed(raw, b"x" * 65_536) < 96 * MB
        assert peak_memory(gateway) < before + 50 * MB


def test_full_pool_to_the_functions_is_503(nats: NatsServer, tmp_path: Path) -> None:
    """A call for which all connections to the functions are taken is answered with 503, and a time to retry."""
    with (
        many_files(),
        listener() as upstream,
        proxy_before(nats, tmp_path, upstream, upstream_timeout=f"{10 * LAST_RESORT:g}s") as gateway,
        ExitStack() as stack,
    ):
        for _ in range(500):
            raw = stack.enter_context(gateway.raw())
            raw.sendall(CALL + b"Content-Length: 0\r\n\r\n")
            stack.enter_context(accept(upstream))
        answer = gateway.request("POST", "/function/echo")
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")


# Helpers.


def statuses(answer: bytes) -> list[int]:
    """Return the statuses of all responses in *answer*."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def closing(request: bytes) -> bytes:
    """Return *request* with the option to close the connection after it."""
    return request.replace(b"Host: h\r\n", b"Host: h\r\nConnection: close\r\n", 1)


def exchange(gateway: Gateway, data: bytes) -> bytes:
    """Send *data* on a connection of its own, and return all that is received until it is closed."""
    with gateway.raw() as raw:
        raw.sendall(data)
        return until_closed(raw)


def until_closed(raw: socket.socket) -> bytes:
    """Return all that is received until the connection is closed."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while data := raw.recv(65_536):
            received += data
    return received


def receive_until(raw: socket.socket, end: bytes) -> bytes:
    """Receive until *end*."""
    received = b""
    while end not in received:
        data = raw.recv(65_536)
        assert data, received
        received += data
    return received


def send_until_closed(raw: socket.socket, data: bytes) -> int:
    """Send *data* repeatedly until the peer closes the connection, and return how many bytes were sent."""
    sent = 0
    with contextlib.suppress(ConnectionError):
        while True:
            sent += raw.send(data)
            assert sent < 1000 * MB, "the peer reads without a limit"
    return sent


def send_until_blocked(raw: socket.socket, data: bytes) -> None:
    """Send *data* repeatedly until the peer reads no more of it for a while."""
    raw.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        for _ in itertools.repeat(None, 1000 * MB // len(data)):
            raw.sendall(data)
        pytest.fail("the peer reads without a limit")


def trickle_until_closed(raw: socket.socket, data: bytes) -> bytes:
    """Send *data* repeatedly, with pauses, until the peer closes the connection, and return what is received."""
    received = b""
    raw.settimeout(_PAUSE)
    for _ in range(int(LAST_RESORT / _PAUSE)):
        with contextlib.suppress(TimeoutError):
            try:
                raw.sendall(data)
                part = raw.recv(65_536)
            except ConnectionError:
                return received
            received += part
            if not part and not data:
                return received
            if not part:  # the peer sends no more, but may still read
                time.sleep(_PAUSE)
    pytest.fail("the connection is still open")


def peak_memory(gateway: Gateway) -> int:
    """Return the most memory (bytes) that the gateway has had."""
    status = Path(f"/proc/{gateway.pid}/status")
    if not status.exists():
        pytest.skip("the memory of a process is in /proc/<pid>/status, on Linux")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
    assert found
    return int(found[1]) * 1024


def gateway_socket(gateway: Gateway, receive_buffer: int | None = None) -> socket.socket:
    """Open a connection, with a receive buffer of so many bytes."""
    raw = socket.socket()
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.settimeout(LAST_RESORT)
    raw.connect(("127.0.0.1", gateway.port))
    return raw


@contextlib.contextmanager
def listener() -> Iterator[socket.socket]:
    """Listen on a port of the loopback, as the functions."""
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as server:
        server.settimeout(LAST_RESORT)
        yield server


def accept(upstream: socket.socket) -> socket.socket:
    """Accept the next connection to the functions."""
    peer, _ = upstream.accept()
    peer.settimeout(LAST_RESORT)
    return peer


@contextlib.contextmanager
def proxy_before(nats: NatsServer, tmp_path: Path, upstream: socket.socket, **settings: object) -> Iterator[Gateway]:
    """Start a gateway before the functions that *upstream* listens for."""
    url = f"http://127.0.0.1:{upstream.getsockname()[1]}"
    with gateway_on(nats, tmp_path, gateway_url=url, **settings) as gateway:
        yield gateway


@contextlib.contextmanager
def few_files(limit: int, tmp_path: Path, **settings: object) -> Iterator[Gateway]:
    """Start a gateway with a limit of open files."""
    gateway = Gateway(tmp_path=tmp_path, **settings)
    gateway.arguments = ("tests.few_files", str(limit), *gateway.arguments)
    with gateway:
        yield gateway


@contextlib.contextmanager
def many_files() -> Iterator[None]:
    """Raise this process's own limit of open files to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
