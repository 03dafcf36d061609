"""Log lines of events."""

from __future__ import annotations

from collections.abc import Iterator

import orjson
import pytest
import structlog
from msgspec.structs import replace

from worker import events as e
from worker.config import load
from worker.model import (
    Abandon,
    Ack,
    Backlog,
    DeadLetter,
    Delivery,
    Invocation,
    Malformed,
    Nak,
    NoResponse,
    Refused,
    Responded,
    Term,
)
from worker.observe.logs import DEBUG_EVENTS, LOG_LINES, configure, log_sink

SECRET = "s3cr3t"
DELIVERY = Delivery((7, 1), "token", 2, 0.0, "q", SECRET.encode())
INVOCATION = Invocation(
    call_id="call-1",
    function="echo",
    label="echo.openfaas-fn",
    method="POST",
    target=f"/function/echo?key={SECRET}".encode(),
    headers=((b"Authorization", SECRET.encode()),),
    body=SECRET.encode(),
    annotations={},
    callback=f"https://user:{SECRET}@example.com:8443/{SECRET}?token={SECRET}",
    started="1",
)
LETTER = DeadLetter(DELIVERY, "gave up", 3, "call-1", "f.ns", 503)
ANSWER = Responded(503, ((b"X", SECRET.encode()),), SECRET.encode(), 6)
EVENTS: list[e.Event] = [
    e.InvocationStarted(INVOCATION, 1, 0.5),
    e.InvocationEnded(INVOCATION, 1, 3, ANSWER, Nak(10.0), 0.25),
    e.InvocationEnded(INVOCATION, 1, 3, NoResponse("refused"), Term("gave up"), 0.25),
    e.InvocationEnded(INVOCATION, 1, 3, ANSWER, Abandon(), 0.25),
    e.InvocationEnded(INVOCATION, 1, 3, ANSWER, Nak(0.5), 0.25, counts=False),
    e.Settled(Ack()),
    e.Redelivered(DELIVERY, "running"),
    e.AnnotationIgnored("f.ns", "com.openfaas.retry.attempts", "many", "a whole number"),
    e.CallbackIgnored("call-1", "f.ns", "its scheme"),
    e.CallbackPosted("a", "echo.fn", "http://h", 200, True, None, 0.1),
    e.CallbackPosted("a", "echo.fn", "http://h", 500, False, 9.0, 0.1, stored=True),
    e.CallbackStored("a", "echo.fn"),
    e.CallbackNotStored("a", "echo.fn", "refused"),
    e.CallbackDiscarded("a", "echo.fn", "http://h"),
    e.StoredCallbacksRead(7, 12.5),
    e.CallbackPosted("a", "echo.fn", "http://h", 500, False, 1.0, 0.1),
    e.CallbackPosted("a", "echo.fn", "http://h", "refused", False, None, 0.1),
    e.DeadLettered(LETTER, True),
    e.DeadLettered(DeadLetter(DELIVERY, "not JSON", 0, None, None, None), False),
    e.DeadLetterNotStored(LETTER, "no answer"),
    e.WorkCrashed(DELIVERY, ValueError("bug")),
    e.ResultMemoryUnavailable(3, 6.25, 1_000_000, 2_000_000),
    e.LimitLearned("echo.openfaas-fn", 7),
    e.LeasesExtended(3),
    e.LeaseExpired(DELIVERY),
    e.Connected("127.0.0.1:4222", False),
    e.Connected("127.0.0.1:4222", True),
    e.Disconnected(),
    e.BrokerFailure("pulling", "no"),
    e.BrokerMisconfigured("no"),
    e.FaultsEnded(),
    e.ConfigDrift("odd"),
    e.Created("stream", "faas-request", False),
    e.Created("stream", "faas-request", True),
    e.ConsumerBound("s", "c", 60.0),
    e.SettlementUnconfirmed(1),
    e.LeftoversDeleted(2),
    e.BacklogRead(Backlog(3, {"q": 2})),
    e.Listening("http://0.0.0.0:8081"),
    e.DrainStarted(3, 25.0),
    e.DrainExpired(3, "second signal"),
    e.DrainEnded(1.0, False),
    e.DrainEnded(1.0, True),
    e.CallbackPosted(
        "a", "echo.fn", "http://h", Refused("10.0.0.1 matches 10.0.0.0/8 in callback_deny"), False, None, 0.1
    ),
    e.CallbackKeysLoaded("/keys", 2),
    e.CallbackKeysRejected("/keys", "line 1: not base64"),
]


@pytest.fixture(autouse=True)
def _structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def _lines(capfdbinary: pytest.CaptureFixture[bytes], events: list[e.Event], **environment: str) -> list[bytes]:
    settings = load({"log_encoding": "json"} | environment).settings
    configure(settings)
    sink = log_sink(settings)
    for event in events:
        sink(event)
    return capfdbinary.readouterr().out.splitlines()


def test_log_lines_contain_every_event() -> None:
    """Each event has an entry in the table and an example in this test."""
    assert set(LOG_LINES) == set(e.Event.__subclasses__()) == {type(event) for event in EVENTS}


def test_log_fields_of_plain_events_have_their_names() -> None:
    """These lines have the event's own fields, whose names and order are part of the log's format."""
    names: dict[type[e.Event], list[str]] = {
        e.AnnotationIgnored: ["function", "annotation", "value", "reason"],
        e.CallbackIgnored: ["call_id", "function", "reason"],
        e.LimitLearned: ["function", "limit"],
        e.LeasesExtended: ["count"],
        e.Disconnected: [],
        e.BrokerMisconfigured: ["error"],
        e.ConsumerBound: ["stream", "consumer", "ack_wait"],
        e.SettlementUnconfirmed: ["count"],
        e.Listening: ["address"],
        e.DrainStarted: ["running", "timeout"],
    }
    lines = {type(event): LOG_LINES[type(event)](event)[2] for event in EVENTS}
    assert {event: list(lines[event]) for event in names} == names


def test_debug_events_are_those_with_debug_lines() -> None:
    """DEBUG_EVENTS has exactly the events whose lines are at debug level: these are formatted only with debug."""
    assert {type(event) for event in EVENTS if LOG_LINES[type(event)](event)[0] == "debug"} == DEBUG_EVENTS


@pytest.mark.parametrize("encoding", ["json", "console"])
def test_lines_of_all_events_contain_no_secret(capfdbinary: pytest.CaptureFixture[bytes], encoding: str) -> None:
    """Bodies, headers, queries and any part of a callback URL but its origin are never logged, not even at debug."""
    lines = _lines(capfdbinary, EVENTS, debug="true", log_encoding=encoding)
    assert len(lines) >= len(EVENTS)
    assert not [line for line in lines if SECRET.encode() in line]


def test_ended_invocation_is_one_line_at_info(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """An ended invocation logs call id, function, attempt, status, duration and bytes; its other lines are debug."""
    ended = e.InvocationEnded(INVOCATION, 2, 3, ANSWER, Ack(), 0.25)
    (line,) = _lines(capfdbinary, [EVENTS[0], ended, e.Settled(Ack())])
    fields = orjson.loads(line)
    del fields["timestamp"]
    assert fields == {
        "event": "Invoked",
        "level": "info",
        "call_id": "call-1",
        "function": "echo.openfaas-fn",
        "attempt": 2,
        "status": 503,
        "duration": 0.25,
        "bytes": 6,
    }


def test_started_invocation_is_one_line_at_debug(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A started invocation logs its call id at debug level."""
    (line,) = _lines(capfdbinary, [EVENTS[0]], debug="true")
    fields = orjson.loads(line)
    assert (fields["event"], fields["level"], fields["call_id"]) == ("Invoke", "debug", "call-1")


def test_retried_invocation_logs_the_wait(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """The line of a retried invocation has the seconds before the next attempt."""
    (line,) = _lines(capfdbinary, [EVENTS[1]])
    assert orjson.loads(line)["retry_in"] == 10.0


def test_ignored_annotation_is_logged_once(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """An ignored annotation is logged once for each value, because one line for each message would flood the log."""
    first = e.AnnotationIgnored("f.ns", "com.openfaas.retry.attempts", "many", "a whole number")
    lines = _lines(capfdbinary, [first, first, replace(first, value="few"), first])
    assert len(lines) == 2


def test_dead_letter_without_a_call_id_logs_its_sequence(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """A message that cannot be decoded has no call id; its sequence number finds it in the dead letters."""
    malformed = e.InvocationEnded(INVOCATION, 1, 3, Malformed("odd"), Term("odd"), 0.0)
    lines = _lines(capfdbinary, [EVENTS[17], malformed])
    assert orjson.loads(lines[0])["sequence"] == 7
