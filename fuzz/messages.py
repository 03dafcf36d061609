"""Decoding any bytes ends in one request to the function that they name, or in a reason of one line.

It also gives a callback URL that can be posted to, or none. Run it with ``python -m fuzz messages``.
"""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote

from fuzz.callbacks import check_one_host
from worker.model import DeadLetter, Delivery, Invocation, Malformed
from worker.policy.decode import callback_url, decode
from worker.policy.report import dead_letter_headers

_FUNCTION = re.compile(r"[a-z0-9]([-a-z0-9_]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9_]*[a-z0-9])?)?")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_REST = re.compile(rb"(/[!-~]*)?(\?[!-~]+)?")
_VALUE = re.compile(rb"([^\x00-\x20\x7f]([^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?")
NOT_FORWARDED = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer trailers "
    b"transfer-encoding upgrade host content-length".split()
)


def check(data: bytes) -> None:
    """Decode *data* as a message's payload and check the law above."""
    delivery = Delivery(id=(1, 1), token="", num_delivered=1, received_at=0.0, subject="q", payload=data)
    result = decode(delivery, namespace="fn", user_agent="fuzz")
    if isinstance(result, Malformed):
        _check_reason(result.reason)
        _check_dead_letter(delivery, result.reason)
        return
    invocation, callback_error = result
    check_one_request(invocation)
    if callback_error is not None:
        assert invocation.callback is None
        _check_reason(callback_error)
    if invocation.callback is not None:
        assert callback_url(invocation.callback) == invocation.callback
        check_one_host(invocation.callback)


def check_one_request(invocation: Invocation) -> None:
    """Check that an invocation can only be read as one request to its function, with the headers it has."""
    function = invocation.function
    assert _FUNCTION.fullmatch(function)
    start = f"/function/{function}".encode()
    assert invocation.target.startswith(start)
    assert _REST.fullmatch(invocation.target.removeprefix(start))
    assert b"#" not in invocation.target
    path = posixpath.normpath(unquote(invocation.target.partition(b"?")[0].decode()))
    assert f"{path}/".startswith(f"/function/{function}/")
    assert _TOKEN.fullmatch(invocation.method.encode())
    for name, value in invocation.headers:
        assert _TOKEN.fullmatch(name)
        assert _VALUE.fullmatch(value)
        assert name.lower() not in NOT_FORWARDED
    ids = [value for name, value in invocation.headers if name.lower() == b"x-call-id"]
    assert ids[0] == invocation.call_id.encode()


def _check_reason(text: str) -> None:
    assert text
    assert text.isprintable()
    assert len(text) < 10_000


def _check_dead_letter(delivery: Delivery, reason: str) -> None:
    """Check that a dead letter's headers are lines of text, for any text that the reason quotes."""
    letter = DeadLetter(delivery, reason, attempts=0, call_id=None, function=None, status=None)
    for name, value in dead_letter_headers(letter, stream="q").items():
        assert _TOKEN.fullmatch(name.encode())
        assert value.isprintable()
        assert len(value.encode()) <= 4 * 1024
