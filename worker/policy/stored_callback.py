"""The stored form of a callback: a line of JSON, and behind it the body as it is.

The line has the URL, the finished headers and the data for logs, so any worker can send the callback, and every try has
the same headers. Of a body that is too large for a message, the line has the reference to it in the object store. A
message in another form is foreign: it is never posted.
"""

from __future__ import annotations

import msgspec

from ..model import Callback, StoredBody, StoredCallback
from .report import origin_of
from .stored_body import check_reference

CALLBACK_KIND = "callback"
"""The kind of a dead letter that holds a stored callback."""
_MAX_HEAD = 1_048_576
"""Bytes of the line: more than the response headers that the worker reads."""


class _Head(msgspec.Struct, omit_defaults=True):
    url: str
    headers: list[tuple[str, str]]
    call_id: str
    function: str
    ended_at: float = 0.0
    not_before: float = 0.0
    body: StoredBody | None = None


_decoder = msgspec.json.Decoder(_Head)


def encode_callback(stored: StoredCallback) -> bytes:
    """Return the stored form of a callback."""
    callback = stored.callback
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in callback.headers]
    times = stored.ended_at, stored.not_before
    head = _Head(callback.url, headers, stored.call_id, stored.function, *times, callback.stored_body)
    return msgspec.json.encode(head) + b"\n" + callback.body


def decode_callback(payload: bytes) -> StoredCallback | str:
    """Read the stored form of a callback, or return why the payload is not one."""
    end = payload.find(b"\n", 0, _MAX_HEAD)
    if end < 0:
        return "not a stored callback: its first line has no end"
    try:
        head = _decoder.decode(payload[:end])
        headers = tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in head.headers)
        origin_of(head.url)  # of some URLs there is none, such as http://[
        if head.body:
            check_reference(head.body)
    except (ValueError, RecursionError) as error:  # msgspec's errors and encoding errors are ValueErrors
        return f"not a stored callback: {str(error)[:200]}"
    if not head.url.startswith(("http://", "https://")):
        return "not a stored callback: its URL is not an http or https URL"
    if head.body and len(payload) > end + 1:
        return "not a stored callback: it has a body, and the reference to another one"
    callback = Callback(head.url, headers, payload[end + 1 :], head.body)
    return StoredCallback(callback, head.call_id, head.function, head.ended_at, head.not_before)
