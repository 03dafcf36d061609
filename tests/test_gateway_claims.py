"""Claims of call ids when something breaks between a claim and its publish: a caller, the producer or NATS."""

from __future__ import annotations

import asyncio
import base64
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.gateway import Gateway, Response, gateway_on
from tests.servers import NatsServer, wait_until
from worker.config import load
from worker.gateway import publisher
from worker.gateway.message import Message, compose
from worker.gateway.publish import publish
from worker.gateway.publisher import CallIdReusedError, QueueWriter, Stored
from worker.nats.connection import connected
from worker.settings import Settings


def call(body: bytes, call_id: str = "one") -> Message:
    """Return a call to ``echo``."""
    return compose(
        "echo",
        {"X-Call-Id": [call_id]},
        queue="faas-request",
        namespace="openfaas-fn",
        new_call_id="unused",
        now=1,
        body=body,
    )


@pytest.mark.parametrize("step", ["before the claim", "after the claim", "after the publish"])
def test_publish_that_is_cancelled_and_sent_again_is_queued_once(
    nats: NatsServer, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A publish may be cancelled at any step: the same request is queued once when it is sent again, another never."""
    original, reached, call_id = publish, asyncio.Event(), step
    claim = QueueWriter._claim

    async def publish_slowly(*arguments: object) -> bool:
        if step == "after the publish":
            await original(*arguments)  # type: ignore[arg-type]  # passed through
        reached.set()
        await asyncio.sleep(3600)
        raise AssertionError

    async def never(*_: object) -> None:
        reached.set()
        await asyncio.sleep(3600)

    async def scenario() -> tuple[Stored, Stored]:
        async with connected(settings_for(nats), "test") as connection:
            writer = QueueWriter(connection, settings_for(nats), lambda _: None)
            if step == "before the claim":
                monkeypatch.setattr(QueueWriter, "_claim", never)
            else:
                monkeypatch.setattr(publisher, "publish", publish_slowly)
            first = asyncio.create_task(writer.publish(call(b"x", call_id)))
            await reached.wait()
            first.cancel()
            await asyncio.wait([first])
            assert first.cancelled()
            monkeypatch.setattr(publisher, "publish", original)
            monkeypatch.setattr(QueueWriter, "_claim", claim)
            again = await writer.publish(call(b"x", call_id))
            with pytest.raises(CallIdReusedError):
                await writer.publish(call(b"y", call_id))
            return again, await writer.publish(call(b"x", call_id))

    again, once_more = asyncio.run(scenario())
    assert again.repeated == (step == "after the publish")
    assert once_more.repeated
    assert queued(nats, call_id) == [b"x"]


def test_caller_that_disconnects_before_its_answer_can_send_again(nats: NatsServer, gateway: Gateway) -> None:
    """Callers that close their connections right after the request find it queued once when they send it again."""
    call_ids = [f"left-{number}" for number in range(50)]
    for call_id in call_ids:
        with gateway.raw() as raw:
            raw.sendall(
                b"POST /async-function/echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nX-Call-Id: %s\r\n\r\nx"
                % call_id.encode()
            )
    answers = [gateway.queue("echo", b"x", X_Call_Id=call_id) for call_id in call_ids]
    assert {answer.status for answer in answers} == {202}
    for call_id in call_ids:
        assert queued(nats, call_id) == [b"x"]


def test_nats_killed_while_two_producers_race_keeps_one_request(own_nats: NatsServer, tmp_path: Path) -> None:
    """Kills of NATS during races for call ids leave one of the two requests queued, once, and no false answer.

    Each request is sent again until it gets 202 or 422: that is its final answer.
    """
    chance = random.Random(1)
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    with gateway_on(own_nats, tmp_path / "one") as one, gateway_on(own_nats, tmp_path / "other") as other:
        gateways = [one, other]

        def settle(call_id: str, which: int) -> Response:
            def final() -> Response | None:
                answer = gateways[which].queue("echo", b"%d" % which, X_Call_Id=call_id)
                assert answer.status in (202, 422, 503), answer
                return answer if answer.status != 503 else None

            return wait_until(final, "a final answer")

        for round_ in range(3):
            call_ids = [f"race-{round_}-{number}" for number in range(40)]
            with ThreadPoolExecutor(8) as pool:
                pairs = [[pool.submit(settle, call_id, which) for which in range(2)] for call_id in call_ids]
                done = chance.randrange(10, 60)
                wait_until(lambda: sum(each.done() for pair in pairs for each in pair) >= done, "answers")  # noqa: B023 -- used at once
                own_nats.kill()
                own_nats.start()
                answers = [[each.result().status for each in pair] for pair in pairs]
            for call_id, statuses in zip(call_ids, answers, strict=True):
                assert sorted(statuses) == [202, 422]
                assert queued(own_nats, call_id) == [b"%d" % statuses.index(202)]


def queued(nats: NatsServer, call_id: str) -> list[bytes]:
    """Return the bodies of the messages with a call id."""
    bodies = ((each.json["Header"]["X-Call-Id"], each.json.get("Body", "")) for each in nats.messages())
    return [base64.b64decode(body) for found, body in bodies if found == [call_id]]


def settings_for(nats: NatsServer) -> Settings:
    """Return the settings of a producer."""
    return load({"nats_port": str(nats.port)}).settings
