"""One HTTP/1.1 exchange: bytes out, bytes in, an answer. No I/O here; httptools (llhttp) is the parser.

The law: an answer is whole, or it is none. A body is whole by its length, its last chunk, or the end of the
connection where the response says so; whatever follows a whole answer, or precedes one, means that this connection
cannot be trusted again.
"""

from __future__ import annotations

from typing import Any

import httptools

MOST_HEADER_BYTES = 65_536
"""Bytes of a response's header fields, names and values: what Go's client and most servers stay below."""
_TOO_MUCH_HEADER = f"more than {MOST_HEADER_BYTES} bytes of header"
MOST_INTERIM = 16
"""Interim (1xx) responses before the one that counts."""


class ProtocolError(Exception):
    """What came is not an HTTP/1.1 response, or not a whole one."""


class Answer:
    """A response, as it comes in.

    Args:
        method: of the request; a response to HEAD has no body whatever its header says.
        most_body: bytes of the body that are read. With the next one the answer counts as complete, and truncated.
        keep: whether the body is kept; else only its *size* is.
    """

    def __init__(self, method: str, most_body: int, *, keep: bool = True) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = bytearray()
        self.size = 0
        self.truncated = False
        self.complete = False
        self.reusable = False
        self._head_only = method == "HEAD"
        self._most_body = most_body
        self._keep = keep
        self._header_bytes = 0
        self._fed = 0
        self._interim = 0
        self._any = False
        self._in_header = True
        self._extra = False
        self._parser: Any = httptools.HttpResponseParser(self)

    def feed(self, data: bytes) -> None:
        """What came.

        Raises:
            ProtocolError: it cannot be a response.
        """
        self._any = True
        if self._in_header:  # of an unfinished line the parser tells nothing, so what was fed bounds it
            self._fed += len(data)
            if self._fed > 2 * MOST_HEADER_BYTES:
                raise ProtocolError(_TOO_MUCH_HEADER)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError as error:
            raise ProtocolError(str(error.__context__ or error)) from None
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not self.complete:
                raise ProtocolError(f"not HTTP: {error}") from None
            self._extra = True
        if self._extra:
            self.reusable = False

    def end(self) -> None:
        """The connection has ended, and with it a body that has no other end.

        Raises:
            ProtocolError: the answer is not whole.
        """
        if self.complete:
            return
        if not self._any:
            raise ProtocolError("the server closed the connection without an answer")
        if self._in_header or not self._until_end():
            raise ProtocolError("the server closed the connection in the middle of its answer")
        self.complete, self.reusable = True, False

    # Called by the parser.

    def on_message_begin(self) -> None:
        if self.complete:
            self._extra = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete:
            return
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > MOST_HEADER_BYTES:
            raise ProtocolError(_TOO_MUCH_HEADER)
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        self._in_header = False
        self.status = self._parser.get_status_code()
        if self._head_only and self.status >= 200:
            # The parser cannot be told that no body follows, so the connection is not used again.
            self.complete = True

    def on_body(self, data: bytes) -> None:
        if self.complete:
            return
        room = self._most_body - self.size
        self.size += min(len(data), room)
        if self._keep:
            self.body += data[:room]
        if len(data) > room:
            self.truncated = self.complete = True

    def on_message_complete(self) -> None:
        if self.complete:
            return
        if self.status < 200:
            self._next_response()
            return
        self.complete, self.reusable = True, self._parser.should_keep_alive()

    def _next_response(self) -> None:
        if self.status == 101:
            raise ProtocolError("the server wants to switch protocols")
        self._interim += 1
        if self._interim > MOST_INTERIM:
            raise ProtocolError("the server sends interim responses without end")
        self.headers.clear()
        self._in_header = True

    def _until_end(self) -> bool:
        names = {name.lower() for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names


def write_request(method: str, target: bytes, headers: list[tuple[bytes, bytes]], body: bytes) -> bytes:
    """The bytes of a request. Names, values and target were checked where they were made."""
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target)]
    lines += [b"%s: %s" % field for field in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body
