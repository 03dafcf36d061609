"""One HTTP/1.1 exchange: bytes out, bytes in, an answer. No I/O here; httptools (llhttp) is the parser.

The law: an answer is whole, or it is none. A body is whole by its length, its last chunk, or the end of the
connection where the response says so; whatever follows a whole answer, or precedes one, means that this connection
cannot be trusted again.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import httptools

MAX_HEADER_BYTES = 65_536
"""Bytes of a response's header fields, names and values: what Go's client and most servers stay below."""
_TOO_MUCH_HEADER = f"more than {MAX_HEADER_BYTES} bytes of header"
MAX_INTERIM_RESPONSES = 16
"""Interim (1xx) responses before the one that counts."""
_TIMEOUT = re.compile(rb"timeout\s*=\s*([0-9]{1,9})", re.IGNORECASE)
"""In a Keep-Alive field (RFC 2068, section 19.7.1.1)."""


class ProtocolError(Exception):
    """What came is not an HTTP/1.1 response, or not a whole one."""


class ResponseParser:
    """A response, as it comes in.

    Args:
        method: of the request; a response to HEAD has no body whatever its header says.
        most_body: bytes of the body that are read. With the next one the answer counts as complete, and truncated.
        keep: whether the body is kept; else only its *size* is.
    """

    __slots__ = (
        *("status", "headers", "body", "size", "truncated", "complete", "reusable", "keeps_idle"),
        *("_codings", "_fed", "_field_bytes", "_head_only", "_in_chunks", "_in_fields", "_interim", "_keep"),
        *("_most_body", "_parser"),
    )

    def __init__(self, method: str, most_body: int, *, keep: bool = True) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.size = 0
        self.truncated = self.complete = self.reusable = False
        self.keeps_idle = math.inf
        """Seconds after which the server says it will close the connection if it is not used."""
        self._head_only = method == "HEAD"
        self._most_body = most_body
        self._keep = keep
        self._interim = 0
        self._in_fields = True
        """In a header, or in what can be a trailer."""
        self._fed = 0
        """Bytes of pieces that began there."""
        self._field_bytes = 0
        self._in_chunks = False
        self._codings: tuple[bytes, ...] = ()
        self._parser: Any = None
        """It is there while the answer comes in: thousands that only wait for theirs have none to be collected."""

    def feed(self, data: bytes) -> None:
        """What came.

        Raises:
            ProtocolError: it cannot be a response.
        """
        if self._in_fields:  # of an unfinished line the parser tells nothing, so what was fed bounds it
            room = 2 * MAX_HEADER_BYTES - self._fed
            self._fed += len(data)
            if len(data) > room:
                self._parse(data[:room])
                data = data[room:]
                if self._in_fields and self._fed:  # it is counted anew where a chunk began
                    raise ProtocolError(_TOO_MUCH_HEADER)
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        # The parser passes over line ends after an answer without a word. So where a piece ends with one, that byte is
        # fed by itself: an answer that is complete before it has something behind it. Anything else that follows an
        # answer is an error to the parser, or begins another.
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
                raise ProtocolError(_reason(error)) from None
            self.reusable = False

    def feed_eof(self) -> None:
        """The connection has ended, and with it a body that has no other end.

        Raises:
            ProtocolError: the answer is not whole.
        """
        if self.complete:
            return
        if not self._fed and not self.status:
            raise ProtocolError("the server closed the connection without an answer")
        if self._in_fields or not self._until_end():
            raise ProtocolError("the server closed the connection in the middle of its answer")
        self._complete(reusable=False)

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self.complete:
            self.reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete:
            return
        self._field_bytes += len(name) + len(value)
        if self._field_bytes > MAX_HEADER_BYTES:
            raise ProtocolError(_TOO_MUCH_HEADER)
        if self._in_chunks:  # in a trailer: nothing there may decide or frame anything (RFC 9110, section 6.5.1)
            return
        length = len(name)
        if length == 17 and name.lower() == b"transfer-encoding":
            self._codings += (value.strip().lower(),)
        elif length == 10 and name.lower() == b"keep-alive" and (told := _TIMEOUT.search(value)):
            self.keeps_idle = float(told[1])
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self._in_fields = False
        self.status = self._parser.get_status_code()
        if self.status < 100:
            raise ProtocolError(f"{self.status:03} is not a status")
        if self._codings and self._codings != (b"chunked",):
            raise ProtocolError("a transfer coding other than chunked, or that twice")
        if self._head_only and self.status >= 200:
            # The parser cannot be told that no body follows, so the connection is not used again.
            self._complete(reusable=False)

    def on_chunk_header(self) -> None:
        if not self.complete and self.status < 200:  # as a body, it would become the next response's
            raise ProtocolError("an interim response with a body")
        self._in_chunks = True
        self._in_fields, self._fed = True, 0  # after the last chunk's comes the trailer

    def on_body(self, data: bytes) -> None:
        if self.complete:
            return
        if self.status < 200:
            raise ProtocolError("an interim response with a body")
        self._in_fields = False
        room = self._most_body - self.size
        if len(data) > room:
            data = data[:room]
            self.truncated = True
        self.size += len(data)
        if self._keep:
            self.body += data
        if self.truncated:
            self._complete(reusable=False)

    def on_message_complete(self) -> None:
        if self.complete:
            return
        if self.status < 200:
            self._next_response()
        else:
            self._complete(reusable=self._parser.should_keep_alive())

    def _complete(self, *, reusable: bool) -> None:
        self.complete, self.reusable = True, reusable
        self._parser = None  # which knows us: without this, each answer would be left to the garbage collector

    def _next_response(self) -> None:
        if self.status == 101:
            raise ProtocolError("the server wants to switch protocols")
        self._interim += 1
        if self._interim > MAX_INTERIM_RESPONSES:
            raise ProtocolError("the server sends interim responses without end")
        self.headers.clear()
        self._codings = ()
        self._in_fields = True

    def _until_end(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names


def _reason(error: Exception) -> str:
    if isinstance(error, httptools.HttpParserCallbackError):
        return str(error.__context__ or error)
    return f"not HTTP: {error}"


def write_request(method: str, target: bytes, headers: Iterable[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The bytes of a request. Names, values and target were checked where they were made."""
    fields = b"\r\n".join(map(b": ".join, headers))
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n%b" % (method.encode(), target, fields, body)
