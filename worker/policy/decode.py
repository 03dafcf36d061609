"""From a message's bytes to the request it asks for: OpenFaaS's ``QueueRequest``, as Go's encoding/json writes it.

Three laws. What goes into the request line and the header is checked here, once, so that no message can add a line of
its own to a request. No message can reach anything but the function that it names: a path whose dots lead out of it is
refused. What does not follow the format is refused with a reason, never guessed at, with three exceptions that old
gateways need: slashes around the function's name, a question mark before the query, a path without its first slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote
from uuid import UUID, uuid5

import msgspec

from ..model import Delivery, Invocation, Malformed
from .callback_url import callback_url
from .names import split_function

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer trailers "
    b"transfer-encoding upgrade".split()
)
"""Headers about one connection (RFC 9110, section 7.6.1, and the older lists that Go's reverse proxy keeps to)."""
_OURS = HOP_BY_HOP | {b"host", b"content-length"}
"""The two more that the client writes itself."""
_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_UNSAFE_PATH = re.compile(r"[^!-~]|%(?![0-9A-Fa-f]{2})|[\"<>\\^`{|}#?]")
"""What Go's client escapes in a path. A valid escape is left as it is: the path goes out as it came."""
_UNSAFE_QUERY = re.compile(r"[^!-~]|#")
"""What would end the query or the request line. All else goes out as it came, as Go sends a raw query."""
_NAMESPACE = UUID("6b1c6f5c-7e0a-4b0e-9d62-0c1f2a7f5a11")
"""Of the call ids that we make; a random UUID, fixed for ever."""


class _QueueRequest(msgspec.Struct):
    Function: str
    Method: str | None = None
    Header: dict[str, list[str] | None] | None = None
    Path: str | None = None
    QueryString: str | None = None
    Body: bytes | None = None
    Annotations: dict[str, str] | None = None
    CallbackUrl: str | dict[str, Any] | None = None


_decoder = msgspec.json.Decoder(_QueueRequest)


def decode(delivery: Delivery, *, namespace: str, user_agent: str) -> tuple[Invocation, str | None] | Malformed:
    """The invocation that a message asks for, and what is wrong with its callback, if anything is.

    A callback that cannot be posted to does not spoil the invocation: the function runs, and nobody is told.

    Args:
        delivery: the message.
        namespace: stands in where the function's name has none.
        user_agent: who we are, where the message brings no User-Agent.
    """
    try:
        request = _decoder.decode(delivery.payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return Malformed(f"not a QueueRequest: {error}")
    try:
        callback, complaint = callback_url(request.CallbackUrl), None
    except ValueError as error:
        callback, complaint = None, str(error)
    try:
        return _invocation(request, delivery, namespace, user_agent, callback), complaint
    except ValueError as error:
        return Malformed(str(error))


def options(connection: bytes) -> Iterator[bytes]:
    """The headers, in lower case, that the value of a Connection header says are about that connection only."""
    return (option.strip().lower() for option in connection.split(b","))


def made_call_id(delivery: Delivery) -> str:
    """The call id of a message that brings none: the same at each of its deliveries, in each worker."""
    return str(uuid5(_NAMESPACE, f"{delivery.id[0]}/{delivery.id[1]}"))


def _invocation(
    request: _QueueRequest, delivery: Delivery, namespace: str, user_agent: str, callback: str | None
) -> Invocation:
    function, method, path = request.Function.strip("/"), request.Method or "POST", request.Path or ""
    if (split := split_function(function, namespace)) is None:
        raise ValueError(f"not a function's name: {request.Function[:80]!r}")
    if not _TOKEN.fullmatch(method):
        raise ValueError(f"not an HTTP method: {method[:80]!r}")
    if _leads_out(path):
        raise ValueError(f"a path that leads out of the function: {path[:80]!r}")
    headers, call_id, started = _headers(request.Header or {})
    if call_id is None:
        call_id = made_call_id(delivery)
        headers.append((b"X-Call-Id", call_id.encode()))
    if not any(name.lower() == b"user-agent" for name, _ in headers):
        headers.append((b"User-Agent", user_agent.encode()))
    return Invocation(
        call_id=call_id,
        function=function,
        label=f"{split[0]}.{split[1]}",
        method=method,
        target=_target(function, path, request.QueryString or ""),
        headers=tuple(headers),
        body=request.Body or b"",
        annotations=request.Annotations or {},
        callback=callback,
        started=started or str(delivery.id[1]),
    )


def _headers(header: dict[str, list[str] | None]) -> tuple[list[tuple[bytes, bytes]], str | None, str | None]:
    """The fields to send on, X-Call-Id and X-Start-Time."""
    fields = list(_fields(header))
    named = {option for _, lower, value in fields if lower == b"connection" for option in options(value.encode())}
    dropped = _OURS | (named - {b"x-call-id"})
    call_id, started = (
        next((value for _, lower, value in fields if lower == wanted and value), None)
        for wanted in (b"x-call-id", b"x-start-time")
    )
    sent = [
        (name.encode(), value.encode())
        for name, lower, value in fields
        if lower not in dropped and (value or lower != b"x-call-id")
    ]
    return sent, call_id, started


def _fields(header: dict[str, list[str] | None]) -> Iterator[tuple[str, bytes, str]]:
    """Name as written, name in lower case, value."""
    for name, values in header.items():
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"not a header's name: {name[:80]!r}")
        for value in values or ():
            if _UNSAFE_VALUE.search(value):
                raise ValueError(f"header {name[:80]} has a control character in its value")
            yield name, name.lower().encode(), value.strip(" \t")  # as RFC 9110, section 5.5, reads it


def _leads_out(path: str) -> bool:
    """Whether the dots in a path lead above where it starts, to a server that unescapes it first, as Go's do."""
    if ".." not in (path := unquote(path)):
        return False
    depth = 0
    for segment in path.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(segment, 1)
        if depth < 0:
            return True
    return False


def _target(function: str, path: str, query: str) -> bytes:
    if path and not path.startswith("/"):
        path = f"/{path}"
    query = query.removeprefix("?")
    path = _UNSAFE_PATH.sub(_escape, path)
    query = _UNSAFE_QUERY.sub(_escape, query)
    return f"/function/{function}{path}{'?' if query else ''}{query}".encode("ascii")


def _escape(match: re.Match[str]) -> str:
    return quote(match[0])
