"""Any bytes are a stored callback, which is the same after it is stored again, or are rejected in one line.

The head is also read here, by the standard library's JSON parser: what the worker accepts has these fields. The bytes
behind the head are the body, unchanged. Only fields without a meaning may be invalid UTF-8.
"""

from __future__ import annotations

import json

from worker.model import StoredCallback
from worker.policy.report import origin_of
from worker.policy.stored_callback import decode_callback, encode_callback

WORDS = (
    '{"url":"http://a","headers":[["X-A","b"]],"call_id":"c","function":"f","ended_at":1.5,"not_before":2}\n',
    '"url":', '"headers":', '"call_id":', '"function":', '"ended_at":', '"not_before":', "http://", "https://", "\\n",
    '[["', '"]]', "\\u00ff", "\\u0100", "1e999", "-0", "null", "NaN",
)  # fmt: skip
_MAX_REASON = 300
"""Characters of a reason: a log line and a dead letter quote it."""


def check(data: bytes) -> None:
    """Read *data* as a stored callback, and check the law above."""
    stored = decode_callback(data)
    if isinstance(stored, str):
        assert stored.startswith("not a stored callback: ")
        assert stored.isprintable(), stored
        assert len(stored) <= _MAX_REASON
        return
    assert decode_callback(encode_callback(stored)) == stored
    assert origin_of(stored.callback.url)
    _check_fields(stored, data)


def _check_fields(stored: StoredCallback, data: bytes) -> None:
    head, mark, body = data.partition(b"\n")
    assert mark
    fields, callback = json.loads(head.decode("utf-8", "replace"), parse_int=float, strict=False), stored.callback
    assert callback.body == body
    assert callback.url == fields["url"]
    assert callback.url.startswith(("http://", "https://"))
    assert [[name.decode("latin-1"), value.decode("latin-1")] for name, value in callback.headers] == fields["headers"]
    assert (stored.call_id, stored.function) == (fields["call_id"], fields["function"])
    times = (fields.get("ended_at", 0.0), fields.get("not_before", 0.0))
    assert (stored.ended_at, stored.not_before) == times
