"""An invocation as a message of the queue: OpenFaaS's ``QueueRequest``, as Go's encoding/json writes it. Pure.

:mod:`worker.policy.decode` reads these messages. A request that it would reject, and store as a dead letter, is
rejected here, while the caller still waits for a response: each error is a ValueError with a text for the caller.

``Path`` and ``QueryString`` keep the escapes of the request line: the worker leaves a valid escape as it is, so the
function receives the caller's bytes, and ``%2F`` does not become a slash. (OpenFaaS's gateway writes the path
unescaped. The two differ only where the path has escapes.)

A path with a ``.``, ``..`` or empty segment is rejected. A proxy could resolve it to a path outside of
``/function/<name>``, and a gateway that is made with Go's http.ServeMux answers it with a redirect to the cleaned path.
So does one with gorilla/mux, such as OpenFaaS's. They decode the path first: ``%2F`` and ``%2e`` count.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

import msgspec

from ..model import StoredBody
from ..policy.decode import TOKEN, callback_url
from ..policy.names import parse_function, partition_for, subject_of

_LONGEST_CALL_ID = 256
"""Characters: several times what UUIDs and tracing systems need, and harmless in a header and a log line."""
_CALL_ID = re.compile(r"[ -~]+")
_UNSAFE_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_PLAIN_PATH = re.compile(r"[A-Za-z0-9$&+,/:;=@\-_.~]*")
"""A path that Go writes unescaped, so that RawPath is empty."""
MAX_START = 64 * 1024
"""Bytes of the request line and header of an invocation, as a worker sends them. The producer's proxy takes some
kilobytes more, for what the worker adds; nginx takes 32 kB by default, Go 1 MB."""
_UNESCAPED = "".join(map(chr, range(0x21, 0x7F))).translate({ord(each): None for each in '"<>\\^`{|}#?'})
"""Characters of a path that the worker sends as they are."""
_MOST_BYTES = 12
"""Bytes of one character at most: four of UTF-8, each escaped."""
_DROPPED = frozenset({"Host", "Transfer-Encoding", "Content-Length", "Expect"})
"""Headers that Go keeps out of ``Header``, that the body's length replaces, or that the gateway has met."""


class RequestTooLargeError(ValueError):
    """Request line and header are larger than a worker can send; *status* is for an HTTP caller."""

    def __init__(self, size: int, *, in_target: bool) -> None:
        what = "path and query" if in_target else "header"
        super().__init__(
            f"request line and header take {size} bytes, most of them the {what}: a queued request has room for"
            f" {MAX_START}; send large values in the body"
        )
        self.status = 414 if in_target else 431


class QueueRequest(msgspec.Struct, omit_defaults=True, kw_only=True):
    """The message, its fields named and ordered as in Go."""

    Header: dict[str, list[str]]
    Host: str = ""
    Body: bytes = b""
    Method: str
    Path: str = ""
    QueryString: str = ""
    Function: str
    QueueName: str
    Annotations: dict[str, str] | None = None
    CallbackUrl: dict[str, Any] | None = None
    BodyObject: StoredBody | None = None
    """Not a field of Go's: the reference to a body that is too large for a message."""


_encoder = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class Message:
    """The publish of one invocation."""

    subject: str
    call_id: str
    label: str
    """The function, ``name.namespace``."""
    started: str
    """X-Start-Time: when the invocation was accepted (ns since the epoch)."""
    request: QueueRequest
    """The content. Its body may be set later than the rest."""
    named: bool = True
    """Whether the caller gave the call id. A new one is unique, so there is nothing to compare."""

    def payload(self) -> bytes:
        """Return the encoded request."""
        return _encoder.encode(self.request)

    def key(self) -> str:
        """Return a hash of what identifies the call: queue, function and call id."""
        return _hash(self.request.QueueName.encode(), self.label.encode(), self.call_id.encode())

    def digest(self) -> str:
        """Return a hash of the request, by which a repeat is recognized: method, path, query and body."""
        total = self.digest_without_body()
        total.update(self.request.Body)
        return total.hexdigest()

    def digest_without_body(self) -> hashlib.blake2b:
        """Return the hash of the request to which its body, the last part, is still to be added."""
        request = self.request
        return _hash_of(*(each.encode() for each in (request.Method, request.Path, request.QueryString)))


def _hash(*parts: bytes) -> str:
    return _hash_of(*parts).hexdigest()


def _hash_of(*parts: bytes) -> hashlib.blake2b:
    """Return a hash of 128 bits: enough, because two requests with one hash help no caller against another."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(b"%d:" % len(part))
        total.update(part)
    return total


def canonical_headers(pairs: Iterable[tuple[bytes, bytes]]) -> dict[str, list[str]]:
    """Return header fields by their canonical names; values as Go's encoder writes them, less invalid UTF-8."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        text = value.decode("utf-8", "replace")
        if _UNSAFE_VALUE.search(text):
            raise ValueError(f"header {name.decode('latin-1')[:80]!r} has a control character in its value")
        found.setdefault(canonical(name), []).append(text)
    return found


@lru_cache(maxsize=1024)
def canonical(name: bytes) -> str:
    """Return a header's name as Go writes it: ``x-call-id`` as ``X-Call-Id``."""
    text = name.decode("latin-1")
    if not TOKEN.fullmatch(text):
        raise ValueError(f"not a header's name: {text[:80]!r}")
    return "-".join(part.capitalize() for part in text.split("-"))


def compose(
    function: str,
    headers: Mapping[str, list[str]],
    *,
    queue: str,
    namespace: str,
    new_call_id: str,
    now: int,
    method: str = "POST",
    host: str = "",
    path: str = "",
    query: str = "",
    annotations: Mapping[str, str] | None = None,
    partitions: int = 1,
    body: bytes = b"",
) -> Message:
    """Compose the invocation that a caller requests.

    *headers* are the caller's, by canonical name, with ``X-Call-Id`` and ``X-Callback-Url``. *new_call_id* replaces
    a missing call id. *path* and *query* are as in the request line, and *now* is in nanoseconds since the epoch.
    """
    name = parse_function(function, namespace)
    if not TOKEN.fullmatch(method):
        raise ValueError(f"not an HTTP method: {method[:80]!r}")
    check_path(path)
    if "" in unquote(path).split("/")[1:-1]:
        raise ValueError("the path has an empty segment (//, or an escaped slash beside one): write one slash")
    given = _call_id(headers.get("X-Call-Id", ()))
    call_id = given or new_call_id
    kept = {name: values for name, values in headers.items() if name not in _DROPPED}
    request = QueueRequest(
        Header=kept | {"X-Call-Id": [call_id], "X-Start-Time": [str(now)]},
        Host=host,
        Body=body,
        Method=method,
        Path=path,
        # The worker removes one question mark, because some gateways write it.
        QueryString=f"%3F{query[1:]}" if query.startswith("?") else query,
        Function=function,
        QueueName=queue,
        Annotations=None if annotations is None else dict(annotations),
        CallbackUrl=_callback(headers.get("X-Callback-Url", ())),
    )
    _check_size(function, request)
    subject = subject_of(queue, partition_for(*name, partitions), *name)
    return Message(subject, call_id, ".".join(name), str(now), request, named=bool(given))


def split_target(below: str) -> tuple[str, str]:
    """Split the target *below* ``/function/`` or ``/async-function/`` into function and path."""
    name, slash, rest = below.partition("/")
    return unquote(name), slash + rest


def check_path(path: str) -> None:
    """Check that *path*, as in a request line, stays below its function: no segment is ``.`` or ``..``."""
    if _BAD_ESCAPE.search(path):
        raise ValueError("the path has a % that begins no escape: write %25")
    if not {".", ".."}.isdisjoint(unquote(path).replace("\\", "/").split("/")):  # as Windows separates them
        raise ValueError("the path has a . or .. segment: write the path that is meant")


def _check_size(function: str, request: QueueRequest) -> None:
    """Check that the producer's proxy, and most servers, take the request as a worker sends it."""
    characters = len(function) + len(request.Path) + len(request.QueryString)
    for name, values in request.Header.items():
        for value in values:
            characters += len(name) + len(value) + len(": \r\n")
    if _MOST_BYTES * characters + len(request.Method) < MAX_START:
        return  # most calls: the exact size is costly
    path, query = quote(request.Path, safe=_UNESCAPED), quote(request.QueryString, safe=f"{_UNESCAPED}?")
    target = len(request.Method) + len(function) + len(path) + len(query)
    header = sum(
        len(name) + len(value if value.isascii() else value.encode()) + len(": \r\n")
        for name, values in request.Header.items()
        for value in values
    )
    if target + header > MAX_START:
        raise RequestTooLargeError(target + header, in_target=target > header)


def _call_id(given: Iterable[str]) -> str | None:
    call_id = next((value.strip() for value in given if value.strip()), None)
    if call_id is not None and (len(call_id) > _LONGEST_CALL_ID or not _CALL_ID.fullmatch(call_id)):
        raise ValueError(f"X-Call-Id is not one: printable ASCII, at most {_LONGEST_CALL_ID} characters")
    return call_id


def _callback(given: Iterable[str]) -> dict[str, Any] | None:
    try:
        url = callback_url(next((value for value in given if value), None))
        return None if url is None else _go_url(url)
    except ValueError as error:
        raise ValueError(f"X-Callback-Url cannot be posted to: {error}") from None


def _go_url(url: str) -> dict[str, Any]:
    """Return an absolute URL as encoding/json writes Go's ``url.URL``, which loses users, and paths not in UTF-8."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        raise ValueError("it has a user before its host, which messages cannot carry: put a token into its query")
    try:
        path = unquote_to_bytes(parts.path).decode()
    except UnicodeDecodeError:
        raise ValueError("its path is not UTF-8") from None
    return {
        "Scheme": parts.scheme,
        "Opaque": "",
        "User": None,
        "Host": parts.netloc,
        "Path": path,
        "Fragment": "",
        "RawQuery": parts.query,
        "RawPath": "" if _PLAIN_PATH.fullmatch(parts.path) else parts.path,
        "RawFragment": "",
        "ForceQuery": not parts.query and url.endswith("?"),
        "OmitHost": False,
    }
