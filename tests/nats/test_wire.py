"""What JetStream writes into subjects and headers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.nats.wire import Status, parse_ack_subject, parse_status


def test_a_delivery_of_nine_tokens() -> None:
    """What nats-server 2.15 sends."""
    subject = "$JS.ACK.faas-request.faas-workers.3.17.21.1700000000000000001.5"
    assert parse_ack_subject(subject) == ((17, 1700000000000000001), 3)


@pytest.mark.parametrize("more", ["", ".token", ".more.tokens"])
def test_a_delivery_with_domain_and_account(more: str) -> None:
    """Eleven tokens or more, as ADR-15 has it: domain and account come before the stream."""
    subject = f"$JS.ACK.hub.ACCOUNT.faas-request.faas-workers.3.17.21.1700000000000000001.5{more}"
    assert parse_ack_subject(subject) == ((17, 1700000000000000001), 3)


@pytest.mark.parametrize(
    "subject",
    [
        "",
        "$JS.ACK.faas-request.faas-workers.3.17.21.1700000000000000001",
        "$JS.ACK.hub.faas-request.faas-workers.3.17.21.1700000000000000001.5",
        "$JS.API.faas-request.faas-workers.3.17.21.1700000000000000001.5",
        "_INBOX." + "x" * 1000,
    ],
    ids=lambda subject: subject[:40],
)
def test_what_is_no_delivery_is_told(subject: str) -> None:
    """Eight tokens, ten, or another prefix: the reason quotes it, as much as a log line can hold."""
    told = re.escape(f"not the reply subject of a delivery: {subject[:200]!r}")
    with pytest.raises(ValueError, match=f"^{told}$"):
        parse_ack_subject(subject)


@given(st.one_of(st.text(), st.lists(st.text(alphabet="0123456789ab"), max_size=14).map(".".join)))
def test_anything_else_is_a_value_error(tail: str) -> None:
    """No subject makes the reader fail in another way."""
    for subject in (tail, f"$JS.ACK.{tail}"):
        try:
            (sequence, stored), count = parse_ack_subject(subject)
        except ValueError:
            continue
        assert all(isinstance(number, int) for number in (sequence, stored, count))


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
    assert (status.consumer_gone, status.trouble, status.heartbeat) == (gone, trouble, code == "100")


@pytest.mark.parametrize(
    "headers", [None, {}, {"Status": ""}, {"Status": "4O4"}, {"Status": "²²²"}, {"Status": "40444"}]
)
def test_what_is_no_status_is_none(headers: dict[str, str] | None) -> None:
    """A message that has no readable status tells nothing."""
    assert parse_status(headers) is None


def test_a_status_without_description_is_one() -> None:
    """503 comes without."""
    assert parse_status({"Status": "503"}) == Status(503, "")
