"""Readers of the messages that a pull request brings: deliveries by their reply subjects, statuses by their headers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from ..model import MessageId
from ..policy.durations import parse_duration

_MAX_DIGITS = 20
"""Digits of the largest number that 64 bits hold."""


def parse_ack_subject(subject: str) -> tuple[MessageId, int, int]:
    """Return a delivery's message, its number of deliveries, and its consumer's number of pending messages.

    A reply subject has nine tokens, ``$JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<timestamp>.<pending>``, or
    at least eleven, with domain and account before the stream, and perhaps a random one at the end (ADR-15). Any other
    subject raises ValueError.
    """
    tokens = subject.split(".")
    numbers = tokens[4:9] if len(tokens) == 9 else tokens[6:11] if len(tokens) >= 11 else []
    digits = "".join(numbers) if subject.startswith("$JS.ACK.") else ""
    if not (digits.isascii() and digits.isdigit() and all(numbers) and max(map(len, numbers)) <= _MAX_DIGITS):
        raise ValueError(f"not the reply subject of a delivery: {subject[:200]!r}")
    num_delivered, sequence, _, stored_at, num_pending = map(int, numbers)
    return (sequence, stored_at), num_delivered, num_pending


def consumer_of(subject: str) -> str:
    """Return the consumer that made a delivery, from its reply subject, which :func:`parse_ack_subject` can read."""
    tokens = subject.split(".")
    return tokens[3] if len(tokens) == 9 else tokens[5]


@dataclass(frozen=True, slots=True)
class Status:
    """A status message, which ends a pull request, or confirms that it is open: 100, a heartbeat."""

    code: int
    description: str

    @property
    def consumer_gone(self) -> bool:
        """Whether there is no consumer, or no JetStream, to pull from."""
        return self.code == 503 or (self.code == 409 and "deleted" in self.description.lower())

    @property
    def limits(self) -> tuple[int, float]:
        """The limits that the request exceeded, of its messages and of its seconds; 0 where it did not.

        Nats-server writes ``Exceeded MaxRequestBatch of 10`` and ``Exceeded MaxRequestExpires of 5s``.
        """
        found = _EXCEEDED.fullmatch(self.description) if self.code == 409 else None
        if found is None:
            return 0, 0.0
        if found["what"] == "Batch":
            return int(found["limit"]) if found["limit"].isdigit() else 0, 0.0
        with suppress(ValueError):
            return 0, parse_duration(found["limit"])
        return 0, 0.0

    @property
    def waiting(self) -> bool:
        """Whether as many requests wait at the server as the consumer's ``max_waiting`` allows."""
        return self.code == 409 and self.description == "Exceeded MaxWaiting"

    @property
    def passing(self) -> bool:
        """Whether the rejection is part of a server's ordinary life, so that another request is all that is needed."""
        return self.code == 409 and self.description in _PASSING

    @property
    def rejected(self) -> bool:
        """Whether the server rejected the request, which has not merely expired (408) or found no message (404)."""
        return self.code not in (100, 404, 408)


_EXCEEDED = re.compile(r"Exceeded MaxRequest(?P<what>Batch|Expires) of (?P<limit>[!-~]{1,30})", re.ASCII)
_PASSING = frozenset({"Server Shutdown", "Leadership Change", "Batch Completed"})


def is_stripped(headers: Mapping[str, str] | None) -> bool:
    """Return whether a delivery without a payload seems to be one of a consumer with ``headers_only``."""
    return (headers or {}).get("Nats-Msg-Size", "0") != "0"


def parse_status(headers: Mapping[str, str] | None) -> Status | None:
    """Return the status of a message without a reply subject, or None where it has none."""
    headers = headers or {}
    code = headers.get("Status", "")
    if not (len(code) == 3 and code.isascii() and code.isdigit()):
        return None
    return Status(int(code), headers.get("Description", ""))
