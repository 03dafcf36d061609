"""One HTTP/1.1 exchange: the bytes of a request and the parser of its response. No I/O here.

httptools (llhttp) parses; this module adds the rules that it lacks. A response is complete, or it is an error. Its body
ends by its length, by its last chunk, or with the connection if the header names neither. Bytes before or after a
complete response mean that the connection must not be reused.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httptools

MAX_HEADER_BYTES = 65_536
"""Bytes of a response's header fields, names and values: Go's client and most servers stay below this."""
_HEADER_TOO_LONG = f"more than {MAX_HEADER_BYTES} bytes of header"
MAX_INTERIM_RESPONSES = 16
"""Interim (1xx) responses before the final one."""
_TIMEOUT = re.compile(rb"timeout\s*=\s*([0-9]{1,9})", re.IGNORECASE)
"""The parameter of a Keep-Alive field (RFC 2068, section 19.7.1.1)."""
_MAX_JOINED = 65_536
"""Bytes of a body that is copied behind its header, to be sent with it at once; a larger one is sent by itself."""
UNRESERVED = 65_536
"""Bytes of a response that are read before :meth:`ResponseParser.reserve` is asked; most responses have no more."""
_WITH_LENGTH = ("POST", "PUT", "PATCH")
"""Methods of requests that have a Content-Length even if the body is empty (RFC 9110, section 8.6)."""

Fields = list[tuple[bytes, bytes]]
"""Names and values of a header."""


class ProtocolError(Exception):
    """The server sent something else than one complete HTTP/1.1 response."""


class ResponseParser:
    """Parser of one response, and the values that it has parsed. All else that it is fed raises a ProtocolError.

    Args:
        method: of the request; a response to HEAD has no body whatever its header contains.
        max_body: bytes of the body that are read. One more makes the response complete and truncated.
        keep_body: whether the body is kept; if not, only its *size* is counted.
    """

    __slots__ = (
        *("status", "headers", "body", "size", "truncated", "complete", "reusable", "keep_alive_timeout"),
        *("_fed", "_field_bytes", "_in_chunks", "_in_fields", "_interim", "_keep_body", "_max_body", "_no_body"),
        *("_parser", "_transfer_codings"),
    )

    def __init__(self, method: str, max_body: int, *, keep_body: bool = True) -> None:
        self.status = 0
        self.headers: Fields = []
        self.body = bytearray()
        self.size = 0
        self.truncated = self.complete = self.reusable = False
        self.keep_alive_timeout = math.inf
        """Seconds after which the server closes an idle connection, as its header announces."""
        self._no_body, self._max_body, self._keep_body = method == "HEAD", max_body, keep_body
        self._in_fields = True
        """Flag: the next bytes belong to a header or can belong to a trailer."""
        self._fed = 0
        """Bytes fed since the header or trailer began, in whole pieces."""
        self._field_bytes = self._interim = 0
        self._in_chunks = False
        self._transfer_codings: tuple[bytes, ...] = ()
        self._parser: Any = None
        """Created with the first byte: thousands of exchanges may wait, and each object costs the garbage collector."""

    def reserve(self, resume: Callable[[], None]) -> bool:  # noqa: ARG002 -- for subclasses
        """Return whether more than :data:`UNRESERVED` bytes may be read now; if not, *resume* is called later."""
        return True

    def feed(self, data: bytes) -> None:
        """Parse more bytes of the response."""
        if self._in_fields:  # the parser reports no unfinished line, so the bytes fed to it are limited
            room = 2 * MAX_HEADER_BYTES - self._fed
            self._fed += len(data)
            if len(data) > room:
                self._parse(data[:room])
                data = data[room:]
                if self._in_fields and self._fed:  # a chunk's header resets the count
                    raise ProtocolError(_HEADER_TOO_LONG)
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        # The parser silently skips line ends after a response. So the last byte of a piece is fed by itself if it is a
        # line end: if the response is complete before it, the byte does not belong to it. Any other byte after a
        # response is an error to the parser, or begins another response.
        if data.endswith((b"\n", b"\r")):
            self._feed_parser(data[:-1])
            data = data[-1:]
        self._feed_parser(data)

    def _feed_parser(self, data: bytes) -> None:
        if not data:
            return
        if self.complete:
            self.reusable = False
            return
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                ours = isinstance(error, httptools.HttpParserCallbackError)
                raise ProtocolError(str(error.__context__ or error) if ours else f"not HTTP: {error}") from None
            self.reusable = False

    def feed_eof(self) -> None:
        """End the response with the connection, which is the only end that some bodies have."""
        if self.complete:
            return
        if not self._fed and not self.status:
            raise ProtocolError("the server closed the connection without an answer")
        names = {name.lower() for name, _ in self.headers}
        if self._in_fields or b"content-length" in names or b"transfer-encoding" in names:
            raise ProtocolError("the server closed the connection in the middle of its answer")
        self._complete(reusable=False)

    # Callbacks of the parser, which may also report a second response: after the first is complete, they ignore it.

    def on_message_begin(self) -> None:
        if self.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete:
            return
        self._field_bytes += len(name) + len(value)
        if self._field_bytes > MAX_HEADER_BYTES:
            raise ProtocolError(_HEADER_TOO_LONG)
        if self._in_chunks:  # a trailer may neither frame the body nor replace a field (RFC 9110, section 6.5.1)
            return
        length = len(name)
        if length == 17 and name.lower() == b"transfer-encoding":
            self._transfer_codings += (value.strip().lower(),)
        elif length == 10 and name.lower() == b"keep-alive" and (match := _TIMEOUT.search(value)):
            self.keep_alive_timeout = float(match[1])
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self._in_fields = False
        self.status = self._parser.get_status_code()
        if self.status < 100:
            raise ProtocolError(f"{self.status:03} is not a status")
        if self._transfer_codings and self._transfer_codings != (b"chunked",):
            raise ProtocolError("a transfer coding other than chunked, or that twice")
        if self._no_body and self.status >= 200:
            # The parser has no option for a response without its body, so the connection is not reused.
            self._complete(reusable=False)

    def on_chunk_header(self) -> None:
        if not self.complete and self.status < 200:  # the next response would get this body
            raise ProtocolError("an interim response with a body")
        self._in_chunks = True
        self._in_fields, self._fed = True, 0  # a trailer follows the last chunk's header

    def on_body(self, data: bytes) -> None:
        if self.complete:
            return
        if self.status < 200:
            raise ProtocolError("an interim response with a body")
        self._in_fields = False
        room = self._max_body - self.size
        if len(data) > room:
            data = data[:room]
            self.truncated = True
        self.size += len(data)
        if self._keep_body:
            self.body += data
        if self.truncated:
            self._complete(reusable=False)

    def on_message_complete(self) -> None:
        if self.complete:
            return
        if self.status < 200:
            self._skip_interim()
        else:
            self._complete(reusable=self._parser.should_keep_alive())

    def _complete(self, *, reusable: bool) -> None:
        self.complete, self.reusable = True, reusable
        self._parser = None  # it refers to this object: the cycle would cost the garbage collector

    def _skip_interim(self) -> None:
        if self.status == 101:
            raise ProtocolError("the server wants to switch protocols")
        self._interim += 1
        if self._interim > MAX_INTERIM_RESPONSES:
            raise ProtocolError("the server sends interim responses without end")
        self.headers.clear()
        self._transfer_codings = ()
        self._in_fields = True


class StreamedBody:
    """A body that is sent part by part. It has a length, as bytes have."""

    __slots__ = ("_size", "parts")

    def __init__(self, size: int, parts: AsyncIterator[bytes]) -> None:
        self._size, self.parts = size, parts

    def __len__(self) -> int:
        return self._size


def write_request(
    method: str, target: bytes, fields: Fields, body: bytes | StreamedBody
) -> tuple[bytes, bytes | StreamedBody]:
    """Return the bytes of a request, and the rest of them if the body is too large to be copied behind its header.

    Names, values and target were validated when the message was decoded. The body's length is added to the *fields*.
    """
    header = b"\r\n".join(map(b": ".join, fields))
    if body or method in _WITH_LENGTH:
        header += b"\r\nContent-Length: %d" % len(body)
    rest: bytes | StreamedBody
    joined, rest = (body, b"") if isinstance(body, bytes) and len(body) <= _MAX_JOINED else (b"", body)
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n%b" % (method.encode(), target, header, joined), rest
