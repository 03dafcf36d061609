"""Any request to the producer is rejected in one line, or reaches the worker as one request with the same content.

The input's first line is the method, the second the target below ``/async-function/`` with its query. Header fields
follow, with a colon between name and value, up to an empty line; the rest is the body. The oracle is the worker's
decoder, which is itself tested by the law of ``messages``.
"""

from __future__ import annotations

import json
import re
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from fuzz.messages import NOT_FORWARDED, check_one_request
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
    """Compose the message that *data* requests, and check the law above."""
    head, _, body = data.partition(b"\n\n")
    method, target, *lines = [*head.split(b"\n"), b"", b""][: max(2, head.count(b"\n") + 1)]
    below, _, query = target.decode("latin-1").partition("?")
    function, path = split_target(below)
    pairs = [(name, _with_secret(value.strip())) for name, _, value in (line.partition(b":") for line in lines)]
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
    except ValueError as error:
        _check_reason(str(error))
        return
    invocation = _read(message)
    assert (invocation.function, invocation.method) == (function, method.decode("latin-1"))
    assert invocation.body == body
    _check_target(invocation, path, query)
    _check_headers(invocation, headers)
    _check_callback(invocation, headers)
    assert json.loads(message.payload())["QueueName"] == "q"
    assert re.fullmatch(r"q\.0\.[-a-z0-9_]+\.[-a-z0-9_]+", message.subject)


def _with_secret(value: bytes) -> bytes:
    """Return a URL with a marker at both ends of its password, also in an invalid URL."""
    scheme, mark, rest = value.replace(SECRET.encode(), b"").partition(b"://")
    if not mark or b"@" not in rest:
        return value
    user, _, where = rest.rpartition(b"@")
    name, colon, password = user.partition(b":")
    return b"%s://%s%s%s%s%s@%s" % (scheme, name, colon, SECRET.encode(), password, SECRET.encode(), where)


def _check_reason(reason: str) -> None:
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
    invocation, callback_error = result
    assert callback_error is None
    check_one_request(invocation)
    assert invocation.call_id == message.call_id
    assert invocation.started == str(NOW)
    return invocation


def _check_target(invocation: Invocation, path: str, query: str) -> None:
    assert {".", ".."}.isdisjoint(unquote(path).split("/")), path
    written, _, requested = invocation.target.removeprefix(f"/function/{invocation.function}".encode()).partition(b"?")
    assert unquote_to_bytes(written) == unquote_to_bytes(path), (path, invocation.target)
    assert unquote_to_bytes(requested) == unquote_to_bytes(query), (query, invocation.target)
    if re.fullmatch(r"[!-~]*", path) and _ESCAPED.isdisjoint(path) and "#" not in path:
        assert written == path.encode()
    if re.fullmatch(r"([!->@-~][!-~]*)?", query) and "#" not in query:
        assert requested == query.encode()


def _check_headers(invocation: Invocation, headers: dict[str, list[str]]) -> None:
    named = {option.strip().lower() for value in headers.get("Connection", ()) for option in value.split(",")}
    changed = {"x-call-id", "x-start-time", "expect", *(name.decode() for name in NOT_FORWARDED)}
    for name, values in headers.items():
        assert canonical(name.encode()) == name
        sent = [value.decode() for each, value in invocation.headers if each.decode() == name]
        if name.lower() in named - {"x-call-id"} or name.lower() in changed - {"x-call-id", "x-start-time"}:
            assert not sent, (name, sent)
        elif name.lower() not in changed:
            assert sent == [value.strip(" \t") for value in values], (name, sent, values)


def _check_callback(invocation: Invocation, headers: dict[str, list[str]]) -> None:
    requested = next((value for value in headers.get("X-Callback-Url", ()) if value), None)
    if requested is None:
        assert invocation.callback is None
        return
    assert invocation.callback is not None
    sent_url, received_url = urlsplit(requested.partition("#")[0]), urlsplit(invocation.callback)
    assert (received_url.scheme, received_url.netloc, received_url.query) == (
        sent_url.scheme,
        sent_url.netloc,
        sent_url.query,
    )
    assert unquote_to_bytes(received_url.path) == unquote_to_bytes(sent_url.path), (requested, invocation.callback)
    assert "@" not in received_url.netloc  # encoding/json drops the user
    if re.fullmatch(r"https?://[-A-Za-z0-9:/?&=._~]*", requested):
        assert invocation.callback == requested
