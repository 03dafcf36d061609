from __future__ import annotations

import base64
import json
import random
import re
import string
from itertools import product
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from fuzz.messages import check_one_request
from worker.model import Delivery, Invocation, Malformed
from worker.policy.decode import decode, derive_call_id

STORED = 1_700_000_000_000_000_000
DERIVED_ID = "1834cc91-459a-5eff-9d45-dc6a80d3cc5b"
ADDED_HEADERS = ((b"X-Call-Id", DERIVED_ID.encode()), (b"User-Agent", b"queue-worker/test"))
ECHO = Invocation(
    call_id=DERIVED_ID,
    function="echo",
    label="echo.fn",
    method="POST",
    target=b"/function/echo",
    headers=ADDED_HEADERS,
    body=b"",
    annotations={},
    callback=None,
    started=str(STORED),
)


def delivery(payload: bytes) -> Delivery:
    return Delivery(
        id=(7, STORED), token="t", num_delivered=1, received_at=0.0, subject="faas-request", payload=payload
    )


def decoded(payload: bytes) -> tuple[Invocation, str | None] | Malformed:
    return decode(delivery(payload), namespace="fn", user_agent="queue-worker/test")


def accepted(**fields: Any) -> Invocation:
    """Decode a message with these fields, and function echo unless given, and return its invocation."""
    result = decoded(json.dumps({"Function": "echo"} | fields).encode())
    assert not isinstance(result, Malformed), result.reason
    return result[0]


def refused(payload: bytes) -> str:
    """Return the reason why a message cannot be decoded."""
    result = decoded(payload)
    assert isinstance(result, Malformed)
    return result.reason


# Messages that Go wrote

USUAL = (
    (b"Accept", b"*/*"),
    (b"Accept-Encoding", b"gzip"),
    (b"Content-Type", b"application/json"),
    (b"User-Agent", b"curl/8.5.0"),
    (b"X-Call-Id", b"24ae517c-ad0d-4654-8160-d2a7f7d68fab"),
    (b"X-Start-Time", b"1646739420463153513"),
)
FROM_CURL = {"headers": USUAL, "call_id": USUAL[4][1].decode(), "started": USUAL[5][1].decode()}
ENV = {"function": "env", "label": "env.fn", "target": b"/function/env"}
EXPECTED: dict[str, dict[str, Any]] = {
    "smallest": {},
    "usual": FROM_CURL
    | {
        "function": "echo.openfaas-fn",
        "label": "echo.openfaas-fn",
        "target": b"/function/echo.openfaas-fn",
        "body": b'{"a": 1}',
        "annotations": {"topic": "payments"},
    },
    "empty body, not nil": {},
    "binary body": FROM_CURL | {"method": "PUT", "body": bytes(range(256))},
    "html-escaped by encoding/json": {
        "target": b"/function/echo/a%3Cb%3E&c?q=<1>&r=2",
        "headers": ((b"X-Html", '<a href="x">&amp;</a>\u2028\u2029'.encode()), *ADDED_HEADERS),
    },
    "unicode": {
        "target": b"/function/echo/p%C3%A4th/%E6%97%A5%E6%9C%AC?q=%E2%9C%93",
        "headers": ((b"X-Name", "Zo\u00eb \U0001f680".encode()), *ADDED_HEADERS),
    },
    "invalid utf-8 in a header and path (replaced by encoding/json)": {
        "target": b"/function/echo/%EF%BF%BD",
        "headers": ((b"X-Raw", "a\ufffd\ufffdb".encode()), *ADDED_HEADERS),
    },
    "repeated headers, odd case kept as stored": {
        "headers": (
            (b"Cookie", b"a=1"),
            (b"Cookie", b"b=2"),
            (b"X-Multi", b"1"),
            (b"X-Multi", b"2"),
            (b"X-Multi", b""),
            (b"x-lower", b"kept"),
            *ADDED_HEADERS,
        )
    },
    "header with no values": {},
    "hop-by-hop headers": {"body": b"abc"},
    "path and query": ENV | {"method": "PATCH", "target": b"/function/env/api/v1/users/42?x=1&y=a%20b&x=2"},
    "query with a leading question mark": ENV | {"target": b"/function/env/?x=1"},
    "path with escapes": ENV | {"target": b"/function/env/a%2Fb/%20/..;/c"},
    "get": ENV | FROM_CURL | {"method": "GET"},
    "method empty": ENV,
    "callback, plain": FROM_CURL | {"callback": "http://gateway:8080/function/receive"},
    "callback, query and fragment": {"callback": "https://example.com:8443/cb/a%2Fb?token=x%26y&z=1"},
    "callback with user info (lost by encoding/json)": {"callback": "https://example.com/cb"},
    "callback, opaque": {"complaint": "its scheme is 'mailto'; only http and https can be posted to"},
    "callback, relative": {"complaint": "its scheme is ''; only http and https can be posted to"},
    "callback, ipv6": {"callback": "http://[::1]:9000/x"},
    "retry annotations": FROM_CURL
    | {
        "function": "chaos.openfaas-fn",
        "label": "chaos.openfaas-fn",
        "target": b"/function/chaos.openfaas-fn",
        "annotations": {
            "com.openfaas.retry.attempts": "30",
            "com.openfaas.retry.codes": "429",
            "com.openfaas.retry.max_wait": "1m",
            "com.openfaas.retry.min_wait": "5s",
        },
    },
    "retry annotations, invalid": {
        "function": "chaos",
        "label": "chaos.fn",
        "target": b"/function/chaos",
        "annotations": {
            "com.openfaas.retry.attempts": "many",
            "com.openfaas.retry.codes": "429,abc",
            "com.openfaas.retry.max_wait": "-1m",
            "com.openfaas.retry.min_wait": "5",
        },
    },
    "function name with slashes, as an old gateway may send it": {},
}
FIXTURE = Path(__file__).parent.parent / "fixtures" / "queue_requests.jsonl"
LINES = {
    line["note"]: line["message"].encode() for line in map(json.loads, FIXTURE.read_text("utf-8").split("\n")[:24])
}


@pytest.mark.parametrize("note", EXPECTED)
def test_decode_reads_messages_of_go(note: str) -> None:
    """Each message that Go's encoding/json wrote of a ``QueueRequest`` decodes to exactly this invocation."""
    expected = dict(EXPECTED[note])
    complaint = expected.pop("complaint", None)
    assert decoded(LINES[note]) == (replace(ECHO, **expected), complaint)


def test_decode_every_message_of_the_fixture_is_tested() -> None:
    """Every line of the fixture has an expected result."""
    assert set(LINES) == set(EXPECTED)
    assert len(LINES) == 24


# The function, the method, the target


@pytest.mark.parametrize(
    ("given_", "function", "label"),
    [
        ("echo", "echo", "echo.fn"),
        ("echo.other", "echo.other", "echo.other"),
        ("/echo/", "echo", "echo.fn"),
        ("//echo.other//", "echo.other", "echo.other"),
        ("a", "a", "a.fn"),
        ("a-b_c.d", "a-b_c.d", "a-b_c.d"),
    ],
)
def test_decode_function_is_the_message_s(given_: str, function: str, label: str) -> None:
    """The function is called by the name in the message; its label adds the default namespace where none is given."""
    invocation = accepted(Function=given_)
    assert (invocation.function, invocation.label) == (function, label)
    assert invocation.target == f"/function/{function}".encode()


@pytest.mark.parametrize(
    "function",
    [
        "",
        "/",
        ".",
        "..",
        "../system/functions",
        "echo/../env",
        "echo/env",
        "echo%2f..%2fenv",
        "echo?x",
        "echo#x",
        "echo x",
        "Echo",
        "Xecho",
        "echo\n",
        "echo\r\nX-Evil: 1",
        "echo\x00",
        "\u00e9cho",
        "ec\\ho",
        "a.b.c",
        "-echo",
        "echo-",
        "http://evil/",
        "a" * 254,
    ],
)
def test_decode_invalid_function_is_refused(function: str) -> None:
    """A name that leads elsewhere, or that no function can have, is refused, and the reason has the name."""
    reason = refused(json.dumps({"Function": function}).encode())
    assert reason == f"not a function's name: {function[:80]!r}"


@pytest.mark.parametrize("method", [None, ""])
def test_decode_missing_method_is_post(method: str | None) -> None:
    """A missing or empty method means POST."""
    assert accepted(Method=method).method == "POST"


@pytest.mark.parametrize("method", ["GET", "patch", "M-SEARCH", "!#$%&'*+-.^_`|~09AZaz"])
def test_decode_method_is_any_token(method: str) -> None:
    """A method is any token (RFC 9110, section 9.1), and keeps its case."""
    assert accepted(Method=method).method == method


def test_decode_token_has_the_characters_of_rfc_9110() -> None:
    """Methods and names of headers have letters, digits and 15 other characters (RFC 9110, section 5.6.2)."""
    allowed = set(string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~")
    for character in map(chr, range(128)):
        for fields in ({"Method": character}, {"Header": {character: ["a"]}}):
            result = decoded(json.dumps({"Function": "echo"} | fields).encode())
            assert isinstance(result, Malformed) == (character not in allowed), fields


@pytest.mark.parametrize("method", ["GET /", "G T", "GET\r\n", "GET\n", " ", "G\u00cbT", "G:T", "\x00", "(", "G\tT"])
def test_decode_invalid_method_is_refused(method: str) -> None:
    """A method with a character that could end the request line is refused."""
    assert refused(json.dumps({"Function": "echo", "Method": method}).encode()) == f"not an HTTP method: {method!r}"


@pytest.mark.parametrize(
    ("path", "query", "target"),
    [
        (None, None, b""),
        ("", "", b""),
        ("/", "", b"/"),
        ("a/b", "", b"/a/b"),
        ("//a//b/", "", b"//a//b/"),
        ("/a b", "", b"/a%20b"),
        ("/a%20b%2F%zz%", "", b"/a%20b%2F%25zz%25"),
        ("/a?b#c", "", b"/a%3Fb%23c"),
        ('/"<>\\^`{|}', "", b"/%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("/!$&'()*+,;=:@-._~[]", "", b"/!$&'()*+,;=:@-._~[]"),
        ("/\r\n\t\x00\x7f", "", b"/%0D%0A%09%00%7F"),
        ("/\u00e9\U0001f680", "", b"/%C3%A9%F0%9F%9A%80"),
        ("", "a=b", b"?a=b"),
        ("", "?a=b", b"?a=b"),
        ("", "??a", b"??a"),
        ("", "?", b""),
        ("/x", "a=b&c=%20&d=%zz%", b"/x?a=b&c=%20&d=%zz%"),
        ("/x", "a b#c", b"/x?a%20b%23c"),
        ("/x", '"<>\\^`{|}/?:@', b'/x?"<>\\^`{|}/?:@'),
        ("/x", "\r\n\x00\u00e9", b"/x?%0D%0A%00%C3%A9"),
        ("/..;/a/.../b..", "..", b"/..;/a/.../b..?.."),
        ("/a/../b", "", b"/a/../b"),
        ("/a/b/../..", "", b"/a/b/../.."),
        ("/a/./..", "", b"/a/./.."),
        ("/%252e%252e", "", b"/%252e%252e"),
    ],
)
def test_decode_path_and_query_are_kept(path: str | None, query: str | None, target: bytes) -> None:
    """The function gets path and query as the caller wrote them, with only what would end them escaped, as in Go."""
    assert accepted(Path=path, QueryString=query).target == b"/function/echo" + target


def test_decode_valid_escape_in_path_is_kept() -> None:
    """Each valid escape is kept, in either case; a percent sign before anything else is escaped."""
    for pair in map("".join, product(string.ascii_letters + string.digits, repeat=2)):
        percent = "%" if set(pair) <= set(string.hexdigits) else "%25"
        assert accepted(Path=f"/a%{pair}").target == f"/function/echo/a{percent}{pair}".encode()


@pytest.mark.parametrize(
    "path",
    [
        "..",
        "/..",
        "/../env",
        "/../../system/functions",
        "/a/../../env",
        "//../env",
        "/./../env",
        "/a//../../env",
        "/%2e%2e/env",
        "/%2E./env",
        "/..%2fenv",
        "/a%2F..%2F../env",
        "/../echo",
    ],
)
def test_decode_path_out_of_the_function_is_refused(path: str) -> None:
    """A path with dots, escaped or not, that leads to another function or the gateway's API is refused."""
    reason = refused(json.dumps({"Function": "echo", "Path": path}).encode())
    assert reason == f"a path that leads out of the function: {path!r}"


# Headers


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "Keep-Alive",
        "Proxy-Authenticate",
        "Proxy-Authorization",
        "Proxy-Connection",
        "Te",
        "Trailer",
        "Trailers",
        "Transfer-Encoding",
        "Upgrade",
        "Host",
        "Content-Length",
    ],
)
@pytest.mark.parametrize("case", [str, str.lower, str.upper])
def test_decode_hop_by_hop_headers_are_dropped(name: str, case: Any) -> None:
    """Hop-by-hop headers, and two that the HTTP client writes itself, are dropped, in any case."""
    assert accepted(Header={case(name): ["a", "b"], "X-Kept": ["1"]}).headers == ((b"X-Kept", b"1"), *ADDED_HEADERS)


@pytest.mark.parametrize("connection", [["X-Drop,  x-also "], ["close", "x-drop,X-ALSO"], [",x-also,,X-Drop,"]])
@pytest.mark.parametrize("name", ["Connection", "connection", "CONNECTION"])
def test_decode_headers_named_by_connection_are_dropped(name: str, connection: list[str]) -> None:
    """Headers that Connection names are dropped, before it or after it."""
    header = {"X-Drop": ["1"], "X-Kept": ["2"], name: connection, "x-DROP": ["3"], "X-Also": ["4"], "X-Drop-Not": ["5"]}
    assert accepted(Header=header).headers == ((b"X-Kept", b"2"), (b"X-Drop-Not", b"5"), *ADDED_HEADERS)


def test_decode_headers_named_by_other_headers_stay() -> None:
    """A header that another header's value names stays."""
    header = {"Vary": ["x-kept"], "X-Connection": ["x-kept"], "X-Kept": ["close"]}
    assert [name for name, _ in accepted(Header=header).headers[:3]] == [b"Vary", b"X-Connection", b"X-Kept"]


def test_decode_call_id_named_by_connection_stays() -> None:
    """A call id stays where Connection names it; a User-Agent that it names is replaced by the worker's."""
    header = {"Connection": ["x-call-id, user-agent"], "X-Call-Id": ["id"], "User-Agent": ["curl"]}
    invocation = accepted(Header=header)
    assert invocation.call_id == "id"
    assert invocation.headers == ((b"X-Call-Id", b"id"), (b"User-Agent", b"queue-worker/test"))


@given(st.lists(st.booleans(), min_size=9, max_size=9), st.sampled_from(["X-Call-Id", "User-Agent", "X-Start-Time"]))
def test_decode_known_header_is_found_in_any_case(upper: list[bool], name: str) -> None:
    """A known header is found in any case, so the worker adds none, and the function gets it as written."""
    mixed_case = "".join(c.upper() if up else c.lower() for c, up in zip(name, upper + upper, strict=False))
    invocation = accepted(Header={mixed_case: ["given"]})
    assert (mixed_case.encode(), b"given") in invocation.headers
    assert [key.lower() for key, _ in invocation.headers].count(name.lower().encode()) == 1
    known = {"X-Call-Id": invocation.call_id, "X-Start-Time": invocation.started}
    assert known.get(name, "given") == "given"


def test_decode_several_call_ids_use_the_first() -> None:
    """The invocation's call id is the first of several that is not empty."""
    invocation = accepted(Header={"x-call-id": ["", " "], "X-Call-Id": ["one", "two"], "X-CALL-ID": ["three"]})
    assert invocation.call_id == "one"
    assert [value for _, value in invocation.headers] == [b"one", b"two", b"three", b"queue-worker/test"]


@pytest.mark.parametrize("header", [None, {}, {"X-Call-Id": None}, {"X-Call-Id": []}, {"x-call-id": ["", " \t"]}])
def test_decode_missing_call_id_is_derived(header: Any) -> None:
    """A missing or empty call id is replaced by a derived one, which the function gets too."""
    invocation = accepted(Header=header)
    assert invocation.call_id == DERIVED_ID
    assert invocation.headers == ADDED_HEADERS


def test_derive_call_id_is_the_same_for_each_delivery() -> None:
    """A derived call id depends on the message only, so each delivery in any worker of any version has the same one."""
    first, again = delivery(b""), Delivery((7, STORED), "other", 9, 5.0, "elsewhere", b"x")
    assert derive_call_id(first) == derive_call_id(again) == DERIVED_ID


def test_derive_call_id_differs_between_messages() -> None:
    """Messages with another sequence or time of storage have other ids, also where the joined digits are equal."""
    ids = [(7, STORED), (8, STORED), (7, STORED + 1), (1, 23), (12, 3)]
    assert len({derive_call_id(Delivery(each, "t", 1, 0.0, "s", b"")) for each in ids}) == 5


@pytest.mark.parametrize("header", [{}, {"X-Start-Time": []}, {"X-Start-Time": [""]}])
def test_decode_missing_start_time_is_the_time_of_storage(header: Any) -> None:
    """Without X-Start-Time, the invocation started when the message was stored."""
    assert accepted(Header=header).started == str(STORED)


def test_decode_whitespace_around_header_values_is_removed() -> None:
    """Spaces and tabs around a value are removed (RFC 9110, section 5.5), and those inside are kept."""
    invocation = accepted(Header={"X-A": ["\t b\t c \t"], "X-Call-Id": [" id "]})
    assert invocation.headers[0] == (b"X-A", b"b\t c")
    assert invocation.call_id == "id"


@pytest.mark.parametrize("code", [*range(9), *range(10, 32), 127])
def test_decode_control_character_in_header_value_is_refused(code: int) -> None:
    """A control character other than the tab is refused in any header's value, also in a dropped one."""
    for name in ("X-A", "Connection", "Host", "X-Call-Id"):
        payload = json.dumps({"Function": "echo", "Header": {name: ["fine", f"a{chr(code)}b"]}}).encode()
        assert refused(payload) == f"header {name} has a control character in its value"


@pytest.mark.parametrize("name", ["", "X A", "X:A", "X\r\nA", "X\nA", "X-A\n", "X\x00", "X-\u00c4", " X", "X(", "X\t"])
def test_decode_invalid_header_name_is_refused(name: str) -> None:
    """A header's name that is no token could add a line, so it is refused, with values or without."""
    for values in (["a"], [], None):
        payload = json.dumps({"Function": "echo", "Header": {name: values}}).encode()
        assert refused(payload) == f"not a header's name: {name!r}"


ACCEPT = {
    "text/event-stream": None,
    "application/x-ndjson": None,
    "TEXT/Event-Stream": None,
    "text/event-stream;q=0.9": None,
    "text/event-stream ; charset=utf-8": None,
    "text/event-stream, application/x-ndjson": None,
    " ,text/event-stream,, ": None,
    "application/json, text/event-stream": "application/json",
    "text/event-stream,application/json;q=0.5,*/*": "application/json;q=0.5, */*",
    "application/json;q=0.5,\ttext/event-stream;q=1": "application/json;q=0.5",
    'text/html;x="text/event-stream"': None,
    "text/event-stream-like": None,
    "text/event-streams, */*": None,
    "application/json": "application/json",
    "application/vnd.ndjson, text/*": "application/vnd.ndjson, text/*",
    'text/html;x="a, b"': 'text/html;x="a, b"',
    "*/*": "*/*",
    "": "",
}


@pytest.mark.parametrize("name", ["Accept", "accept", "ACCEPT"])
@pytest.mark.parametrize("value", ACCEPT)
def test_decode_accept_asks_for_no_stream(name: str, value: str) -> None:
    """Streams are removed from Accept, because the gateway answers 200 for them before the function does."""
    kept = ACCEPT[value]
    expected = () if kept is None else ((name.encode(), kept.encode()),)
    assert accepted(Header={name: [value]}).headers == (*expected, *ADDED_HEADERS)


def test_decode_each_accept_line_is_read_alone() -> None:
    """Of several Accept lines only those that ask for nothing else are removed; other headers keep such values."""
    header = {"Accept": ["text/event-stream", "a/b, text/event-stream", "*/*"], "X-Accept": ["text/event-stream"]}
    assert accepted(Header=header).headers[:3] == (
        (b"Accept", b"a/b"),
        (b"Accept", b"*/*"),
        (b"X-Accept", b"text/event-stream"),
    )


# The body and other fields


@given(st.binary())
@example(bytes(range(256)))
def test_decode_body_is_exact(body: bytes) -> None:
    """The function gets exactly the bytes of the body that the caller sent."""
    assert accepted(Body=base64.b64encode(body).decode()).body == body


def test_decode_null_body_is_empty() -> None:
    """A null body, which Go writes for nil, is empty."""
    assert accepted(Body=None).body == b""


@pytest.mark.parametrize("body", ["A", "AA", "AAA", "AA==A", "!!!!", "A\n==", "_-8=", "A A==", "AA==\nA"])
def test_decode_body_without_base64_is_refused(body: str) -> None:
    """A message is refused unless its body is standard base64 with padding."""
    reason = refused(json.dumps({"Function": "echo", "Body": body}).encode())
    assert reason == "not a QueueRequest: Invalid base64 encoded string - at `$.Body`"


def test_decode_unknown_fields_are_ignored() -> None:
    """Unknown fields, and fields that only describe the caller's request, are ignored."""
    more = {"Host": "gateway:8080", "QueueName": "q", "Extra": {"a": [1, None, {"b": 1e300}]}, "Functions": "other"}
    assert accepted(**more) == ECHO


def test_decode_duplicate_keys_use_the_last() -> None:
    """The last of duplicate keys applies, as in Go."""
    payload = b'{"Function":"a","Header":{"X":["1"],"X":["2"]},"Function":"b"}'
    result = decoded(payload)
    assert isinstance(result, tuple)
    assert result[0].function == "b"
    assert result[0].headers == ((b"X", b"2"), *ADDED_HEADERS)


@pytest.mark.parametrize(
    "field", ["Method", "Header", "Host", "Path", "QueryString", "Body", "QueueName", "Annotations"]
)
def test_decode_null_field_is_absent(field: str) -> None:
    """A field that is null counts as absent, as in Go."""
    assert accepted(**{field: None}) == ECHO


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("Function", None),
        ("Function", 1),
        ("Method", 1),
        ("Header", []),
        ("Header", {"X": "1"}),
        ("Header", {"X": [1]}),
        ("Path", {}),
        ("QueryString", ["a"]),
        ("Body", [1, 256]),
        ("Body", [1, "2"]),
        ("Body", [True]),
        ("Header", {"X": {}}),
        ("header", {"X": [1]}),
        ("Annotations", {"a": 1}),
        ("Annotations", "a"),
        ("CallbackUrl", 1),
        ("CallbackUrl", ["http://h"]),
        ("CallbackUrl", True),
    ],
)
def test_decode_field_of_another_type_is_refused(field: str, value: Any) -> None:
    """A field of another type is refused, and the reason names the field."""
    reason = refused(json.dumps({"Function": "echo"} | {field: value}).encode())
    where = field[0].upper() + field[1:]
    assert re.match(rf"not a QueueRequest: Expected `[^`]+`, got `\w+`[a-z ]* - at `\$\.{where}", reason), reason


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"echo"',
        b"{}",
        b'{"Method":"POST"}',
        b'{"Function":"echo"} {}',
        b'{"Function":"echo",}',
        b"{'Function':'echo'}",
        b'\xef\xbb\xbf{"Function":"echo"}',
        b'\xff{"Function":"echo"}',
        b'{"Function":"echo"\xa0}',
        b'{"Function":"a\nb"}',
        b'{"Function":"echo","X":NaN}',
        b'{"Function":"echo","X":-Infinity}',
        b'{"Function":"echo","X":01}',
        pytest.param(b'{"Function":"echo","X":' + b"[" * 100_000 + b"]" * 100_000 + b"}", id="deep"),
        pytest.param(
            b'{"Function":"echo","CallbackUrl":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", id="deep URL"
        ),
        pytest.param(b'{"a":' * 100_000, id="endless objects"),
        pytest.param(b"[" * 100_000, id="endless arrays"),
        b"\x1f\x8b\x08",
    ],
)
def test_decode_invalid_message_is_refused(payload: bytes) -> None:
    """Text that is not JSON, no object, lacks a function, or has extreme nesting or numbers is refused."""
    assert refused(payload).startswith("not a QueueRequest: ")


def test_decode_huge_number_in_unknown_field_is_ignored() -> None:
    """An unknown field may hold any number."""
    assert decoded(b'{"Function":"echo","X":' + b"9" * 100_000 + b',"Y":1e999}') == (ECHO, None)


@pytest.mark.parametrize("callback", ["ftp://h/", "/relative", {}, {"Scheme": 1}, "http://h/a b"])
def test_decode_invalid_callback_keeps_the_invocation(callback: Any) -> None:
    """With an unusable callback the function runs without a callback, and the complaint has the reason."""
    result = decoded(json.dumps({"Function": "echo", "CallbackUrl": callback}).encode())
    assert isinstance(result, tuple)
    invocation, complaint = result
    assert invocation == ECHO
    assert complaint


@pytest.mark.parametrize("callback", ["http://h/x", None, ""])
def test_decode_usable_callback_has_no_complaint(callback: str | None) -> None:
    """A usable callback, or none, causes no complaint."""
    result = decoded(json.dumps({"Function": "echo", "CallbackUrl": callback}).encode())
    assert isinstance(result, tuple)
    assert result[0].callback == (callback or None)
    assert result[1] is None


HUGE = "x" * 100_000


@pytest.mark.parametrize(
    "fields",
    [
        {"Function": HUGE + " "},
        {"Function": "echo", "Method": HUGE + " "},
        {"Function": "echo", "Path": "/../" + HUGE},
        {"Function": "echo", "Header": {HUGE + " ": ["a"]}},
        {"Function": "echo", "Header": {HUGE: ["\n"]}},
        {"Function": "echo", "Header": {"X": [HUGE + "\n"]}},
        {"Function": "echo", "Header": {HUGE: [1]}},
        {"Function": "echo", "Annotations": {HUGE: 1}},
    ],
)
def test_decode_reasons_are_short(fields: dict[str, Any]) -> None:
    """A reason quotes at most 80 characters of the message."""
    reason = refused(json.dumps(fields).encode())
    assert len(reason) < 200
    quoted = re.search("(/../)?x{9,}", reason)
    assert quoted is None or len(quoted[0]) == 80


# Laws for any message


def check_is_read_as_one_request(invocation: Invocation) -> None:
    """Check the law of fuzz/messages.py, and that h11 writes the request and reads exactly that one."""
    check_one_request(invocation)
    client, server = h11.Connection(h11.CLIENT), h11.Connection(h11.SERVER, max_incomplete_event_size=2**20)
    headers = [(b"Host", b"h"), *invocation.headers]
    request = h11.Request(method=invocation.method, target=invocation.target, headers=headers)
    sent = client.send(request)
    assert sent is not None
    server.receive_data(sent)
    read = server.next_event()
    assert isinstance(read, h11.Request)
    assert (read.method, read.target) == (invocation.method.encode(), invocation.target)
    assert read.headers.raw_items() == headers


nasty = st.text(st.sampled_from("\r\n\0\t :%?#/.\\a2eF\x7f\x85\u2028\u00e9")) | st.text()
function_names = st.sampled_from(["echo", "echo.fn", "/echo/"]) | nasty
header_names = st.sampled_from(["Connection", "X-Call-Id", "x-call-id", "User-Agent", "X-A", "x-a", "Host"]) | nasty
values = st.sampled_from(["x-a", "close", " id ", "a, b,X-A"]) | nasty
messages = st.fixed_dictionaries(
    {"Function": function_names},
    optional={
        "Method": st.sampled_from(["GET", "", "post"]) | nasty,
        "Path": nasty,
        "QueryString": nasty,
        "Header": st.dictionaries(header_names, st.none() | st.lists(values, max_size=3), max_size=4),
        "CallbackUrl": nasty | nasty.map("http://h/".__add__),
        "Annotations": st.dictionaries(nasty, nasty, max_size=2),
    },
)


@given(messages)
@example({"Function": "echo", "Path": "/a\r\nX-Evil: 1", "QueryString": "\r\n\r\n"})
@example({"Function": "echo", "Method": "CONNECT"})
def test_decode_any_message_is_at_most_one_request(message: dict[str, Any]) -> None:
    """A message with any text in its fields is refused, or is one request to the function that it names."""
    result = decoded(json.dumps(message).encode())
    if isinstance(result, tuple):
        check_is_read_as_one_request(result[0])


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "Path": nasty,
            "QueryString": nasty,
            "Header": st.dictionaries(
                st.from_regex(r"[-A-Za-z0-9!#$%&'*+.^_`|~]{1,9}", fullmatch=True),
                st.lists(
                    st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=["Cs"]))
                ),
                max_size=4,
            ),
        },
    )
)
def test_decode_harmless_message_is_accepted(fields: dict[str, Any]) -> None:
    """Any path inside its function, any query and any printable value are accepted."""
    depth = 0
    for segment in unquote(fields.get("Path", "")).split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(segment, 1)
        if depth < 0:
            return
    check_is_read_as_one_request(accepted(**fields))


anything: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | nasty,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(nasty, inner, max_size=4),
    max_leaves=10,
)
FIELDS = ["Function", "Method", "Header", "Path", "QueryString", "Body", "Annotations", "CallbackUrl", "Extra"]


@given(anything | st.dictionaries(st.sampled_from(FIELDS), anything).map(lambda fields: {"Function": "echo"} | fields))
def test_decode_any_json_is_read_or_refused(value: Any) -> None:
    """Any JSON is read as one request or refused, and none makes decoding raise."""
    result = decoded(json.dumps(value).encode())
    if isinstance(result, tuple):
        check_is_read_as_one_request(result[0])
    else:
        assert result.reason


@given(st.binary())
def test_decode_any_bytes_are_refused(payload: bytes) -> None:
    """Random bytes are refused, and none make decoding raise."""
    refused(payload)


@given(st.sampled_from(sorted(LINES.values())), st.randoms(use_true_random=False))
def test_decode_damaged_message_is_read_or_refused(payload: bytes, rng: random.Random) -> None:
    """A message that lost, gained or changed some bytes is read as one request, or refused."""
    damaged = bytearray(payload)
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(damaged) + 1)
        damaged[start : start + rng.randint(0, 3)] = rng.choice([b"", b"\\n", b"\xff", b'"', b"\\ud800", b"{", b"\0"])
    result = decoded(bytes(damaged))
    if isinstance(result, tuple):
        check_is_read_as_one_request(result[0])
