"""Tokens, received through the queue's own consumer, in either mode."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tests.servers import NatsServer, until
from worker.config import load
from worker.model import CreditReturned, Delivery, Notice, Quota, QuotaChanged
from worker.nats.function_state import AgreedQuota
from worker.nats.queue import open_queue
from worker.nats.quotas import Quotas
from worker.policy.quota import CAP, token_flow

CAPS = token_flow(CAP, "echo.fn")


@pytest.mark.parametrize("mode", ["function", "static"])
async def test_tokens_are_delivered_in_flows_of_their_own(tmp_path: Path, mode: str) -> None:
    """Tokens are requested, recalled and given back as messages are, and an agreed quota is a notice."""
    received: list[Delivery | Notice] = []
    settings = {"scaling_mode": mode}
    with NatsServer(tmp_path) as server:
        async with open_queue(load({"nats_port": str(server.port)} | settings).settings, lambda _: None) as queue:
            consumer = await queue.consume()

            async def receive() -> None:
                while True:
                    received.extend(await consumer.receive())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                queue.quotas.propose("echo.fn", Quota(max_inflight=3), 1)
                await until(lambda: QuotaChanged("echo.fn", Quota(max_inflight=3)) in received, "the agreed quota")
                consumer.add_credit(5, CAPS)
                await until(lambda: sum(isinstance(each, Delivery) for each in received) == 3, "three tokens")
                consumer.recall_credit(CAPS)
                await until(lambda: CreditReturned(CAPS, 2) in received, "the returned credit")
                for each in received:
                    if isinstance(each, Delivery):
                        queue.quotas.give_back(each, before=trio.current_time() + 30)
                await queue.wait_settled()
                consumer.add_credit(3, CAPS)
                await until(lambda: sum(isinstance(each, Delivery) for each in received) == 6, "three more tokens")
                nursery.cancel_scope.cancel()


async def test_tokens_wanted_before_their_quota_is_known_are_created_with_it() -> None:
    """Where tokens are wanted while no quota can be read, as after a restart, they are created once it can."""
    flow, states = token_flow(CAP, "echo.fn"), SimpleNamespace(quotas={})
    pull = SimpleNamespace(flow=flow, bound=False, creating=False, credit=SimpleNamespace(unrequested=1))
    flows: Any = SimpleNamespace(find={flow: pull}.get, open={flow: pull}.get, notify=lambda _: None, ack_wait=1.0)
    jetstream: Any = SimpleNamespace(connection=SimpleNamespace(up=True))
    any_: Any = states
    quotas = Quotas(jetstream, load({}).settings, any_, flows, any_, faults=any_)
    assert await quotas._create(flow) == 0.0  # none can be created
    states.quotas["echo.fn"] = AgreedQuota(Quota(max_inflight=1), 1)
    quotas.quota_changed("echo.fn")
    assert pull.creating
