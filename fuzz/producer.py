"""Any request to the producer is rejected in one line, or reaches the worker as one request with the same content.

The input's first line is the method, the second the target below ``/async-function/`` with its query. Header fields
follow, with a colon between name and value, up to an empty line; the rest is the body. The oracle is the worker's
decoder, which is itself tested by the law of ``messages``.
"""

from __future__ import annotations

import json
import re
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from fuzz.messages import NOT_SENT_ON, is_one_request
from worker.gateway.message import Message, canonical, canonical_headers, compose, split_target
from worker.model import Delivery, Invocation
from worker.policy.decode import decode

WORDS = (
    "X-Call-Id: ", "X-Callback-Url: http://h/", "X-Start-Time: ", "Connection: ", "Host: ", "Expect: ", "%2F", "%2e",
    "/..", "/./", "%zz", "%ff", "POST\necho/a?b\n", "https://h:1/%2F?", ".fn", "?#",
)  # fmt: skip
SECRET = "hunter2"  # noqa: S105 -- made up
NOW = 1_700_000_000_000_000_000
_ESCAPED = frozenset('"<>\\^`{|}')
"""Characters that the worker escapes in a path, as Go's client does."""


def check(data: bytes) -> None:
    """Compose the message that *data* asks for and see that the law above holds."""
    head, _, body = data.partition(b"\n\n")
    method, target, *lines = [*head.split(b"\n"), b"", b""][: max(2, head.count(b"\n") + 1)]
    below, _, query = target.decode("latin-1").partition("?")
    function, path = split_target(below)
    pairs = [(name, _marked(value.strip())) for name, _, value in (line.partition(b":") for line in lines)]
    try:
        headers = canonical_headers(pairs)
        message = compose(
            function,
            headers,
            queue="q",
            namespace="fn",
            new_call_id="made",
            now=NOW,
            method=method.decode("latin-1"),
            path=path,
            query=query,
            body=body,
        )
    except ValueError as refused:
        _is_a_reason(str(refused))
        return
    invocation = _read(message)
    assert (invocation.function, invocation.method) == (function, method.decode("latin-1"))
    assert invocation.body == body
    _is_where_it_was_sent(invocation, path, query)
    _has_the_caller_s_headers(invocation, headers)
    _calls_back_where_it_was_asked(invocation, headers)
    assert json.loads(message.payload())["QueueName"] == "q"
    assert re.fullmatch(r"q\.0\.[-a-z0-9_]+\.[-a-z0-9_]+", message.subject)


def _marked(value: bytes) -> bytes:
    """Return a URL with a marker at both ends of its password, also in an invalid URL."""
    scheme, mark, rest = value.replace(SECRET.encode(), b"").partition(b"://")
    if not mark or b"@" not in rest:
        return value
    user, _, where = rest.rpartition(b"@")
    name, colon, password = user.partition(b":")
    return b"%s://%s%s%s%s%s@%s" % (scheme, name, colon, SECRET.encode(), password, SECRET.encode(), where)


def _is_a_reason(reason: str) -> None:
    assert reason
    assert reason.isprintable(), reason
    assert len(reason) < 10_000
    assert SECRET not in reason, reason


def _read(message: Message) -> Invocation:
    token = "t"  # noqa: S105 -- the right to settle, no secret
    delivery = Delivery(
        id=(1, NOW), token=token, num_delivered=1, received_at=0.0, subject=message.subject, payload=message.payload()
    )
    result = decode(delivery, namespace="fn", user_agent="fuzz")
    assert isinstance(result, tuple), (result, message)
    invocation, complaint = result
    assert complaint is None
    is_one_request(invocation)
    assert invocation.call_id == message.call_id
    assert invocation.started == str(NOW)
    return invocation


def _is_where_it_was_sent(invocation: Invocation, path: str, query: str) -> None:
    assert {".", ".."}.isdisjoint(unquote(path).split("/")), path
    written, _, asked = invocation.target.removeprefix(f"/function/{invocation.function}".encode()).partition(b"?")
    assert unquote_to_bytes(written) == unquote_to_bytes(path), (path, invocation.target)
    assert unquote_to_bytes(asked) == unquote_to_bytes(query), (query, invocation.target)
    if re.fullmatch(r"[!-~]*", path) and _ESCAPED.isdisjoint(path) and "#" not in path:
        assert written == path.encode()
    if re.fullmatch(r"([!->@-~][!-~]*)?", query) and "#" not in query:
        assert asked == query.encode()


def _has_the_caller_s_headers(invocation: Invocation, headers: dict[str, list[str]]) -> None:
    named = {option.strip().lower() for value in headers.get("Connection", ()) for option in value.split(",")}
    ours = {"x-call-id", "x-start-time", "expect", *(name.decode() for name in NOT_SENT_ON)}
    for name, values in headers.items():
        assert canonical(name.encode()) == name
        sent = [value.decode() for each, value in invocation.headers if each.decode() == name]
        if name.lower() in named - {"x-call-id"} or name.lower() in ours - {"x-call-id", "x-start-time"}:
            assert not sent, (name, sent)
        elif name.lower() not in ours:
            assert sent == [value.strip(" \t") for value in values], (name, sent, values)


def _calls_back_where_it_was_asked(invocation: Invocation, headers: dict[str, list[str]]) -> None:
    asked = next((value for value in headers.get("X-Callback-Url", ()) if value), None)
    if asked is None:
        assert invocation.callback is None
        return
    assert invocation.callback is not None
    given, kept = urlsplit(asked.partition("#")[0]), urlsplit(invocation.callback)
    assert (kept.scheme, kept.netloc, kept.query) == (given.scheme, given.netloc, given.query)
    assert unquote_to_bytes(kept.path) == unquote_to_bytes(given.path), (asked, invocation.callback)
    assert "@" not in kept.netloc  # encoding/json loses it
    if re.fullmatch(r"https?://[-A-Za-z0-9:/?&=._~]*", asked):
        assert invocation.callback == asked
