"""What is answered to a request or a publish is JetStream's yes, its no, or no answer; nothing else is a yes.

Anyone may answer on a subject of ours, so a message counts as stored only by an answer that names its stream and its
sequence there. The first line of the input is the answer's status, if it has one; the rest is its body.
"""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

from worker.config import load
from worker.gateway.message import Message
from worker.gateway.publisher import MessageTooLargeError, Publisher
from worker.nats.connection import Connection
from worker.nats.jetstream import JetStream
from worker.nats.wire import ApiError, PubAck
from worker.ports import BrokerUnavailableError

WORDS = (
    '{"stream":"s","seq":1}', '{"stream":"s","seq":1,"duplicate":true}', '"error":',
    '{"error":{"code":503,"err_code":10077,', '"description":"d"}}', "null", "true", "[]",
    "10054", "10060", '"seq":', '"stream":',
)  # fmt: skip
_SETTINGS = load({}).settings
_MESSAGE = Message("faas-request.0.echo.fn", "id", "1", b"{}")


def check(data: bytes) -> None:
    """Answer *data* to a request, and to a publish of the producer's and the worker's, and see that the law holds."""
    status, _, body = data.partition(b"\n")
    answer = SimpleNamespace(
        headers={"Status": status.decode("utf-8", "replace")} if status else None, data=body, subject="_INBOX.1"
    )
    said = _said(body)
    refused = said is not None and said.get("error") is not None
    stored = said is not None and not refused and isinstance(said.get("stream"), str) and type(said.get("seq")) is int
    _is_confirmed(answer, status, stored=stored, duplicate=bool(said and said.get("duplicate")))
    got = asyncio.run(_published(answer))
    assert got is not PubAck or (stored and status != b"503")
    assert got is not ApiError or refused


def _is_confirmed(answer: Any, status: bytes, *, stored: bool, duplicate: bool) -> None:
    log: Any = SimpleNamespace()
    publisher = Publisher(_SETTINGS, name="fuzz", log=log)
    try:
        confirmed = publisher._confirmed(_MESSAGE, answer)  # noqa: SLF001 -- without a connection
    except (BrokerUnavailableError, MessageTooLargeError) as refusal:
        reason = str(refusal)
    else:
        assert (stored, confirmed) == (True, duplicate)
        assert status != b"503"
        return
    assert not stored or status == b"503"
    assert reason


def _said(body: bytes) -> dict[str, Any] | None:
    """A JSON object, its ``error``, where it has one, being another; None for anything else."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) and isinstance(said.get("error"), dict | None) else None


async def _published(answer: Any) -> type[object]:
    """Publish over a connection on which *answer* comes, and return the type of what the caller gets."""
    connection = Connection({}, lambda _: None)

    async def publish(_: str, __: bytes, reply: str, ___: object) -> None:
        answer.subject = reply
        connection._on_answer(answer)  # noqa: SLF001 -- as nats-py does

    client: Any = SimpleNamespace(is_connected=True, publish=publish)
    connection.client = client
    try:
        return type(await JetStream(connection).publish("DEAD-LETTERS.q.echo", b"{}", {}))
    except (ApiError, BrokerUnavailableError) as error:
        assert str(error)  # noqa: PT017 -- which it is, the caller compares
        return type(error)
