"""Log lines: each event is one line, by one table. No line contains a body, header, query or secret, at any level."""

from __future__ import annotations

import atexit
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import structlog
from msgspec.structs import asdict

from .. import events as e
from ..model import Ack, Delivery, Nak, NotSent, Refused, Responded, Term
from ..policy.decide import describe, status_of
from ..policy.redirect import redirect_result
from ..ports import Emit
from ..settings import Settings
from .log_writer import LogWriter

LogLine = tuple[str, str, dict[str, Any]]
"""Level, event and fields of a log line."""
_REFUSALS = (401, 403)
"""Statuses that a gateway answers instead of the function, for lack of credentials."""
_MAX_WARNED = 1_000
"""Ignored annotations that are remembered, so that each is logged once: their values are foreign input."""


def configure(settings: Settings, *, process: int | None = None) -> LogWriter:
    """Configure structlog to write to standard output, as JSON or for people.

    *process* is the number of this process if several write there; it is added to each line.
    """
    sys.stdout.flush()  # the writer bypasses its buffer
    json = settings.log_encoding == "json"
    stamp, render = _make_stamp(process), _render_json if json else _make_console_renderer()

    def report(count: int, reason: str) -> bytes:
        text = f"{count} log lines were dropped because standard output could not be written: {reason}"
        return render(None, "warning", stamp(None, "warning", {"event": text}))

    writer = LogWriter(sys.stdout.fileno(), shared=process is not None, json=json, report=report)
    atexit.register(writer.close)
    structlog.configure(
        processors=[stamp, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if settings.debug else logging.INFO),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    return writer


def _make_stamp(process: int | None) -> Callable[[Any, str, Any], Any]:
    """Return a processor that adds level, time and process. It formats the whole seconds once a second."""
    last, prefix = -1, ""

    def stamp(_: Any, level: str, event: dict[str, Any]) -> dict[str, Any]:
        nonlocal last, prefix
        second, fraction = divmod(time.time_ns(), 1_000_000_000)
        if second != last:
            last, prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        if process is not None:
            event["process"] = process
        event["level"] = level
        event["timestamp"] = f"{prefix}.{fraction // 1000:06}Z"
        return event

    return stamp


def _make_console_renderer() -> Callable[[Any, str, Any], bytes]:
    render = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    return lambda *event: render(*event).encode(errors="backslashreplace")


def _render_json(logger: Any, level: str, event: Any) -> bytes:
    if "exc_info" in event:
        event = dict(structlog.processors.format_exc_info(logger, level, event))
    return orjson.dumps(event, default=str)


def log_sink(settings: Settings) -> Emit:
    """Return a sink that writes a line for each event, with the processors of :func:`configure`."""
    # structlog's bound logger would call the same two processors, at 7.0 instead of 5.2 µs a line: 1.7 % of the CPU of
    # a message (measured, docs/architecture.md).
    configured = structlog.get_config()
    stamp, render = configured["processors"]
    write = configured["logger_factory"]().msg
    warned: set[e.AnnotationIgnored] = set()

    def sink(event: e.Event) -> None:
        if isinstance(event, e.AnnotationIgnored):
            if event in warned:
                return
            if len(warned) >= _MAX_WARNED:
                warned.clear()
            warned.add(event)
        if settings.debug or type(event) not in DEBUG_EVENTS:
            level, name, fields = LOG_LINES[type(event)](event)
            write(render(None, level, stamp(None, level, fields | {"event": name})))

    return sink


def _own_fields(level: str, name: str) -> Callable[[Any], LogLine]:
    """Return a maker of lines with the event's own fields."""
    return lambda event: (level, name, asdict(event))


def _invocation_started(event: e.InvocationStarted) -> LogLine:
    invocation, waited = event.invocation, round(event.waited, 6)
    size = invocation.stored_body.size if invocation.stored_body else len(invocation.body)
    fields = {"attempt": event.attempt, "method": invocation.method, "bytes": size, "waited": waited}
    return "debug", "Invoke", {"call_id": invocation.call_id, "function": invocation.label} | fields


def _invocation_ended(event: e.InvocationEnded) -> LogLine:
    fields: dict[str, Any] = {
        "call_id": event.invocation.call_id,
        "function": event.invocation.label,
        "attempt": event.attempt,
        "status": status_of(event.outcome),
        "duration": round(event.duration, 6),
        "bytes": event.outcome.size if isinstance(event.outcome, Responded) else 0,
    }
    if not isinstance(event.verdict, Ack):
        if isinstance(event.verdict, Nak):
            fields["retry_in"] = round(event.verdict.delay, 3)
        else:
            fields["given_up" if isinstance(event.verdict, Term) else "abandoned"] = True
        if not isinstance(event.outcome, Responded):
            fields["reason"] = describe(event.outcome)
    if redirect := redirect_result(event.outcome):
        fields["redirect"] = redirect
    if not event.counts:
        fields["counts"] = False
    level = "warning" if fields["status"] in _REFUSALS or isinstance(event.outcome, NotSent) else "info"
    return level, "Invoked", fields


def _callback_posted(event: e.CallbackPosted) -> LogLine:
    fields: dict[str, Any] = {
        "call_id": event.call_id,
        "function": event.function,
        "to": event.receiver,
        "result": event.result.reason if isinstance(event.result, Refused) else event.result,
        "duration": round(event.duration, 6),
    }
    if event.stored:
        fields["stored"] = True
    if isinstance(event.result, Refused):
        return "error", "Callback refused", fields
    if event.delivered:
        return "info", "Posted result", fields
    if event.retry_in is not None:
        return "warning", "Callback failed", fields | {"again_in": round(event.retry_in, 3)}
    return "error", "Callback given up", fields


def _dead_lettered(event: e.DeadLettered) -> LogLine:
    name = "Dead letter" if event.stored else "Message discarded because dead_letter is false"
    fields = {field: getattr(event.letter, field) for field in ("call_id", "function", "reason", "attempts")}
    if event.letter.kind:
        fields["kind"] = event.letter.kind
    return "error", name, fields | _message(event.letter.delivery)


def _drain_ended(event: e.DrainEnded) -> LogLine:
    fields = {"seconds": round(event.seconds, 3)}
    if event.unconfirmed:
        return "warning", "Drained; the last settlements are not confirmed, so messages may be redelivered", fields
    return "info", "Drained", fields


def _message(delivery: Delivery) -> dict[str, Any]:
    return {"sequence": delivery.id[0], "deliveries": delivery.num_delivered}


DEBUG_EVENTS = frozenset(
    {e.InvocationStarted, e.Settled, e.LimitLearned, e.LeasesExtended, e.BacklogRead, e.StoredCallbacksRead}
)
"""Events logged at debug level: without it their lines are not even made, because each message has some."""
LOG_LINES: Mapping[type[e.Event], Callable[[Any], LogLine]] = {
    e.InvocationStarted: _invocation_started,
    e.InvocationEnded: _invocation_ended,
    e.Settled: lambda ev: ("debug", "Settled", {"verdict": type(ev.verdict).__name__.lower()}),
    e.Redelivered: lambda ev: ("info", "Redelivered", {"known_as": ev.state} | _message(ev.delivery)),
    e.AnnotationIgnored: _own_fields("warning", "Annotation ignored"),
    e.CallbackIgnored: _own_fields("warning", "Callback ignored because of its URL"),
    e.CallbackPosted: _callback_posted,
    e.CallbackKeysLoaded: _own_fields("info", "Signing keys of callbacks changed"),
    e.CallbackKeysRejected: _own_fields("error", "Signing keys of callbacks cannot be read; the last ones stay in use"),
    e.CallbackStored: _own_fields("info", "Callback stored, to be sent again"),
    e.CallbackNotStored: _own_fields("warning", "Callback not stored; trying again from memory"),
    e.CallbackDiscarded: _own_fields("error", "Callback lost: neither it nor its dead letter could be stored"),
    e.StoredCallbacksRead: lambda ev: ("debug", "Stored callbacks read", {"messages": ev.messages}),
    e.DeadLettered: _dead_lettered,
    e.DeadLetterNotStored: lambda ev: (
        "error",
        "Dead letter not stored; trying again",
        {"call_id": ev.letter.call_id, "error": ev.error} | _message(ev.letter.delivery),
    ),
    e.WorkCrashed: lambda ev: (
        "error",
        "Internal error in one message",
        {"error": repr(ev.error), "exc_info": ev.error} | _message(ev.delivery),
    ),
    e.ResultMemoryUnavailable: lambda ev: (
        "warning",
        "Results wait for memory until callbacks end; raise max_results_bytes, or lower max_inflight",
        {"waiting": ev.waiting, "longest": round(ev.longest, 1), "held": ev.held, "max_results_bytes": ev.limit},
    ),
    e.LimitLearned: _own_fields("debug", "Limit learned"),
    e.LeasesExtended: _own_fields("debug", "Leases extended"),
    e.LeaseExpired: lambda ev: (
        "warning",
        "Lease lost: NATS confirmed no extension in time; invocation cancelled",
        _message(ev.delivery),
    ),
    e.Connected: lambda ev: (
        "warning" if ev.reconnected else "info",
        "Reconnected" if ev.reconnected else "Connected",
        {"nats": ev.server},
    ),
    e.Disconnected: _own_fields("warning", "Disconnected from NATS; intake pauses until it reconnects"),
    e.BrokerFailure: lambda ev: ("warning", "Trouble with NATS; trying again", {"doing": ev.action, "error": ev.error}),
    e.BrokerMisconfigured: _own_fields("error", "Stream or consumer on NATS cannot be used; trying again"),
    e.FaultsEnded: _own_fields("info", "Stream and consumers on NATS can be used again"),
    e.ConfigDrift: lambda ev: ("warning", ev.text, {}),
    e.Created: lambda ev: (
        "warning" if ev.recreated else "info",
        f"Recreated the missing {ev.kind}" if ev.recreated else f"Created the {ev.kind}",
        {ev.kind: ev.name},
    ),
    e.ConsumerBound: _own_fields("info", "Consuming"),
    e.SettlementUnconfirmed: _own_fields("warning", "Settlement not confirmed; the message may be redelivered"),
    e.LeftoversDeleted: _own_fields("warning", "Deleted large bodies to which no message referred"),
    e.BacklogRead: lambda ev: ("debug", "Backlog", {"messages": sum(ev.backlog.by_subject.values())}),
    e.Listening: _own_fields("info", "Serving metrics and health"),
    e.DrainStarted: _own_fields("info", "Draining"),
    e.DrainExpired: lambda ev: (
        "warning" if ev.running else "info",
        "Drain ended early; returning running invocations to the queue",
        {"running": ev.running, "why": ev.reason},
    ),
    e.DrainEnded: _drain_ended,
}
"""The line of each event."""
