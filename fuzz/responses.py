"""Any bytes of a server give the same response or error however they are cut, complete and within the limits.

The first line of the input holds options: ``HEAD`` or anything else, the limit of the body, the sizes of the pieces.
The rest is what the server sends. ASCII bytes stand for themselves, and each byte from 128 up for a piece of HTTP
(:data:`PIECES`), because the parser is C, which a fuzzer cannot instrument. h11, which is Python, reads the same bytes:
if both return a response, it must be the same. The limit of the header is small, so that small inputs reach it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from unittest.mock import patch

import h11

from fuzz._choices import cut, numbers
from worker.http import http11
from worker.http.http11 import ProtocolError, ResponseParser

MAX_HEADER = 256
PIECES = (
    b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 204 No Content\r\n", b"HTTP/1.1 304 Not Modified\r\n", b"HTTP/1.0 200 OK\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", b"HTTP/1.1 503 Busy\r\n",
    b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", b"HTTP/1.1 099 X\r\n", b"HTTP/1.1 ",
    b"Content-Length: ", b"Content-Length: 2\r\n\r\nok", b"Content-Length: 0\r\n\r\n", b"Content-Length: 30\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"Transfer-Encoding: identity\r\n",
    b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"Retry-After: 1\r\n", b"X-Y: \xc3\xa9\xff\r\n", b"A: b\r\n", b" folded\r\n", b"A:" + b" " * 100, b"b" * 100,
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\x00", b"\xff", b"1\r\nx\r\n", b"2;a=b\r\nok\r\n", b"0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n", b"0\r\nX: ", b"ffffffffffffffff1\r\n", b"18446744073709551616\r\n", b"x" * 40,
)  # fmt: skip
"""The pieces for bytes from 128 up; a byte past the end of the list stands for itself minus 128."""
TAILS = (b"\r\n", b"\n", b"x", b"\x00\xff", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", PIECES[7])
"""Bytes that may follow a complete response."""
STRICTER = ("no response line received", "illegal status line")
"""Errors of h11 for accepted responses: a line end before one, and control characters in its reason."""
STRICTER_IN_TRAILERS = ("Only Transfer-Encoding", "multiple Transfer-Encoding", "bad Content-Length", "conflicting Con")
"""Errors of h11 for trailers, which the worker drops: fields that would frame a body."""
_TRAILER = re.compile(rb"Transfer-Encoding: chunked\r\n\r\n0\r\n([^\r\n]*)\Z")
"""A response in chunks, cut in the first line of its trailer."""


@dataclass(frozen=True, slots=True)
class Result:
    """The response, or the error, that a parser made of some bytes."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    size: int
    truncated: bool
    error: str | None = None


REJECTED = Result(0, (), b"", 0, False)


def check(data: bytes) -> None:
    """Read *data* as a server's bytes in several ways and check the law above."""
    options, _, rest = data.partition(b"\n")
    max_body, *sizes = [*numbers(options), 20][:20]
    method = "HEAD" if options.startswith(b"HEAD") else "POST"
    sent = b"".join(_piece(byte) for byte in rest)
    with patch.object(http11, "MAX_HEADER_BYTES", MAX_HEADER):
        by_bytes, answer, used = read(method, max_body, cut(sent, [1]))
        for pieces in ([sent] if sent else [], list(cut(sent, sizes)), list(cut(sent, [sizes[0] if sizes else 7]))):
            by_pieces, other, num_used = read(method, max_body, pieces)
            assert _same(by_pieces, by_bytes), (sent, by_pieces, by_bytes)
            if by_bytes.error is None:
                assert other.reusable == (answer.reusable and num_used == used), (sent, num_used, used)
        _check_limits(by_bytes, answer, max_body, sent, used)
        if by_bytes.error is None:
            _check_with_tails(method, max_body, sent[:used], by_bytes)
            _check_without_body(method, max_body, sent, by_bytes)
            _check_against_h11(
                method,
                sent[:used],
                ended=not _ends_by_itself(method, max_body, sent),
                found=by_bytes,
                reusable=answer.reusable,
            )


def read(
    method: str, max_body: int, pieces: Iterable[bytes], *, keep: bool = True
) -> tuple[Result, ResponseParser, int]:
    """Read *pieces* and the end of the connection as the transport does; return also how many bytes were used."""
    answer, used = ResponseParser(method, max_body, keep_body=keep), 0
    try:
        for piece in pieces:
            assert not answer.reusable
            answer.feed(piece)
            used += len(piece)
            if answer.complete:
                break
        answer.feed_eof()
    except ProtocolError as error:
        assert not answer.complete
        assert not answer.reusable
        return Result(0, (), b"", 0, False, str(error)), answer, used
    assert answer.complete
    found = answer.status, tuple(answer.headers), bytes(answer.body), answer.size, answer.truncated
    return Result(*found), answer, used


def _piece(byte: int) -> bytes:
    return bytes([byte]) if byte < 128 else PIECES[byte - 128] if byte - 128 < len(PIECES) else bytes([byte - 128])


def _same(one: Result, other: Result) -> bool:
    """Compare two results. Only the text of an error about length may depend on how the bytes were cut."""
    long = "bytes of header"
    if long in (one.error or "") or long in (other.error or ""):
        return (one.error is None) == (other.error is None)
    return one == other


def _check_limits(found: Result, answer: ResponseParser, max_body: int, sent: bytes, used: int) -> None:
    assert len(answer.body) <= max_body
    assert answer.size <= max_body
    assert sum(len(name) + len(value) for name, value in answer.headers) <= MAX_HEADER
    if found.error is None:
        assert 100 <= found.status <= 999
        assert found.status >= 200
        assert len(found.body) == found.size
        assert not (found.truncated and found.size < max_body)
        if b"transfer-encoding" not in {name.lower() for name, _ in found.headers}:
            assert used - found.size <= 2 * MAX_HEADER + found.truncated
    elif "bytes of header" in found.error:
        assert len(sent) > MAX_HEADER
    else:
        unfinished = _TRAILER.search(sent)
        assert not unfinished or len(unfinished[1]) <= 2 * MAX_HEADER or "middle" not in found.error


def _check_with_tails(method: str, max_body: int, whole: bytes, found: Result) -> None:
    if not _ends_by_itself(method, max_body, whole):
        return
    for tail in TAILS:
        again, answer, _ = read(method, max_body, [whole + tail])
        assert again == found, (whole, tail, again, found)
        assert not answer.reusable, (whole, tail)


def _ends_by_itself(method: str, max_body: int, sent: bytes) -> bool:
    answer = ResponseParser(method, max_body)
    for piece in cut(sent, [1]):
        answer.feed(piece)
        if answer.complete:
            return True
    return False


def _check_without_body(method: str, max_body: int, sent: bytes, found: Result) -> None:
    counted, _, _ = read(method, max_body, cut(sent, [3]), keep=False)
    assert counted == Result(found.status, found.headers, b"", found.size, found.truncated)


def _check_against_h11(method: str, sent: bytes, *, ended: bool, found: Result, reusable: bool) -> None:
    """Compare with h11, an independent parser, if it accepts the same bytes."""
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=10**6)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(sent)
    if ended:
        client.receive_data(b"")
    status, headers, body, version = 0, [], b"", b""
    try:
        while not isinstance(event := client.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                assert found.truncated, (sent, found)
                break
            assert not isinstance(event, h11.ConnectionClosed | type(h11.PAUSED)), (sent, event)
            if isinstance(event, h11.Response):
                status, headers, version = event.status_code, list(event.headers.raw_items()), event.http_version
            elif isinstance(event, h11.Data):
                body += event.data
    except h11.RemoteProtocolError as error:
        why = str(error)
        assert why.startswith(STRICTER if not status else STRICTER_IN_TRAILERS), (sent, why, found)
        return
    assert (status, body[: found.size]) == (found.status, found.body), (sent, status, body, found)
    assert not (reusable and client.their_state is h11.MUST_CLOSE and version == b"1.1"), sent
    if not found.truncated:
        assert len(body) == found.size
        assert _fields(headers) == _fields(found.headers), (sent, headers, found)


def _fields(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the fields without those that frame the body, which h11 rewrites; the bodies have been compared."""
    fields = [(name.lower(), value.strip(b" \t")) for name, value in headers]
    return [(name, value) for name, value in fields if name not in (b"transfer-encoding", b"content-length")]
