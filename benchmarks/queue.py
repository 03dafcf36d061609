"""The measured queue: its stream and consumer, and messages for it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from tests.servers import NatsServer
from worker.gateway.message import compose

STREAM, DURABLE = "faas-request", "faas-workers"
_BATCH = 2000
"""Messages published at once: fewer than the server allows to wait for storing."""
BODY = bytes(range(256))
_HEADERS = {
    "Accept": ["*/*"],
    "Content-Type": ["application/octet-stream"],
    "User-Agent": ["curl/8.5.0"],
    "X-Forwarded-For": ["10.42.0.17"],
    "X-Forwarded-Host": ["gateway.openfaas.example"],
}
"""Headers that a gateway behind an ingress receives."""


def empty_queue(nats: NatsServer, storage: str = "memory", **changes: Any) -> None:
    """Recreate stream and consumer as the worker does, but in memory, and with *changes* of the consumer."""
    if nats.state():
        nats.api(f"STREAM.DELETE.{STREAM}")
    nats.make_stream(STREAM, storage=storage)
    consumer = {
        "durable_name": DURABLE,
        "deliver_policy": "all",
        "ack_policy": "explicit",
        "replay_policy": "instant",
        "max_deliver": -1,
        "max_ack_pending": -1,
        "max_waiting": 512,
        "ack_wait": 60_000_000_000,
    } | changes
    nats.api(f"CONSUMER.DURABLE.CREATE.{STREAM}.{DURABLE}", stream_name=STREAM, config=consumer)


def message(number: int, function: str = "echo", callback: str = "") -> bytes:
    """Return an invocation with a body of 256 bytes, as OpenFaaS's gateway and this project's producer write it.

    *callback* is the URL of its callback's receiver, to which the number is added.
    """
    headers = _HEADERS | {"X-Callback-Url": [f"{callback}{number}"]} if callback else _HEADERS
    call_id = f"7d9c8f1e-0000-4000-8000-{number:012}"
    now = time.time_ns()
    return compose(
        function, headers, queue=STREAM, namespace="openfaas-fn", new_call_id=call_id, now=now, body=BODY
    ).payload()


def num_waiting_pulls(nats: NatsServer) -> int:
    """Count the pull requests that wait at the consumer."""
    waiting: int = nats.api(f"CONSUMER.INFO.{STREAM}.{DURABLE}")["num_waiting"]
    return waiting


def stored_at(nats: NatsServer, sequence: int) -> float:
    """Return the time when the message of that number was stored (s since the epoch)."""
    stored: str = nats.api(f"STREAM.MSG.GET.{STREAM}", seq=sequence)["message"]["time"]
    return datetime.fromisoformat(stored[:26].rstrip("Z")).replace(tzinfo=UTC).timestamp()


def fill(nats: NatsServer, count: int, functions: int = 1, callback: str = "") -> None:
    """Store *count* invocations, of *functions* functions in turn, on the bare subject, which OpenFaaS uses."""
    for start in range(0, count, _BATCH):
        numbers = range(start, min(start + _BATCH, count))
        nats.publish_many((STREAM, message(number, f"echo-{number % functions}", callback), {}) for number in numbers)
