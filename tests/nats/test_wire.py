"""What JetStream writes into subjects and headers."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.nats.wire import Status, consumer_of, is_stored, parse_ack_subject, parse_answer, parse_status


def test_a_delivery_of_nine_tokens() -> None:
    """What nats-server 2.15 sends."""
    subject = "$JS.ACK.faas-request.faas-workers.3.17.21.1700000000000000001.5"
    assert parse_ack_subject(subject) == ((17, 1700000000000000001), 3, 5)
    assert consumer_of(subject) == "faas-workers"


@pytest.mark.parametrize("more", ["", ".token", ".more.tokens"])
def test_a_delivery_with_domain_and_account(more: str) -> None:
    """Eleven tokens or more, as ADR-15 has it: domain and account come before the stream."""
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
def test_what_is_no_delivery_is_told(subject: str) -> None:
    """Eight tokens, ten, another prefix, or no number where one is due; the reason quotes what a log line can hold."""
    told = re.escape(f"not the reply subject of a delivery: {subject[:200]!r}")
    with pytest.raises(ValueError, match=f"^{told}$"):
        parse_ack_subject(subject)


def test_a_number_has_as_many_digits_as_64_bits_can_hold() -> None:
    """Twenty, the largest of JetStream's."""
    subject = "$JS.ACK.faas-request.faas-workers.3.18446744073709551615.21.1700000000000000001.5"
    assert parse_ack_subject(subject) == ((18446744073709551615, 1700000000000000001), 3, 5)


@given(st.one_of(st.text(), st.lists(st.text(alphabet="0123456789ab"), max_size=14).map(".".join)))
def test_anything_else_is_a_value_error(tail: str) -> None:
    """No subject makes the reader fail in another way."""
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
def test_statuses(code: str, description: str, gone: bool, trouble: bool) -> None:
    """Each status that nats-facts.md lists: whether the consumer must be looked for, and whether to wait a little."""
    status = parse_status({"Status": code, "Description": description})
    assert status is not None
    assert (status.consumer_gone, status.rejected, status.heartbeat) == (gone, trouble, code == "100")


@pytest.mark.parametrize(
    "headers", [None, {}, {"Status": ""}, {"Status": "4O4"}, {"Status": "²²²"}, {"Status": "40444"}]
)
def test_what_is_no_status_is_none(headers: dict[str, str] | None) -> None:
    """A message that has no readable status tells nothing."""
    assert parse_status(headers) is None


def test_a_status_without_description_is_one() -> None:
    """503 comes without."""
    assert parse_status({"Status": "503"}) == Status(503, "")


@pytest.mark.parametrize("error", ["", ',"error":null', ',"error":{}', ',"error":{"code":503}'])
def test_an_answer_is_an_object(error: str) -> None:
    """Its error is another object, or there is none; it comes as it is, for the caller to decide."""
    data = f'{{"stream":"s","seq":1{error}}}'.encode()
    assert parse_answer(data) == json.loads(data)


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
    ],
)
def test_what_is_no_answer_of_jetstream_s_is_told(data: bytes) -> None:
    """Anyone may answer on a subject, whatever they like: that is one error, with the same words."""
    with pytest.raises(ValueError, match=r"^an answer that is not JetStream's$"):
        parse_answer(data)


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ({"stream": "s", "seq": 1}, True),
        ({"stream": "s", "seq": 1, "duplicate": True}, True),
        ({"stream": "s"}, False),
        ({"seq": 1}, False),
        ({"stream": 1, "seq": 1}, False),
        ({"stream": "s", "seq": "1"}, False),
        ({"stream": "s", "seq": True}, False),
        ({"stream": "s", "seq": 1.0}, False),
        ({}, False),
    ],
)
def test_stored_is_what_stream_and_sequence_confirm(said: dict[str, object], stored: bool) -> None:
    """Both must be there, a text and a whole number; a message is not thrown away for less."""
    assert is_stored(said) is stored
