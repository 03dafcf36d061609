"""What JetStream writes into subjects and headers. Foreign text in, values out; nothing here waits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..model import MessageId

ACK_PREFIX = "$JS.ACK."
_LONGEST = 20
"""Digits in a number: those of the largest that 64 bits hold."""


def parse_ack_subject(subject: str) -> tuple[MessageId, int, int]:
    """The message, its delivery count, and how many its consumer had never handed out, from a delivery's reply subject.

    Nine tokens, ``$JS.ACK.<stream>.<consumer>.<delivered>.<sseq>.<cseq>.<timestamp>.<pending>``, or at least eleven
    with domain and account before the stream, and perhaps a random one at the end (ADR-15).

    Raises:
        ValueError: it is neither.
    """
    tokens = subject.split(".")
    if not subject.startswith(ACK_PREFIX) or not (len(tokens) == 9 or len(tokens) >= 11):
        raise ValueError(f"not the reply subject of a delivery: {subject[:200]!r}")
    numbers = tokens[4:9] if len(tokens) == 9 else tokens[6:11]
    digits = "".join(numbers)
    if not (digits.isascii() and digits.isdigit() and all(numbers) and max(map(len, numbers)) <= _LONGEST):
        raise ValueError(f"not the reply subject of a delivery: {subject[:200]!r}")
    count, sequence, _, stored, behind = map(int, numbers)
    return (sequence, stored), count, behind


def consumer_of(subject: str) -> str:
    """The consumer that handed out a delivery, from its reply subject, which :func:`parse_ack_subject` can read."""
    tokens = subject.split(".")
    return tokens[3] if len(tokens) == 9 else tokens[5]


@dataclass(frozen=True, slots=True)
class Status:
    """A status message, which ends or accompanies a pull request."""

    code: int
    description: str

    @property
    def heartbeat(self) -> bool:
        """It only says that the request is still there."""
        return self.code == 100

    @property
    def consumer_gone(self) -> bool:
        """There is no consumer, or no JetStream, to pull from."""
        return self.code == 503 or (self.code == 409 and "deleted" in self.description.lower())

    @property
    def trouble(self) -> bool:
        """Not one of the ways in which requests end every day: expired (408) or nothing there (404)."""
        return self.code not in (100, 404, 408)


def parse_status(headers: Mapping[str, str] | None) -> Status | None:
    """The status of a message without a reply subject; None where it has none that can be read."""
    headers = headers or {}
    code = headers.get("Status", "")
    if not (len(code) == 3 and code.isascii() and code.isdigit()):
        return None
    return Status(int(code), headers.get("Description", ""))


def parse_answer(data: bytes) -> dict[str, Any]:
    """What JetStream answers to a request or a publish: an object, its ``error``, where there is one, another.

    Raises:
        ValueError: it is not JetStream's: anyone may answer on a subject.
    """
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("error"), dict | None):
        raise ValueError("an answer that is not JetStream's")  # noqa: TRY004 -- of what came, so a value to callers
    return said


def is_stored(said: Mapping[str, Any]) -> bool:
    """Whether an answer confirms that a message is stored: it then names the stream, and the sequence there."""
    return isinstance(said.get("stream"), str) and type(said.get("seq")) is int
