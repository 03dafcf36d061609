from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.cases import check_each
from worker.model import (
    Callback,
    Crashed,
    DeadLetter,
    Delivery,
    Headers,
    Invocation,
    MessageId,
    NoResponse,
    Outcome,
    Refused,
    Responded,
    TimedOut,
)
from worker.policy.report import dead_letter_headers, is_delivered, is_retriable, make_callback, origin_of

INVOCATION = Invocation(
    call_id="call-1",
    function="echo",
    label="echo.fn",
    method="POST",
    target=b"/function/echo",
    headers=(),
    body=b"asked",
    annotations={},
    callback="http://h/cb",
    started="1646739420463153513",
)
WEBHOOK_ID = b"msg_0cb2eecf3988b8448a0d3d051e65a1c6"
JSON: Headers = ((b"Content-Type", b"application/json"),)


def callback_of(outcome: Outcome, *, attempt: int = 1, attempts: int = 100, duration: float = 0.25) -> Callback:
    callback = make_callback(
        INVOCATION,
        outcome,
        message=(7, 1646739420463153513),
        attempt=attempt,
        attempts=attempts,
        duration=duration,
        user_agent="queue-worker/test",
    )
    assert callback is not None
    return callback


def own_headers(status: int, *more: tuple[bytes, bytes], duration: bytes = b"0.250000") -> Headers:
    return (
        (b"X-Call-Id", b"call-1"),
        (b"X-Function-Name", b"echo"),
        (b"X-Function-Status", str(status).encode()),
        (b"X-Duration-Seconds", duration),
        (b"X-Start-Time", b"1646739420463153513"),
        (b"User-Agent", b"queue-worker/test"),
        *more,
        (b"webhook-id", WEBHOOK_ID),
    )


def test_make_callback_without_url_is_none() -> None:
    """An invocation without a callback URL has no callback."""
    silent = replace(INVOCATION, callback=None)
    answer = Responded(200)
    assert make_callback(silent, answer, message=(1, 2), attempt=1, attempts=1, duration=0.0, user_agent="u") is None


def test_make_callback_id_differs_between_callbacks() -> None:
    """The id is that of call, function and message, so it is the same after a redelivery only."""

    def id_of(message: MessageId = (7, 9), **changes: str) -> bytes:
        callback = make_callback(
            replace(INVOCATION, **changes),
            Responded(200),
            message=message,
            attempt=1,
            attempts=1,
            duration=0.0,
            user_agent="u",
        )
        assert callback
        return dict(callback.headers)[b"webhook-id"]

    assert id_of() == id_of()
    others = [id_of(call_id="call-2"), id_of(label="other.fn"), id_of((8, 9)), id_of((7, 8)), id_of(call_id="a.b c")]
    assert len({id_of(), *others}) == 6
    assert all(re.fullmatch(rb"msg_[0-9a-f]{32}", each) for each in others)


def test_make_callback_success_has_response_and_own_headers() -> None:
    """A callback has the function's body and headers, then the worker's (contract, section 6)."""
    outcome = Responded(200, (*JSON, (b"X-Own", b"1"), (b"x-own", b"2")), b"\x00answer\xff", size=8)
    assert callback_of(outcome) == Callback(
        "http://h/cb", (*JSON, (b"X-Own", b"1"), (b"x-own", b"2"), *own_headers(200)), b"\x00answer\xff"
    )


def test_make_callback_final_failure_has_its_status() -> None:
    """A status that is not retried is reported unchanged."""
    assert callback_of(Responded(404, JSON, b"no")) == Callback("http://h/cb", (*JSON, *own_headers(404)), b"no")


@pytest.mark.parametrize(
    ("outcome", "status"), [(NoResponse("refused"), 502), (TimedOut(60.0), 504), (Crashed(ValueError()), 502)]
)
def test_make_callback_without_response_is_empty(outcome: Outcome, status: int) -> None:
    """Without a response, also after a bug in the worker, the body is empty and the status is 502 or 504."""
    retried = ((b"X-Retry", b"99"), (b"X-Retry-Max", b"99"))
    assert callback_of(outcome, attempt=100) == Callback("http://h/cb", own_headers(status, *retried), b"")


@pytest.mark.parametrize(
    ("attempt", "attempts", "more"),
    [
        (1, 100, ()),
        (1, 1, ()),
        (2, 100, ((b"X-Retry", b"1"), (b"X-Retry-Max", b"99"))),
        (3, 4, ((b"X-Retry", b"2"), (b"X-Retry-Max", b"3"))),
        (100, 100, ((b"X-Retry", b"99"), (b"X-Retry-Max", b"99"))),
        (2, 2, ((b"X-Retry", b"1"), (b"X-Retry-Max", b"1"))),
        (7, 3, ((b"X-Retry", b"2"), (b"X-Retry-Max", b"2"))),
    ],
)
def test_make_callback_after_retries_has_retry_headers(attempt: int, attempts: int, more: Headers) -> None:
    """X-Retry is the number of retries made and X-Retry-Max of those allowed; without a retry neither is set."""
    assert callback_of(Responded(503), attempt=attempt, attempts=attempts).headers == own_headers(503, *more)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, b"0.000000"), (0.0000004, b"0.000000"), (1.5, b"1.500000"), (3600.0, b"3600.000000"), (1e-6, b"0.000001")],
)
def test_make_callback_duration_is_in_seconds(seconds: float, text: bytes) -> None:
    """The duration has six digits after the point, and never an exponent."""
    assert callback_of(Responded(200), duration=seconds).headers == own_headers(200, duration=text)


def test_make_callback_truncated_body_is_marked() -> None:
    """A callback with a truncated body has its beginning, and X-Truncated."""
    callback = callback_of(Responded(200, (), b"begin", truncated=True))
    assert callback == Callback("http://h/cb", own_headers(200, (b"X-Truncated", b"true")), b"begin")


RESERVED = [
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Trailers",
    "Transfer-Encoding",
    "Upgrade",
    "Host",
    "Content-Length",
    "User-Agent",
    "X-Call-Id",
    "X-Function-Name",
    "X-Function-Status",
    "X-Duration-Seconds",
    "X-Start-Time",
    "X-Retry",
    "X-Retry-Max",
    "X-Truncated",
    "Webhook-Id",
    "Webhook-Timestamp",
    "Webhook-Signature",
    "X-Openfaas-Signature-256",
]


def test_make_callback_reserved_headers_of_response_are_dropped() -> None:
    """Headers about the connection and those that the worker sets are dropped from the response, in any case."""

    def check(name: str) -> None:
        headers = (*JSON, (name.encode(), b"forged"), (name.encode(), b"again"))
        assert callback_of(Responded(200, headers)).headers == (*JSON, *own_headers(200))

    check_each((spelled for name in RESERVED for spelled in (name, name.lower(), name.upper())), check)


@pytest.mark.parametrize("connection", [b"X-Drop, x-also", b"close,X-ALSO ,x-drop", b"\tx-drop\t,,x-also"])
def test_make_callback_headers_named_by_connection_are_dropped(connection: bytes) -> None:
    """Headers that Connection names are dropped at any position, because they concern that connection only."""
    headers = ((b"X-Drop", b"1"), (b"CONNECTION", connection), (b"x-DROP", b"2"), (b"X-Also", b"3"), (b"X-Kept", b"4"))
    assert callback_of(Responded(200, headers)).headers == ((b"X-Kept", b"4"), *own_headers(200))


def test_make_callback_headers_named_by_other_headers_stay() -> None:
    """A header that another header's value names stays."""
    headers = ((b"Vary", b"x-kept"), (b"X-Connection", b"x-kept"), (b"X-Kept", b"close"))
    assert callback_of(Responded(200, headers)).headers == (*headers, *own_headers(200))


def test_make_callback_own_headers_named_by_connection_stay() -> None:
    """The worker's headers are set although the response's Connection names them."""
    assert callback_of(Responded(200, ((b"Connection", b"x-call-id, user-agent"),))).headers == own_headers(200)


names = st.sampled_from(["X-A", "content-type", "Set-Cookie", *RESERVED]).map(str.encode)


@given(
    st.builds(
        Responded,
        st.integers(200, 599),
        st.lists(st.tuples(names, st.binary(max_size=9)), max_size=6).map(tuple),
        st.binary(),
    ),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_make_callback_has_each_own_header_once(outcome: Responded, attempt: int, attempts: int) -> None:
    """Each of the worker's headers occurs once; the function's keep their order, and its body is unchanged."""
    callback = callback_of(outcome, attempt=attempt, attempts=attempts)
    written = [name.lower().decode() for name, _ in callback.headers]
    own = {name.lower() for name in RESERVED} & set(written)
    retried = {"x-retry", "x-retry-max"} if attempt > 1 else set()
    assert own == retried | {name.decode().lower() for name, _ in own_headers(200)}
    assert all(written.count(name) == 1 for name in own)
    foreign = [field for field in callback.headers if field[0] in (b"X-A", b"content-type", b"Set-Cookie")]
    connection = b",".join(value for name, value in outcome.headers if name == b"Connection").lower()
    if not {b"x-a", b"content-type", b"set-cookie"} & {each.strip() for each in connection.split(b",")}:
        assert foreign == [field for field in outcome.headers if field[0] in (b"X-A", b"content-type", b"Set-Cookie")]
    assert callback.body == outcome.body


# Dead letters

MESSAGE = Delivery((42, 1_700_000_000_000_000_000), "t", 9, 0.0, "faas-request.0.echo.fn", b"{}")


def test_dead_letter_headers_describe_the_message() -> None:
    """A dead letter has the reason, attempts, deliveries, position in the stream, call id, function and status."""
    letter = DeadLetter(MESSAGE, "gave up", attempts=3, call_id="call-1", function="echo.fn", status=503)
    assert dead_letter_headers(letter, stream="faas-request") == {
        "X-Dead-Letter-Reason": "gave up",
        "X-Dead-Letter-Attempts": "3",
        "X-Dead-Letter-Deliveries": "9",
        "X-Dead-Letter-Stream": "faas-request",
        "X-Dead-Letter-Subject": "faas-request.0.echo.fn",
        "X-Dead-Letter-Sequence": "42",
        "X-Call-Id": "call-1",
        "X-Function-Name": "echo.fn",
        "X-Function-Status": "503",
    }


def test_dead_letter_headers_of_malformed_message_lack_the_call() -> None:
    """A message that could not be decoded has no call id, no function and no status."""
    letter = DeadLetter(MESSAGE, "not a QueueRequest", attempts=0, call_id=None, function=None, status=None)
    assert dead_letter_headers(letter, stream="s") == {
        "X-Dead-Letter-Reason": "not a QueueRequest",
        "X-Dead-Letter-Attempts": "0",
        "X-Dead-Letter-Deliveries": "9",
        "X-Dead-Letter-Stream": "s",
        "X-Dead-Letter-Subject": "faas-request.0.echo.fn",
        "X-Dead-Letter-Sequence": "42",
    }


@pytest.mark.parametrize(
    ("reason", "written"),
    [
        ("a\r\nX-Evil: 1", "a  X-Evil: 1"),
        ("a\x00\t\x7f\x85\u2028b", "a     b"),
        ("caf\u00e9 \U0001f680", "caf\u00e9 \U0001f680"),
        ("\ud800", " "),
        pytest.param("x" * 1024, "x" * 1024, id="1024"),
        pytest.param("x" * 1025, "x" * 1024, id="1025"),
    ],
)
def test_dead_letter_reason_is_one_line(reason: str, written: str) -> None:
    """Control characters of a reason become spaces, and it is cut to 1024 characters."""
    letter = DeadLetter(MESSAGE, reason, attempts=0, call_id=None, function=None, status=None)
    assert dead_letter_headers(letter, stream="s")["X-Dead-Letter-Reason"] == written


wild = st.text(st.characters(codec=None) | st.sampled_from("\r\n\0\t")) | st.text(min_size=1000).map(lambda t: t * 3)


@given(wild, wild, st.none() | wild, st.none() | wild, st.none() | st.integers(100, 599))
def test_dead_letter_headers_are_printable_and_limited(
    reason: str, stream: str, call_id: str | None, function: str | None, status: int | None
) -> None:
    """Each value is printable and has at most 1024 characters, with any foreign text in the message."""
    letter = DeadLetter(MESSAGE, reason, attempts=1, call_id=call_id, function=function, status=status)
    for value in dead_letter_headers(letter, stream=stream).values():
        assert value.isprintable()
        assert len(value) <= 1024
        assert len(value.encode()) <= 4096


# Which results of a callback are delivered or retriable

FINAL = {400, 401, 403, 404, 405, 410, 413, 414, 415, 422, 426, 431, 451, 499}
PASSING = {408, 425, 429, 500, 501, 502, 503, 504, 599}


def test_callback_only_2xx_is_delivered() -> None:
    """A callback is delivered with a status of 200 to 299 and no other, and is not retried then."""
    assert [status for status in range(100, 600) if is_delivered(status)] == list(range(200, 300))
    assert not any(is_retriable(status) for status in range(200, 300))


@pytest.mark.parametrize("status", sorted(FINAL | {100, 101, 103, 199, 300, 301, 302, 303, 304, 307, 308, 399}))
def test_callback_client_error_or_redirect_is_not_retried(status: int) -> None:
    """A client error, a redirect or an interim status is neither delivered nor retried: a retry has the same result."""
    assert not is_delivered(status)
    assert not is_retriable(status)


@pytest.mark.parametrize("result", [*sorted(PASSING), "connection refused", ""])
def test_callback_passing_failure_is_retried(result: int | str) -> None:
    """A server error, a status that asks for a later retry, and a missing answer are retried."""
    assert not is_delivered(result)
    assert is_retriable(result)


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://h", "http://h"),
        ("HTTP://user:secret@H.:80/secret?secret", "http://h"),
        ("https://h:443/", "https://h"),
        ("http://h:443/", "http://h:443"),
        ("http://h:/x", "http://h"),
        ("http://[::1]:80/", "http://[::1]"),
        ("http://[::1]:8080/", "http://[::1]:8080"),
        ("", "://"),
    ],
)
def test_origin_of_a_url_is_the_same_for_each_spelling(url: str, origin: str) -> None:
    """A receiver has one name in log lines and limits, and no secret of its URL is part of it."""
    assert origin_of(url) == origin


def test_callback_refused_by_rules_is_not_retried() -> None:
    """A callback that the rules forbid is neither delivered nor retried."""
    assert not is_delivered(Refused("a rule"))
    assert not is_retriable(Refused("a rule"))


@given(st.integers(100, 599) | st.text())
def test_callback_delivered_is_never_retried(result: int | str) -> None:
    """No result is both delivered and retried."""
    assert not (is_delivered(result) and is_retriable(result))
