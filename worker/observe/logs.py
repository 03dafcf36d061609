"""Events as log lines: one table, one line an event. Never a body, a header, a query or a secret, at any level."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson
import structlog

from .. import events as e
from ..config import Settings
from ..model import Abandon, Ack, Delivery, Nak, Responded, Term, Verdict
from ..policy.decide import describe, status_of
from ..ports import Emit
from .log_writer import LogWriter

LogLine = tuple[str, str, dict[str, Any]]
"""Level, message, fields."""


def configure(settings: Settings, *, process: int | None = None) -> LogWriter:
    """Set structlog up: lines to standard output, as JSON or for people.

    Args:
        settings: which of both, and how much.
        process: the number of this process, where several write there; each line tells it.
    """
    sys.stdout.flush()  # from here on, what is written goes past its buffer
    json = settings.log_encoding == "json"
    lines = LogWriter(sys.stdout.fileno(), shared=process is not None, json=json)
    stamp: Any = _stamp() if process is None else _stamp(process=process)
    render: Any = _json if json else _for_people()
    structlog.configure(
        processors=[stamp, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if settings.debug else logging.INFO),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    return lines


def _for_people() -> Callable[..., bytes]:
    render = structlog.dev.ConsoleRenderer(colors=sys.stdout.isatty())
    return lambda *event: render(*event).encode(errors="backslashreplace")


def _stamp(**more: Any) -> Callable[[Any, str, dict[str, Any]], dict[str, Any]]:
    """Adds level and time, ``2026-11-25T11:00:00.123456Z``: the day and second are made once a second."""
    last, prefix = -1, ""

    def stamp(_: Any, level: str, event: dict[str, Any]) -> dict[str, Any]:
        nonlocal last, prefix
        second, fraction = divmod(time.time_ns(), 1_000_000_000)
        if second != last:
            last, prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        if more:
            event |= more
        event["level"] = level
        event["timestamp"] = f"{prefix}.{fraction // 1000:06}Z"
        return event

    return stamp


def log_sink(settings: Settings) -> Emit:
    """A sink that writes each event as the table below has it, by the processors of :func:`configure`.

    It calls these itself. A bound logger of structlog's does no more for an event, and takes 2.5 µs for it.
    """
    configured = structlog.get_config()
    stamp, render = configured["processors"]
    write = configured["logger_factory"]().msg
    once = _Once(1_000)

    def sink(event: e.Event) -> None:
        if isinstance(event, e.AnnotationIgnored) and not once(event):
            return
        if isinstance(event, e.InvocationStarted | e.LimitLearned) and not settings.debug:
            return  # the lines a message that are usually not written: spare their making
        level, message, fields = LOG_LINES[type(event)](event)
        if level != "debug" or settings.debug:
            write(render(None, level, stamp(None, level, fields | {"event": message})))

    return sink


class _Once:
    """True for what it has not seen. It forgets all when it has seen *most*, so it is bounded."""

    def __init__(self, most: int) -> None:
        self._most, self._seen = most, set[Any]()

    def __call__(self, value: Any) -> bool:
        if value in self._seen:
            return False
        if len(self._seen) >= self._most:
            self._seen.clear()
        self._seen.add(value)
        return True


def _started(event: e.InvocationStarted) -> LogLine:
    call = event.invocation
    return (
        "debug",
        "Invoke",
        {
            "call_id": call.call_id,
            "function": call.label,
            "attempt": event.attempt,
            "method": call.method,
            "bytes": len(call.body),
            "waited": round(event.waited, 6),
        },
    )


def _ended(event: e.InvocationEnded) -> LogLine:
    fields: dict[str, Any] = {
        "call_id": event.invocation.call_id,
        "function": event.invocation.label,
        "attempt": event.attempt,
        "status": status_of(event.outcome),
        "duration": round(event.duration, 6),
        "bytes": event.outcome.size if isinstance(event.outcome, Responded) else 0,
    }
    if not isinstance(event.verdict, Ack):
        fields |= _next(event.verdict)
        if not isinstance(event.outcome, Responded):
            fields["reason"] = describe(event.outcome)
    if not event.counts:
        fields["counts"] = False
    return "info", "Invoked", fields


def _next(verdict: Verdict) -> dict[str, Any]:
    match verdict:
        case Ack():
            return {}
        case Nak(delay):
            return {"retry_in": round(delay, 3)}
        case Term():
            return {"given_up": True}
        case Abandon():
            return {"abandoned": True}


def _posted(event: e.CallbackPosted) -> LogLine:
    fields: dict[str, Any] = {
        "call_id": event.invocation.call_id,
        "function": event.invocation.label,
        "to": _origin(event.invocation.callback or ""),
        "result": event.result,
        "duration": round(event.duration, 6),
    }
    if event.delivered:
        return "info", "Posted result", fields
    if event.retry_in is not None:
        return "warning", "Callback failed", fields | {"again_in": round(event.retry_in, 3)}
    return "error", "Callback given up", fields


def _dead(event: e.DeadLettered) -> LogLine:
    fields = {
        "call_id": event.call_id,
        "function": event.function,
        "reason": event.reason,
        "attempts": event.attempts,
    } | _where(event.delivery)
    if event.stored:
        return "error", "Dead letter", fields
    return "error", "Given up, and not kept since dead_letter is false", fields


def _connected(event: e.Connected) -> LogLine:
    return (
        ("warning" if event.reconnected else "info"),
        ("Reconnected" if event.reconnected else "Connected"),
        {"nats": event.server},
    )


def _made(event: e.Created) -> LogLine:
    if event.recreated:
        return "warning", f"The {event.kind} was gone, and has been made again", {event.kind: event.name}
    return "info", f"Made the {event.kind}", {event.kind: event.name}


def _drain_ended(event: e.DrainEnded) -> LogLine:
    fields = {"seconds": round(event.seconds, 3)}
    if event.unconfirmed:
        return "warning", "Drained; the last settlements were not confirmed, and may be delivered again", fields
    return "info", "Drained", fields


def _where(delivery: Delivery) -> dict[str, Any]:
    return {"sequence": delivery.id[0], "deliveries": delivery.num_delivered}


def _origin(url: str) -> str:
    """Scheme, host and port. What else a URL has may be a secret: of many a webhook it is the path."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _json(_: Any, __: str, event: dict[str, Any]) -> bytes:
    if "exc_info" in event:
        event = dict(structlog.processors.format_exc_info(_, __, event))
    return orjson.dumps(event, default=str)


LOG_LINES: Mapping[type[e.Event], Callable[[Any], LogLine]] = {
    e.InvocationStarted: _started,
    e.InvocationEnded: _ended,
    e.Settled: lambda v: ("debug", "Settled", {"verdict": type(v.verdict).__name__.lower()}),
    e.Redelivered: lambda v: ("info", "Redelivered", {"known_as": v.state} | _where(v.delivery)),
    e.AnnotationIgnored: lambda v: (
        "warning",
        "Annotation ignored",
        {"function": v.function, "annotation": v.annotation, "value": v.value[:80], "reason": v.reason},
    ),
    e.CallbackIgnored: lambda v: (
        "warning",
        "Callback ignored: it cannot be posted to",
        {"call_id": v.call_id, "function": v.function, "reason": v.reason},
    ),
    e.CallbackPosted: _posted,
    e.DeadLettered: _dead,
    e.DeadLetterNotStored: lambda v: (
        "error",
        "Dead letter not stored; trying again",
        {"call_id": v.call_id, "error": v.error} | _where(v.delivery),
    ),
    e.WorkCrashed: lambda v: (
        "error",
        "A bug in the worker, met by one message",
        {"error": repr(v.error), "exc_info": v.error} | _where(v.delivery),
    ),
    e.LimitLearned: lambda v: ("debug", "Limit learned", {"function": v.function, "limit": v.limit}),
    e.LeasesExtended: lambda v: ("debug", "Leases extended", {"count": v.count}),
    e.LeaseExpired: lambda v: (
        "warning",
        "Lease lost: NATS confirmed no extension in time, so another worker may run it; cancelled here",
        _where(v.delivery),
    ),
    e.Connected: _connected,
    e.Disconnected: lambda _: ("warning", "Disconnected from NATS; intake pauses until it is back", {}),
    e.BrokerFailure: lambda v: ("warning", "Trouble with NATS; trying again", {"doing": v.action, "error": v.error}),
    e.BrokerMisconfigured: lambda v: (
        "error",
        "Cannot work with what is on NATS now; trying again",
        {"error": v.error},
    ),
    e.ConfigDrift: lambda v: ("warning", v.text, {}),
    e.Created: _made,
    e.ConsumerBound: lambda v: (
        "info",
        "Consuming",
        {"stream": v.stream, "consumer": v.consumer, "ack_wait": v.ack_wait},
    ),
    e.SettlementUnconfirmed: lambda v: (
        "warning",
        "Settlement not confirmed; the message may be delivered again",
        {"count": v.count},
    ),
    e.BacklogRead: lambda v: ("debug", "Backlog", {"messages": sum(v.backlog.by_subject.values())}),
    e.Listening: lambda v: ("info", "Serving metrics and health", {"address": v.address}),
    e.DrainStarted: lambda v: ("info", "Draining", {"running": v.running, "timeout": v.timeout}),
    e.DrainExpired: lambda v: (
        "warning" if v.running else "info",
        "Giving running invocations back",
        {"running": v.running, "why": v.reason},
    ),
    e.DrainEnded: _drain_ended,
}
"""Each event's line."""
