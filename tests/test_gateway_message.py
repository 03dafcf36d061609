"""Messages that the producer encodes and the worker decodes: contract, sections 4 and 9."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from worker.gateway.message import (
    MAX_START,
    Message,
    RequestTooLargeError,
    canonical,
    canonical_headers,
    compose,
    split_target,
)
from worker.model import Delivery, Invocation
from worker.policy.decode import HOP_BY_HOP, callback_url, decode

NOW = 1_700_000_000_000_000_000
FIXTURES = Path(__file__).parent / "fixtures" / "queue_requests.jsonl"
VISIBLE = st.characters(min_codepoint=0x21, max_codepoint=0x7E)


def composed(
    function: str = "echo", headers: tuple[tuple[bytes, bytes], ...] = (), body: bytes = b"", **more: Any
) -> Message:
    return compose(
        function,
        canonical_headers(headers),
        queue="faas-request",
        namespace="openfaas-fn",
        new_call_id="made",
        now=NOW,
        body=body,
        **more,
    )


def read(message: Message) -> Invocation:
    """Decode a message as the worker does."""
    delivery = Delivery(
        id=(1, NOW), token="t", num_delivered=1, received_at=0.0, subject=message.subject, payload=message.payload()
    )
    result = decode(delivery, namespace="openfaas-fn", user_agent="queue-worker/test")
    assert isinstance(result, tuple), result
    invocation, complaint = result
    assert complaint is None
    return invocation


def written(message: Message) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(message.payload())
    return result


def test_message_is_encoded_as_go_encodes_a_queue_request() -> None:
    """Fields are named, filled and omitted as by Go's encoder, and the body is in base64."""
    message = composed(
        "echo.fn",
        ((b"host", b"gateway:8080"), (b"content-type", b"text/plain"), (b"x-multi", b"1"), (b"x-multi", b"2")),
        b"\x00\xff",
        host="gateway:8080",
        path="/a/b",
        query="x=1&y=%20",
    )
    assert message.subject == "faas-request.0.echo.fn"
    assert (message.call_id, message.started) == ("made", str(NOW))
    assert written(message) == {
        "Header": {
            "Content-Type": ["text/plain"],
            "X-Multi": ["1", "2"],
            "X-Call-Id": ["made"],
            "X-Start-Time": [str(NOW)],
        },
        "Host": "gateway:8080",
        "Body": "AP8=",
        "Method": "POST",
        "Path": "/a/b",
        "QueryString": "x=1&y=%20",
        "Function": "echo.fn",
        "QueueName": "faas-request",
    }


def test_message_without_optional_parts_omits_them() -> None:
    """The smallest message has the function, the method, the queue and the two headers that every message has."""
    assert set(written(composed())) == {"Header", "Method", "Function", "QueueName"}


@pytest.mark.parametrize(
    ("below", "path"),
    [
        ("echo", ""),
        ("echo/", "/"),
        ("echo/a/b", "/a/b"),
        ("echo/a%2Fb/%41%7c", "/a%2Fb/%41%7c"),
        ("echo/%25", "/%25"),
        ("echo/%FF%0a", "/%FF%0a"),
        ("echo/a..b/...", "/a..b/..."),
        ("%65cho/x", "/x"),
    ],
)
def test_path_reaches_the_function_byte_for_byte(below: str, path: str) -> None:
    """No escape of a path is decoded, added or changed between the caller's request and the worker's."""
    function, found = split_target(below)
    assert (function, found) == ("echo", path)
    assert read(composed(path=found)).target == f"/function/echo{path}".encode()


@pytest.mark.parametrize(
    ("query", "sent"), [("a=1&b=%20+x", "?a=1&b=%20+x"), ("", ""), ("?", "?%3F"), ("?a?b", "?%3Fa?b")]
)
def test_query_reaches_the_function_byte_for_byte(query: str, sent: str) -> None:
    """A query is unchanged; a question mark at its beginning is escaped, because the worker removes a bare one."""
    assert read(composed(query=query)).target == f"/function/echo{sent}".encode()


@pytest.mark.parametrize(
    "path", ["/..", "/a/../b", "/.", "/%2e%2E/x", "/a%2f..", "/a%2F%2e%2e%2Fb", "/a/./b", "/100%", "/%zz", "/%4"]
)
def test_path_with_dot_segments_or_bad_escapes_is_rejected(path: str) -> None:
    """A path with dot segments, also escaped ones, or with invalid escapes is rejected."""
    with pytest.raises(ValueError, match="the path has a"):
        composed(path=path)


@pytest.mark.parametrize("path", ["//", "//x", "/a//b", "/a//", "/%2F", "/a%2f/b", "/a/%2Fb", "/%2f%2f", "/a//b/"])
def test_path_with_empty_segments_is_rejected(path: str) -> None:
    """A path with an empty segment is rejected, also where an escaped slash makes it; one slash at the end is none."""
    with pytest.raises(ValueError, match="the path has an empty segment"):
        composed(path=path)


def go_clean_path(path: str) -> str:
    """Clean a decoded path as Go's http.ServeMux and gorilla/mux do: path.Clean, but a slash at the end stays."""
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    cleaned = "/" + "/".join(kept)
    return f"{cleaned}/" if path.endswith("/") and cleaned != "/" else cleaned


@pytest.mark.parametrize(
    ("path", "cleaned"),
    [
        ("", "/"),
        ("/", "/"),
        ("/a/", "/a/"),
        ("/a//b", "/a/b"),
        ("//a", "/a"),
        ("/a/.", "/a"),
        ("/a/./", "/a/"),
        ("/a/..", "/"),
        ("/../a", "/a"),
        ("/a/b/../c/", "/a/c/"),
        ("/...", "/..."),
    ],
)
def test_clean_path_is_go_s(path: str, cleaned: str) -> None:
    """The model of the next test agrees with the table of Go's net/http, serve_test.go and path_test.go."""
    assert go_clean_path(path) == cleaned


@given(path=st.lists(st.sampled_from(["/", ".", "%2F", "%2f", "%2e", "%2E", "a", "%25", "%2", ";", "~"])).map("".join))
def test_path_accepted_is_one_that_go_s_gateways_leave_as_it_is(path: str) -> None:
    """A path is accepted if and only if a Go gateway answers it with no redirect to a cleaned path."""
    path = f"/{path}"
    target = f"/function/echo{unquote(path)}"
    try:
        composed(path=path)
    except ValueError as error:
        assert go_clean_path(target) != target or "begins no escape" in str(error)  # noqa: PT017 -- both are right
    else:
        assert go_clean_path(target) == target


@pytest.mark.parametrize(
    ("fields", "more", "status"),
    [
        (((b"x-saml", b"@" * 70_000),), {}, 431),
        (tuple((b"x-%d" % number, b"v" * 700) for number in range(100)), {}, 431),
        (((b"x-a", b"\xff" * 30_000),), {}, 431),  # each byte becomes the three of U+FFFD
        ((), {"query": "q" * 70_000}, 414),
        ((), {"path": "/" + "p" * 70_000}, 414),
        ((), {"path": "/" + "|" * 30_000}, 414),  # the worker sends %7C
        (((b"x-a", b"v" * 30_000),), {"query": "q" * 40_000}, 414),
        (((b"x-a", b"v" * 40_000),), {"query": "q" * 30_000}, 431),
        ((), {"method": "P" * 70_000}, 414),
    ],
)
def test_request_larger_than_a_worker_can_send_is_rejected(
    fields: tuple[tuple[bytes, bytes], ...], more: dict[str, Any], status: int
) -> None:
    """A header or a target that the producer's proxy would refuse is rejected, with the larger one's status."""
    with pytest.raises(RequestTooLargeError, match="a queued request has room for 65536") as caught:
        composed(headers=fields, **more)
    assert caught.value.status == status


@given(
    sizes=st.lists(st.integers(0, 9_000), max_size=10),
    byte=st.sampled_from([b"v", b"\xff", "ä".encode()]),
    path=st.text(VISIBLE, max_size=300).map(lambda text: f"/{text}".replace("?", "").replace("#", "")),
    query=st.text(VISIBLE, max_size=300).map(lambda text: text.replace("#", "")),
)
def test_request_accepted_fits_the_gateway_as_the_worker_sends_it(
    sizes: list[int], byte: bytes, path: str, query: str
) -> None:
    """What the worker sends of an accepted request has at most the size that was checked, and its own headers."""
    fields = tuple((b"x-%d" % number, byte * (size // len(byte))) for number, size in enumerate(sizes))
    try:
        invocation = read(composed(headers=fields, path=path, query=query))
    except ValueError:
        return
    sent = len(invocation.method) + len(invocation.target)
    sent += sum(len(name) + len(value) + len(": \r\n") for name, value in invocation.headers)
    assert sent <= MAX_START + len("/function/?") + len("User-Agent: queue-worker/test\r\n")


@pytest.mark.parametrize("name", ["", "Echo", "-a", "a-", "a b", "a.b.c", ".a", "a.", "ä", "a>", "a" * 254, "a\n"])
def test_function_with_an_invalid_name_is_rejected(name: str) -> None:
    """A name that is invalid by the contract, section 3, is rejected, and the error describes valid ones."""
    with pytest.raises(ValueError, match=r"write name or name\.namespace"):
        composed(name)


@pytest.mark.parametrize("given", ["a", "24ae517c-ad0d-4654-8160-d2a7f7d68fab", "with a space", "~" * 256])
def test_call_id_of_the_caller_is_kept(given: str) -> None:
    """Message and worker use the caller's call id, not the new one."""
    message = composed(headers=((b"x-call-id", given.encode()),))
    assert message.call_id == given
    assert read(message).call_id == given


@pytest.mark.parametrize("given", ["a" * 257, "ä", "\x7f", "a\tb"])
def test_call_id_with_other_characters_or_too_long_is_rejected(given: str) -> None:
    """A call id is printable ASCII, at most 256 characters."""
    with pytest.raises(ValueError, match=r"X-Call-Id|control character"):
        composed(headers=((b"x-call-id", given.encode()),))


def test_call_id_empty_counts_as_missing() -> None:
    """An empty call id is replaced by a new one, as the worker does."""
    assert composed(headers=((b"x-call-id", b""), (b"x-call-id", b" "))).call_id == "made"


def test_start_time_of_the_caller_is_replaced() -> None:
    """The caller's X-Start-Time is replaced by the time at which the producer accepted the invocation."""
    message = composed(headers=((b"x-start-time", b"1"),))
    assert written(message)["Header"]["X-Start-Time"] == [str(NOW)]
    assert read(message).started == str(NOW)


@pytest.mark.parametrize("name", ["host", "transfer-encoding", "content-length", "expect"])
def test_headers_of_the_caller_s_request_are_dropped(name: str) -> None:
    """Host, lengths and Expect of the caller's request are not in the message, as with Go's server."""
    assert canonical(name.encode()) not in written(composed(headers=((name.encode(), b"x"),)))["Header"]


@pytest.mark.parametrize(
    ("name", "go"), [("x-call-id", "X-Call-Id"), ("ETAG", "Etag"), ("x--y", "X--Y"), ("a", "A"), ("x_y-z", "X_y-Z")]
)
def test_header_names_are_canonical(name: str, go: str) -> None:
    """In header names the first letter and those after a hyphen are upper case, the others lower case."""
    assert canonical(name.encode()) == go


def _go_callbacks() -> list[dict[str, Any]]:
    messages = (json.loads(json.loads(line)["message"]) for line in FIXTURES.read_text().splitlines())
    urls = [message["CallbackUrl"] for message in messages if message.get("CallbackUrl")]
    return [url for url in urls if url["Scheme"] in ("http", "https") and url["User"] is None and not url["Fragment"]]


@pytest.mark.parametrize("go", _go_callbacks(), ids=lambda go: str(go["Host"]))
def test_callback_is_encoded_as_go_encodes_its_url(go: dict[str, Any]) -> None:
    """The object equals, field for field, the one of Go's encoder."""
    url = callback_url(go)
    assert url is not None
    assert written(composed(headers=((b"x-callback-url", url.encode()),)))["CallbackUrl"] == go


@pytest.mark.parametrize(
    "url",
    [
        "http://h",
        "http://h/",
        "https://h:8443/a/b?c=d&e=%20f",
        "http://[::1]:9000/x",
        "http://h/a%2Fb/%41!'()*",
        "http://h/p?",
        "http://h?q",
        "http://h/%C3%A4",
        "http://h//a;b=c,d@e:f$&+=~_-.",
    ],
)
def test_callback_reaches_the_worker_unchanged(url: str) -> None:
    """The worker posts to the URL that the caller wrote."""
    assert read(composed(headers=((b"x-callback-url", url.encode()),))).callback == url


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/x",
        "mailto:a@b",
        "/just/a/path",
        "http://",
        "http://h:99999/",
        "http://h/a b",
        "http://user:secret@h/",
        "http://h/%ff",
        "http://[::1",
        "http://h/" + "a" * 8192,
    ],
)
def test_callback_that_cannot_be_posted_to_is_rejected(url: str) -> None:
    """An invalid callback URL is rejected with an error that does not repeat it, because it may contain a password."""
    with pytest.raises(ValueError, match="X-Callback-Url cannot be posted to: ") as caught:
        composed(headers=((b"x-callback-url", url.encode()),))
    assert "secret" not in str(caught.value)


def test_annotations_reach_the_worker_unchanged() -> None:
    """The worker decodes the same annotations."""
    notes = {"com.openfaas.retry.attempts": "3"}
    assert read(composed(annotations=notes)).annotations == notes


@example(name=b"x-a", value="\r\nX-B: 1", path="", query="", body=b"")
@example(name=b"connection", value="x-a", path="/%41", query="?", body=b"\x00")
@given(
    name=st.text(VISIBLE, min_size=1).map(str.encode),
    value=st.text(max_size=50),
    path=st.text(VISIBLE, max_size=30).map(lambda text: f"/{text}".replace("?", "").replace("#", "")),
    query=st.text(VISIBLE, max_size=30).map(lambda text: text.replace("#", "")),
    body=st.binary(max_size=200),
)
def test_request_accepted_is_never_malformed_for_the_worker(
    name: bytes, value: str, path: str, query: str, body: bytes
) -> None:
    """Any request is rejected by the producer, or reaches the function."""
    try:
        message = composed(headers=((name, value.encode("utf-8", "replace")),), path=path, query=query, body=body)
    except ValueError:
        return
    invocation = read(message)
    assert invocation.body == body
    sent = {each.lower(): text for each, text in invocation.headers}
    own = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"x-call-id", b"x-start-time", b"x-callback-url"}
    if name.lower() not in own:
        assert sent[name.lower()] == value.encode("utf-8", "replace").strip(b" \t")
    if all(character not in '"<>\\^`{|}' for character in path):  # Go's client, and so the worker, escapes these
        assert invocation.target.startswith(f"/function/echo{path}".encode())
