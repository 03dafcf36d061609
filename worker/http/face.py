"""Our transport's face to httpx: its requests in our words, our answers in its."""

from __future__ import annotations

import re

import httpx

from .http11 import ResponseParser, write_request

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_TARGET = re.compile(rb"[!-~\x80-\xff]+")
_VALUE = re.compile(rb"[^\x00-\x08\x0a-\x1f\x7f]*")


class NamedAnswer(ResponseParser):
    """An answer with what only httpx asks for besides."""

    __slots__ = ("reason", "version")

    def __init__(self, method: str, most_body: int) -> None:
        super().__init__(method, most_body)
        self.reason = self.version = b""

    def on_status(self, reason: bytes) -> None:
        if not self.complete:
            self.reason += reason

    def on_headers_complete(self) -> None:
        if not self.complete:
            self.version = b"HTTP/" + self._parser.get_http_version().encode()
        super().on_headers_complete()

    def _next_response(self) -> None:
        super()._next_response()
        self.reason = b""


async def written(request: httpx.Request) -> bytes:
    """The bytes of *request*. A body that is a stream is read to its end first, and sent as one chunk.

    Raises:
        httpx.UnsupportedProtocol: it is not for plain HTTP.
        httpx.LocalProtocolError: no server could read it as it is meant.
    """
    if request.url.scheme != "http":
        raise httpx.UnsupportedProtocol(f"not http: {request.url}")
    target = request.extensions.get("target") or request.url.raw_path
    method, fields = request.method, request.headers.raw
    if not (_TOKEN.fullmatch(method.encode()) and _TARGET.fullmatch(target)):
        raise httpx.LocalProtocolError(f"not a request line: {method!r} {target!r}")
    for name, value in fields:
        if not (_TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
            raise httpx.LocalProtocolError(f"not a header field: {name!r}")
    return write_request(method, target, fields, _framed(request, await request.aread()))


def _framed(request: httpx.Request, body: bytes) -> bytes:
    if "Transfer-Encoding" in request.headers:
        return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
    told = request.headers.get("Content-Length", "0")
    if told != str(len(body)):
        raise httpx.LocalProtocolError(f"a body of {len(body)} bytes, where the header says {told}")
    return body


def response_of(answer: NamedAnswer) -> httpx.Response:
    """The response that *answer* is; its extension ``truncated`` tells whether the body was cut."""
    return httpx.Response(
        answer.status,
        headers=answer.headers,
        stream=httpx.ByteStream(bytes(answer.body)),
        extensions={
            "http_version": answer.version,
            "reason_phrase": answer.reason,
            "truncated": answer.truncated,
        },
    )
