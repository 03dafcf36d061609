"""Tokens come by the queue's own consumer, in either mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.servers import NatsServer, until
from worker.config import load
from worker.model import CreditReturned, Delivery, Notice, Quota, QuotaChanged
from worker.nats.queue import open_queue
from worker.policy.quota import CAP, token_flow

CAPS = token_flow(CAP, "echo.fn")


@pytest.mark.parametrize("mode", ["function", "static"])
async def test_tokens_are_delivered_in_flows_of_their_own(tmp_path: Path, mode: str) -> None:
    """They are wanted, recalled and given back as messages are, and what is agreed on is a notice."""
    came: list[Delivery | Notice] = []
    settings = {"scaling_mode": mode}
    with NatsServer(tmp_path) as server:
        async with open_queue(load({"nats_port": str(server.port)} | settings).settings, lambda _: None) as queue:
            consumer = await queue.consume()

            async def receive() -> None:
                while True:
                    came.extend(await consumer.receive())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                queue.quotas.propose("echo.fn", Quota(max_inflight=3), 1)
                await until(lambda: QuotaChanged("echo.fn", Quota(max_inflight=3)) in came, "it to be agreed")
                consumer.add_credit(5, CAPS)
                await until(lambda: sum(isinstance(each, Delivery) for each in came) == 3, "all three")
                consumer.recall_credit(CAPS)
                await until(lambda: CreditReturned(CAPS, 2) in came, "two to come back")
                for each in came:
                    if isinstance(each, Delivery):
                        queue.quotas.give_back(each, before=trio.current_time() + 30)
                await queue.wait_settled()
                consumer.add_credit(3, CAPS)
                await until(lambda: sum(isinstance(each, Delivery) for each in came) == 6, "all three again")
                nursery.cancel_scope.cancel()
