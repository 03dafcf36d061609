"""From a message's bytes to its invocation: OpenFaaS's ``QueueRequest``, as Go's encoding/json writes it.

Three laws. What goes into the request line and the header is checked here, once, so that no message can add a line of
its own to a request. No message can reach anything but the function that it names: a path whose dots lead out of it is
refused. What does not follow the format is refused with a reason, never guessed at, with three exceptions that old
gateways need: slashes around the function's name, a question mark before the query, a path without its first slash.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit
from uuid import UUID, uuid5

from ..model import NO_ANNOTATIONS, Delivery, Invocation, Malformed
from .names import LONGEST, split_function
from .queue_request import QueueRequest, fold, known_fields, read_queue_request
from .stored_body import check_reference

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer trailers "
    b"transfer-encoding upgrade".split()
)
"""Headers about one connection (RFC 9110, section 7.6.1, and the older lists that Go's reverse proxy keeps to)."""
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
"""A method's or a header's name (RFC 9110, section 5.6.2)."""
_REPLACED = HOP_BY_HOP | {b"host", b"content-length"}
"""Also the two that the HTTP client writes itself."""
_ACCEPT = b"accept"
_SPECIAL = _REPLACED | {_ACCEPT, b"x-call-id", b"x-start-time", b"user-agent"}
_STREAMS = ("text/event-stream", "application/x-ndjson")
"""Types for which OpenFaaS's gateway streams: it answers 200 before the function does, also for one that is dead."""
_SHORTEST_STREAM = min(map(len, _STREAMS))
_names: dict[str, tuple[bytes, bytes | None]] = {}
"""Cache of header names: their bytes, and for a special one its name in lower case."""
_USUAL = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_UNSAFE_PATH = re.compile(r"[^!-~]|%(?![0-9A-Fa-f]{2})|[\"<>\\^`{|}#?]")
"""Characters that Go's client escapes in a path. A valid escape stays as it is: the path is sent as it was stored."""
_UNSAFE_QUERY = re.compile(r"[^!-~]|#")
"""Characters that would end the query or the request line. All others are sent as stored, as Go sends a raw query."""
_LONGEST_FUNCTION = 2 * LONGEST + 1
_SHORT, _MOST_NAMES = 64, 1_000
"""Most characters in a header's name that is cached, and most names: callers choose them."""
_LONGEST_URL = 8192
"""Characters of a URL: what web servers commonly accept as a request line."""
_VISIBLE = re.compile(r"[!-~]+")
_AUTHORITY = re.compile(r"(?:[^@\[\]]*@)?(?:\[[0-9A-Fa-f:.]+\]|[-A-Za-z0-9._~%!$&'()*+,;=]+)(?::[0-9]*)?")
"""User, host and port (RFC 3986, section 3.2), so strictly that no two readers can take another host from it."""
_NO_HOST = "what stands for its host and port can be neither"
_SAFE_PATH = "/:@$&+,;="
"""Characters that Go does not escape in a path, less those that ``quote`` keeps anyway."""
_ENCODED_PATH = re.compile(r"(?:[A-Za-z0-9/:@!$&'()*+,;=\-._~\[\]]|%[0-9A-Fa-f]{2})*")
_URL_FIELDS = frozenset({"Scheme", "Opaque", "User", "Host", "Path", "RawPath", "OmitHost"}).union(
    {"ForceQuery", "RawQuery", "Fragment", "RawFragment"}
)
"""The fields of Go's ``url.URL``, as it writes them."""
_FOLDED_URL_FIELDS = {fold(name): name for name in _URL_FIELDS}
_NAMESPACE = UUID("6b1c6f5c-7e0a-4b0e-9d62-0c1f2a7f5a11")
"""Namespace of derived call ids: a random UUID, fixed forever."""


def decode(delivery: Delivery, *, namespace: str, user_agent: str) -> tuple[Invocation, str | None] | Malformed:
    """Return the invocation of a message, and why its callback cannot be posted to, if that is so.

    Such a callback does not prevent the invocation: the function runs, and its result is posted nowhere. *namespace* is
    the default for a function that is named without one, *user_agent* that for a message without one.
    """
    try:
        request = read_queue_request(delivery.payload)
    except (ValueError, RecursionError) as error:
        return Malformed(f"not a QueueRequest: {error}")
    try:
        callback, callback_error = callback_url(request.CallbackUrl), None
    except ValueError as error:
        callback, callback_error = None, str(error)
    try:
        return _invocation(request, delivery, namespace, user_agent, callback), callback_error
    except ValueError as error:
        return Malformed(str(error))


def connection_options(connection: bytes) -> Iterator[bytes]:
    """Return the headers, in lower case, that a Connection header names as being about that connection only."""
    return (option.strip().lower() for option in connection.split(b","))


def derive_call_id(delivery: Delivery) -> str:
    """Return the call id of a message that has none: the same for each of its deliveries, on each worker."""
    return str(uuid5(_NAMESPACE, f"{delivery.id[0]}/{delivery.id[1]}"))


def _invocation(
    request: QueueRequest, delivery: Delivery, namespace: str, user_agent: str, callback: str | None
) -> Invocation:
    function, method, path = request.Function.strip("/"), request.Method or "POST", request.Path or ""
    if len(function) > _LONGEST_FUNCTION or (known := _function(function, namespace)) is None:
        raise ValueError(f"not a function's name: {request.Function[:80]!r}")
    if method not in _USUAL and not TOKEN.fullmatch(method):
        raise ValueError(f"not an HTTP method: {method[:80]!r}")
    if _escapes(path):
        raise ValueError(f"a path that leads out of the function: {path[:80]!r}")
    if request.BodyObject is not None:
        check_reference(request.BodyObject)
        if request.Body:
            raise ValueError("a message with a body, and with the reference to one")
    label, address = known
    headers, special = _read_header(request.Header or {})
    if not (call_id := special.get(b"x-call-id")):
        call_id = derive_call_id(delivery)
        headers.append((b"X-Call-Id", call_id.encode()))
    if b"user-agent" not in special:
        headers.append((b"User-Agent", user_agent.encode()))
    return Invocation(
        call_id=call_id,
        function=function,
        label=label,
        method=method,
        target=address + _rest_of_target(path, request.QueryString or ""),
        headers=tuple(headers),
        body=request.Body or b"",
        annotations=NO_ANNOTATIONS if request.Annotations is None else request.Annotations,
        callback=callback,
        started=special.get(b"x-start-time") or str(delivery.id[1]),
        stored_body=request.BodyObject,
    )


def _read_header(  # noqa: C901 -- a branch for each kind of header; functions would cost a message 3 % of its decoding
    header: dict[str, list[str] | None],
) -> tuple[list[tuple[bytes, bytes]], dict[bytes, str]]:
    """Return the fields that are sent on, and the first value that is not empty of each special field."""
    sent: list[tuple[bytes, bytes]] = []
    found: dict[bytes, str] = {}
    named: set[bytes] = set()  # by Connection headers
    for name, values in header.items():
        written, special = _names.get(name) or _cache_name(name)
        for given in values or ():
            if not (given.isascii() and given.isprintable()) and _UNSAFE_VALUE.search(given):
                raise ValueError(f"header {name[:80]} has a control character in its value")
            value = given.strip(" \t")  # as RFC 9110, section 5.5, reads it
            if special is None:
                pass
            elif special is _ACCEPT:
                if len(value) >= _SHORTEST_STREAM and not (value := _without_streams(value)):
                    continue
            elif special in _REPLACED:
                if special == b"connection":
                    named.update(connection_options(value.encode()))
                continue
            else:
                found[special] = found.get(special) or value
                if not value and special == b"x-call-id":
                    continue
            sent.append((written, value.encode()))
    if named:
        sent = [field for field in sent if (lower := field[0].lower()) not in named or lower == b"x-call-id"]
        if b"user-agent" in named:
            found.pop(b"user-agent", None)
    return sent, found


def _without_streams(accept: str) -> str:
    """Return an Accept header's value without the types of :data:`_STREAMS`."""
    kept = accept
    if any(stream in accept.lower() for stream in _STREAMS):
        ranges = (each.strip(" \t") for each in accept.split(","))
        kept = ", ".join(each for each in ranges if each and each.partition(";")[0].rstrip().lower() not in _STREAMS)
    # A type that stands where no reader should find it (in a quoted parameter) could still be found.
    return "" if any(stream in kept.lower() for stream in _STREAMS) else kept


def _cache_name(name: str) -> tuple[bytes, bytes | None]:
    if not TOKEN.fullmatch(name):
        raise ValueError(f"not a header's name: {name[:80]!r}")
    written, lower = name.encode(), name.lower().encode()
    known = written, _ACCEPT if lower == _ACCEPT else lower if lower in _SPECIAL else None
    if len(name) <= _SHORT and len(_names) < _MOST_NAMES:
        _names[name] = known
    return known


@lru_cache(4_000)
def _function(name: str, namespace: str) -> tuple[str, bytes] | None:
    """Return a function's label and its request target; None if the name is invalid."""
    if (split := split_function(name, namespace)) is None:
        return None
    return f"{split[0]}.{split[1]}", f"/function/{name}".encode("ascii")


def _escapes(path: str) -> bool:
    """Return whether the dots in a path lead above its start, for a server that unescapes it first, as Go's do."""
    if not path or ".." not in (path := unquote(path)):
        return False
    steps = ({"": 0, ".": 0, "..": -1}.get(segment, 1) for segment in path.split("/"))
    return min(accumulate(steps)) < 0


def _rest_of_target(path: str, query: str) -> bytes:
    """Return the part of the request target below the function."""
    if not path and not query:
        return b""
    if path and not path.startswith("/"):
        path = f"/{path}"
    path = _UNSAFE_PATH.sub(_escape, path)
    query = _UNSAFE_QUERY.sub(_escape, query.removeprefix("?"))
    return f"{path}{'?' if query else ''}{query}".encode("ascii")


def _escape(match: re.Match[str]) -> str:
    return quote(match[0])


def callback_url(value: Any) -> str | None:
    """Return the absolute URL of a message's ``CallbackUrl``, without its fragment; None if it has none.

    A ValueError explains why it cannot be posted to.
    """
    if value is None or value == "":
        return None
    url = value if isinstance(value, str) else _from_go(value)
    if len(url) > _LONGEST_URL:
        raise ValueError(f"longer than {_LONGEST_URL} characters")
    url = url.partition("#")[0]
    if not _VISIBLE.fullmatch(url):
        raise ValueError("it has a space, a control character or a letter outside ASCII; escape it")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:  # without its text, which may quote a password
        raise ValueError(_NO_HOST) from None
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"its scheme is {parts.scheme!r}; only http and https can be posted to")
    if not parts.hostname:
        raise ValueError("it names no host")
    if not _AUTHORITY.fullmatch(parts.netloc):
        raise ValueError(_NO_HOST)
    return url


def _from_go(url: dict[str, Any]) -> str:
    """Return what Go's ``URL.String`` returns, without user information, which encoding/json loses."""
    if not _URL_FIELDS.issuperset(url):
        url = {name: value for name, value in known_fields(url.items(), _FOLDED_URL_FIELDS) if value is not None}
    scheme, host, path = (_text(url, key) for key in ("Scheme", "Host", "Path"))
    raw_path, query = _text(url, "RawPath"), _text(url, "RawQuery")
    if query or url.get("ForceQuery") is True:
        query = f"?{query}"
    if opaque := _text(url, "Opaque"):
        return f"{scheme}:{opaque}{query}"
    if not scheme and not host and not path:
        raise ValueError("it is empty")
    # RawPath is a hint how to write Path, and counts only where it is a way to write it.
    if not (_ENCODED_PATH.fullmatch(raw_path) and unquote_to_bytes(raw_path) == path.encode()):
        raw_path = quote(path, safe=_SAFE_PATH)
    if raw_path and not raw_path.startswith("/"):
        raw_path = f"/{raw_path}"
    return f"{scheme}://{host}{raw_path}{query}"


def _text(url: dict[str, Any], key: str) -> str:
    value = url.get(key, "")
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    raise ValueError(f"its {key} is not a string")
