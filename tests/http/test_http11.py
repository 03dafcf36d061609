"""A response is complete or an error: each case is fed in one piece, byte by byte, and with more bytes after it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.http.http11 import MAX_HEADER_BYTES, ProtocolError, ResponseParser, write_request

WHOLE = {
    "by length": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1\r\nk\r\n0\r\n\r\n",
        200,
        b"ok",
        True,
    ),
    "chunked, with extension and trailer": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;a=b\r\nok\r\n0\r\nX: y\r\n\r\n",
        200,
        b"ok",
        True,
    ),
    "no content": (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    "not modified, with a length": (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
    "to be closed": (b"HTTP/1.1 500 No\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno", 500, b"no", False),
    "http/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    "http/1.0 kept alive": (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        200,
        b"ok",
        True,
    ),
    "after interim responses": (
        (
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        ),
        200,
        b"ok",
        True,
    ),
    "without a reason": (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    "with a name as long as Transfer-Encoding": (
        b"HTTP/1.1 200 OK\r\nX-Of-Seventeen-Ch: gzip\r\nContent-Length: 2\r\n\r\nok",
        200,
        b"ok",
        True,
    ),
    "chunked, in another case": (
        b"HTTP/1.1 200 OK\r\nTRANSFER-encoding: Chunked \r\n\r\n2\r\nok\r\n0\r\n\r\n",
        200,
        b"ok",
        True,
    ),
}

BROKEN = {
    "not HTTP": (b"SSH-2.0-OpenSSH_9.2\r\n", "not HTTP: "),
    "a status that is no number": (b"HTTP/1.1 OK 200\r\n\r\n", "not HTTP: "),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nokk", "not HTTP: "),
    "a length that is no number": (b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nok", "not HTTP: "),
    "a negative length": (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nok", "not HTTP: "),
    "a chunk size that is no number": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok\r\n",
        "not HTTP: ",
    ),
    "a folded header": (b"HTTP/1.1 200 OK\r\nA: b\r\n c\r\nContent-Length: 0\r\n\r\n", "not HTTP: "),
    "switching protocols": (
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
        "the server wants to switch protocols$",
    ),
    "switching to none": (b"HTTP/1.1 101 Switching\r\n\r\n", "the server wants to switch protocols$"),
    "interim responses without end": (
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 17,
        "the server sends interim responses without end$",
    ),
    "header without end": (
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEADER_BYTES,
        "more than 65536 bytes of header$",
    ),
    "one line without end": (
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 3 * MAX_HEADER_BYTES,
        "more than 65536 bytes of header$",
    ),
    "a status below 100": (b"HTTP/1.1 099 X\r\nContent-Length: 0\r\n\r\n", "099 is not a status$"),
    "blanks without end": (
        b"HTTP/1.1 200 OK\r\nA:" + b" " * 3 * MAX_HEADER_BYTES + b"b\r\nContent-Length: 0\r\n\r\n",
        "more than 65536 bytes of header$",
    ),
    "an interim response with a length": (
        b"HTTP/1.1 199 X\r\nContent-Length: 2\r\n\r\nok",
        "an interim response with a body$",
    ),
    "an interim response in chunks": (
        b"HTTP/1.1 199 X\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "an interim response with a body$",
    ),
    "an interim response of a last chunk": (
        b"HTTP/1.1 199 X\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "an interim response with a body$",
    ),
    "a body after early hints": (b"HTTP/1.1 103 Early Hints\r\nContent-Length: 2\r\n\r\nok", "not HTTP: "),
    "coded and chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        "a transfer coding other than chunked, or that twice$",
    ),
    "coded, and not chunked": (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nok",
        "a transfer coding other than chunked, or that twice$",
    ),
    "chunked twice": (
        b"HTTP/1.1 200 OK\r\n" + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n2\r\nok\r\n0\r\n\r\n",
        "a transfer coding other than chunked, or that twice$",
    ),
}
"""Bytes, and the text of the error."""

CUT = {
    "in the status line": b"HTTP/1.1 20",
    "in the header": b"HTTP/1.1 200 OK\r\nContent-Le",
    "in a body with a length": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
    "in a chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok",
    "before the last chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
    "after an interim response": b"HTTP/1.1 100 Continue\r\n\r\n",
}


def _pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("size", [1, 3, 1 << 20])
@pytest.mark.parametrize("case", WHOLE)
def test_feed_of_a_complete_response_parses_it(case: str, size: int) -> None:
    """Status, body and reusability do not depend on how the bytes are divided."""
    data, status, body, reusable = WHOLE[case]
    answer = ResponseParser("POST", 1000)
    for piece in _pieces(data, size):
        assert not answer.complete
        answer.feed(piece)
    assert (answer.complete, answer.status, bytes(answer.body), answer.reusable) == (True, status, body, reusable)
    answer.feed_eof()  # the end of the connection changes nothing
    assert (answer.complete, answer.status, bytes(answer.body), answer.reusable) == (True, status, body, reusable)


@pytest.mark.parametrize(
    "tail",
    [
        b"x",
        b"\r\n",
        b"\x00\xff",
        b"HTTP/1.1 200 OK\r\nMore: header\r\nContent-Length: 9\r\n\r\nmore body",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    ],
)
@pytest.mark.parametrize("case", WHOLE)
def test_feed_of_bytes_after_a_response_makes_the_connection_unusable(case: str, tail: bytes) -> None:
    """Bytes after a response do not change it, but make the connection unusable for another exchange."""
    data, status, body, _ = WHOLE[case]
    alone, answer = ResponseParser("POST", 1000), ResponseParser("POST", 1000)
    alone.feed(data)
    answer.feed(data + tail)
    assert (answer.headers, answer.size) == (alone.headers, len(body))
    assert (answer.complete, answer.status, bytes(answer.body), answer.reusable) == (True, status, body, False)


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("case", BROKEN)
def test_feed_of_an_invalid_response_raises(case: str, size: int) -> None:
    """Garbage, ambiguity and excess are never accepted as a response, and the error has a readable text."""
    answer = ResponseParser("POST", 1000)
    data, words = BROKEN[case]
    with pytest.raises(ProtocolError, match=f"^{words}"):  # noqa: PT012 -- any of the pieces may raise
        for piece in _pieces(data, size):
            answer.feed(piece)
    assert not answer.reusable


@pytest.mark.parametrize("size", [1, 65_536])
def test_feed_of_an_endless_trailer_raises(size: int) -> None:
    """The limit of a header also applies to the trailer after the last chunk, also within one line."""
    answer = ResponseParser("POST", 1000)
    answer.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nA: ")
    with pytest.raises(ProtocolError, match="bytes of header"):  # noqa: PT012 -- any of the pieces may raise
        for piece in _pieces(b"b" * 4 * MAX_HEADER_BYTES, size):
            answer.feed(piece)
    assert not answer.complete


def test_feed_of_a_long_trailer_is_accepted_up_to_the_limit() -> None:
    """A line of a trailer may be as long as one of a header, counted from the last chunk's size."""
    answer = ResponseParser("POST", 1000)
    for piece in (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n", b"0\r\n"):
        answer.feed(piece)
    answer.feed(b"A: ".ljust(2 * MAX_HEADER_BYTES, b"b"))
    with pytest.raises(ProtocolError, match=r"^more than 65536 bytes of header$"):
        answer.feed(b"b")


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_feed_of_a_trailer_adds_no_header(size: int) -> None:
    """Fields of a trailer are dropped, and they do not frame the body."""
    answer = ResponseParser("POST", 1000)
    data = b"HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nRetry-After: 9\r\n\r\n"
    for piece in _pieces(data, size):
        answer.feed(piece)
    assert (answer.complete, answer.headers) == (True, [(b"A", b"b"), (b"Transfer-Encoding", b"chunked")])


@pytest.mark.parametrize("size", [3, 7_000, 1 << 20])
def test_feed_of_a_long_body_does_not_count_as_header(size: int) -> None:
    """The limit of the header ignores the body, with many short fields and any division of the bytes."""
    fields = b"A: b\r\n" * 20_000
    data = b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000
    answer = ResponseParser("POST", 100_000)
    for piece in _pieces(data, size):
        answer.feed(piece)
    assert (answer.complete, answer.reusable, answer.size) == (True, True, 100_000)


@pytest.mark.parametrize("case", CUT)
def test_feed_eof_within_a_response_raises(case: str) -> None:
    """A connection that ends too early leaves no response."""
    answer = ResponseParser("POST", 1000)
    answer.feed(CUT[case])
    assert not answer.complete
    with pytest.raises(ProtocolError, match=r"^the server closed the connection in the middle of its answer$"):
        answer.feed_eof()


def test_feed_eof_without_a_byte_raises() -> None:
    """The end of a connection without a byte raises an error with its own text."""
    with pytest.raises(ProtocolError, match=r"^the server closed the connection without an answer$"):
        ResponseParser("POST", 1000).feed_eof()


def test_feed_eof_completes_a_body_without_length() -> None:
    """Without length or chunks the body ends with the connection, which is not reusable."""
    answer = ResponseParser("POST", 1000)
    answer.feed(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\nto the ")
    answer.feed(b"end")
    assert not answer.complete
    answer.feed_eof()
    assert (answer.complete, bytes(answer.body), answer.reusable) == (True, b"to the end", False)


def test_feed_eof_after_a_header_completes_an_empty_body() -> None:
    """A response without length or chunks may have an empty body."""
    answer = ResponseParser("POST", 1000)
    answer.feed(b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n")
    assert not answer.complete
    answer.feed_eof()
    assert (answer.complete, bytes(answer.body), answer.reusable) == (True, b"", False)


def test_feed_of_a_response_to_head_ends_with_its_header() -> None:
    """A response to HEAD ends with its header; the connection is not reusable, as httptools has no option for it."""
    answer = ResponseParser("HEAD", 1000)
    answer.feed(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert not answer.complete
    answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
    assert (answer.complete, answer.reusable, answer.size) == (True, False, 0)


@pytest.mark.parametrize("size", [1000, 1 << 16])
def test_feed_of_a_long_header_is_accepted_up_to_the_limit(size: int) -> None:
    """All fields together may have 65,536 bytes of names and values."""
    fields = b"HTTP/1.1 204 No Content\r\nA: b\r\nCde: %s\r\nf: %s" % (b"x" * 30_000, b"y" * 35_530)
    answer, over = ResponseParser("POST", 10), ResponseParser("POST", 10)
    for piece in _pieces(fields + b"\r\n\r\n", size):
        answer.feed(piece)
    assert (answer.complete, answer.status) == (True, 204)
    with pytest.raises(ProtocolError, match=r"^more than 65536 bytes of header$"):  # noqa: PT012 -- as above
        for piece in _pieces(fields + b"y\r\n\r\n", size):
            over.feed(piece)


def test_feed_of_a_long_line_is_accepted_up_to_the_limit() -> None:
    """An unfinished line may have twice the limit, because the parser does not report it."""
    answer = ResponseParser("POST", 10)
    answer.feed(b"HTTP/1.1 200 OK\r\nA: ".ljust(2 * MAX_HEADER_BYTES, b"b"))
    with pytest.raises(ProtocolError, match=r"^more than 65536 bytes of header$"):
        answer.feed(b"b")


def test_feed_of_interim_responses_skips_them_up_to_the_limit() -> None:
    """At most sixteen interim responses are skipped, and their fields are dropped."""
    answer = ResponseParser("POST", 10)
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 16
    answer.feed(hints + b"HTTP/1.1 204 No Content\r\nA: b\r\n\r\n")
    assert (answer.complete, answer.status, answer.headers) == (True, 204, [(b"A", b"b")])


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("length", "truncated"), [(9, False), (10, False), (11, True), (5000, True)])
def test_feed_of_a_long_body_truncates_it_at_the_limit(length: int, truncated: bool, size: int) -> None:
    """Beyond the limit the response is complete and truncated, without waiting for the rest."""
    answer = ResponseParser("POST", 10)
    for piece in _pieces(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length + b"x" * min(length, 11), size):
        answer.feed(piece)
    assert (answer.complete, answer.truncated, answer.reusable) == (True, truncated, not truncated)
    assert answer.size == len(answer.body) == min(length, 10)


def test_feed_of_a_body_longer_than_any_header_is_accepted() -> None:
    """The limit of an unfinished header does not apply to a body."""
    answer, body = ResponseParser("POST", 1 << 20), b"x" * 3 * MAX_HEADER_BYTES
    for piece in _pieces(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body, 1 << 16):
        answer.feed(piece)
    assert (answer.complete, answer.size, answer.truncated) == (True, len(body), False)


def test_feed_without_keep_body_counts_the_body_only() -> None:
    """Without ``keep_body`` only the size of the body is counted, as for an invocation without a callback."""
    answer = ResponseParser("POST", 1000, keep_body=False)
    answer.feed(WHOLE["by length"][0])
    assert (answer.complete, answer.size, bytes(answer.body)) == (True, 2, b"")


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        (b"", math.inf),
        (b"Keep-Alive: timeout=5\r\n", 5),
        (b"keep-alive: max=100, Timeout = 30\r\n", 30),
        (b"Keep-Alive: max=100\r\n", math.inf),
        (b"Keep-Alive: timeout=x\r\n", math.inf),
        (b"Set-Cookie: timeout=5\r\n", math.inf),
    ],
)
def test_feed_of_a_keep_alive_field_sets_the_timeout(fields: bytes, seconds: float) -> None:
    """A Keep-Alive field sets the idle time after which the server closes (RFC 2068, section 19.7.1.1)."""
    answer = ResponseParser("POST", 10)
    answer.feed(b"HTTP/1.1 200 OK\r\n" + fields + b"Content-Length: 0\r\n\r\n")
    assert (answer.complete, answer.keep_alive_timeout) == (True, seconds)


def test_feed_keeps_order_case_and_bytes_of_fields() -> None:
    """Repeated names, their case and order, and bytes outside ASCII are unchanged."""
    answer = ResponseParser("POST", 10)
    answer.feed(b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nx-y: \xc3\xa9\r\nSet-Cookie: b\r\nContent-Length: 0\r\n\r\n")
    assert answer.headers == [
        (b"Set-Cookie", b"a"),
        (b"x-y", b"\xc3\xa9"),
        (b"Set-Cookie", b"b"),
        (b"Content-Length", b"0"),
    ]


@given(
    data=st.binary(max_size=300),
    cut=st.integers(0, 300),
    prefix=st.sampled_from([b"", *(v[0] for v in WHOLE.values())]),
)
def test_feed_of_any_bytes_completes_or_raises(data: bytes, cut: int, prefix: bytes) -> None:
    """Any bytes in any pieces are a response or a ProtocolError, and never more body than the limit."""
    whole = prefix[:cut] + data
    answer = ResponseParser("POST", 20)
    try:
        for piece in (whole[:cut], whole[cut:]):
            if piece:
                answer.feed(piece)
        answer.feed_eof()
    except ProtocolError:
        return
    assert answer.complete
    assert 100 <= answer.status <= 999
    assert len(answer.body) <= 20


def test_write_request_joins_its_parts() -> None:
    """The request line is followed by the fields in order, the body's length and the body."""
    written = write_request("PUT", b"/function/f?x=1", [(b"Host", b"gw"), (b"A", b"1"), (b"A", b"2")], b"body")
    header = b"PUT /function/f?x=1 HTTP/1.1\r\nHost: gw\r\nA: 1\r\nA: 2\r\nContent-Length: 4\r\n\r\n"
    assert written == (header + b"body", b"")


@pytest.mark.parametrize(("method", "length"), [("POST", b"Content-Length: 0\r\n"), ("GET", b"")])
def test_write_request_without_body_has_a_length_if_its_method_has_one(method: str, length: bytes) -> None:
    """A method that is defined without a body has no Content-Length (RFC 9110, section 8.6)."""
    assert write_request(method, b"/", [(b"A", b"1")], b"") == (
        b"%b / HTTP/1.1\r\nA: 1\r\n%b\r\n" % (method.encode(), length),
        b"",
    )


@pytest.mark.parametrize("size", [65_536, 65_537])
def test_write_request_with_a_large_body_does_not_copy_it(size: int) -> None:
    """It is returned by itself."""
    body = b"x" * size
    header, rest = write_request("POST", b"/", [(b"A", b"1")], body)
    assert header.endswith(b"\r\nContent-Length: %d\r\n\r\n" % size + body[: size - len(rest)])
    assert rest is body if size > 65_536 else rest == b""
