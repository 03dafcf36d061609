"""A response to a publish is JetStream's confirmation, its error, or foreign; only the first means stored.

Any client may publish to an inbox, so a message counts as stored only by a response that names its stream and its
sequence there. The first line of the input is the response's status, if it has one; the rest is its body.
"""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from worker.gateway.message import compose
from worker.gateway.publish import MessageTooLargeError, publish
from worker.nats.connection import Connection
from worker.ports import BrokerUnavailableError

WORDS = (
    '{"stream":"s","seq":1}', '{"stream":"s","seq":1,"duplicate":true}', '"error":',
    '{"error":{"code":503,"err_code":10077,', '"description":"d"}}', "null", "true", "[]",
    "10054", "10060", '"seq":', '"stream":',
)  # fmt: skip
_MESSAGE = compose("echo", {}, queue="faas-request", namespace="fn", new_call_id="id", now=1)


def check(data: bytes) -> None:
    """Respond with *data* to a publish of the producer, and check the law above."""
    status, _, body = data.partition(b"\n")
    response = SimpleNamespace(
        headers={"Status": status.decode("utf-8", "replace")} if status else None, data=body, subject="_INBOX.1"
    )
    decoded = _decode(body)
    refused = decoded is not None and decoded.get("error") is not None
    stored = (
        decoded is not None
        and not refused
        and isinstance(decoded.get("stream"), str)
        and type(decoded.get("seq")) is int
    )
    confirmed = asyncio.run(_publish(response))
    if isinstance(confirmed, bool):
        assert (stored, confirmed) == (True, bool(decoded and decoded.get("duplicate")))
        assert status != b"503"
    else:
        assert not stored or status == b"503"
        assert str(confirmed)


def _decode(body: bytes) -> dict[str, Any] | None:
    """Decode a JSON object with an optional object ``error``; None for anything else."""
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) and isinstance(decoded.get("error"), dict | None) else None


async def _publish(response: Any) -> bool | Exception:
    """Publish as the producer does, and return whether the message is a duplicate, or the raised error."""
    connection = Connection({}, lambda _: None)

    async def respond(_: str, __: bytes, reply: str, ___: object) -> None:
        response.subject = reply
        connection._on_answer(response)  # noqa: SLF001 -- as nats-py does

    client: Any = SimpleNamespace(is_connected=True, publish=respond, max_payload=2**20)
    connection.client = client
    try:
        return await publish(connection, "faas-request", _MESSAGE, _MESSAGE.payload(), _MESSAGE.digest())
    except (BrokerUnavailableError, MessageTooLargeError) as error:
        return error
