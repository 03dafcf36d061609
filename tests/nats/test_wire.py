"""JetStream's reply subjects, statuses and answers."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.nats.pull_messages import Status, consumer_of, parse_ack_subject, parse_status
from worker.nats.wire import (
    ApiError,
    ErrorCode,
    PubAck,
    StreamInfo,
    decode_answer,
    nanoseconds,
    parse_time,
)


def test_parse_ack_subject_nine_tokens_returns_numbers() -> None:
    """A reply subject of nine tokens, as nats-server 2.15 sends it, is parsed."""
    subject = "$JS.ACK.faas-request.faas-workers.3.17.21.1700000000000000001.5"
    assert parse_ack_subject(subject) == ((17, 1700000000000000001), 3, 5)
    assert consumer_of(subject) == "faas-workers"


@pytest.mark.parametrize("more", ["", ".token", ".more.tokens"])
def test_parse_ack_subject_domain_and_account_returns_numbers(more: str) -> None:
    """A reply subject of eleven tokens or more (ADR-15) has domain and account before the stream."""
    subject = f"$JS.ACK.hub.ACCOUNT.faas-request.faas-workers.3.17.21.1700000000000000001.5{more}"
    assert parse_ack_subject(subject) == ((17, 1700000000000000001), 3, 5)
    assert consumer_of(subject) == "faas-workers"


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "$JS.ACK.faas-request.faas-workers.3.17.21.1700000000000000001",
        "$JS.ACK.hub.faas-request.faas-workers.3.17.21.1700000000000000001.5",
        "$JS.API.faas-request.faas-workers.3.17.21.1700000000000000001.5",
        "_INBOX." + "x" * 1000,
        "$JS.ACK.faas-request.faas-workers.3.17.21.-1.5",
        "$JS.ACK.faas-request.faas-workers.3.17.2_1.1700000000000000001.5",
        "$JS.ACK.faas-request.faas-workers.3..21.1700000000000000001.5",
        "$JS.ACK.hub.ACCOUNT.faas-request.faas-workers.\u0663.17.21.1700000000000000001.5",
        "$JS.ACK.faas-request.faas-workers.3.17.000000000000000000021.1700000000000000001.5",
        "$JS.ACK.hub.ACCOUNT.faas-request.faas-workers.x.17.21.1700000000000000001.5." + "x" * 1000,
    ],
    ids=lambda subject: subject[:40],
)
def test_parse_ack_subject_malformed_raises(subject: str) -> None:
    """A subject with eight or ten tokens, another prefix or a missing number is rejected."""
    error = re.escape(f"not the reply subject of a delivery: {subject[:200]!r}")
    with pytest.raises(ValueError, match=f"^{error}$"):
        parse_ack_subject(subject)


def test_parse_ack_subject_twenty_digits_are_accepted() -> None:
    """A number may have twenty digits, as the largest of 64 bits has."""
    subject = "$JS.ACK.faas-request.faas-workers.3.18446744073709551615.21.1700000000000000001.5"
    assert parse_ack_subject(subject) == ((18446744073709551615, 1700000000000000001), 3, 5)


@given(st.one_of(st.text(), st.lists(st.text(alphabet="0123456789ab"), max_size=14).map(".".join)))
def test_parse_ack_subject_any_text_raises_only_value_error(tail: str) -> None:
    """No subject makes the parser fail with another error than ValueError."""
    for subject in (tail, f"$JS.ACK.{tail}"):
        try:
            (sequence, stored), count, behind = parse_ack_subject(subject)
        except ValueError:
            continue
        assert all(isinstance(number, int) for number in (sequence, stored, count, behind))


@pytest.mark.parametrize(
    ("code", "description", "gone", "trouble"),
    [
        ("100", "Idle Heartbeat", False, False),
        ("404", "No Messages", False, False),
        ("408", "Request Timeout", False, False),
        ("409", "Consumer Deleted", True, True),
        ("409", "Leadership Change", False, True),
        ("409", "Server Shutdown", False, True),
        ("409", "Exceeded MaxWaiting", False, True),
        ("400", "Bad Request - heartbeat value too large", False, True),
        ("400", "Bad Request - stream deleted", False, True),
        ("503", "No Responders", True, True),
    ],
)
def test_parse_status_known_codes_are_classified(code: str, description: str, gone: bool, trouble: bool) -> None:
    """Each known status is classified: whether the consumer is lost, and whether the request was rejected."""
    status = parse_status({"Status": code, "Description": description})
    assert status is not None
    assert (status.code, status.consumer_gone, status.rejected) == (int(code), gone, trouble)


@pytest.mark.parametrize(
    "headers", [None, {}, {"Status": ""}, {"Status": "4O4"}, {"Status": "²²²"}, {"Status": "40444"}]
)
def test_parse_status_unreadable_returns_none(headers: dict[str, str] | None) -> None:
    """A message without a readable status has none."""
    assert parse_status(headers) is None


def test_parse_status_no_description_is_accepted() -> None:
    """A status needs no description, as 503 has none."""
    assert parse_status({"Status": "503"}) == Status(503, "")


@pytest.mark.parametrize("error", ["", ',"error":null', ',"more":[{}]'])
def test_decode_answer_without_error_returns_struct(error: str) -> None:
    """An answer without an error is decoded; fields that the struct does not have are ignored."""
    assert decode_answer(f'{{"stream":"s","seq":1{error}}}'.encode(), PubAck) == PubAck("s", 1)


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        ("{}", 0, " (0/0)"),
        ('{"code":503}', 0, " (503/0)"),
        ('{"code":404,"err_code":10014,"description":"gone"}', ErrorCode.CONSUMER_NOT_FOUND, "gone (404/10014)"),
        ('{"code":500,"err_code":99999,"description":"new"}', 99999, "new (500/99999)"),
    ],
)
def test_decode_answer_with_error_raises_api_error(error: str, code: int, text: str) -> None:
    """An answer with an error raises it, also if it has other fields."""
    with pytest.raises(ApiError, match=f"^{re.escape(text)}$") as raised:
        decode_answer(f'{{"stream":"s","seq":1,"error":{error}}}'.encode(), PubAck)
    assert raised.value.err_code == code


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"+ACK",
        b"null",
        b"[]",
        b'"error"',
        b'{"error":"text"}',
        b'{"stream":"s","seq":1,"error":true}',
        b'{"error":[]}',
        b"\xff\xff\xff",
        b"[" * 100_000,
        b"9" * 10_000,
        b'{"stream":"s","seq":1,"\xe5":0}',
    ],
    ids=[
        "nothing",
        "a word",
        "null",
        "a list",
        "a text",
        "an error that is a text",
        "an error that is true",
        "an error that is a list",
        "no text",
        "too deep",
        "too long a number",
        "a field's name that is not UTF-8",
    ],
)
def test_decode_answer_foreign_data_raises(data: bytes) -> None:
    """Any client may answer on a subject, so any foreign bytes raise the same error."""
    with pytest.raises(ValueError, match=r"^an answer that is not JetStream's$"):
        decode_answer(data, PubAck)


@pytest.mark.parametrize(
    "data",
    [
        b'{"stream":"s"}',
        b'{"seq":1}',
        b'{"stream":1,"seq":1}',
        b'{"stream":"s","seq":"1"}',
        b'{"stream":"s","seq":true}',
        b'{"stream":"s","seq":1.0}',
        b'{"stream":"s","seq":1,"duplicate":1}',
        b"{}",
    ],
)
def test_decode_answer_incomplete_pub_ack_raises(data: bytes) -> None:
    """A message counts as stored only by an answer that names its stream and its sequence there."""
    with pytest.raises(ValueError, match="not JetStream's"):
        decode_answer(data, PubAck)


@pytest.mark.parametrize(
    ("text", "microseconds"),
    [
        ("2026-11-28T10:20:30Z", 0),
        ("2026-11-28T10:20:30.5Z", 500_000),
        ("2026-11-28T10:20:30.000001Z", 1),
        ("2026-11-28T10:20:30.123456789Z", 123_456),
    ],
)
def test_parse_time_of_any_digits_is_to_the_microsecond(text: str, microseconds: int) -> None:
    """Times of the server have none to nine digits; the later ones are dropped."""
    assert parse_time(text) == datetime(2026, 11, 28, 10, 20, 30, microseconds, UTC)


def test_nanoseconds_are_since_the_epoch() -> None:
    """A time in nanoseconds is that of the microsecond."""
    assert nanoseconds("1970-01-01T00:00:01.5Z") == 1_500_000_000
    assert nanoseconds("2026-11-28T10:20:30.25Z") == 1_795_861_230_250_000_000


def test_stream_info_keeps_the_configuration_as_it_was_sent() -> None:
    """The configuration is decoded, and also kept with the fields that this version does not know."""
    info = decode_answer(
        b'{"config":{"name":"s","new":1},"state":{"messages":2,"last_seq":7},"created":"then"}', StreamInfo
    )
    assert (info.config.name, info.state.last_seq, info.created) == ("s", 7, "then")
    assert info.sent == {"name": "s", "new": 1}
