"""The report of an invocation's end: the callback, and the dead letter's headers.

A callback has an id, by which a receiver can detect that it was sent again.
"""

from __future__ import annotations

import re
from hashlib import sha256
from urllib.parse import urlsplit

from ..model import Callback, DeadLetter, Invocation, MessageId, Outcome, PostResult, Responded
from .decide import status_of
from .decode import HOP_BY_HOP, connection_options
from .signature import OWN_HEADERS, WEBHOOK_ID

_OURS = HOP_BY_HOP.union(
    b"host content-length user-agent x-call-id x-function-name x-function-status x-duration-seconds x-start-time "
    b"x-retry x-retry-max x-truncated".split(),
    OWN_HEADERS,
)
"""Response headers that a callback does not have: those about the connection, and those that it sets itself."""
_HOST_AND_PORT = re.compile(r"(\[.*\]|[^:]*)(?::([0-9]*))?", re.DOTALL)
_PORTS = {"http": "80", "https": "443"}
_PASSING = frozenset({408, 425, 429})
"""Client errors after which a retry may succeed."""


def make_callback(
    invocation: Invocation,
    outcome: Outcome,
    *,
    message: MessageId,
    attempt: int,
    attempts: int,
    duration: float,
    user_agent: str,
) -> Callback | None:
    """Return the POST that reports the end of an invocation; None if it has no callback (contract, section 6).

    *message* is the invocation's message, which the callback's id is made of.
    """
    if invocation.callback is None:
        return None
    # Only a bug in the worker has no status: to the caller, as if the function had not answered.
    answer = outcome if isinstance(outcome, Responded) else Responded(status_of(outcome) or 502)
    named = (connection_options(value) for name, value in answer.headers if name.lower() == b"connection")
    dropped = _OURS.union(*named)
    headers = [field for field in answer.headers if field[0].lower() not in dropped]
    fields = {
        "X-Call-Id": invocation.call_id,
        "X-Function-Name": invocation.function,
        "X-Function-Status": str(answer.status),
        "X-Duration-Seconds": f"{duration:.6f}",
        "X-Start-Time": invocation.started,
        "User-Agent": user_agent,
    }
    if attempt > 1:
        # An attempt past the last allowed one (they became fewer, or were counted too high) is reported as the last.
        fields |= {"X-Retry": str(min(attempt, attempts) - 1), "X-Retry-Max": str(attempts - 1)}
    if answer.truncated:
        fields["X-Truncated"] = "true"
    headers += [(name.encode(), value.encode()) for name, value in fields.items()]
    headers.append((WEBHOOK_ID, _webhook_id(invocation, message)))
    return Callback(invocation.callback, tuple(headers), answer.body)


def _webhook_id(invocation: Invocation, message: MessageId) -> bytes:
    """Return the id of a callback: the same for each delivery of the message, and another one for any other message.

    It is a hash, because a call id is the caller's choice: it might contain the dot that ends an id where it is signed.
    """
    parts = invocation.call_id, invocation.label, str(message[0]), str(message[1])
    return b"msg_" + sha256("\n".join(parts).encode()).hexdigest()[:32].encode()


def origin_of(url: str) -> str:
    """Return scheme, host and port of a callback's URL, the same for each way to write them.

    The rest may be secret: for many webhooks the path is.
    """
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2].lower()
    host, port = found.groups() if (found := _HOST_AND_PORT.fullmatch(netloc)) else (netloc, None)
    shown = "" if port in (None, "", _PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host.removesuffix('.')}{shown}"


def is_delivered(result: PostResult) -> bool:
    """Return whether the callback was delivered: only 2xx is a confirmation, and a redirect leads elsewhere."""
    return isinstance(result, int) and 200 <= result < 300


def is_retriable(result: PostResult) -> bool:
    """Return whether a retry may succeed."""
    return isinstance(result, str) or (isinstance(result, int) and (result >= 500 or result in _PASSING))


def dead_letter_headers(letter: DeadLetter, *, stream: str) -> dict[str, str]:
    """Return the headers of a dead letter; its body is the message as it was stored, to the byte.

    Values are cut to what a header line can hold and have no control characters, because reasons quote foreign input.
    """
    known = {
        "X-Dead-Letter-Kind": letter.kind or None,
        "X-Dead-Letter-Reason": letter.reason,
        "X-Dead-Letter-Attempts": str(letter.attempts),
        "X-Dead-Letter-Deliveries": str(letter.delivery.num_delivered),
        "X-Dead-Letter-Stream": stream,
        "X-Dead-Letter-Subject": letter.delivery.subject,
        "X-Dead-Letter-Sequence": str(letter.delivery.id[0]),
        "X-Call-Id": letter.call_id,
        "X-Function-Name": letter.function,
        "X-Function-Status": None if letter.status is None else str(letter.status),
    }
    return {name: _printable(value)[:1024] for name, value in known.items() if value is not None}


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
